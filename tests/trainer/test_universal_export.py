"""A checkpoint that DeepSpeed itself goes on from: its engine with `load_universal`, and nothing of this project."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.trainer.gloo import run_gloo
from tests.trainer.small_training import WIDTH, Training, settings, states
from trainer.checkpoints.exporting import export_deepspeed
from trainer.engine.deepspeed_engine import prepare_deepspeed
from trainer.engine.fragments import MOMENTS

STEP = 3
STAGES = (1, 2, 3)


def train(folder: str, output: str) -> None:
    training = Training(settings(zero_stage=2), f"{folder}/checkpoints")
    training.advance(STEP)
    training.save()
    export_deepspeed(f"{folder}/checkpoints", STEP, output, ema=False)


class Plain(nn.Module):
    """The same parameters, and no buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(WIDTH, 7), nn.Tanh(), nn.Linear(7, 1))

    def forward(self, x: Tensor) -> Tensor:
        predicted: Tensor = self.layers(x)
        return (predicted.squeeze(1) - x.sum(1)).square().mean()


def load(output: str, stage: int, groups: int) -> dict[str, Any]:
    """What DeepSpeed's engine has after it loaded the export, and after a step from there."""
    import deepspeed
    from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

    config = {
        "train_micro_batch_size_per_gpu": 4,
        "zero_optimization": {"stage": stage},
        "zero_allow_untested_optimizer": True,
        "checkpoint": {"load_universal": True},
    }
    module = Plain()
    named = dict(module.named_parameters())
    parts = [{"params": list(named.values())[part::groups], "weight_decay": part} for part in range(groups)]
    engine, wrapped, _, _ = deepspeed.initialize(
        model=module, optimizer=torch.optim.AdamW(parts, lr=1e-3), config=config
    )
    engine.load_checkpoint(output)
    found: dict[str, Any] = {
        "steps": engine.global_steps,
        "taken": {float(state["step"]) for state in wrapped.optimizer.state.values()},
        "groups": {(group["lr"], group["weight_decay"]) for group in wrapped.optimizer.param_groups},
        "master": {name: safe_get_full_fp32_param(p).clone().numpy() for name, p in named.items()},
    }
    for role in MOMENTS:
        found[role] = {name: safe_get_full_optimizer_state(p, role).clone().numpy() for name, p in named.items()}
    losses = []
    for _ in range(2):
        loss = engine(torch.eye(4, WIDTH))
        engine.backward(loss)
        engine.step()
        losses.append(float(loss.detach()))
    taken_later = {float(state["step"]) for state in wrapped.optimizer.state.values()}
    return found | {"losses": losses, "taken_later": taken_later}


CASES = [(stage, groups) for stage in STAGES for groups in (1, 2)]


def load_all(output: str) -> list[dict[str, Any]]:
    prepare_deepspeed(torch.device("cpu"))
    return [load(output, *case) for case in CASES]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("universal")
    run_gloo(1, found, train, str(found), str(found / "export"))
    return found


@pytest.fixture(scope="module")
def loaded(folder: Path) -> dict[tuple[int, int], dict[str, Any]]:
    return dict(zip(CASES, run_gloo(2, folder, load_all, str(folder / "export"))[0], strict=True))


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"zero{case[0]}-{case[1]}-groups")
def test_an_engine_of_deepspeeds_own_goes_on_from_it(
    folder: Path, loaded: dict[tuple[int, int], dict[str, Any]], case: tuple[int, int]
) -> None:
    found, ours = loaded[case], states(str(folder / "checkpoints"), STEP)
    for role in ("master", *MOMENTS):
        for name, values in found[role].items():
            assert torch.equal(torch.from_numpy(values), ours[role][name]), (role, name)
    assert found["steps"] == STEP
    assert found["taken"] == {STEP}
    assert found["groups"] == {(1e-3, float(group)) for group in range(case[1])}  # its own, not ours
    assert found["losses"][1] < found["losses"][0]
    if case != (3, 2):  # DeepSpeed 0.19.8 has the groups of ZeRO 3 share one counter after a load, which each counts up
        assert found["taken_later"] == {STEP + 2}
