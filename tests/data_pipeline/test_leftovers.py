"""What may be removed after a crash, and above all what may not."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from cluster.drills.s3_server import BUCKET
from data_pipeline import storage
from data_pipeline.config import DataConfig, FolderSource
from data_pipeline.errors import UsageError
from data_pipeline.ingest import ingest
from data_pipeline.leftovers import Leftover, find_leftovers, remove
from data_pipeline.manifest import ImageManifest, ImageShardRecord
from data_pipeline.preflight import check_tokens
from data_pipeline.tokenizing import TokenPlan
from tests.data_pipeline.small_data import contents, write_photos

pytestmark = pytest.mark.xdist_group("s3")

HOUR = 3600.0


@pytest.fixture(params=["local", "s3"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty folder, on each kind of storage in turn."""
    return str(tmp_path) if request.param == "local" else str(request.getfixturevalue("s3_uri"))


def later(seconds: float) -> Callable[[], float]:
    """A clock that is ahead."""
    return lambda: time.time() + seconds


def write(folder: str, *names: str) -> None:
    for name in names:
        storage.write_bytes(f"{folder}/{name}", b"123")


def write_images(folder: str, *shards: str) -> None:
    """A complete image data set, as far as its manifest says."""
    sums = {"sha256": "0" * 64, "index_sha256": "0" * 64}
    records = [ImageShardRecord(name=f"{shard}.tar", samples=1, bytes=2048, **sums) for shard in shards]
    write(folder, *(f"{shard}{end}" for shard in shards for end in (".tar", ".index.json")))
    ImageManifest.build(samples=len(shards), classes=("a",), split="train", shards=tuple(records)).write(folder)


def names(folder: str, found: list[Leftover]) -> dict[str, str]:
    return {leftover.uri.removeprefix(f"{folder}/"): leftover.kind for leftover in found}


def found(folder: str) -> dict[str, str]:
    return names(folder, find_leftovers(folder, clock=later(2 * HOUR)))


def test_an_unfinished_local_file_is_a_leftover_once_it_is_old(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".tmp-5f0c-images-00000.tar").write_bytes(b"123")
    assert find_leftovers(str(tmp_path), clock=later(HOUR / 2)) == []
    (leftover,) = find_leftovers(str(tmp_path), clock=later(2 * HOUR))
    assert (leftover.kind, leftover.bytes) == ("unfinished file", 3)
    assert leftover.age == pytest.approx(2 * HOUR, rel=0.01)


def test_shards_that_a_complete_manifest_does_not_name_are_leftovers(folder: str) -> None:
    write_images(f"{folder}/train", "images-00000", "images-00001")
    write(f"{folder}/train", "images-00002.tar", "images-00002.index.json", "images-100000.tar", "quarantine.jsonl")
    expected = ["train/images-00002.index.json", "train/images-00002.tar", "train/images-100000.tar"]
    assert found(folder) == dict.fromkeys(expected, "stray shard")
    assert found(f"{folder}/train") == {name.removeprefix("train/"): "stray shard" for name in expected}


def test_a_data_set_that_is_not_complete_has_no_stray_shards(folder: str) -> None:
    write(folder, "tokens-00000.tar", "tokens-00000.json", "tokens-00001.tar", "control.json", "progress.json")
    assert found(folder) == {}


def test_a_manifest_speaks_for_its_own_folder_only(folder: str) -> None:
    write_images(f"{folder}/train", "images-00000")
    write(folder, "validation/images-00000.tar", "validation/images-00007.tar", "train/below/images-00009.tar")
    assert found(folder) == {}


def test_a_damaged_manifest_is_named_and_nothing_is_proposed(folder: str) -> None:
    write_images(folder, "images-00000")
    record = storage.read_json(f"{folder}/manifest.json")
    storage.write_json(f"{folder}/manifest.json", record | {"shards": []})
    with pytest.raises(UsageError, match=r"manifest\.json"):
        found(folder)


def test_a_manifest_of_another_program_is_left_alone(folder: str) -> None:
    write(folder, "images-00000.tar", "progress.json")
    storage.write_json(f"{folder}/manifest.json", ["not", "ours"])
    assert found(folder) == {}


def test_control_and_progress_of_a_finished_data_set_are_leftovers(folder: str) -> None:
    write_images(f"{folder}/train", "images-00000")
    write(f"{folder}/train", "control.json", "progress.json")
    assert found(folder) == {"train/control.json": "run file", "train/progress.json": "run file"}


def test_an_unfinished_checkpoint_below_a_complete_one_is_a_leftover(folder: str) -> None:
    write(folder, "checkpoints/step_00000010/rank_0000.safetensors", "checkpoints/step_00000010/COMPLETE")
    write(folder, "checkpoints/step_00000020/rank_0000.safetensors", "checkpoints/step_00000020/index.json")
    assert found(folder) == {}  # it may be in the writing
    write(folder, "checkpoints/step_00000030/COMPLETE")
    assert found(folder) == {"checkpoints/step_00000020/": "old checkpoint"}


def test_files_of_a_dead_attempt_in_a_complete_checkpoint_are_leftovers(folder: str) -> None:
    step = f"{folder}/checkpoints/step_00000010"
    files = [
        f"rank_{rank:04d}-{attempt}.{kind}" for attempt in "ab" for rank in (0, 1) for kind in ("safetensors", "json")
    ]
    write(step, *files[:-1])  # the dead one did not come to its last file
    storage.write_json(f"{step}/index.json", {"files": [{"name": f"rank_000{rank}-a.safetensors"} for rank in (0, 1)]})
    assert found(folder) == {}  # nothing says yet which attempt is the one
    write(step, "COMPLETE", "state.json", "KEEP")
    assert found(folder) == {f"checkpoints/step_00000010/{name}": "stray rank file" for name in files[4:-1]}


def test_of_a_checkpoint_whose_index_is_damaged_no_file_is_a_leftover(folder: str) -> None:
    step = f"{folder}/checkpoints/step_00000010"
    write(step, "rank_0000-a.safetensors", "state.json", "COMPLETE")
    storage.write_bytes(f"{step}/index.json", b"{")
    assert found(folder) == {}


def test_checkpoints_of_two_stages_do_not_judge_each_other(folder: str) -> None:
    write(folder, "a/checkpoints/step_00000010/rank_0000.safetensors", "b/checkpoints/step_00000030/COMPLETE")
    assert found(folder) == {}


def test_a_folder_with_one_young_file_is_young(tmp_path: Path) -> None:
    write(str(tmp_path), "step_00000010/rank_0000.safetensors", "step_00000020/COMPLETE")
    assert find_leftovers(str(tmp_path), older_than=HOUR) == []
    assert names(str(tmp_path), find_leftovers(str(tmp_path), older_than=0)) == {"step_00000010/": "old checkpoint"}


def test_an_unfinished_upload_is_found_and_removed(s3_uri: str) -> None:
    key = f"{s3_uri.removeprefix(f's3://{BUCKET}/')}/run/large.tar"
    call = storage.filesystem(s3_uri).call_s3
    upload = call("create_multipart_upload", Bucket=BUCKET, Key=key)["UploadId"]
    call("upload_part", Bucket=BUCKET, Key=key, UploadId=upload, PartNumber=1, Body=bytes(5 * 2**20))
    assert find_leftovers(s3_uri, clock=later(HOUR / 2)) == []
    assert find_leftovers(f"{s3_uri}/other", clock=later(2 * HOUR)) == []
    leftovers = find_leftovers(s3_uri, clock=later(2 * HOUR))
    assert names(s3_uri, leftovers) == {"run/large.tar": "unfinished upload"}
    assert list(remove(leftovers)) == leftovers
    assert found(s3_uri) == {}
    assert list(remove(leftovers)) == leftovers  # gone already is as good


def test_removing_takes_the_leftovers_and_nothing_else(folder: str) -> None:
    write_images(f"{folder}/train", "images-00000")
    write(folder, "train/images-00001.tar", "c/step_00000010/rank_0000.safetensors", "c/step_00000020/COMPLETE")
    list(remove(find_leftovers(folder, clock=later(2 * HOUR))))
    kept = ["c/step_00000020/COMPLETE", *(f"train/{n}" for n in ("images-00000.index.json", "images-00000.tar"))]
    assert list(storage.walk(folder)) == [*kept, "train/manifest.json"]


def test_a_finished_data_set_of_the_package_has_no_leftovers_and_stays_whole(
    make_plan: Callable[..., TokenPlan], tokens: Path
) -> None:
    before = contents(tokens)
    (tokens / "tokens-00009.tar").write_bytes(b"of a run with more shards")
    assert set(found(str(tokens))) == {"tokens-00009.tar"}
    list(remove(find_leftovers(str(tokens), clock=later(2 * HOUR))))
    assert contents(tokens) == before
    check_tokens(str(tokens), every_byte=True)


def test_a_shard_of_which_nothing_was_left_is_no_leftover(tmp_path: Path) -> None:
    photos = write_photos(tmp_path / "photos", classes=1, per_class=4)
    for path in sorted((photos / "class0").iterdir())[:2]:
        path.write_bytes(b"no image")
    config = DataConfig(source=FolderSource(path=str(photos)), shard_samples=1, max_bad_share=0.5)
    ingest(config, str(tmp_path / "images"), seed=0)
    assert find_leftovers(str(tmp_path / "images"), older_than=0, clock=lambda: time.time() + 10) == []
