"""Runs that were evaluated, as their stages leave them, for comparisons."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from trainer.evaluation.naming.numbers import Number
from trainer.report.evaluated_runs import EvaluatedRun

BY: dict[str, Any] = {"reference": {"images": "aa" * 32}, "rounding": "nearest", "network": {"name": "inception-2015"}}
TOKENIZER: dict[str, Any] = {"tokenizer": "cc" * 32}
OF: dict[str, Any] = {"generator": "bb" * 32, "sampling": {"guidance": 2.5}, "seed": 7, **TOKENIZER}
FID = Number("fid", 12.34, 10_000, BY, OF, 0.07)
RFID = Number("fid", 4.5, 10_000, BY, TOKENIZER)
ERRORS = tuple(Number("mse", 0.1 / keep, 100, {}, TOKENIZER | {"keep": keep}) for keep in (1, 5, 21))


def of(number: Number, **changes: Any) -> Number:
    return Number(**vars(number) | {"measured_of": number.measured_of | changes})


def by(number: Number, **changes: Any) -> Number:
    return Number(**vars(number) | {"measured_by": number.measured_by | changes})


def run_of(name: str, *numbers: Number, **more: Any) -> EvaluatedRun:
    return EvaluatedRun(f"runs/{name}", numbers, **more)


def write_run(folder: Path, *numbers: Number, steps: int = 100, **sampling: Any) -> str:
    """A run with numbers, times, a generator's config and samples. Returns its path."""
    (folder / "samples").mkdir(parents=True)
    (folder / "generator").mkdir()
    record = {"numbers": [number.to_json() for number in numbers]}
    (folder / "evaluation.json").write_text(json.dumps(record))
    times = [
        {"stage": "train-tokenizer", "seconds": 1800.0, "items": 10, "unit": "samples"},
        {"stage": "train-generator", "seconds": 3600.0, "items": 10, "unit": "samples"},
    ]
    (folder / "stages.json").write_text(json.dumps(times))
    (folder / "generator" / "config.yaml").write_text(f"seed: 0\ngenerator:\n  trainer: {{steps: {steps}}}\n")
    png = b"\x89PNG\r\n\x1a\n of " + folder.name.encode()
    (folder / "samples" / "grid.png").write_bytes(png)
    samples = {
        "sampling": {"seed": 0, "classes": None, "guidance": 2.0} | sampling,
        "class_names": ["cat", "dog"],
        "fingerprints": {},
        "files": {"samples/grid.png": hashlib.sha256(png).hexdigest()},
    }
    (folder / "samples" / "samples.json").write_text(json.dumps(samples))
    return str(folder)
