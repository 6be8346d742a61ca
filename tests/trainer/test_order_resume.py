"""Each order of generators: as plain torch on any number of ranks, and killed and resumed as if nothing had been."""

from __future__ import annotations

import copy
import json
import os
import signal
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import pytest
import torch
import torch.distributed as dist
from torch import nn

from cluster.drills.drilled_training import small_generator
from data_pipeline.config import ReadingConfig
from data_pipeline.loading.loader import TokenBatch
from data_pipeline.order.permutations import step_positions
from model.config import ImageFolderConfig, VectorConfig, ViTConfig
from model.families import build_forcing, build_generator, generator_families
from model.protocols import TeacherForcing
from tests.trainer.gloo import forking, run_gloo
from trainer.config import GeneratorStageConfig, TrackingConfig
from trainer.engine.batches import Batch
from trainer.engine.deepspeed_engine import prepare_deepspeed
from trainer.engine.engine import Engines
from trainer.engine.scalars import Scalars
from trainer.job import TrainJob
from trainer.loop.compose import build_loop
from trainer.stages.generator import GeneratorStage

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("order_resume")]

KINDS = list(generator_families())
BATCH, STEPS, RATE = 8, 4, 1e-3
SAVED, KILLED = 2, 3
"""Steps before the newest complete checkpoint, and before the death."""
HERE, THERE = (0, 1), (3, 2)
"""ZeRO stage and workers of the first start, and of the second one, which has two micro-batches on each, too."""
VIT = ViTConfig(width=8, depth=1, heads=2)
TOKENIZER = ImageFolderConfig(
    image_size=16,
    patch_size=4,
    scales=(1, 2),
    dropout_min_scales=1,
    quantizer=VectorConfig(codebook_size=16, code_dim=4),
    encoder=VIT,
    decoder=VIT,
)
LAYOUT = TOKENIZER.layout
CPU = torch.device("cpu")
Gradients = dict[str, npt.NDArray[np.float32]]


class Tokens:
    """Batches that are drawn by position, in place of a data set."""

    def batch(self, step: int, rank: int, world: int) -> TokenBatch:
        position_B = step_positions(step, BATCH, rank, world)
        shape = (LAYOUT.positions, LAYOUT.folds)
        drawn = [np.random.default_rng(int(p)).integers(LAYOUT.vocabulary(), size=shape) for p in position_B]
        return TokenBatch(np.stack(drawn).astype(np.uint16), position_B % 10, position_B, position_B)


class ToyGenerator(GeneratorStage):
    """The stage, whose process dies in a step, if it is told to."""

    kill_at: int | None = None
    taken = 0
    """Steps that this start has taken: batches are made ahead of them."""
    source: GeneratorStage

    def batch(self, step: int) -> Any:
        return self.source.batch(step)

    def step(self, micro_batches: Any, engines: Engines, rate: float) -> Scalars:
        if self.kill_at == self.taken:
            os.kill(os.getpid(), signal.SIGKILL)
        self.taken += 1
        return super().step(micro_batches, engines, rate)


def section_of(kind: str, place: tuple[int, int] = HERE) -> GeneratorStageConfig:
    """No schedule, decay, clipping or average: what is left is a loop over AdamW."""
    zero, world = place
    values: dict[str, Any] = {"steps": STEPS, "global_batch": BATCH, "learning_rate": RATE, "final_learning_rate": 1.0}
    values |= {"warmup_steps": 0, "weight_decay": 0.0, "gradient_clipping": 0.0, "ema_decay": 0.0, "zero_stage": zero}
    values |= {"checkpoint_every": 1, "log_every": 1, "micro_batch": BATCH // world // world}
    if zero == 3:
        values["extra"] = {"zero_optimization": {"stage3_param_persistence_threshold": 0}}
    model = small_generator(kind) | {"label_dropout": 0.3}
    return GeneratorStageConfig.model_validate({"model": model, "trainer": values})


def build(kind: str, place: tuple[int, int] = HERE) -> ToyGenerator:
    """The stage on this rank, on tokens that are drawn by position."""
    torch.manual_seed(5)
    section, forcing, width = section_of(kind, place), None, None
    if section.model.needs_forcing:
        forcing = cast("TeacherForcing", build_forcing(TOKENIZER))
        cast("nn.Module", forcing).eval().requires_grad_(False)
        width = forcing.width
    network = build_generator(section.network, LAYOUT, width)
    stage = ToyGenerator.without_data(section, network, forcing, CPU)
    stage.source = copy.copy(stage)
    stage.source.__class__ = GeneratorStage
    stage.source.samples = cast("Any", Tokens())
    return stage


def run(kind: str, folder: str, place: tuple[int, int] = HERE, kill_at: int | None = None) -> None:
    stage = build(kind, place)
    stage.kill_at = kill_at
    inputs = {"tokens": ""}
    arguments = (section_of(kind, place), 0, "squash", ReadingConfig(), inputs, {}, {}, TrackingConfig(wandb="off"))
    assert build_loop(TrainJob("generator", folder, *arguments), stage, CPU).run()


def plain(kind: str) -> list[float]:
    """Losses of plain torch: one process, the whole batch, torch's AdamW."""
    stage, losses = build(kind), []
    network = cast("nn.Module", stage.network).train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=RATE, betas=stage._config.trainer.betas, weight_decay=0.0)
    for step in range(STEPS):
        optimizer.zero_grad()
        loss = stage.terms(stage.batch(step))["loss"]
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


def gradients(kind: str) -> Gradients:
    """Of a step's loss over the batches of all ranks, each in as many micro-batches as there are ranks."""
    stage, world = build(kind), dist.get_world_size()
    network = cast("nn.Module", stage.network).train()
    batch: Batch = stage.batch(1)
    for part in batch.split(world):
        (stage.terms(cast("Any", part))["loss"] / world).backward()  # type: ignore[no-untyped-call]
    found = {}
    for name, parameter in network.named_parameters():
        total = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad.clone()
        dist.all_reduce(total)
        found[name] = (total / world).numpy()
    return found


def alone(root: str) -> tuple[dict[str, list[float]], dict[str, Gradients]]:
    """What one rank does: plain torch, gradients, and undisturbed runs."""
    prepare_deepspeed(CPU)
    losses, found = {kind: plain(kind) for kind in KINDS}, {kind: gradients(kind) for kind in KINDS}
    for kind in KINDS:
        run(kind, f"{root}/{kind}")
    return losses, found


def together(root: str) -> dict[str, Gradients]:
    """What two ranks do: gradients, and runs that go on with what was left."""
    prepare_deepspeed(CPU)
    found = {kind: gradients(kind) for kind in KINDS}
    for kind in KINDS:
        run(kind, f"{root}/{kind}", THERE)
    return found


def _die(rendezvous: str, kind: str, folder: str) -> None:
    os.environ.update(LOCAL_RANK="0", RANK="0", WORLD_SIZE="1")
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=0, world_size=1)
    prepare_deepspeed(CPU)
    run(kind, folder, kill_at=KILLED)


class Runs:
    """All that was run, by kind."""

    def __init__(self, root: Path) -> None:
        self.whole, self.killed = root / "whole", root / "killed"
        ((self.plain, self.of_one),) = run_gloo(1, root, alone, str(self.whole), patience=600)
        context = forking()
        arguments = [(str(root / f"rendezvous-{kind}"), kind, str(self.killed / kind)) for kind in KINDS]
        processes = [context.Process(target=_die, args=each) for each in arguments]
        for process in processes:
            process.start()
        for process in processes:
            process.join(timeout=600)
        self.exits = [process.exitcode for process in processes]
        self.of_two = run_gloo(2, root, together, str(self.killed), patience=600)[0]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    return Runs(tmp_path_factory.mktemp("orders"))


def metrics(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_trained_as_plain_torch_would(runs: Runs, kind: str) -> None:
    losses = [record["loss"] for record in metrics(runs.whole / kind)]
    assert losses == pytest.approx(runs.plain[kind], rel=1e-5)
    assert losses[-1] != pytest.approx(losses[0], rel=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_two_ranks_have_the_gradients_of_one(runs: Runs, kind: str) -> None:
    for name, expected in runs.of_one[kind].items():
        np.testing.assert_allclose(runs.of_two[kind][name], expected, rtol=1e-4, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("kind", KINDS)
def test_killed_it_goes_on_at_another_world_size_and_zero_stage(runs: Runs, kind: str) -> None:
    assert runs.exits == [-signal.SIGKILL] * len(KINDS)
    whole, again = metrics(runs.whole / kind), metrics(runs.killed / kind)
    events = [json.loads(line) for line in (runs.killed / kind / "events.jsonl").read_text().splitlines()]
    begun = [(event["step"], event["workers"]) for event in events if event["event"] in {"start", "resume"}]
    assert begun == [(0, HERE[1]), (SAVED, THERE[1])]
    assert [record["step"] for record in again] == [record["step"] for record in whole]
    clocks = {"time", "learning_rate", "epoch"}
    for one, other in zip(whole, again, strict=True):
        names = [name for name in one if name.startswith(("loss", "accuracy")) and name not in clocks]
        assert {name: other[name] for name in names} == pytest.approx({name: one[name] for name in names}, rel=1e-4)
