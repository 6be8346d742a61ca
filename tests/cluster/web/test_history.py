"""All that a training stage has on record, however it grows."""

from __future__ import annotations

from pathlib import Path

from cluster.monitor.web.history import TrainingHistory
from tests.cluster.web.runs_to_watch import numbers, write_training
from trainer.records.jsonl import Continued, JsonlWriter
from trainer.records.record_shapes import is_metrics


def look(history: TrainingHistory) -> list[float]:
    """Steps, after another look."""
    for check in history.checks:
        check()
    return list(history.metrics.numbers["step"])


def test_rows_that_a_resume_takes_back_are_those_of_the_steps_done_again(tmp_path: Path) -> None:
    write_training(str(tmp_path), "generator", count=20, steps=60, began=1_000.0, ended=False)
    history = TrainingHistory(str(tmp_path), "generator")
    assert look(history) == list(range(1, 21))
    later = Continued(is_metrics, lambda record: record["step"] > 10)
    writer = JsonlWriter(f"{tmp_path}/generator/metrics.jsonl", keep=later)
    writer.write(numbers(11, 60, 2_000.0) | {"loss": 7.0})
    writer.close()
    assert look(history) == list(range(1, 12))
    assert history.metrics.numbers["loss"][-1] == 7.0
    view = history.view(2_100.0)
    assert view is not None
    assert (view.done, view.losses[-1]) == (11, 7.0)


def test_the_last_look_at_held_out_data_is_known_however_long_ago(tmp_path: Path) -> None:
    write_training(str(tmp_path), "tokenizer", count=3, steps=300, began=1_000.0, ended=False)
    writer = JsonlWriter(f"{tmp_path}/tokenizer/metrics.jsonl", keep=Continued(is_metrics))
    for step in range(4, 204):
        writer.write(numbers(step, 300, 1_000.0) | ({"validation_mse": 0.25} if step == 10 else {}))
    writer.close()
    history = TrainingHistory(str(tmp_path), "tokenizer")
    look(history)
    view = history.view(1_200.0)
    assert view is not None
    assert (view.looked_at, dict(view.held_out)) == (10, {"squared error": 0.25})


def test_a_stage_began_when_its_first_command_was_given(tmp_path: Path) -> None:
    resumed = {"event": "resume", "step": 5, "began": 5_000.0}
    write_training(str(tmp_path), "generator", count=9, steps=9, began=1_000.0, more=[resumed])
    history = TrainingHistory(str(tmp_path), "generator")
    look(history)
    assert history.began == 1_000.0
