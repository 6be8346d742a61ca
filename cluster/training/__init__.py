"""Training on Ray Train.

1. stage.py: one stage, until it is finished or told to stop; stage_trainer.py: Ray's trainer with our policies
2. elastic_sizes.py, elastic_policy.py: how many workers; rendezvous.py: how they find each other
3. notices.py: termination notices
"""
