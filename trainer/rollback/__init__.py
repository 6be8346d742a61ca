"""A loss that jumps, and going back to before it.

1. spikes.py: what counts as a spike
2. rollbacks.py: what was decided, from which checkpoint a start goes on, which steps are passed over
"""
