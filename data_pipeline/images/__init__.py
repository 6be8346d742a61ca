"""From image files to squares of pixels.

1. decoding.py opens bytes; pictures.py turns any mode and orientation into RGB
2. transforms.py cuts or pads to a square; views.py names the ways in which an image is seen
"""
