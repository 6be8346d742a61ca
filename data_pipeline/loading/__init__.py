"""Batches for a training step.

1. loader.py: a step's positions to images or tokens
2. prefetching.py: a few steps ahead, in threads
"""
