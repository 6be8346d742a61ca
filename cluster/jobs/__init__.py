"""Jobs: stages of a run that a target runs. What there is to know of one is in the run's folder; no scheduler is asked.

1. graph.py: which stages a job runs, in their order, and how each stands
2. submitting.py: a job is recorded, then started on its target; places.py: where its files are
3. runner.py: the job's own process keeps its record and its log, and is told to end through either
4. records.py: what any machine reads of it that reaches the run; logs.py: its output; control.py: the request to stop
5. stopping.py, watching.py: what is asked of its target, where the record cannot tell
"""
