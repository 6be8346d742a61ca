"""Data sets and networks at rest.

1. manifest.py: what a data set is, written last
2. image_shards.py, token_shards.py, token_archive.py: the tars; token_dataset.py: token shards as training reads them
3. weights.py: finished networks; safetensors_header.py checks one before it is read
"""
