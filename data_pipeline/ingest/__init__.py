"""Raw images to image shards.

1. plan.py: which images of the source become which shard
2. ingesting.py: one shard at a time, committed by one write; screening.py sets damaged images aside
"""
