"""An index and a state that anybody may have written: right in themselves, or damage that is named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from data_pipeline import storage
from data_pipeline.errors import CorruptShardError
from trainer.checkpoints.catalog import read_state
from trainer.checkpoints.commits import DamagedCheckpointError, commit, mark, marked_with
from trainer.checkpoints.exporting import assemble
from trainer.checkpoints.index import BLOCK_BYTES, Entry, Index, TensorInfo
from trainer.checkpoints.reader import CheckpointReader
from trainer.checkpoints.snapshot import saved_buffers

FILE = "rank_0000-a.safetensors"
WEIGHT, BIAS = TensorInfo("layer.weight", (4, 2), "F32"), TensorInfo("layer.bias", (2,), "F32")
INDEX = Index(
    [Entry("master", WEIGHT, 0, 8, FILE, 64, (1,)), Entry("master", BIAS, 0, 2, FILE, 96, (2,))], {FILE: 104}, "a"
)


def change(**changes: Any) -> bytes:
    return json.dumps({**json.loads(INDEX.to_bytes()), **changes}).encode()


def entry(**changes: Any) -> bytes:
    """The index, the first entry of which has other numbers."""
    names = ("role", "tensor", "start", "stop", "file", "offset", "crcs")
    first = dict(zip(names, [0, 0, 0, 8, 0, 64, [1]], strict=True)) | changes
    return change(entries=[list(first.values()), [0, 1, 0, 2, 0, 96, [2]]])


def test_what_was_not_changed_is_read() -> None:
    assert Index.from_bytes(INDEX.to_bytes()) == Index.from_bytes(entry()) == INDEX


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        *(
            (change(files=[{"name": name, "bytes": 104}]), "name")
            for name in ("../x", "/etc/passwd", "rank_0000-a/../b")
        ),
        (change(files=[{"name": FILE, "bytes": -1}]), "bytes"),
        (change(files=[{"name": FILE, "bytes": 104}] * 2), "names a file twice"),
        (change(tensors=[{"name": "a/../../b", "shape": [4, 2], "dtype": "F32"}] * 2), "name"),
        (change(tensors=[{"name": "w", "shape": [-4, 2], "dtype": "F32"}] * 2), "shape"),
        (change(tensors=[{"name": "w", "shape": [1] * 99, "dtype": "F32"}] * 2), "shape"),
        (change(tensors=[{"name": "w", "shape": [4, 2], "dtype": "PICKLE"}] * 2), "dtype"),
        (change(roles=["../master"]), "roles"),
        (change(format=1), "format"),
        (change(block=1), "block"),
        (change(attempt="../x"), "attempt"),
        (change(more=1), "more"),
        *((entry(**{name: 7}), "something that no list has") for name in ("role", "tensor", "file")),
        *(
            (entry(**{name: -1}), "greater than or equal to 0")
            for name in ("role", "tensor", "file", "offset", "start")
        ),
        (entry(start=5, stop=4), "which its tensor does not"),
        (entry(stop=9), "which its tensor does not"),
        (entry(offset=2**40), "does not hold"),
        (entry(offset=80), "does not hold"),
        (entry(crcs=[]), "does not hold"),
        (entry(crcs=[1, 2]), "does not hold"),
        (entry(crcs=[2**32]), "entries"),
        (change(entries=[[0, 0, 0, 6, 0, 64, [1]], [0, 0, 5, 8, 0, 64, [1]]]), "there twice"),
        (b"[" * 100_000, "nested deeper"),
        (b"null", "object|dictionary|instance"),
    ],
)
def test_what_no_checkpoint_can_have_is_named(data: bytes, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        Index.from_bytes(data)


def test_an_index_that_matches_its_marker_but_leads_elsewhere_is_damage_with_a_name(tmp_path: Path) -> None:
    commit(str(tmp_path), change(files=[{"name": "../../x", "bytes": 104}]), {"step": 1}, "a")
    with pytest.raises(DamagedCheckpointError, match=r"index\.json: it is no index \(files\.0\.name"):
        CheckpointReader(str(tmp_path))


@pytest.mark.parametrize(
    "state",
    [
        [],
        *({"step": bad} for bad in (-1, "1", 1.5, None, True)),
        *({"skipped_ranges": bad} for bad in (7, [1], [[1]], [["a", "b"]], None)),
        *({"metrics": bad} for bad in ([1], {"loss": "x"}, None, 0.0, [])),
        {"trainables": [1]},
        *({"trainables": {"network": bad}} for bad in (1, {}, {"optimizer_step": -1}, {"optimizer_step": 1, "x": 1})),
        *(
            {"trainables": {"network": {"optimizer_step": 1, "loss_scale": bad}}}
            for bad in ([1], {"a": 1}, {"value": "x", "applied_in_a_row": 1})
        ),
        *({"spikes": bad} for bad in ([1], None, {}, {"losses": 1, "strange": []}, {"losses": ["x"], "strange": []})),
    ],
)
def test_a_state_that_cannot_be_is_damage_to_a_start_and_nothing_to_a_listing(tmp_path: Path, state: Any) -> None:
    commit(str(tmp_path / "step_00000001"), INDEX.to_bytes(), state, "a")
    assert read_state(str(tmp_path), 1) == {}
    with pytest.raises(DamagedCheckpointError, match=r"state\.json: it is no state of a training"):
        CheckpointReader(str(tmp_path / "step_00000001"))


def test_a_state_without_a_number_that_is_needed_is_damage(tmp_path: Path) -> None:
    commit(str(tmp_path), INDEX.to_bytes(), {"step": 1}, "a")
    assert CheckpointReader(str(tmp_path)).count("step") == 1
    with pytest.raises(DamagedCheckpointError, match=r"state\.json: it lacks skipped_steps"):
        CheckpointReader(str(tmp_path)).count("skipped_steps")


def test_shapes_take_no_memory_before_the_files_are_known_to_be_there(tmp_path: Path) -> None:
    huge = TensorInfo("w", (2**40,), "U8")
    blocks = 8
    index = Index([Entry("master", huge, 0, blocks * BLOCK_BYTES, FILE, 0, (0,) * blocks)], {FILE: 2**50}, "a")
    folder = tmp_path / "step_00000001"
    commit(str(folder), index.to_bytes(), {"step": 1}, "a")
    with pytest.raises(CorruptShardError, match=f"covers {blocks * BLOCK_BYTES} of the {2**40} elements"):
        assemble(str(tmp_path), 1, "master")
    whole = Index(
        [Entry("master", TensorInfo("w", (BLOCK_BYTES,), "U8"), 0, BLOCK_BYTES, FILE, 0, (0,))], {FILE: 2**21}
    )
    commit(str(folder), whole.to_bytes(), {"step": 1}, "a")
    storage.write_bytes(str(folder / FILE), b"short")
    with pytest.raises(DamagedCheckpointError, match=f"it ends at byte 5 of {2**21}"):
        assemble(str(tmp_path), 1, "master")


@pytest.mark.parametrize("data", [b"[" * 100_000, b"[]", b"7", b'{"file": 1}', b""], ids=lambda data: repr(data[:9]))
def test_a_mark_that_says_nothing_still_marks(tmp_path: Path, data: bytes) -> None:
    mark(str(tmp_path), "f", "it is cut")
    assert marked_with(str(tmp_path)) == "f: it is cut"
    (tmp_path / "DAMAGED").write_bytes(data)
    assert marked_with(str(tmp_path)) == "marked as damaged"


def test_buffers_that_a_module_makes_anew_are_not_saved() -> None:
    module = torch.nn.Sequential(torch.nn.BatchNorm1d(2))
    module[0].register_buffer("made_anew", torch.zeros(3), persistent=False)
    assert {name for name, _ in saved_buffers(module)} == {
        "0.running_mean",
        "0.running_var",
        "0.num_batches_tracked",
    }
