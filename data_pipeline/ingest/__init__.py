"""Raw images to image shards.

1. finding.py: the sources that a config names
2. listing.py: what a source holds, kept on storage (item_files.py: images as rows of parquet files)
3. plan.py: which images become which shard, by sorts that go through a file (external_sort.py)
4. planning.py: the plan on storage, and in a driver's memory as a table of its shards (shard_table.py)
5. commits.py: which shards are committed already
6. ingesting.py: one shard at a time, committed by one write; screening.py sets damaged images aside
"""
