"""How good a tokenizer and a generator are.

1. measures.py: whatever a number is computed from is a row of an image. sets/ has the images; sampler.py draws them;
   feature_networks.py and tokenizer_measure.py look at them; row_files.py keeps the rows
2. set_numbers.py and tokenizer_numbers.py compute numbers of the rows, by trainer/metrics/ and quality.py
3. numbers.py: a number carries its name; number_names.py puts it into words, comparison.py compares two
4. images.py and film_strip.py make pictures
"""
