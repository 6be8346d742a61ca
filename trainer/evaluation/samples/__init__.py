"""Images that a generator draws.

1. label_plan.py: which class each image has; sampler.py draws them
2. sample_files.py and sample_record.py: images as files; memorization.py: the training images that are nearest
"""
