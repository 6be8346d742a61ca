"""Raw images to image shards.

1. listing.py: what a source holds, kept on storage (item_files.py: images as rows of parquet files)
2. plan.py: which images become which shard, by sorts that go through a file (external_sort.py)
3. planning.py: the plan on storage, and in a driver's memory as a table of its shards (shard_table.py)
4. commits.py: which shards are committed already
5. ingesting.py: one shard at a time, committed by one write; screening.py sets damaged images aside
"""
