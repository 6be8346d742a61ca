"""Training a stage from its newest checkpoint to its end.

1. worker.py builds the stage, compose.py puts the loop together from its parts
2. training_loop.py runs the steps; run_checkpoints.py saves and restores; ending.py says why it ended
3. journal.py puts on record what happens, ledger_writer.py which samples were consumed
"""
