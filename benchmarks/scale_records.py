"""What a long run costs those who watch it: processor time and memory of its report, requests of a monitor's look.

    python benchmarks/scale_records.py SAMPLES

The run trains on so many samples for 80 epochs in batches of 1,024, with a record of 30 numbers at each step: 100,000
records for 1.28 million samples. Its report is made from files on a disk, in a process of its own. The monitor looks at
the same run in object storage (SeaweedFS in another process), where its two other networks have ended and its shards
are made: `requests`, `cpu_seconds` and `peak_mib` are the most of 30 looks after the first, at which nothing changes.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from scale_probe import Figures, in_child, main, probe

from cluster.drills.s3_server import BUCKET, S3Server
from cluster.monitor.watching import RunReader
from data_pipeline import storage
from trainer.records.jsonl import JsonlWriter
from trainer.report import build_report, collect

EPOCHS, BATCH = 80, 1024
LOOKS = 30
FLUSH_EVERY = 8192
_NETWORKS = ("teacher", "tokenizer", "generator")
_EVALUATION: dict[str, Any] = {
    "reconstruction": {"prefixes": [1], "mse_of_prefixes": [0.1], "frechet_distance": 1.0},
    "generation": {"frechet_distance": 2.0, "samples": 1000},
    "codebook_use": [[0.5]],
    "class_names": [],
}
_NAMES = (
    *("adversarial", "commitment", "entropy", "loss", "lpips", "reconstruction", "learning_rate", "grad_norm"),
    *("samples_per_second", "tokens_per_second", "mfu", "step_seconds", "step_seconds_p50", "step_seconds_p95"),
    *("step_seconds_max", "eta_seconds", "data_wait_share", "memory_bytes", "cuda_allocated_bytes"),
)


def records(count: int) -> Iterator[dict[str, Any]]:
    """As a training stage writes them, with the digits of measured numbers."""
    for step in range(1, count + 1):
        noise = (step * 0.6180339887498949) % 1
        numbers = {name: (number + 1) * 0.1234567890123 + noise for number, name in enumerate(_NAMES)}
        window = {"window_steps": 1, "window_seconds": 0.25, "checkpoint_seconds": 0.0}
        counts = {"steps": count, "samples": step * BATCH, "skipped_steps": 0, "passed_over_steps": 0}
        yield {"time": 1.7e9 + step * 0.25, "step": step} | counts | numbers | window | {"goodput": 0.9876}


def write_run(run: str, count: int) -> None:
    """The files of a run of which the generator has so many records."""
    storage.write_json(storage.join(run, "evaluation.json"), _EVALUATION)
    for folder in ("images", "tokens"):
        storage.write_json(storage.join(run, folder, "progress.json"), {"time": 1.7e9, "state": "finished"})
    for name in _NETWORKS:
        end = [] if name == "generator" else [{"time": time.time(), "event": "finish", "step": 9}]
        begin = {"time": 1.7e9, "event": "start", "step": 0}
        events = JsonlWriter(storage.join(run, name, "events.jsonl"), keep=[begin, *end])
        events.close()
        metrics = JsonlWriter(storage.join(run, name, "metrics.jsonl"), keep=[], interval=3600, in_columns=True)
        for number, record in enumerate(records(count if name == "generator" else 10)):
            metrics.write(record)
            if number % FLUSH_EVERY == 0:
                metrics.flush(60)
        metrics.close(60)


def measure_report(run: str, into: str) -> None:
    """Put the figures of a report into a file."""
    with probe() as found:
        page = build_report(collect(run))
    figures = {"cpu_seconds": found["cpu_seconds"], "peak_mib": found["peak_mib"], "page_kib": len(page) / 1024}
    Path(into).write_text(json.dumps({f"report_{name}": figure for name, figure in figures.items()}))


def measure_looks(run: str) -> Figures:
    """The first look, and the most that one of those after it costs."""
    with probe() as first:
        reader = RunReader(run)
        reader.look(time.time())
    looks: list[Figures] = []
    for _ in range(LOOKS):
        with probe() as found:
            reader.look(time.time())
        looks.append(found)
    most = {name: max(look[name] for look in looks) for name in ("requests", "cpu_seconds", "peak_mib")}
    return most | {"first_look_requests": first["requests"], "first_look_cpu_seconds": first["cpu_seconds"]}


def measure(samples: int) -> Figures:
    """All of it."""
    count = max(1, samples * EPOCHS // BATCH)
    with tempfile.TemporaryDirectory(prefix="scale-records-") as folder:
        run, into = f"{folder}/run", f"{folder}/report.json"
        in_child(write_run, run, count)
        in_child(measure_report, run, into)
        report: Figures = json.loads(Path(into).read_text())
        server = S3Server(Path(folder) / "server").start()
        try:
            os.environ.update(server.environment())
            in_child(write_run, f"s3://{BUCKET}/run", count)
            looks = measure_looks(f"s3://{BUCKET}/run")
        finally:
            server.kill()
    return {"records": count} | looks | report


if __name__ == "__main__":
    main(measure)
