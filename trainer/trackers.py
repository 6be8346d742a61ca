"""Outside readers of a run's metrics. None can stop it: each has a thread, a bounded queue, and leave to fail."""

from __future__ import annotations

import logging
import os
import queue
import tempfile
import threading
from typing import Any

from data_pipeline import storage

_LOG = logging.getLogger(__name__)
_QUEUE = 1000
_CLOSE_SECONDS = 15.0


class WandbTracker:
    """Weights & Biases, offline beside the run unless WANDB_MODE says otherwise (WANDB_MODE=disabled for none)."""

    def __init__(self, folder: str, name: str, config: dict[str, Any], close_seconds: float = _CLOSE_SECONDS) -> None:
        self._queue: queue.Queue[dict[str, Any] | None] = queue.Queue(_QUEUE)
        self._folder, self._name, self._config = folder, name, config
        self._close_seconds = close_seconds
        self.dropped = 0
        self._thread = threading.Thread(target=self._run, name="wandb", daemon=True)
        if os.environ.get("WANDB_MODE", "offline") != "disabled":
            self._thread.start()

    def write(self, record: dict[str, Any]) -> None:
        """Hand over a record; it is dropped (and counted) if the tracker does not keep up."""
        try:
            self._queue.put_nowait(record)
        except queue.Full:
            self.dropped += 1

    def _run(self) -> None:
        try:
            import wandb

            local = tempfile.mkdtemp(prefix="wandb-") if storage.is_remote(self._folder) else self._folder
            run = wandb.init(
                project="foldtrain",
                name=self._name,
                config=self._config,
                dir=local,
                mode=None if "WANDB_MODE" in os.environ else "offline",
                settings=wandb.Settings(silent=True, console="off", x_disable_stats=True, init_timeout=30),
            )
            while (record := self._queue.get()) is not None:
                numbers = {k: v for k, v in record.items() if isinstance(v, int | float)}
                run.log(numbers, step=record["step"])
            run.finish()
        except Exception:
            _LOG.exception("Weights & Biases failed; the run goes on, metrics.jsonl has everything")

    def close(self) -> None:
        """Give it a bounded time to finish."""
        if self._thread.is_alive():
            try:
                self._queue.put_nowait(None)
            except queue.Full:
                return
            self._thread.join(self._close_seconds)
