"""Two networks that learn from each other: against plain torch, killed within a step, and resumed elsewhere."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.trainer.gloo import forking, run_gloo
from tests.trainer.toy_adversarial import KILLED, SAVED, STEPS, job, plain, run
from trainer.checkpoints import exporting
from trainer.checkpoints.catalog import all_steps, complete_steps, step_folder
from trainer.checkpoints.index import Index

pytestmark = pytest.mark.slow

ZERO, WORLDS = (0, 1, 2, 3), (1, 2)
Place = tuple[int, int]
"""ZeRO stage and number of workers."""
PLACES: list[Place] = [(zero, world) for world in WORLDS for zero in ZERO]
ROLES = {"maker": ("master", "ema", "exp_avg", "exp_avg_sq"), "critic": ("master", "exp_avg", "exp_avg_sq")}


def name_of(place: Place) -> str:
    return f"zero{place[0]}x{place[1]}"


def unbroken(folder: str) -> None:
    for zero in ZERO:
        assert run(job(f"{folder}/{zero}", zero_stage=zero))


def resumed(folders: list[tuple[int, str]]) -> None:
    for zero, folder in folders:
        assert run(job(folder, zero_stage=zero))


def killed(zero: int, folder: str) -> None:
    run(job(folder, zero_stage=zero), kill_at=KILLED)


def until_death(world: int, folder: Path, zero: int) -> list[int | None]:
    """Exit codes of real processes that train together until one by one they die in the middle of a step."""
    context = forking()
    rendezvous = str(folder.parent / f"rendezvous-{folder.name}")
    processes = [context.Process(target=_child, args=(rank, world, rendezvous, zero, folder)) for rank in range(world)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=120)
    return [process.exitcode for process in processes]


def _child(rank: int, world: int, rendezvous: str, zero: int, folder: Path) -> None:
    import torch.distributed as dist

    os.environ.update(LOCAL_RANK=str(rank), RANK=str(rank), WORLD_SIZE=str(world))
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=world)
    killed(zero, str(folder))


def tensors(folder: Path, step: int) -> dict[str, Tensor]:
    found = {}
    for trainable, roles in ROLES.items():
        for role in roles:
            whole = exporting.assemble(str(folder / "checkpoints"), step, role, trainable)
            found |= {f"{role}/{trainable}.{name}": tensor for name, tensor in whole.items()}
    return found


def losses(folder: Path) -> list[tuple[int, float, float]]:
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [(record["step"], record["loss"], record["critic"]) for record in records]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[Place, Path]:
    """Folders of runs that nothing happened to."""
    root = tmp_path_factory.mktemp("whole")
    for world in WORLDS:
        run_gloo(world, root, unbroken, str(root / str(world)))
    return {(zero, world): root / str(world) / str(zero) for zero, world in PLACES}


@pytest.mark.parametrize("place", PLACES, ids=name_of)
def test_both_networks_are_those_of_a_plain_loop(whole: dict[Place, Path], place: Place) -> None:
    expected, folder = plain(STEPS), str(whole[place] / "checkpoints")
    for trainable, role, name in (
        ("maker", "master", "maker"),
        ("critic", "master", "critic"),
        ("maker", "ema", "average"),
    ):
        found = exporting.assemble(folder, STEPS, role, trainable)
        for parameter, weights in expected[name].items():
            if parameter != "seen":
                torch.testing.assert_close(found[parameter], weights, rtol=0, atol=1e-6)


@pytest.fixture(scope="module")
def again(whole: dict[Place, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[Place, Path]:
    """Folders of runs that were killed between the two updates of a step, and started again."""
    root = tmp_path_factory.mktemp("again")
    found = {place: root / name_of(place) for place in PLACES}
    for place, folder in found.items():
        assert -9 in until_death(place[1], folder, place[0])
        assert all_steps(str(folder / "checkpoints"))[0] == SAVED
    for world in WORLDS:
        run_gloo(world, root, resumed, [(zero, str(found[zero, world])) for zero in ZERO])
    return found


@pytest.mark.parametrize("place", PLACES, ids=name_of)
def test_killed_between_its_two_updates_a_run_goes_on_bit_for_bit(
    whole: dict[Place, Path], again: dict[Place, Path], place: Place
) -> None:
    assert losses(again[place]) == losses(whole[place])
    expected, found = tensors(whole[place], STEPS), tensors(again[place], STEPS)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    one, other = ((root[place] / "export" / "model.safetensors").read_bytes() for root in (whole, again))
    assert one == other
    assert [event for event in _events(again[place]) if event in {"start", "resume"}] == ["start", "resume"]


def _events(folder: Path) -> list[str]:
    return [json.loads(line)["event"] for line in (folder / "events.jsonl").read_text().splitlines()]


MOVES: list[tuple[Place, Place]] = [((0, 1), (3, 2)), ((3, 2), (1, 1)), ((2, 2), (0, 1)), ((1, 1), (2, 2))]


@pytest.mark.parametrize(("here", "there"), MOVES, ids=lambda place: name_of(place))
def test_a_checkpoint_of_both_goes_on_at_another_stage_and_world_size(
    whole: dict[Place, Path], tmp_path: Path, here: Place, there: Place
) -> None:
    moved = tmp_path / "run"
    shutil.copytree(
        step_folder(str(whole[here] / "checkpoints"), SAVED), step_folder(str(moved / "checkpoints"), SAVED)
    )
    run_gloo(there[1], tmp_path, resumed, [(there[0], str(moved))])
    for name, tensor in tensors(whole[here], STEPS).items():
        torch.testing.assert_close(tensors(moved, STEPS)[name], tensor, rtol=1e-4, atol=1e-6)


def test_names_say_whose_each_tensor_is_and_the_frozen_layer_is_saved_and_exported(whole: dict[Place, Path]) -> None:
    from safetensors.torch import load_file

    for folder in whole.values():
        step = Path(step_folder(str(folder / "checkpoints"), STEPS))
        index = Index.from_bytes((step / "index.json").read_bytes())
        roles: dict[str, set[str]] = {}
        for entry in index.entries:
            roles.setdefault(entry.tensor.name, set()).add(entry.role)
        assert roles["maker.fixed.weight"] == roles["maker.fixed.bias"] == {"frozen"}
        assert roles["maker.layers.0.weight"] == {"master", "ema", "exp_avg", "exp_avg_sq"}
        assert roles["critic.layers.0.weight"] == {"master", "exp_avg", "exp_avg_sq"}
        assert roles["critic.seen"] == {"buffer"}
        state = json.loads((step / "state.json").read_text())
        assert {name: each["optimizer_step"] for name, each in state["trainables"].items()} == {
            "maker": STEPS,
            "critic": STEPS,
        }
        exported = load_file(folder / "export" / "model.safetensors")
        assert set(exported) == {
            f"{layer}.{kind}" for layer in ("fixed", "layers.0", "layers.2") for kind in ("weight", "bias")
        }
        assert torch.equal(exported["fixed.weight"], plain(0)["maker"]["fixed.weight"])


def other_fixed_layer(folder: str, there: str) -> list[bool]:
    """Whether the frozen layer is that of the checkpoint, at each stage, though the start had another one."""
    from tests.trainer.toy_adversarial import AdversarialStage
    from trainer.loop.compose import build_loop

    found = []
    for zero in ZERO:
        shutil.copytree(folder, f"{there}/{zero}", dirs_exist_ok=True, ignore=shutil.ignore_patterns("wandb"))
        stage = AdversarialStage(job("").section.trainer)
        torch.nn.init.zeros_(stage.maker.fixed.weight)
        loop = build_loop(job(f"{there}/{zero}", zero_stage=zero), stage, torch.device("cpu"))
        loop.checkpoints.resume()
        found.append(torch.equal(loop.engines["maker"].whole("fixed.weight"), plain(0)["maker"]["fixed.weight"]))
    return found


def test_frozen_weights_come_from_the_checkpoint(whole: dict[Place, Path], tmp_path: Path) -> None:
    alone = tmp_path / "source"
    shutil.copytree(whole[2, 2], alone, ignore=shutil.ignore_patterns("wandb"))
    assert run_gloo(1, tmp_path, other_fixed_layer, str(alone), str(tmp_path / "there"))[0] == [True] * len(ZERO)


def poisoned(folder: str, zero: int) -> dict[str, Any]:
    """The critic alone sees a gradient that is not finite, in one step."""
    from tests.trainer import toy_adversarial as toy
    from trainer.loop.compose import build_loop

    judge = toy.AdversarialStage._judge

    def judging(stage: toy.AdversarialStage, batch: toy.Pairs, made_BC: Tensor) -> toy.Terms:
        terms = judge(stage, batch, made_BC)
        return {"critic": terms["critic"] * (float("nan") if stage.done == 2 else 1.0)}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(toy.AdversarialStage, "_judge", judging)
        loop = build_loop(
            job(folder, zero_stage=zero),
            toy.AdversarialStage(job(folder, zero_stage=zero).section.trainer),
            torch.device("cpu"),
        )
        loop.run()
    return {"skipped": loop.progress.skipped, "steps": {n: e.owned.optimizer_step for n, e in loop.engines.items()}}


@pytest.mark.parametrize("zero", [0, 2])
def test_a_skipped_update_is_counted_by_the_name_of_its_network(tmp_path: Path, zero: int) -> None:
    (found,) = run_gloo(1, tmp_path, poisoned, str(tmp_path / "run"), zero)
    assert found == {"skipped": {"critic": 1}, "steps": {"maker": STEPS, "critic": STEPS - 1}}
    records = [json.loads(line) for line in (tmp_path / "run" / "events.jsonl").read_text().splitlines()]
    assert [(r["step"], r["trainable"]) for r in records if r["event"] == "skipped_step"] == [(3, "critic")]
    assert complete_steps(str(tmp_path / "run" / "checkpoints")) == [SAVED, STEPS]
