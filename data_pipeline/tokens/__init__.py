"""Image shards to token shards, and token shards to and from others' formats.

1. plan.py: which shards; commits.py: which of them are there; tokenizing.py: one at a time, committed by one write
2. importing/ reads published token files; exporting.py writes WebDataset tars with a sample per member
"""
