"""A loss that jumps, and going back to before it.

1. spikes.py: what counts as a spike
2. course.py: what was decided, and which steps are passed over
3. on_course.py: which checkpoints keep to it
"""
