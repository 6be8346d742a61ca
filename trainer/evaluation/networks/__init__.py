"""Frozen networks that look at images: features that sets are compared by, and logits that judge them.

1. feature_networks.py opens any of them; inception.py, published_classifiers.py and teacher.py are the kinds
2. network_rows.py makes rows of what they say
"""
