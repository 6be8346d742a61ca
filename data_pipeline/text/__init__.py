"""Bytes and text from outside, parsed within bounds.

1. names.py says what a key, a class or a file may be called; printable.py what of foreign text reaches a terminal
2. json_records.py, npy.py and yaml_dialect.py read formats without trusting them
"""
