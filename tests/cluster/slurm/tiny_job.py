"""What the jobs of these tests run: `python tiny_job.py FOLDER NODES [wait]`.

It joins Ray as RAY_ADDRESS says, waits until there are so many nodes, has a task run on each, and writes into FOLDER
what it found as `ran-ATTEMPT.json`. With `wait` it goes on until it is told to end, and leaves with 143, as a job that
saves a checkpoint does, or until there is a file FOLDER/done.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path

told: list[int] = []
for number in (signal.SIGTERM, signal.SIGUSR1):
    signal.signal(number, lambda number, _: told.append(number))

import ray  # noqa: E402
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy  # noqa: E402

from cluster.session.ray_processes import without_search_path  # noqa: E402

folder, wanted = Path(sys.argv[1]), int(sys.argv[2])


@ray.remote(num_cpus=1)
def look() -> dict[str, str]:
    names = ("SLURMD_NODENAME", "CUDA_VISIBLE_DEVICES", "HOSTILE")
    return {name: os.environ.get(name, "") for name in names}


def write(name: str, found: object) -> None:
    (folder / "new").write_text(json.dumps(found))
    (folder / "new").replace(folder / name)


def nodes() -> list[dict[str, object]]:
    return [node for node in ray.nodes() if node["Alive"]]


ray.init(
    address=os.environ["RAY_ADDRESS"], log_to_driver=False, logging_level="ERROR", job_config=without_search_path()
)
for number in (signal.SIGTERM, signal.SIGUSR1):  # Ray has taken one
    signal.signal(number, lambda number, _: told.append(number))
while len(nodes()) < wanted and not told:
    time.sleep(0.2)
looks = [
    look.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)).remote()
    for node in nodes()
]
attempt = int(os.environ.get("SLURM_RESTART_COUNT") or 0) + 1
found = ray.get(looks)
write(
    f"ran-{attempt}.json",
    {
        "address": os.environ["RAY_ADDRESS"],
        "nodes": sorted(each["SLURMD_NODENAME"] for each in found),
        "resources": [node["Resources"] for node in nodes()],
        "seen": found,
        "arguments": sys.argv[3:],
        "environment": {name: value for name, value in os.environ.items() if name.startswith("HOSTILE")},
        "pid": os.getpid(),
    },
)
if sys.argv[3:4] == ["wait"]:
    while not told and not (folder / "done").exists():
        time.sleep(0.2)
        write("now.json", sorted(str(node["NodeID"]) for node in nodes()))
    if told:
        write(f"told-{attempt}.json", [int(each) for each in told])
        sys.exit(143)
