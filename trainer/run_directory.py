"""What a training stage leaves in its folder. DESIGN section 4.

<run>/<stage>/
    config.yaml         the resolved config of the whole run
    environment.json    versions, devices, the DeepSpeed settings, the attention backend
    lineage.json        fingerprints of what it was trained from
    metrics.jsonl       a record every `log_every` steps: the source of truth; W&B only reads it
    events.jsonl        start, resume, checkpoint, skipped_step, finish
    checkpoints/        see checkpoint.py
    export/             the finished network, see data_pipeline/weights.py
"""

from __future__ import annotations

import platform
import socket
import time
from importlib.metadata import version
from typing import Any

from data_pipeline import storage
from trainer.jsonl import JsonlWriter, read_records
from trainer.trackers import WandbTracker

_PACKAGES = ("foldtrain", "torch", "deepspeed", "ray", "timm", "numpy")


def environment(extra: dict[str, Any]) -> dict[str, Any]:
    """What the stage runs on."""
    versions = {name: version(name) for name in _PACKAGES}
    return {"python": platform.python_version(), "host": socket.gethostname(), "packages": versions} | extra


class RunDirectory:
    """The records of one stage, written by rank 0."""

    def __init__(self, uri: str, name: str, config: dict[str, Any], resume_step: int) -> None:
        self.uri = uri
        events = read_records(storage.join(uri, "events.jsonl"))
        metrics = read_records(storage.join(uri, "metrics.jsonl"))
        kept = [record for record in metrics if record["step"] <= resume_step]
        lost = max((record["step"] for record in metrics), default=resume_step) - resume_step
        self._metrics = JsonlWriter(storage.join(uri, "metrics.jsonl"), keep=kept)
        self._events = JsonlWriter(storage.join(uri, "events.jsonl"), keep=events)
        self._tracker = WandbTracker(uri, name, config)
        self.restarts = sum(record["event"] in {"start", "resume"} for record in events)
        self.event("resume" if self.restarts else "start", resume_step, lost_steps=max(0, lost))

    def event(self, event: str, step: int, **details: Any) -> None:
        """Record that something happened."""
        self._events.write({"time": time.time(), "event": event, "step": step} | details)

    def metrics(self, record: dict[str, Any]) -> None:
        """Record measurements of a step."""
        self._metrics.write(record)
        self._tracker.write(record)

    def close(self) -> None:
        """Finish all writers."""
        self._metrics.close()
        self._events.close()
        self._tracker.close()
