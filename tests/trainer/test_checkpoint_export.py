"""Checkpoints put together again: for foldtrain, for DeepSpeed's own tools, and on the command line."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from tests.trainer.gloo import run_gloo
from tests.trainer.small_training import Training, settings, states
from trainer.checkpoints.catalog import complete_steps


def train(folder: str) -> None:
    training = Training(settings(zero_stage=3), folder)
    for step in (1, 2, 3, 4):
        training.advance(step)
        training.save()


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A stage's folder with checkpoints at steps 1 to 4, and an unfinished one at step 2."""
    folder = tmp_path_factory.mktemp("run") / "generator"
    run_gloo(2, folder.parent, train, str(folder / "checkpoints"))
    (folder / "checkpoints" / "step_00000002" / "COMPLETE").unlink()
    settings = '{"stage": "generator", "section": {}, "seed": 0, "data": {}, "lineage": {}}'
    (folder / "settings.json").write_text(settings)
    return folder


@pytest.fixture
def stage(trained: Path, tmp_path: Path) -> Path:
    """A copy of it: some commands remove."""
    return Path(shutil.copytree(trained, tmp_path / "generator"))


def foldtrain(*arguments: str) -> str:
    """The output of `foldtrain checkpoint ARGUMENTS`, which has to succeed."""
    from cluster.cli import app

    done = CliRunner().invoke(app, ["checkpoint", *arguments], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


def test_the_command_line_lists_verifies_exports_and_removes(stage: Path, tmp_path: Path) -> None:
    listed = foldtrain("ls", str(stage.parent))
    assert [line.split()[:3] for line in listed.splitlines()[1:5]] == [
        ["generator", str(step), "unfinished" if step == 2 else "complete"] for step in (1, 2, 3, 4)
    ]
    assert foldtrain("verify", str(stage)).count("are those that were written") == 3

    foldtrain("export", str(stage), "-o", str(tmp_path / "raw"))
    foldtrain("export", str(stage), "-o", str(tmp_path / "average"), "--ema", "--step", "3")
    for folder, step, role in (("raw", 4, "master"), ("average", 3, "ema")):
        exported = load_file(tmp_path / folder / "model.safetensors")
        expected = states(str(stage / "checkpoints"), step)[role]
        assert all(torch.equal(exported[name], tensor) for name, tensor in expected.items())

    assert "would remove 1, 2" in foldtrain("gc", str(stage), "--dry-run")
    assert complete_steps(str(stage / "checkpoints")) == [1, 3, 4]
    assert "removed 1, 2" in foldtrain("gc", str(stage))
    assert complete_steps(str(stage / "checkpoints")) == [3, 4]


@pytest.mark.parametrize("role", ["master", "ema"])
def test_deepspeeds_own_reader_gives_the_same_weights(stage: Path, tmp_path: Path, role: str) -> None:
    from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

    output = tmp_path / "deepspeed"
    foldtrain("export", str(stage), "-o", str(output), "--format", "deepspeed", *(["--ema"] if role == "ema" else []))
    theirs = get_fp32_state_dict_from_zero_checkpoint(str(output))
    ours = states(str(stage / "checkpoints"), 4)
    assert theirs.keys() == ours[role].keys()
    assert all(torch.equal(theirs[name], tensor) for name, tensor in ours[role].items())
    moment = torch.load(output / "global_step4" / "zero" / "layers.0.weight" / "exp_avg.pt", weights_only=True)
    assert torch.equal(moment["param"], ours["exp_avg"]["layers.0.weight"])
