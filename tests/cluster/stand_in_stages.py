"""In place of a job's stages: a process that is at work until it is told to end, and then saves a checkpoint."""

from __future__ import annotations

LISTENS = """
import signal, sys, time
def end(number, frame):
    print("saves a checkpoint", flush=True)
    sys.exit(143)
signal.signal(signal.SIGTERM, end)
print("at work", flush=True)
while True: time.sleep(0.05)
"""
JOB_PROCESS = f"""
import sys
from cluster.jobs import runner
runner.python_command = lambda *_: [sys.executable, "-c", {LISTENS!r}]
from cluster import job_process
job_process.main()
"""
"""A job's process, whose stages are that."""
