"""Which sample comes when: a pure function of seed and position, and the ledger that proves it.

1. permutations.py: positions of a step to samples, and numbers keyed by position
2. ledger.py: what was consumed, and whether each sample was consumed once
"""
