"""Checkpoints that are not what was written: a start names the damage, passes them by, and can write them again."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from typer.testing import CliRunner

from data_pipeline import storage
from data_pipeline.errors import FoldtrainError, StorageAwayError
from tests.trainer.gloo import run_gloo
from tests.trainer.test_loop import CountingStage, events, job, run
from trainer.checkpoints import catalog, commits
from trainer.checkpoints.catalog import complete_steps, step_folder
from trainer.checkpoints.commits import COMPLETE, DAMAGED, DamagedCheckpointError, commit, read_committed
from trainer.checkpoints.index import Index
from trainer.checkpoints.reader import verify
from trainer.engine.agreement import Agreement
from trainer.job import TrainJob
from trainer.loop.compose import build_loop
from trainer.rollback.rollbacks import Rollbacks


def the(step: Path, pattern: str) -> Path:
    (found,) = step.glob(pattern)
    return found


def lose(path: Path) -> None:
    path.unlink()


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 0xFF
    path.write_bytes(data)


def garble(path: Path) -> None:
    path.write_bytes(b"{")


DAMAGES: dict[str, tuple[str, Callable[[Path], None], str]] = {
    "file lost": ("rank_0001-*.safetensors", lose, "it is missing"),
    "file cut": ("rank_0000-*.safetensors", cut, "it ends at byte "),
    "bytes changed": ("rank_0001-*.safetensors", flip, "are not those that were written (CRC-32)"),
    "index unreadable": ("index.json", garble, "does not have the sha256 of its COMPLETE"),
    "state lost": ("state.json", lose, "it is missing"),
    "marker unreadable": (COMPLETE, garble, "it is not valid JSON"),
}
"""The file, what is done to it, and what a start says."""


def start(each: TrainJob, stop_at: int | None = None) -> str:
    """Train; what that said on this rank's terminal."""
    with contextlib.redirect_stderr(io.StringIO()) as terminal:
        run([(each, stop_at)])
    return terminal.getvalue()


def damaged_and_started_again(begun: TrainJob, again: TrainJob, name: str) -> str:
    """Do damage to the newest checkpoint of a copy of a run that has begun, and go on with it; what that said."""
    if dist.get_rank() == 0:
        shutil.copytree(begun.folder, again.folder, ignore=shutil.ignore_patterns("wandb"))
        pattern, do, _ = DAMAGES[name]
        do(the(Path(step_folder(again.checkpoints, 6)), pattern))
    dist.barrier()
    return start(again)


@dataclass(frozen=True)
class Said:
    """What starts said."""

    terminal: dict[str, str]
    """Of the first rank, by the damage."""
    refusals: list[str]
    """Of two starts of a run whose checkpoints are all damaged."""


def all_starts(place: Path) -> Said:
    jobs = {name: job(place / name, checkpoint_every=2) for name in (*DAMAGES, "unbroken", "begun", "all damaged")}
    start(jobs["unbroken"])
    start(jobs["begun"], 4)  # which ends after step 6
    said = {name: damaged_and_started_again(jobs["begun"], jobs[name], name) for name in DAMAGES}
    return Said(said, all_damaged(jobs["begun"], jobs["all damaged"]))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("damaged")


@pytest.fixture(scope="module")
def said(place: Path) -> list[Said]:
    """Of each of two ranks."""
    return run_gloo(2, place, all_starts, place)


def records(run_folder: Path, event: str) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (run_folder / "events.jsonl").read_text().splitlines()]
    return [record for record in lines if record["event"] == event]


@pytest.mark.parametrize("name", DAMAGES)
def test_a_start_names_what_is_damaged_and_goes_on_from_the_checkpoint_before(
    name: str, place: Path, said: list[Said]
) -> None:
    pattern, _, wrong = DAMAGES[name]
    (record,) = records(place / name, "checkpoint_damaged")
    assert record["step"] == 6
    assert Path(record["file"]).match(f"checkpoints/step_00000006/{pattern}")
    assert wrong in record["wrong"]
    assert f"the checkpoint of step 6 is damaged, and an older one is used: {record['file']}" in said[0].terminal[name]
    assert said[1].terminal[name] == ""
    assert events(place / name, "resume") == [4]


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_checkpoint_is_written_again_when_the_run_comes_to_its_step(
    name: str, place: Path, said: list[Said]
) -> None:
    checkpoints = place / name / "checkpoints"
    assert complete_steps(str(checkpoints)) == [2, 4, 6, 8, 10]
    assert verify(str(checkpoints), 6) > 0
    again = checkpoints / "step_00000006"
    marker, index = (json.loads((again / each).read_text()) for each in (COMPLETE, "index.json"))
    assert marker["attempt"] == index["attempt"]
    own = {f"rank_{rank:04d}-{marker['attempt']}.{kind}" for rank in (0, 1) for kind in ("safetensors", "json")}
    assert {path.name for path in again.iterdir()} == own | {COMPLETE, "index.json", "state.json"}
    exports = [(place / run_ / "export" / "ema.safetensors").read_bytes() for run_ in (name, "unbroken")]
    assert exports[0] == exports[1]


def all_damaged(begun: TrainJob, each: TrainJob) -> list[str]:
    """Damage all checkpoints of a copy, and start twice."""
    if dist.get_rank() == 0:
        shutil.copytree(begun.folder, each.folder, ignore=shutil.ignore_patterns("wandb"))
        for step in complete_steps(each.checkpoints):
            flip(the(Path(step_folder(each.checkpoints, step)), "rank_0001-*.safetensors"))
    dist.barrier()
    refusals = []
    for _ in range(2):
        with pytest.raises(FoldtrainError) as refused:
            start(each)
        refusals.append(str(refused.value))
    return refusals


def foldtrain(*arguments: str, code: int = 0) -> str:
    from cluster.cli import app

    done = CliRunner().invoke(app, ["checkpoint", *arguments])
    assert done.exit_code == code, done.output
    return " ".join(done.output.split())


def test_a_run_whose_checkpoints_are_all_damaged_says_which_commands_show_and_remove_them(
    place: Path, said: list[Said]
) -> None:
    stage = str(place / "all damaged")
    (refusal,) = {refusal for on_rank in said for refusal in on_rank.refusals}
    assert "those at steps 2, 4, 6 are damaged" in refusal
    assert all(f"foldtrain checkpoint {command} {stage}" in refusal for command in ("ls", "verify", "gc"))
    assert events(Path(stage), "checkpoint_damaged") == [6, 4, 2]
    assert foldtrain("ls", stage).count("(CRC-32)") == 3
    assert foldtrain("verify", stage, code=1).count("is damaged") == 3
    assert "removed nothing" in foldtrain("gc", stage)
    assert "removed 2, 4, 6" in foldtrain("gc", stage, "--damaged")
    assert catalog.all_steps(f"{stage}/checkpoints") == []


def away(each: TrainJob) -> list[str]:
    """Start while storage does not answer to reads of tensors; return what lies in the checkpoint then."""
    start(each, 4)  # which ends after step 6

    def read_range(uri: str, *_: int) -> bytes:
        raise StorageAwayError(uri)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(storage, "read_range", read_range)
        with pytest.raises(StorageAwayError):
            build_loop(each, CountingStage(None), torch.device("cpu")).run()
    return storage.list_names(step_folder(each.checkpoints, 6))


def test_storage_that_is_away_is_no_damage(tmp_path: Path) -> None:
    (names,) = run_gloo(1, tmp_path, away, job(tmp_path / "run"))
    assert COMPLETE in names
    assert DAMAGED not in names
    assert events(tmp_path / "run", "checkpoint_damaged") == []


def committed(where: Path, attempt: str) -> str:
    commit(str(where), Index(attempt=attempt).to_bytes(), {"step": 6}, attempt)
    return str(where)


def test_the_records_of_two_attempts_are_told_apart(tmp_path: Path) -> None:
    committed(tmp_path / "old", "0000000a")
    new = committed(tmp_path / "new", "0000000b")
    (tmp_path / "old" / "index.json").replace(tmp_path / "new" / "index.json")
    with pytest.raises(DamagedCheckpointError, match="of attempt 0000000a, and COMPLETE of attempt 0000000b"):
        read_committed(new)


def test_of_two_processes_that_commit_a_step_at_once_one_puts_the_marker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = storage.write_bytes

    def other_commits_too(uri: str, data: bytes) -> None:
        write(uri, data)
        if uri.endswith("state.json"):
            write(f"{tmp_path}/{COMPLETE}", b"the other's")

    monkeypatch.setattr(storage, "write_bytes", other_commits_too)
    with pytest.raises(FoldtrainError, match="was put there by another process meanwhile"):
        committed(tmp_path, "0000000a")
    assert (tmp_path / COMPLETE).read_bytes() == b"the other's"


def test_a_checkpoint_that_names_no_attempt_is_read(tmp_path: Path) -> None:
    where = committed(tmp_path, "0000000a")
    marker = json.loads((tmp_path / COMPLETE).read_text())
    del marker["attempt"]
    (tmp_path / COMPLETE).write_text(json.dumps(marker))
    assert read_committed(where).state == {"step": 6}


def test_a_mark_put_there_by_hand_counts(tmp_path: Path) -> None:
    where = committed(tmp_path / "step_00000006", "0000000a")
    assert complete_steps(str(tmp_path)) == [6]
    (tmp_path / "step_00000006" / DAMAGED).touch()
    assert complete_steps(str(tmp_path)) == []
    assert commits.marked_with(where) == "marked as damaged"


def chosen(run_folder: str) -> list[int | None]:
    """Which checkpoint a start after a rollback chooses, before and after it has found the newest one damaged."""
    checkpoints = f"{run_folder}/checkpoints"
    rollbacks = Rollbacks(run_folder, checkpoints, None, Agreement())
    first = rollbacks.starting_checkpoint()
    commits.mark(step_folder(checkpoints, 30), "state.json", "it is cut")
    return [first, rollbacks.starting_checkpoint()]


def test_a_checkpoint_whose_state_cannot_be_read_is_not_taken_for_one_that_a_rollback_took_back(
    tmp_path: Path,
) -> None:
    for step in (10, 30, 40):
        committed(tmp_path / "checkpoints" / f"step_{step:08d}", "0000000a")
    garble(tmp_path / "checkpoints" / "step_00000030" / "state.json")
    spike = {"event": "spike", "step": 25, "action": "rollback", "back_to": 20, "skip": [22, 26]}
    (tmp_path / "events.jsonl").write_text(json.dumps(spike) + "\n")
    assert run_gloo(1, tmp_path, chosen, str(tmp_path)) == [[30, 10]]
    assert catalog.all_steps(str(tmp_path / "checkpoints")) == [10, 30]
