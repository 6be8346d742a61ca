"""The engine and its checkpoints on real processes: resumed equals unbroken, on any number of workers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from data_pipeline import storage
from data_pipeline.errors import CorruptShardError
from tests.trainer.gloo import run_gloo
from trainer import checkpoint
from trainer.config import TrainerConfig
from trainer.engine import Batch, Engine, Terms, deepspeed_config, prepare_deepspeed, split_batch
from trainer.schedule import learning_rate

BATCH, WIDTH = 8, 6


class Regression(nn.Module):
    """Small, with a matrix, vectors, and a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(WIDTH, 7), nn.Tanh(), nn.Linear(7, 1))
        self.register_buffer("seen", torch.zeros(1))

    def forward(self, batch: Batch) -> Terms:
        loss = (self.layers(batch["x"]).squeeze(1) - batch["y"]).square().mean()
        return {"loss": loss}


def settings(**changes: Any) -> TrainerConfig:
    values = {"steps": 8, "global_batch": BATCH, "learning_rate": 0.05, "ema_decay": 0.9, "weight_decay": 0.1}
    return TrainerConfig(**(values | {"gradient_clipping": 1.0} | changes))


def rows(step: int) -> Batch:
    """This rank's slice of the global batch of a step."""
    generator = torch.Generator().manual_seed(step)
    x, world = torch.randn(BATCH, WIDTH, generator=generator), dist.get_world_size()
    share = BATCH // world
    mine = x[dist.get_rank() * share :][:share]
    return {"x": mine, "y": mine.sum(1)}


def train(config: TrainerConfig, folder: str, first: int, last: int) -> dict[str, Any]:
    """Steps [first, last), from the checkpoint at `first` if that is not 0; a checkpoint at the end."""
    prepare_deepspeed()
    torch.manual_seed(0)
    module = Regression()
    engine = Engine(module, config, {"layers.2.weight"}, torch.device("cpu"))
    if first:
        checkpoint.load_checkpoint(folder, first, module, engine.owned)
    replica = {name: p.detach().clone() for name, p in module.named_parameters()}
    losses = []
    for step in range(first, last):
        result = engine.step(split_batch(rows(step), engine.accumulation), learning_rate(config, step))
        module.get_buffer("seen").add_(1)
        mean = result.terms["loss"].clone()
        dist.all_reduce(mean)
        losses.append(float(mean / dist.get_world_size()))
        for name, p in module.named_parameters():
            replica[name].lerp_(p.detach(), 1 - config.ema_decay)
    checkpoint.save_checkpoint(folder, last, module, engine.owned, {"step": last})
    weights = {name: p.detach().clone().numpy() for name, p in module.named_parameters()}
    return {"losses": losses, "weights": weights, "ema": {k: v.numpy() for k, v in replica.items()}}


def assemble(folder: Path, step: int, role: str) -> dict[str, Tensor]:
    return checkpoint.assemble(str(folder), step, role)


@pytest.mark.parametrize("stage", [1, 2])
def test_a_resumed_run_equals_the_unbroken_one_bit_for_bit(tmp_path: Path, stage: int) -> None:
    config = settings(zero_stage=stage)
    unbroken = run_gloo(2, tmp_path, train, config, str(tmp_path / "whole"), 0, 6)[0]
    run_gloo(2, tmp_path, train, config, str(tmp_path / "parts"), 0, 3)
    resumed = run_gloo(2, tmp_path, train, config, str(tmp_path / "parts"), 3, 6)[0]
    assert resumed["losses"] == unbroken["losses"][3:]
    for role in ("master", "exp_avg", "exp_avg_sq", "ema"):
        whole, parts = assemble(tmp_path / "whole", 6, role), assemble(tmp_path / "parts", 6, role)
        assert all(torch.equal(whole[name], parts[name]) for name in whole), role


def test_a_checkpoint_of_two_workers_continues_on_one_and_back(tmp_path: Path) -> None:
    config = settings()
    unbroken = run_gloo(2, tmp_path, train, config, str(tmp_path / "whole"), 0, 6)[0]
    folder = str(tmp_path / "parts")
    run_gloo(2, tmp_path, train, config, folder, 0, 2)
    alone = run_gloo(1, tmp_path, train, config, folder, 2, 4)[0]
    again = run_gloo(2, tmp_path, train, config, folder, 4, 6)[0]
    assert alone["losses"] + again["losses"] == pytest.approx(unbroken["losses"][2:], rel=1e-5)
    whole, parts = assemble(tmp_path / "whole", 6, "ema"), assemble(tmp_path / "parts", 6, "ema")
    for name, tensor in whole.items():
        torch.testing.assert_close(parts[name], tensor, rtol=1e-5, atol=1e-6)


def test_the_sharded_average_equals_that_of_a_full_replica(tmp_path: Path) -> None:
    replica = run_gloo(2, tmp_path, train, settings(), str(tmp_path), 0, 5)[0]["ema"]
    sharded = assemble(tmp_path, 5, "ema")
    for name, values in replica.items():
        torch.testing.assert_close(sharded[name], torch.from_numpy(values), rtol=1e-6, atol=1e-7)


def test_accumulation_gives_the_step_of_the_whole_batch(tmp_path: Path) -> None:
    whole = run_gloo(1, tmp_path, train, settings(), str(tmp_path / "a"), 0, 4)[0]
    parts = run_gloo(1, tmp_path, train, settings(micro_batch=2), str(tmp_path / "b"), 0, 4)[0]
    assert parts["losses"] == pytest.approx(whole["losses"], rel=1e-5)


def overwrite(folder: str) -> dict[str, Any]:
    prepare_deepspeed()
    torch.manual_seed(0)
    module = Regression()
    engine = Engine(module, settings(), set(), torch.device("cpu"))
    engine.step([rows(0)], 0.05)
    engine.overwrite_rows("layers.0.weight", torch.tensor([1, 5]), torch.full((2, WIDTH), 3.0))
    checkpoint.save_checkpoint(folder, 1, module, engine.owned, {"step": 1})
    return {"weight": module.layers[0].weight.detach().numpy()}


def test_overwritten_rows_lose_their_moments_and_no_others_do(tmp_path: Path) -> None:
    weights = run_gloo(2, tmp_path, overwrite, str(tmp_path))
    master, average = assemble(tmp_path, 1, "master"), assemble(tmp_path, 1, "ema")
    moments = assemble(tmp_path, 1, "exp_avg_sq")["layers.0.weight"]
    for rows_of in (
        master["layers.0.weight"],
        average["layers.0.weight"],
        *(torch.tensor(w["weight"]) for w in weights),
    ):
        assert (rows_of[[1, 5]] == 3).all()
        assert not (rows_of[[0, 2]] == 3).any()
    assert (moments[[1, 5]] == 0).all()
    assert (moments[[0, 2, 3, 4, 6]] > 0).all()


def poisoned(folder: str) -> list[bool]:
    prepare_deepspeed()
    torch.manual_seed(0)
    module = Regression()
    engine = Engine(module, settings(), set(), torch.device("cpu"))
    before = module.layers[0].weight.detach().clone()
    bad = rows(0)
    if dist.get_rank() == 1:
        bad["y"][0] = float("nan")
    skipped = engine.step([bad], 0.05)
    unmoved = torch.equal(before, module.layers[0].weight)
    return [skipped.applied, unmoved, engine.step([rows(1)], 0.05).applied]


def test_a_step_with_gradients_that_are_not_finite_is_skipped_on_all_workers_and_said(tmp_path: Path) -> None:
    assert run_gloo(2, tmp_path, poisoned, str(tmp_path)) == [[False, True, True]] * 2


def test_an_unfinished_checkpoint_is_never_found(tmp_path: Path) -> None:
    run_gloo(1, tmp_path, train, settings(), str(tmp_path), 0, 2)
    storage.write_bytes(str(tmp_path / "step_00000009" / "rank_0000.safetensors"), b"half")
    assert checkpoint.complete_steps(str(tmp_path)) == [2]


def test_a_damaged_checkpoint_is_refused_with_its_name(tmp_path: Path) -> None:
    run_gloo(1, tmp_path, train, settings(), str(tmp_path), 0, 2)
    path = tmp_path / "step_00000002" / "rank_0000.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\x00\x01"[:1])
    with pytest.raises(CorruptShardError, match=r"rank_0000\.safetensors"):
        checkpoint.assemble(str(tmp_path), 2, "master")


def test_old_checkpoints_go_and_the_newest_stay(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        storage.write_bytes(str(tmp_path / f"step_{step:08d}" / "COMPLETE"), b"")
    checkpoint.remove_old(str(tmp_path), keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step_00000002", "step_00000003"]


def test_a_batch_that_does_not_fit_the_workers_is_refused() -> None:
    with pytest.raises(ValueError, match="no multiple of the 3 workers"):
        deepspeed_config(settings(), 3)
    assert deepspeed_config(settings(micro_batch=2), 2)["gradient_accumulation_steps"] == 2
