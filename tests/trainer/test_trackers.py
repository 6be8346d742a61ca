"""A tracker that hangs, fails or is slow never stops a run."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
import wandb

from trainer.trackers import WandbTracker


@pytest.fixture
def hang(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """W&B that does not come back from its start until the event is set."""
    freed = threading.Event()
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setattr(wandb, "init", lambda **_: freed.wait())
    return freed


def test_a_tracker_that_hangs_takes_records_drops_the_rest_and_counts_them(
    hang: threading.Event, tmp_path: Path
) -> None:
    tracker = WandbTracker(str(tmp_path), "run", {}, close_seconds=0.01)
    for step in range(1500):
        tracker.write({"step": step, "loss": 0.0})
    assert tracker.dropped == 500
    tracker.close()  # comes back though the tracker never does
    hang.set()


def test_a_tracker_that_fails_leaves_the_run_alone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(**_: object) -> None:
        raise RuntimeError("no account")

    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setattr(wandb, "init", refuse)
    tracker = WandbTracker(str(tmp_path), "run", {})
    tracker.write({"step": 1, "loss": 0.0})
    tracker.close()
    assert "the run goes on" in caplog.text


def test_no_tracker_is_started_where_it_is_disabled(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    monkeypatch.setattr(wandb, "init", lambda **_: pytest.fail("it was started"))
    WandbTracker(str(tmp_path), "run", {}).close()
    assert list(tmp_path.iterdir()) == []
