"""Training on Ray.

1. stage.py: one stage, until it is finished or told to stop
2. supervision.py: starts workers, watches them, starts them again; size_control.py, elastic_sizes.py,
   elastic_policy.py: how many; growing.py, growth.py: when more, and whether it pays
3. worker_group.py: their places on the cluster; rendezvous.py: how they meet; warm_workers.py: between two stages
4. worker_process.py: one of them, on its own side; failures.py: what became of those that failed
5. notices.py: termination notices
"""
