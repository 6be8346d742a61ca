"""How good a tokenizer and a generator are.

1. sampler.py draws images; images.py makes pictures of them; teacher.py has the networks whose features are compared
2. judging.py measures
"""
