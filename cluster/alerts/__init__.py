"""Telling somebody of a run.

1. rules.py: from records to what there is to tell, once each. Pure
2. delivery.py: to a webhook or a command, in the background
3. alerts.py: both of them for a stage, as its config says; the command that runs the stage sends
"""
