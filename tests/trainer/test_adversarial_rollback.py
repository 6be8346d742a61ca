"""A course that diverges once the discriminator learns at an absurd rate is taken back, both networks together."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from data_pipeline.errors import FoldtrainError
from tests.trainer.gloo import run_gloo
from tests.trainer.toy_tokenizer import ADVERSARIAL, build, job
from trainer.engine.deepspeed_engine import prepare_deepspeed
from trainer.loop.compose import build_loop

pytestmark = pytest.mark.slow

START = 12
SPIKES: dict[str, Any] = {
    "window": 8,
    "sigmas": 8,
    "steps": 1,
    "action": "rollback",
    "skip_steps": 4,
    "max_rollbacks": 1,
}


def diverged(folder: str) -> str:
    """What the run ends with: the discriminator's rate is absurd, so its logits are, too, wherever it goes on."""
    prepare_deepspeed(torch.device("cpu"))
    absurd = {key: ADVERSARIAL[key] for key in ("discriminator", "weight")}
    absurd |= {"start": START, "learning_rate": 50.0, "gradient_clipping": 0}
    each = job(folder, {"adversarial": absurd}, steps=24, spikes=SPIKES, ema_decay=0)
    with pytest.raises(FoldtrainError) as stopped:
        build_loop(each, build(each), torch.device("cpu")).run()
    return str(stopped.value)


def test_a_divergence_after_the_start_rolls_both_back_and_stops_once_that_is_no_help(tmp_path: Path) -> None:
    (said,) = run_gloo(1, tmp_path, diverged, str(tmp_path / "run"), patience=600)
    events = [json.loads(line) for line in (tmp_path / "run" / "events.jsonl").read_text().splitlines()]
    first = next(event for event in events if event["event"] == "spike")
    (rollback,) = [event for event in events if event["event"] == "rollback"]
    assert first["step"] >= START
    assert rollback["step"] <= START
    assert "the loss spiked at step" in said
