"""Hostile files: what anybody may have put into a data set, a run or a config, many thousands of times.

1. templates.py makes small valid files: data sets, checkpoints, exports, records of a run, configs
2. mutations.py, binary_mutations.py change one of them, by its structure (numbers, names, shapes, sizes) or by its
   bytes; hostile_values.py has what is put in
3. targets.py repairs the digests that would give the change away, as an attacker does, and reads it as the commands do
4. guard.py bounds memory, seconds and places: what is opened outside of the folder is a finding
5. running.py does that in forked children; __main__.py prints the summary

    python -m benchmarks.fuzz --inputs 20000 --seed 0
"""
