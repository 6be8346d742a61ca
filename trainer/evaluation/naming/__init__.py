"""Numbers that say what they mean.

1. numbers.py: a number, how it was measured and of what
2. metric_names.py and number_names.py put it into words; comparison.py says whether two may be compared
"""
