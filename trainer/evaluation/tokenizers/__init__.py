"""What is measured of a tokenizer.

1. tokenizer_rows.py names one for workers, tokenizer_measure.py measures it image by image, tokenizer_numbers.py
   computes numbers from the rows; perturbed_tokens.py replaces tokens before they are decoded
2. codes.py, dependence.py: how codes are used, and what branches share; probing.py, linear_probe.py: what a linear
   layer sees; legibility.py: text
3. baselines.py, compressed.py, rate_distortion.py: what its bits are worth without it; tokenizer_record.py: for a run;
   gate.py: before tokens are made
"""
