"""Training a stage from its newest checkpoint to its end.

1. training_loop.py runs the steps; run_checkpoints.py saves and restores; ending.py says why it ended
2. ledger_writer.py writes down which samples were consumed
"""
