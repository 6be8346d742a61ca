"""Looking at data sets: verify, inspect, audit, and what interrupted runs left behind; and making them of others.

1. verifying.py: examining_*.py (one shard), surveying.py (all shards together), key_spool.py (no key twice),
   index_rows.py, verifying_edits.py
2. editing.py: sets made of others (parents.py, choosing.py)
3. reusing.py, comparing.py: tokens of images that were appended
4. inspecting.py, auditing.py, preflight.py, leftovers.py
"""
