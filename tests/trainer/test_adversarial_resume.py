"""A tokenizer with its discriminator is killed between its two updates and goes on, there and elsewhere.

Killed at each ZeRO stage and world size, it goes on at each of these with 1 and 3 micro-batches. All pairs of places:
`python benchmarks/elastic_matrix.py --tokenizer`.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from tests.trainer.gloo import forking, run_gloo
from tests.trainer.toy_tokenizer import BATCH, START, STEPS, build, job
from trainer.checkpoints import exporting
from trainer.checkpoints.catalog import step_folder
from trainer.checkpoints.commits import COMPLETE
from trainer.checkpoints.index import Index
from trainer.engine.deepspeed_engine import prepare_deepspeed
from trainer.loop.compose import build_loop

pytestmark = pytest.mark.slow

Place = tuple[int, int, int]
"""ZeRO stage, workers, micro-batches of each."""
WORLDS = (1, 2)
ALL: list[Place] = [(zero, world, parts) for world in WORLDS for zero in (0, 1, 2, 3) for parts in (1, 3)]
PLACES: list[Place] = [(zero, world, 1 + 2 * ((zero + world) % 2)) for world in WORLDS for zero in (0, 1, 2, 3)]
"""Where it is killed."""
ELSEWHERE: dict[Place, Place] = {
    (zero, world, parts): ((zero + 1) % 4, 3 - world, 4 - parts)
    for zero, world, parts in ALL
    if (zero, world, parts) not in PLACES
}
"""Where it goes on, too, and where it was killed before: at another stage, world size and number of micro-batches."""
SAVED, KILLED = 2, 3
"""Steps that were taken before: of the newest complete checkpoint, and of the death. A checkpoint is complete before
the next one begins; that one is not yet, right after its step."""


def name_of(place: Place) -> str:
    return "zero{}x{}-{}".format(*place)


def at(place: Place, folder: Path | str) -> Any:
    zero, world, parts = place
    return job(folder, zero_stage=zero, micro_batch=BATCH // world // parts, checkpoint_every=1)


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
    context = forking()
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


def run_each(root: Path, jobs: Iterable[tuple[Place, Path]], patience: float = 600) -> None:
    """Runs at places, each in its folder, to their ends."""
    jobs = list(jobs)
    for world in WORLDS:
        here = [(place, str(folder)) for place, folder in jobs if place[1] == world]
        # Stage 3 last: DeepSpeed then replaces torch's linear layer for the process, and what follows rounds otherwise.
        run_gloo(world, root, run_all, sorted(here), patience=patience)


def killed(place: Place, folder: Path) -> None:
    """A run that dies between the two updates of a step; a complete checkpoint is left."""
    assert -9 in until_death(place, folder)
    complete = {path.parent.name for path in folder.glob(f"checkpoints/*/{COMPLETE}")}
    assert max(complete) == Path(step_folder("", SAVED)).name


def moved(source: Path, target: Path) -> None:
    """A folder with the checkpoint that is left in another, and nothing else."""
    shutil.copytree(step_folder(str(source / "checkpoints"), SAVED), step_folder(str(target / "checkpoints"), SAVED))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[Place, Path]:
    """Folders of runs that nothing happened to."""
    root = tmp_path_factory.mktemp("whole")
    folders = {place: root / name_of(place) for place in PLACES}
    run_each(root, folders.items())
    return folders


@pytest.fixture(scope="module")
def again(tmp_path_factory: pytest.TempPathFactory) -> dict[Place, Path]:
    """Folders of runs that were killed between the two updates of a step, and started again, each place's there."""
    root = tmp_path_factory.mktemp("again")
    folders = {place: root / name_of(place) for place in ALL}
    for place in PLACES:
        killed(place, folders[place])
    for there, here in ELSEWHERE.items():
        moved(folders[here], folders[there])
    run_each(root, folders.items())
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


def begun(folder: Path) -> list[int]:
    """Steps after which a run began."""
    events = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    return [event["step"] for event in events if event["event"] in {"start", "resume"}]


@pytest.mark.parametrize("place", PLACES, ids=name_of)
def test_killed_between_the_two_updates_it_goes_on_bit_for_bit(
    whole: dict[Place, Path], again: dict[Place, Path], place: Place
) -> None:
    assert begun(again[place]) == [0, SAVED]
    assert metrics(again[place]) == metrics(whole[place])
    expected, found = tensors(whole[place]), tensors(again[place])
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    one, other = ((root[place] / "export" / "model.safetensors").read_bytes() for root in (whole, again))
    assert one == other


@pytest.mark.parametrize("there", ELSEWHERE, ids=name_of)
def test_killed_it_goes_on_at_another_stage_world_size_and_micro_batch(
    whole: dict[Place, Path], again: dict[Place, Path], there: Place
) -> None:
    here = ELSEWHERE[there]
    assert all(one != other for one, other in zip(here, there, strict=True))
    assert begun(again[there]) == [SAVED]
    first, second = metrics(whole[here])[SAVED:], metrics(again[there])
    for one, other in zip(first, second, strict=True):
        assert other == pytest.approx(one, rel=1e-3)
    # Moments of the second step on: gradients that are zero but for rounding move weights as far as others.
    found = tensors(again[there])
    for name, tensor in tensors(whole[here]).items():
        if name.startswith("ema/"):
            torch.testing.assert_close(found[name], tensor, rtol=1e-2, atol=1e-3)


def test_it_is_killed_at_each_stage_and_world_size_and_goes_on_at_each_number_of_micro_batches_of_these() -> None:
    assert {place[:2] for place in PLACES} == {place[:2] for place in ALL}
    assert set(ELSEWHERE.values()) == set(PLACES)
    assert {*PLACES, *ELSEWHERE} == set(ALL)


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
