"""How good a tokenizer and a generator are.

1. measures.py: whatever a number is computed from is a row of an image. sets/ has the images, samples/ draws them;
   networks/ and tokenizers/ look at them; row_files.py keeps the rows
2. set_numbers.py and tokenizers/tokenizer_numbers.py compute numbers of the rows, by trainer/metrics/ and quality.py
3. naming/: a number carries its name, and two are compared by it
4. images.py and film_strip.py make pictures; run_record.py is for the report; reference.py reads published statistics
"""
