"""A tokenizer with its discriminator is killed between its two updates and goes on, at every ZeRO stage."""

from __future__ import annotations

import json
import multiprocessing as mp
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from tests.trainer.gloo import PRELOADED, run_gloo
from tests.trainer.toy_tokenizer import BATCH, START, STEPS, build, job
from trainer.checkpoints import exporting
from trainer.checkpoints.catalog import all_steps, step_folder
from trainer.checkpoints.index import Index
from trainer.engine.deepspeed_engine import prepare_deepspeed
from trainer.loop.compose import build_loop

pytestmark = pytest.mark.slow

Place = tuple[int, int, int]
"""ZeRO stage, workers, micro-batches of each."""
PLACES: list[Place] = [(zero, world, 1 + 2 * ((zero + world) % 2)) for world in (1, 2) for zero in (0, 1, 2, 3)]
SAVED, KILLED = 2, 2


def name_of(place: Place) -> str:
    return "zero{}x{}-{}".format(*place)


def at(place: Place, folder: Path | str) -> Any:
    zero, world, parts = place
    return job(folder, zero_stage=zero, micro_batch=BATCH // world // parts)


def run(place: Place, folder: str, kill_at: int | None = None) -> bool:
    each = at(place, folder)
    stage = build(each)
    stage.kill_at = kill_at
    return build_loop(each, stage, torch.device("cpu")).run()


def run_all(places: list[tuple[Place, str]]) -> None:
    prepare_deepspeed(torch.device("cpu"))
    for place, folder in places:
        assert run(place, folder)


def until_death(place: Place, folder: Path) -> list[int | None]:
    """Exit codes of real processes that train together until one by one they die in the middle of a step."""
    context = mp.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    rendezvous, world = str(folder.parent / f"rendezvous-{folder.name}"), place[1]
    processes = [context.Process(target=_child, args=(rank, rendezvous, place, folder)) for rank in range(world)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=120)
    return [process.exitcode for process in processes]


def _child(rank: int, rendezvous: str, place: Place, folder: Path) -> None:
    os.environ.update(LOCAL_RANK=str(rank), RANK=str(rank), WORLD_SIZE=str(place[1]))
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=place[1])
    run(place, str(folder), KILLED)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[Place, Path]:
    """Folders of runs that nothing happened to."""
    root = tmp_path_factory.mktemp("whole")
    folders = {place: root / name_of(place) for place in PLACES}
    for world in (1, 2):
        run_gloo(
            world, root, run_all, [(place, str(folders[place])) for place in PLACES if place[1] == world], patience=600
        )
    return folders


@pytest.fixture(scope="module")
def again(whole: dict[Place, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[Place, Path]:
    """Folders of runs that were killed between the two updates of a step, and started again."""
    root = tmp_path_factory.mktemp("again")
    folders = {place: root / name_of(place) for place in PLACES}
    for place, folder in folders.items():
        assert -9 in until_death(place, folder)
        assert all_steps(str(folder / "checkpoints"))[0] == SAVED
    for world in (1, 2):
        run_gloo(
            world, root, run_all, [(place, str(folders[place])) for place in PLACES if place[1] == world], patience=600
        )
    return folders


def tensors(folder: Path, step: int = STEPS) -> dict[str, Tensor]:
    found = {}
    moments = ("master", "exp_avg", "exp_avg_sq")
    for trainable, roles in {"tokenizer": (*moments, "ema"), "discriminator": moments}.items():
        for role in roles:
            assembled = exporting.assemble(str(folder / "checkpoints"), step, role, trainable)
            found |= {f"{role}/{trainable}.{name}": tensor for name, tensor in assembled.items()}
    return found


def metrics(folder: Path) -> list[dict[str, float]]:
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    names = {"step", "loss", "adversarial_weight", "discriminator", "lecam", "grad_norm_discriminator"}
    return [{name: record[name] for name in sorted(names & record.keys())} for record in records]


@pytest.mark.parametrize("place", PLACES, ids=name_of)
def test_killed_between_the_two_updates_it_goes_on_bit_for_bit(
    whole: dict[Place, Path], again: dict[Place, Path], place: Place
) -> None:
    assert metrics(again[place]) == metrics(whole[place])
    expected, found = tensors(whole[place]), tensors(again[place])
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    one, other = ((root[place] / "export" / "model.safetensors").read_bytes() for root in (whole, again))
    assert one == other


MOVES: list[tuple[Place, Place]] = [((0, 1, 3), (3, 2, 1)), ((3, 2, 3), (1, 1, 1)), ((2, 2, 1), (0, 1, 3))]


@pytest.mark.parametrize(("here", "there"), MOVES, ids=lambda place: name_of(place))
def test_it_goes_on_at_another_stage_world_size_and_micro_batch(
    whole: dict[Place, Path], tmp_path: Path, here: Place, there: Place
) -> None:
    moved = tmp_path / "run"
    source, target = (step_folder(str(folder / "checkpoints"), SAVED) for folder in (whole[here], moved))
    shutil.copytree(source, target)
    run_gloo(there[1], tmp_path, run_all, [(there, str(moved))])
    first, second = metrics(whole[here])[SAVED:], metrics(moved)
    for one, other in zip(first, second, strict=True):
        assert other == pytest.approx(one, rel=1e-3)
    # Moments of the second step on: gradients that are zero but for rounding move weights as far as others.
    for name, tensor in tensors(whole[here]).items():
        if name.startswith("ema/"):
            torch.testing.assert_close(tensors(moved)[name], tensor, rtol=1e-2, atol=1e-3)


def test_each_counts_its_own_updates_and_lecams_averages_are_in_the_checkpoint(whole: dict[Place, Path]) -> None:
    for folder in whole.values():
        step = Path(step_folder(str(folder / "checkpoints"), STEPS))
        state = json.loads((step / "state.json").read_text())
        counted = {name: each["optimizer_step"] for name, each in state["trainables"].items()}
        assert counted == {"tokenizer": STEPS, "discriminator": STEPS - START}
        index = Index.from_bytes((step / "index.json").read_bytes())
        roles = {entry.tensor.name: entry.role for entry in index.entries}
        assert roles["discriminator.averages_2"] == "buffer"


def test_its_start_is_an_event_with_loss_and_memory(whole: dict[Place, Path]) -> None:
    for folder in whole.values():
        events = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
        (start,) = [event for event in events if event["event"] == "discriminator_start"]
        assert start["step"] == START + 1
        assert start["loss"] > 0
        assert start["memory_bytes"] >= start["memory_bytes_before"] > 0
