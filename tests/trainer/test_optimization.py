"""A trained classifier has the weights that plain torch gives it: learning rate, betas, decay, clipping, average."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.trainer import small_runs
from tests.trainer.gloo import run_gloo
from trainer.checkpoints import exporting

STEPS, WARMUP, RATE, LAST = 12, 4, 0.02, 0.1
BETAS, DECAY, CLIP, AVERAGE = (0.8, 0.9), 0.3, 0.33, 0.5
SETTINGS: dict[str, Any] = {
    "steps": STEPS,
    "warmup_steps": WARMUP,
    "learning_rate": RATE,
    "final_learning_rate": LAST,
    "betas": BETAS,
    "weight_decay": DECAY,
    "gradient_clipping": CLIP,
    "ema_decay": AVERAGE,
}
AFTER_WARMUP = [(step - WARMUP) / (STEPS - 1 - WARMUP) for step in range(WARMUP, STEPS)]
"""How far from the highest rate to the last one each step is."""
COSINE = [RATE * (1 + step) / (1 + WARMUP) for step in range(WARMUP)] + [
    RATE * (LAST + (1 - LAST) * (1 + math.cos(math.pi * share)) / 2) for share in AFTER_WARMUP
]
LIN0 = [RATE * (0.005 + 0.995 * step / WARMUP) for step in range(WARMUP)] + [
    RATE * (LAST + (1 - LAST) * min(1, (1 - share) / 0.95)) for share in AFTER_WARMUP
]
RATES = {"cosine": COSINE, "lin0": LIN0}
WARM = {"cosine": False, "lin0": True}
"""Whether the moving average of each schedule's runs has a warm-up."""
LAST_DECAY = {"cosine": None, "lin0": 0.9}
"""The last step's weight decay of each schedule's runs."""
DECAYS = {
    "cosine": [DECAY] * STEPS,
    "lin0": [0.9 + (DECAY - 0.9) * (1 + math.cos(math.pi * step / (STEPS - 1))) / 2 for step in range(STEPS)],
}
CASES = [(schedule, zero) for schedule in RATES for zero in (0, 1)]
SKIPPING: dict[str, Any] = {
    "steps": 8,
    "precision": "fp16",
    "initial_loss_scale": 2.0**17,
    "loss_scale_window": 1,
    "final_learning_rate": 1,
    "ema_decay": AVERAGE,
}
"""The loss scale doubles after every step that is applied, so sooner or later each second step is skipped."""


def train_all(folder: Path) -> None:
    uri = small_runs.write_images(folder)
    small_runs.train("judge", folder / "start", small_runs.classifier(learning_rate=small_runs.NO_STEP), images=uri)
    for schedule, zero in CASES:
        own = {"schedule": schedule, "ema_warmup": WARM[schedule], "final_weight_decay": LAST_DECAY[schedule]}
        section = small_runs.classifier(**SETTINGS, **own, zero_stage=zero)
        small_runs.train("judge", folder / f"{schedule}{zero}", section, images=uri)
    for zero in (0, 1):
        section = small_runs.classifier(**SKIPPING, checkpoint_every=1, keep_checkpoints=99, zero_stage=zero)
        small_runs.train("judge", folder / f"skips{zero}", section, images=uri)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    run_gloo(1, folder, train_all, folder)
    return folder


Plain = dict[str, tuple[dict[str, Tensor], dict[str, Tensor], list[float], list[float]]]


@pytest.fixture(scope="module")
def plain(runs: Path) -> Plain:
    """By schedule: weights, average, losses and gradient norms of the same training, written in plain torch."""
    start = small_runs.exported(runs / "start")
    return {name: train_plainly(start, rates, DECAYS[name], WARM[name]) for name, rates in RATES.items()}


def train_plainly(
    start: dict[str, Tensor], rates: list[float], decays: list[float], warm: bool
) -> tuple[dict[str, Tensor], dict[str, Tensor], list[float], list[float]]:
    weights = {name: tensor.clone().requires_grad_() for name, tensor in start.items()}
    average = {name: tensor.clone() for name, tensor in start.items()}
    image, label = small_runs.images(), torch.arange(small_runs.COUNT)
    decayed = ["body.0.weight", "body.3.weight", "head.weight"]  # convolutions and the matrix; no gain and no bias
    groups = [
        {"params": [weights[name] for name in decayed], "weight_decay": DECAY},
        {"params": [tensor for name, tensor in weights.items() if name not in decayed], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, betas=BETAS)
    losses, norms = [], []
    for number, (rate, weight_decay) in enumerate(zip(rates, decays, strict=True), 1):
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.param_groups[0]["weight_decay"] = weight_decay
        loss = F.cross_entropy(small_runs.plain_logits(weights, image), label)
        optimizer.zero_grad()
        loss.backward()
        losses.append(float(loss.detach()))
        norms.append(float(torch.nn.utils.clip_grad_norm_(weights.values(), CLIP)))
        optimizer.step()
        decay = min(AVERAGE, number / (9 + number) if number > 1 else 0.0) if warm else AVERAGE
        for name, tensor in weights.items():
            average[name] = decay * average[name] + (1 - decay) * tensor.detach()
    return {name: tensor.detach() for name, tensor in weights.items()}, average, losses, norms


def assert_close(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(
            found[name], tensor, rtol=0, atol=1e-6, msg=lambda text, name=name: f"{name}: {text}"
        )


@pytest.mark.parametrize(("schedule", "zero"), CASES)
def test_the_trained_weights_are_those_of_plain_adamw(runs: Path, plain: Plain, schedule: str, zero: int) -> None:
    assert_close(small_runs.exported(runs / f"{schedule}{zero}"), plain[schedule][0])


@pytest.mark.parametrize(("schedule", "zero"), CASES)
def test_the_average_of_the_weights_is_that_of_every_step(runs: Path, plain: Plain, schedule: str, zero: int) -> None:
    assert_close(small_runs.exported(runs / f"{schedule}{zero}", "ema"), plain[schedule][1])


@pytest.mark.parametrize(("schedule", "zero"), CASES)
def test_recorded_losses_and_norms_are_those_of_every_step(runs: Path, plain: Plain, schedule: str, zero: int) -> None:
    _, _, losses, norms = plain[schedule]
    assert max(norms) > CLIP > min(norms), "the clipping should act in some steps and not in others"
    assert small_runs.records(runs / f"{schedule}{zero}", "loss") == pytest.approx(losses, rel=1e-5)
    assert small_runs.records(runs / f"{schedule}{zero}", "grad_norm") == pytest.approx(norms, rel=1e-4)


@pytest.mark.parametrize(("schedule", "zero"), CASES)
def test_the_recorded_learning_rate_is_the_schedules(runs: Path, schedule: str, zero: int) -> None:
    assert small_runs.records(runs / f"{schedule}{zero}", "learning_rate") == pytest.approx(RATES[schedule])


def test_a_weight_decay_that_changes_is_recorded_and_another_is_not(runs: Path) -> None:
    assert small_runs.records(runs / "lin01", "weight_decay") == pytest.approx(DECAYS["lin0"])
    with pytest.raises(KeyError):
        small_runs.records(runs / "cosine1", "weight_decay")


@pytest.mark.parametrize("zero", [0, 1])
def test_skipped_steps_move_neither_the_weights_nor_their_average(runs: Path, zero: int) -> None:
    folder = runs / f"skips{zero}"
    skipped = small_runs.records(folder, "skipped_steps")
    applied = [now == before for before, now in zip([0, *skipped], skipped, strict=False)]
    first = applied.index(True)
    assert False in applied[first:], "a step should be skipped once the average differs from the weights"
    start = small_runs.exported(runs / "start")
    weights, average = start, start
    for step, moved in enumerate(applied, start=1):
        now = exporting.assemble(str(folder / "checkpoints"), step, "master")
        now = {name.split(".", 1)[1]: tensor for name, tensor in now.items()}
        assert any((now[name] != weights[name]).any() for name in now) == moved
        if moved:
            average = {name: AVERAGE * average[name] + (1 - AVERAGE) * now[name] for name in now}
        weights = now
    assert_close(small_runs.exported(folder, "ema"), average)
