"""`foldtrain gc` lists by default, and removes when asked to."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from cluster.commands import checkpoints
from data_pipeline.leases.lease import only_driver
from tests.cluster.conftest import Foldtrain


def leave_a_file(folder: Path) -> Path:
    path = folder / "run" / f".tmp-{'0' * 32}-images-00000.tar"
    path.parent.mkdir()
    path.write_bytes(bytes(2000))
    (folder / "run" / "settings.json").write_text(
        '{"stage": "generator", "section": {}, "seed": 0, "data": {}, "lineage": {}}'
    )
    return path


def test_it_lists_what_is_left_and_how_to_remove_it(foldtrain_here: Foldtrain, tmp_path: Path) -> None:
    path = leave_a_file(tmp_path)
    done = foldtrain_here("gc", "run", "--older-than", "0")
    assert done.returncode == 0, done.stderr
    assert "unfinished file" in done.stdout
    assert "2.0 kB" in done.stdout
    assert "foldtrain gc run --delete --older-than 0" in done.stdout
    assert path.exists()


def test_it_removes_with_delete_and_then_finds_nothing(foldtrain_here: Foldtrain, tmp_path: Path) -> None:
    path = leave_a_file(tmp_path)
    assert "removed 1 leftovers" in foldtrain_here("gc", "run", "--older-than", "0", "--delete").stdout
    assert not path.exists()
    assert "nothing is left over" in foldtrain_here("gc", "run", "--older-than", "0").stdout


def test_what_is_young_is_left_alone(foldtrain_here: Foldtrain, tmp_path: Path) -> None:
    path = leave_a_file(tmp_path)
    assert "nothing is left over" in foldtrain_here("gc", "run", "--delete").stdout
    assert path.exists()


def test_a_folder_without_a_record_of_ours_is_left_alone_and_that_is_said(
    foldtrain_here: Foldtrain, tmp_path: Path
) -> None:
    path = leave_a_file(tmp_path)
    (tmp_path / "run" / "settings.json").unlink()
    done = foldtrain_here("gc", "run", "--older-than", "0", "--delete")
    assert "nothing there is ours to remove" in done.stdout
    assert path.exists()


def test_a_whole_bucket_is_refused(foldtrain_here: Foldtrain) -> None:
    done = foldtrain_here("gc", "s3://train-data")
    assert done.returncode == 2
    assert "s3://train-data is a whole bucket" in done.stderr


def leave_a_checkpoint(stage: Path) -> None:
    for step in (10, 20, 30):
        (stage / f"checkpoints/step_{step:08d}").mkdir(parents=True)
        (stage / f"checkpoints/step_{step:08d}/COMPLETE").write_bytes(b"")


@pytest.fixture
def checkpoint_gc(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Result]:
    """`foldtrain checkpoint gc` in this process."""
    monkeypatch.chdir(tmp_path)
    return lambda *arguments: CliRunner().invoke(checkpoints.app, ["gc", *arguments])


def test_checkpoints_of_another_program_are_left_alone(checkpoint_gc: Callable[..., Result], tmp_path: Path) -> None:
    leave_a_checkpoint(tmp_path / "run/theirs")
    leave_a_checkpoint(tmp_path / "run/generator")
    (tmp_path / "run/generator/settings.json").write_text(
        '{"stage": "generator", "section": {}, "seed": 0, "data": {}, "lineage": {}}'
    )
    done = checkpoint_gc("run", "--keep", "1")
    assert done.exit_code == 1
    assert "theirs is no stage of foldtrain" in done.output
    assert "generator: removed 10, 20" in done.output
    assert len(list((tmp_path / "run/theirs/checkpoints").iterdir())) == 3


def test_checkpoints_are_not_removed_through_a_link(checkpoint_gc: Callable[..., Result], tmp_path: Path) -> None:
    leave_a_checkpoint(tmp_path / "theirs")
    (tmp_path / "run").mkdir()
    (tmp_path / "run/settings.json").write_text(
        '{"stage": "generator", "section": {}, "seed": 0, "data": {}, "lineage": {}}'
    )
    (tmp_path / "run/checkpoints").symlink_to(tmp_path / "theirs/checkpoints")
    done = checkpoint_gc("run", "--keep", "1")
    assert (done.exit_code, "is a link" in done.output) == (1, True)
    assert len(list((tmp_path / "theirs/checkpoints").iterdir())) == 3


def test_checkpoints_of_a_stage_that_is_trained_are_left_alone(
    checkpoint_gc: Callable[..., Result], tmp_path: Path
) -> None:
    leave_a_checkpoint(tmp_path / "run")
    (tmp_path / "run/settings.json").write_text(
        '{"stage": "generator", "section": {}, "seed": 0, "data": {}, "lineage": {}}'
    )
    with only_driver("run", "training of generator"):
        done = checkpoint_gc("run", "--keep", "1")
        assert (done.exit_code, "training of generator on" in done.output) == (1, True)
        assert "would remove 10, 20" in checkpoint_gc("run", "--keep", "1", "--dry-run").output
    assert len(list((tmp_path / "run/checkpoints").iterdir())) == 3
