"""What a cluster is like, found out in seconds and before a training finds out in hours.

1. wanted.py: what is checked for: the folder of a run, folders of the nodes, what each worker needs
2. nodes.py: nodes that can be asked: this machine, or each node of a Ray cluster (ray_probes.py). Every question has a
   time limit, and a node that does not answer is a finding
3. checks/: one file per check, behind one registry. Each measures something on the nodes, and then judges all nodes'
   facts at once, as a pure function: what differs from the others is what is wrong
4. running.py: runs the checks, and gives findings (findings.py): node, check, level, what was found, what to do
5. verdict.py: which nodes can be left out because there are spare ones, and whether a training may begin
6. before_training.py: all of that before step 1 of a training. examining.py: the doctor; on_target.py and process.py:
   on the nodes that a scheduler gives it; report.py: as a table, and as JSON
"""
