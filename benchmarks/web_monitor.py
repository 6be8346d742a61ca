"""What it costs to open long runs in the monitor's page: from the first question to the state and the curves of all.

    python benchmarks/web_monitor.py RUNS ROWS

Each run trains a generator, and has a record of 27 numbers for each step on a disk (`benchmarks/scale_records.py`).
All are copies of one. The server runs in this process: `cpu_seconds` is its processor time, `seconds` what somebody
waits who opens all runs over each other, with the nine charts that a screen has at first. `again` is the same for the
next one who looks: nothing is read anew.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from aiohttp.test_utils import TestClient, TestServer

from cluster.monitor.web.access import Access
from cluster.monitor.web.server import Server
from cluster.monitor.web.serving import find_runs

sys.path.insert(0, str(Path(__file__).parent))

from scale_records import write_run

SHOWN = ("loss", "learning_rate", "grad_norm", "samples_per_second", "goodput", "lpips", "commitment", "entropy", "mfu")


async def measure(folder: str) -> dict[str, Any]:
    """Figures of opening all runs of a folder."""
    server = Server(find_runs([folder]), Access("127.0.0.1", None))
    count = len(server.watched)
    async with TestClient(TestServer(server.application())) as client:
        found: dict[str, Any] = {"runs": count}
        for name in ("first", "again"):
            began, used = time.perf_counter(), time.process_time()
            asked = [("run", str(number)) for number in range(count)]
            async with client.get("/api/states", params=asked) as answer:
                states = (await answer.json())["runs"]
            names = [*asked, *(("name", each) for each in SHOWN), ("stage", "generator")]
            async with client.get("/api/curves", params=names) as answer:
                size = len(await answer.read())
            found[name] = {
                "seconds": round(time.perf_counter() - began, 2),
                "cpu_seconds": round(time.process_time() - used, 2),
                "kib": size // 1024,
            }
        stages = [each["state"]["stages"] for each in states.values()]
        found["rows"] = sum(stage["rows"] for each in stages for stage in each if stage["name"] == "generator")
    return found


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("runs", type=int)
    parser.add_argument("rows", type=int)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        write_run(f"{folder}/run-0", asked.rows)
        for number in range(1, asked.runs):
            shutil.copytree(f"{folder}/run-0", f"{folder}/run-{number}")
        print(json.dumps(asyncio.run(measure(folder))))


if __name__ == "__main__":
    main()
