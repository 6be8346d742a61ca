"""Which events are marked on the axis of the curves, and as what."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cluster.monitor.web.history import TrainingHistory
from cluster.monitor.web.marks import MOST_OF_A_KIND, counts, marks
from tests.cluster.web.runs_to_watch import write_training


def history(run: Path, *events: dict[str, Any]) -> TrainingHistory:
    write_training(str(run), "generator", count=20, steps=20, began=1_000.0, more=events)
    found = TrainingHistory(str(run), "generator")
    for check in found.checks:
        check()
    return found


def test_skipped_steps_restarts_rollbacks_and_spikes_are_marked_where_they_were(tmp_path: Path) -> None:
    happened = history(
        tmp_path,
        {"event": "skipped_step", "step": 3, "in_a_row": 1},
        {"event": "resume", "step": 5, "workers": 2},
        {"event": "spike", "step": 9},
        {"event": "rollback", "step": 8},
        {"event": "spike_samples", "step": 9, "keys": ["a"]},
    )
    found = [(mark["kind"], mark["x"]) for mark in marks(happened, "images")]
    assert found == [
        ("start", 0),
        ("skipped step", 3 * 256),
        ("restart", 5 * 256),
        ("rollback", 8 * 256),
        ("spike", 9 * 256),
        ("finish", 20 * 256),
    ]
    assert marks(happened, "hours")[1]["x"] * 3600 == 20 + 3 * 0.5


def test_going_on_with_other_workers_is_scaling_and_the_pause_before_it_is_not_marked(tmp_path: Path) -> None:
    happened = history(
        tmp_path,
        {"event": "stop", "step": 5, "ending": "paused"},
        {"event": "resume", "step": 5, "workers": 3},
        {"event": "stop", "step": 9, "ending": "stopped"},
        {"event": "resume", "step": 9, "workers": 3},
    )
    assert [mark["kind"] for mark in marks(happened, "steps")] == ["start", "scaling", "stop", "restart", "finish"]
    assert "workers 3" in marks(happened, "steps")[1]["text"]


def test_of_very_many_of_a_kind_the_last_are_sent_and_all_are_counted(tmp_path: Path) -> None:
    skipped = [{"event": "skipped_step", "step": 1 + number // 20} for number in range(MOST_OF_A_KIND + 5)]
    happened = history(tmp_path, *skipped)
    found = [mark["step"] for mark in marks(happened, "steps") if mark["kind"] == "skipped step"]
    assert (len(found), found[-1]) == (MOST_OF_A_KIND, skipped[-1]["step"])
    assert counts(happened)["skipped step"] == MOST_OF_A_KIND + 5
