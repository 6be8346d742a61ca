"""Checkpoints as files: what counts as one, what is read, and what happens when storage or a process fails."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock, call

import pytest
import torch
from safetensors.torch import load_file

from data_pipeline import storage
from data_pipeline.errors import CorruptShardError, FoldtrainError, UsageError
from tests.trainer.gloo import forking, run_gloo
from tests.trainer.small_training import Training, settings, states
from trainer.checkpoints.catalog import all_steps, complete_steps, latest_step, step_folder
from trainer.checkpoints.commits import COMPLETE
from trainer.checkpoints.index import BLOCK_BYTES, Index, TensorInfo, merge
from trainer.checkpoints.reader import CheckpointReader, Wanted, check_origin, verify
from trainer.checkpoints.snapshot import Piece, Snapshot
from trainer.checkpoints.writer import Persistence


def train(folder: str, saves: list[int], stage: int = 2) -> list[tuple[str, int, dict[str, Any]]]:
    """Train with checkpoints at some steps. Returns the events."""
    training = Training(settings(zero_stage=stage), folder)
    for step in saves:
        training.advance(step)
        training.save()
    return training.events


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoints at steps 1 and 2, of two workers. Not to be changed."""
    folder = tmp_path_factory.mktemp("trained")
    run_gloo(2, folder, train, str(folder / "checkpoints"), [1, 2])
    return folder / "checkpoints"


@pytest.fixture
def copied(trained: Path, tmp_path: Path) -> Path:
    """The same, to be damaged."""
    import shutil

    return Path(shutil.copytree(trained, tmp_path / "checkpoints"))


def damage(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 0xFF
    path.write_bytes(data)


def test_a_folder_without_the_marker_is_no_checkpoint(copied: Path) -> None:
    (copied / "step_00000002" / COMPLETE).unlink()
    assert complete_steps(str(copied)) == [1]
    assert latest_step(str(copied)) == 1
    with pytest.raises(UsageError, match="COMPLETE is missing"):
        CheckpointReader(step_folder(str(copied), 2))


def test_a_damaged_tensor_is_refused_with_file_and_name(copied: Path) -> None:
    path = next((copied / "step_00000002").glob("rank_0000-*.safetensors"))
    damage(path, path.stat().st_size - 1)
    with pytest.raises(CorruptShardError, match=r"rank_0000-.*\.safetensors: the bytes of \w+/regression\.layers"):
        states(str(copied), 2)
    with pytest.raises(CorruptShardError, match=r"rank_0000-.*\.safetensors"):
        verify(str(copied), 2)


@pytest.mark.parametrize("name", ["index.json", "state.json"])
def test_damaged_records_are_refused(copied: Path, name: str) -> None:
    damage(copied / "step_00000002" / name, 10)
    with pytest.raises(CorruptShardError, match=name):
        CheckpointReader(step_folder(str(copied), 2))


def test_a_missing_file_is_named(copied: Path) -> None:
    next((copied / "step_00000002").glob("rank_0001-*.safetensors")).unlink()
    with pytest.raises(CorruptShardError, match=r"rank_0001-.* is missing"):
        states(str(copied), 2)


@pytest.mark.parametrize(("marker", "version"), [(b"", 1), (b'{"format": 2, "attempt": "0a"}', 2)])
def test_a_checkpoint_of_an_older_format_is_refused_with_what_to_do(copied: Path, marker: bytes, version: int) -> None:
    (copied / "step_00000002" / COMPLETE).write_bytes(marker)
    with pytest.raises(UsageError, match=f"checkpoint format {version}, and this foldtrain reads 3"):
        CheckpointReader(step_folder(str(copied), 2))


def test_the_files_are_plain_safetensors_with_the_keys_of_the_index(trained: Path) -> None:
    folder = trained / "step_00000002"
    reader = CheckpointReader(str(folder))
    for name in reader.index.files:
        tensors = load_file(folder / name)
        entries = [entry for entry in reader.index.entries if entry.file == name]
        assert sorted(tensors) == sorted(entry.key for entry in entries)
        for entry in entries:
            target = torch.empty(entry.stop - entry.start)
            reader.fill([Wanted(entry.role, entry.tensor.name, entry.start, target)])
            assert torch.equal(target, tensors[entry.key])


def test_verify_counts_what_it_read(trained: Path) -> None:
    assert verify(str(trained), 2) == sum(
        path.stat().st_size for path in (trained / "step_00000002").glob("*.safetensors")
    )


def test_a_checkpoint_of_another_network_is_refused(trained: Path) -> None:
    reader = CheckpointReader(step_folder(str(trained), 2))
    with pytest.raises(CorruptShardError, match="covers 42 of the 60 elements"):
        reader.fill([Wanted("master", "regression.layers.0.weight", 0, torch.empty(60))])


def test_a_checkpoint_from_other_data_is_refused_with_the_difference(copied: Path) -> None:
    reader = CheckpointReader(step_folder(str(copied), 2))
    reader.state["origin"] = {"seed": 0, "lineage": {"tokens": "aaa"}}
    check_origin(reader, {"seed": 0, "lineage": {"tokens": "aaa"}})
    with pytest.raises(UsageError, match=r"lineage\.tokens: aaa -> bbb"):
        check_origin(reader, {"seed": 0, "lineage": {"tokens": "bbb"}})


@pytest.fixture
def large(tmp_path: Path) -> CheckpointReader:
    """One tensor of three and a half blocks, int32, counting up."""
    from trainer.checkpoints.commits import commit

    count = BLOCK_BYTES // 4 * 7 // 2
    data = torch.arange(count, dtype=torch.int32)
    snapshot = Snapshot()
    snapshot.begin([Piece("master", TensorInfo("w", (count,), "I32"), 0, data)], "rank_0000-x.safetensors")
    snapshot.complete()
    storage.write_bytes(str(tmp_path / "rank_0000-x.safetensors"), bytes(snapshot.data()))
    commit(str(tmp_path), merge([snapshot.index()]).to_bytes(), {"step": 1}, "x")
    return CheckpointReader(str(tmp_path))


class OnGpu(torch.Tensor):
    """In host memory, and says that it is on the fourth GPU: what a thread asks of CUDA can be seen without one."""

    __torch_function__ = torch._C._disabled_torch_function_impl
    device = torch.device("cuda", 3)

    def detach(self) -> torch.Tensor:
        return self


def test_a_snapshot_copies_on_the_device_that_its_sources_are_on(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda, asked = MagicMock(), OnGpu.device
    for name in ("device", "stream", "Stream", "current_stream"):
        monkeypatch.setattr(torch.cuda, name, getattr(cuda, name))
    empty, pinned = torch.empty, list[bool]()
    monkeypatch.setattr(
        torch, "empty", lambda *a, pin_memory=False, **k: (pinned.append(pin_memory), empty(*a, **k))[1]
    )
    snapshot, data = Snapshot(), torch.arange(5.0)
    snapshot.begin([Piece("master", TensorInfo("w", (5,), "F32"), 0, data.as_subclass(OnGpu))], "rank_0003-x.st")
    assert pinned[-1]
    snapshot.complete()
    ready, stream = cuda.current_stream.return_value.record_event.return_value, cuda.Stream.return_value
    expected = [call.current_stream(asked), call.device(asked), call.Stream(asked), call.stream(stream)]
    assert [each for each in cuda.mock_calls if each in expected] == expected
    assert stream.mock_calls == [call.wait_event(ready), call.synchronize()]
    assert bytes(snapshot.data()).endswith(data.numpy().tobytes())


@pytest.mark.parametrize(
    ("start", "count"), [(0, 5), (BLOCK_BYTES // 4 - 2, 4), (3, BLOCK_BYTES // 2), (BLOCK_BYTES // 4 * 3, 9)]
)
def test_any_range_of_a_tensor_can_be_read(large: CheckpointReader, start: int, count: int) -> None:
    target = torch.empty(count, dtype=torch.int32)
    large.fill([Wanted("master", "w", start, target)])
    assert torch.equal(target, torch.arange(start, start + count, dtype=torch.int32))


def test_only_the_blocks_that_are_needed_are_read(large: CheckpointReader) -> None:
    damage(Path(large.folder) / "rank_0000-x.safetensors", BLOCK_BYTES * 3)
    target = torch.empty(100, dtype=torch.int32)
    large.fill([Wanted("master", "w", BLOCK_BYTES // 4, target)])  # in the second block; the damage is in the third
    with pytest.raises(CorruptShardError, match="master/w/0"):
        large.fill([Wanted("master", "w", BLOCK_BYTES // 4 * 3 - 50, target)])


def test_an_index_is_what_was_written(trained: Path) -> None:
    index = CheckpointReader(step_folder(str(trained), 2)).index
    again = Index.from_bytes(index.to_bytes())
    assert again == index


def overlapping(folder: str) -> list[int]:
    training = Training(settings(zero_stage=1), folder)
    for step in (1, 2, 3):
        training.advance(step)
        training.begin_save()
    training.writer.finish()
    return [step for event, step, _ in training.events if event == "checkpoint"]


def test_a_save_that_finds_one_under_way_waits_and_both_are_complete(tmp_path: Path) -> None:
    events = run_gloo(2, tmp_path, overlapping, str(tmp_path / "checkpoints"))
    assert events == [[1, 2, 3], []]
    assert complete_steps(str(tmp_path / "checkpoints")) == [1, 2, 3]


def blocked(folder: str) -> tuple[list[tuple[str, int]], str]:
    """Checkpoints whose index cannot be written, at steps 2 and 4 to 6."""
    training = Training(settings(steps=9), folder)
    rank, error = training.writer._agreement.rank, ""
    training.writer.persistence = Persistence(0.0)
    for step in range(1, 9):
        training.advance(step)
        if step in {2, 4, 5, 6} and rank == 0:
            Path(step_folder(folder, step), "index.json").mkdir(parents=True)  # a folder where a file should be
        try:
            training.save()
        except FoldtrainError as refused:
            error = str(refused)
            break
    return [(event, step) for event, step, _ in training.events], error


def test_training_goes_on_when_a_checkpoint_fails_and_stops_after_three_in_a_row(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    (events, error), (_, other_error) = run_gloo(2, tmp_path, blocked, str(tmp_path / "checkpoints"))
    good, bad = "checkpoint", "checkpoint_failed"
    assert events == [(good, 1), (bad, 2), (good, 3), (bad, 4), (bad, 5), (bad, 6)]
    assert "3 checkpoints in a row could not be written, the last at step 6" in error
    assert other_error == error
    assert complete_steps(str(tmp_path / "checkpoints")) == [1, 3]


def train_remotely(environment: dict[str, str], folder: str, saves: list[int]) -> None:
    os.environ.update(environment)  # processes are forked from a server that may be older than the S3 server
    train(folder, saves[:1])
    training = Training(settings(zero_stage=3), folder)
    training.load(folder, saves[0])
    training.advance(saves[1])
    training.save()


@pytest.mark.xdist_group("s3")
def test_a_checkpoint_on_object_storage_continues_at_another_stage(tmp_path: Path, s3_uri: str) -> None:
    run_gloo(2, tmp_path, train_remotely, dict(os.environ), s3_uri, [1, 2])
    local = str(tmp_path / "local")
    run_gloo(2, tmp_path, train, local, [1, 2])
    remote, here = states(s3_uri, 2), states(local, 2)
    for role, tensors in here.items():
        for name, tensor in tensors.items():
            torch.testing.assert_close(remote[role][name], tensor, rtol=1e-4, atol=1e-6)


def die_in_snapshot(folder: str) -> None:
    """Die when half of the pieces of the second checkpoint are copied."""
    training = Training(settings(), folder)
    training.advance(1)
    training.save()
    training.advance(2)
    snapshot = training.writer._snapshot
    begin = snapshot.begin

    def dying(found: list[Piece], file: str) -> None:
        begin(found, file)
        snapshot._left = Dying(snapshot._left)

    snapshot.begin = dying  # type: ignore[method-assign] # only in this process, which is about to die
    training.save()


class Dying(list[tuple[torch.Tensor, torch.Tensor]]):
    """What is left to be copied; half way through, the process dies."""

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        yield from self[: len(self) // 2]
        os.kill(os.getpid(), signal.SIGKILL)


def die_at_write(folder: str, number: int) -> None:
    """Die when the upload of the second checkpoint makes its write number `number`, half of which is there."""
    training = Training(settings(), folder)
    training.advance(1)
    training.save()
    training.advance(2)
    write, create, done = storage.write_bytes, storage.create_bytes, []

    def dying(uri: str, data: bytes) -> None:
        count(uri, data)
        write(uri, data)

    def dying_in_create(uri: str, data: bytes) -> bool:
        count(uri, data)
        return create(uri, data)

    def count(uri: str, data: bytes) -> None:
        done.append(uri)
        if len(done) == number:
            storage.local_path(uri).parent.mkdir(parents=True, exist_ok=True)
            storage.local_path(uri).with_name(".tmp-half").write_bytes(bytes(data)[: len(data) // 2])
            os.kill(os.getpid(), signal.SIGKILL)

    storage.write_bytes, storage.create_bytes = dying, dying_in_create  # only in this process, which is about to die
    training.save()


def until_death(function: Callable[..., None], folder: Path, *arguments: Any) -> int | None:
    """Exit code of a process that runs `function` alone in a gloo group."""
    context = forking()
    process = context.Process(target=alone, args=(function, str(folder / "rendezvous"), arguments))
    process.start()
    process.join(timeout=120)
    return process.exitcode


def alone(function: Callable[..., None], rendezvous: str, arguments: tuple[Any, ...]) -> None:
    import torch.distributed as dist

    os.environ.update(LOCAL_RANK="0", RANK="0", WORLD_SIZE="1")
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=0, world_size=1)
    function(*arguments)


def updated_meanwhile(folder: str, stage: int) -> None:
    """The copy of a checkpoint begins only when the next optimizer update is about to be made."""
    training = Training(settings(zero_stage=stage), folder)
    training.advance(1)
    snapshot, reached = training.writer._snapshot, threading.Event()
    complete, hold = snapshot.complete, training.writer.wait_for_copy

    def late() -> None:
        reached.wait()
        complete()

    def holding() -> None:
        reached.set()
        hold()

    snapshot.complete, training.writer.wait_for_copy = late, holding  # type: ignore[method-assign]
    training.begin_save()
    training.advance(3)
    training.writer.finish()


def early_and_late(folder: str) -> None:
    for stage in (0, 1, 2, 3):
        updated_meanwhile(f"{folder}/late-{stage}", stage)
        train(f"{folder}/early-{stage}", [1], stage)


def test_an_update_waits_for_the_copy_of_the_checkpoint_before_it_at_every_stage(tmp_path: Path) -> None:
    run_gloo(1, tmp_path, early_and_late, str(tmp_path))
    for stage in (0, 1, 2, 3):
        late, early = (states(str(tmp_path / f"{when}-{stage}"), 1) for when in ("late", "early"))
        for role, tensors in early.items():
            assert all(torch.equal(late[role][name], tensor) for name, tensor in tensors.items()), (stage, role)


@pytest.mark.slow
def test_a_process_killed_while_it_copies_leaves_the_older_checkpoint(tmp_path: Path) -> None:
    folder = str(tmp_path / "checkpoints")
    assert until_death(die_in_snapshot, tmp_path, folder) == -signal.SIGKILL
    assert complete_steps(folder) == [1]
    verify(folder, 1)


@pytest.mark.slow
@pytest.mark.parametrize("number", [1, 2, 3, 4, 5], ids=["file", "part of the index", "index", "state", "marker"])
def test_a_process_killed_while_it_uploads_leaves_the_older_checkpoint(tmp_path: Path, number: int) -> None:
    folder = str(tmp_path / "checkpoints")
    assert until_death(die_at_write, tmp_path, folder, number) == -signal.SIGKILL
    assert all_steps(folder) == [1, 2]
    assert complete_steps(folder) == [1]
    run_gloo(1, tmp_path, go_on, folder)
    assert complete_steps(folder) == [1, 2]
    assert verify(folder, 2) > 0


def go_on(folder: str) -> None:
    training = Training(settings(), folder)
    step = latest_step(folder)
    assert step == 1
    training.load(folder, step)
    training.advance(2)
    training.save()


def test_state_names_what_a_resume_needs(trained: Path) -> None:
    state = json.loads((trained / "step_00000002" / "state.json").read_text())
    assert state["trainables"]["regression"]["optimizer_step"] == 2


def stuck(folder: str) -> tuple[list[tuple[str, int]], list[str]]:
    """The upload of the second rank's first checkpoint does not end until two others were due."""
    training = Training(settings(), folder)
    writer, released, errors = training.writer, threading.Event(), []
    if writer._agreement.rank == 1:
        complete = writer._snapshot.index

        def late() -> Index:
            released.wait()
            return complete()

        writer._snapshot.index = late  # type: ignore[method-assign] # called when all is copied
    writer._patience = 0.0
    for step in (1, 2, 3):
        training.advance(step)
        training.begin_save()
    errors = [details["error"] for event, _, details in training.events if event == "checkpoint_failed"]
    released.set()
    writer._patience = 100.0
    writer.finish()
    training.advance(4)
    training.save()
    return [(event, step) for event, step, _ in training.events], errors


def test_a_checkpoint_does_not_wait_for_ever_for_the_one_before(tmp_path: Path) -> None:
    (happened, errors), _ = run_gloo(2, tmp_path, stuck, str(tmp_path / "checkpoints"))
    good, bad = "checkpoint", "checkpoint_failed"
    assert happened == [(bad, 2), (bad, 3), (good, 1), (good, 4)]
    assert errors == ["the checkpoint of step 1 is still under way after 0 s (checkpoint_wait_seconds)"] * 2
    assert complete_steps(str(tmp_path / "checkpoints")) == [1, 4]
