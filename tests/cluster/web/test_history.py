"""All that a training stage has on record, however it grows."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from cluster.monitor.web.curves import curve
from cluster.monitor.web.history import TrainingHistory
from tests.cluster.web.runs_to_watch import numbers, write_training
from trainer.records import local_file
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


def odd(step: int, seed: float) -> dict[str, Any]:
    """A record in which something is now and then missing, none, no number, very large or very small."""
    found = numbers(step, 400, 1_000.0) | {"loss": math.nan if step % 17 == 0 else seed / step, "big": 2**53 + step}
    found |= {"rate": 0.00012345678901234567 * step, "note": "a text", "mixed": "a text" if step % 7 == 0 else step / 7}
    found["data_wait_share"] = None if step % 5 else 0.25
    return found | ({"late": seed * step} if step > 250 else {})


def plainly(text: str, name: str) -> dict[int, float]:
    """The numbers of a name by step, line by line; of a step that was done again the last record counts."""
    rows: dict[int, dict[str, Any]] = {}
    for line in text.split("\n"):
        try:
            record = json.loads(line)
        except ValueError:
            continue
        rows[record["step"]] = record
    values = {step: rows[step].get(name) for step in sorted(rows)}
    return {step: float(value) for step, value in values.items() if isinstance(value, int | float)}


def test_what_is_drawn_of_a_long_record_is_what_its_lines_say_one_by_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local_file, "_BLOCK_BYTES", 20_000)
    file = tmp_path / "generator" / "metrics.jsonl"
    steps = [*range(1, 301), *range(201, 351)]  # a rollback to step 200, whose rows stay
    writer = JsonlWriter(str(file), keep=[], in_columns=True)
    for at, step in enumerate(steps):
        writer.write(odd(step, 1.0 + at))
        if writer._file._making:
            writer._file._making.result()
    writer.close()
    with file.open("a") as more:
        more.write('{"step": 351, "loss": 1.5, "late": 1e999}\n{"step": 352, "lo')
    text = file.read_text().replace('{"step": 351, "loss": 1.5, "late": 1e999}', "no record")  # too large for a number
    assert len(list((tmp_path / "generator" / "metrics.columns").iterdir())) > 5
    history = TrainingHistory(str(tmp_path), "generator")
    look(history)
    for name in ("loss", "big", "rate", "mixed", "late", "data_wait_share", "learning_rate", "samples"):
        drawn = curve(history.metrics.numbers, name, "steps", None, most=10**6)
        assert drawn is not None
        expected = plainly(text, name)
        assert drawn["x"] == list(expected), name
        assert drawn["y"] == pytest.approx(list(expected.values()), rel=1e-6), name
    assert curve(history.metrics.numbers, "note", "steps", None) is None
