"""A connection to Ray: found or started, watched, ended.

1. ray_address.py: which cluster; local_head.py: one of our own; ray_folder.py, ray_processes.py: what it leaves
2. ray_session.py: connect and leave; head_watch.py: notice that the head is gone
3. job_environment.py: what processes inherit; worker_errors.py, worker_output.py: what comes back from them
"""
