"""Ray actors that work through shards: ingest and tokenize.

1. ingesting.py, tokenizing.py: what a stage asks for
2. shard_pool.py: hands out shards; ray_pool.py, shard_worker.py: the actors; shard_ledger.py: what is done
3. pool_progress.py shows it, scale.py changes the number of actors
"""
