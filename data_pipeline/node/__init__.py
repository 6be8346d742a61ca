"""What a node keeps for all its processes: copies of shards, sealed by a checksum, in folders of one user.

1. private_folder.py makes folders that no other user can enter
2. node_cache.py fills and evicts copies there; copy_seal.py says that one is whole
3. host_memory.py keeps freed memory; compiled_code.py keeps compiled code apart
"""
