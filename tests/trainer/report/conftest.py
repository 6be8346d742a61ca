"""What the tests of the report share."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.trainer.report.pages import CONFIG, EVALUATION, PNG, SAMPLES


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A folder as the stages leave it."""
    folder = tmp_path / "runs" / "first"
    (folder / "samples").mkdir(parents=True)
    (folder / "tokenizer").mkdir()
    (folder / "evaluation.json").write_text(json.dumps(EVALUATION))
    (folder / "tokenizer" / "config.yaml").write_text(CONFIG)
    (folder / "samples" / "samples.json").write_text(json.dumps(SAMPLES))
    stages = [
        {"stage": "train-tokenizer", "seconds": 90.0, "items": 9000, "unit": "samples"},
        {"stage": "tokenize", "seconds": 10.0, "items": 500, "unit": "images"},
    ]
    (folder / "stages.json").write_text(json.dumps(stages))
    lines = [{"step": step, "loss": 1 / step, "semantic": 0.5, "samples_per_second": 123.0} for step in (10, 20, 30)]
    (folder / "tokenizer" / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "tokenizer" / "events.jsonl").write_text(
        '{"event": "start", "step": 0}\n{"event": "resume", "step": 9}\n'
    )
    (folder / "samples" / "grid.png").write_bytes(PNG)
    (folder / "samples" / "reconstructions.png").write_bytes(PNG + b"2")
    return folder
