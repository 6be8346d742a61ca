"""Which sample comes when: a pure function of seed and position, and the ledger that proves it.

1. feistel.py: permutations that are computed in place of being stored
2. permutations.py: positions of a step to samples, windows of shards, and numbers keyed by position
3. ledger.py: what was consumed, and whether each sample was consumed once
"""
