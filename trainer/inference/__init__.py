"""Trained networks in the hands of Python code: what `from foldtrain import …` gives.

1. exports.py finds the export that a URI means, a folder of a run or the export itself
2. given_images.py makes what networks take of what users have: PIL, numpy and torch; and pictures of what comes out
3. tokenizer.py encodes, decodes and reconstructs; generator.py samples
"""

from __future__ import annotations

from trainer.inference.generator import Generator, load_generator
from trainer.inference.tokenizer import Tokenizer, load_tokenizer

__all__ = ["Generator", "Tokenizer", "load_generator", "load_tokenizer"]
