"""What each command does.

1. pipeline.py: the stages in order, their inputs checked first
2. results.py: sample, evaluate and report; planning.py, plan_view.py: plan
"""
