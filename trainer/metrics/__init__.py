"""Metrics over many images: arithmetic on arrays, with no network, no storage and no process group.

1. metric.py: what a metric is: it grows batch by batch, merges, and computes, in memory that does not grow
2. frechet.py, inception_score.py, manifold.py: one file for each
3. confidence.py: how far a number may be from that of other images of the same kind
"""
