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
from data_pipeline.ingest.ingesting import ingest
from data_pipeline.leases import lease_record, owned_folders
from data_pipeline.leases.lease import LeaseHeldError, only_driver, take
from data_pipeline.shards.manifest import FileStatement, ImageManifest, ImageShardRecord
from data_pipeline.storage import object_writes, upload_marks
from data_pipeline.tokens.tokenizing import TokenPlan
from data_pipeline.tools.leftovers import Leftover, find_leftovers, remove
from data_pipeline.tools.preflight import check_tokens
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
    index = FileStatement(bytes=1, sha256="0" * 64)
    ImageManifest.build(samples=len(shards), classes=("a",), split="train", shards=records, index=index).write(folder)


def names(folder: str, found: list[Leftover]) -> dict[str, str]:
    return {leftover.uri.removeprefix(f"{folder}/"): leftover.kind for leftover in found}


def found(folder: str) -> dict[str, str]:
    return names(folder, find_leftovers(folder, clock=later(2 * HOUR)))


def write_stage(folder: str, *names: str) -> None:
    """A training stage, as far as its settings say, and files in it."""
    storage.write_json(
        f"{folder}/settings.json", {"stage": "generator", "section": {}, "seed": 0, "data": {}, "lineage": {}}
    )
    write(folder, *names)


DRAFT = f".tmp-{'5f' * 16}-images-00000.tar"


def test_an_unfinished_local_file_is_a_leftover_once_it_is_old(tmp_path: Path) -> None:
    write_images(str(tmp_path / "run/train"), "images-00000")
    (tmp_path / "run/train" / DRAFT).write_bytes(b"123")
    assert find_leftovers(str(tmp_path), clock=later(HOUR / 2)) == []
    (leftover,) = find_leftovers(str(tmp_path), clock=later(2 * HOUR))
    assert (leftover.kind, leftover.bytes) == ("unfinished file", 3)
    assert leftover.age == pytest.approx(2 * HOUR, rel=0.01)


def test_an_ingest_that_was_killed_is_known_by_its_lease(tmp_path: Path) -> None:
    with only_driver(str(tmp_path / "images"), "ingest"):
        (tmp_path / "images/train").mkdir()
        (tmp_path / "images/train" / DRAFT).write_bytes(b"123")
        assert found(str(tmp_path)) == {}
    assert found(str(tmp_path)) == {f"images/train/{DRAFT}": "unfinished file"}


@pytest.mark.parametrize("name", ["plan/{}/part-00012.parquet", "plan/{}/shards.bin", "listing/{}/listing.json"])
def test_an_ingest_that_was_killed_while_it_planned_left_a_file(tmp_path: Path, name: str) -> None:
    place = name.format("ab" * 16).rpartition("/")
    draft = f"{place[0]}/.tmp-{'5f' * 16}-{place[2]}"
    with only_driver(str(tmp_path / "images"), "ingest"):
        write(str(tmp_path / "images"), draft, name.format("ab" * 16), f"other/.tmp-{'5f' * 16}-{place[2]}")
    assert found(str(tmp_path)) == {f"images/{draft}": "unfinished file"}


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
    write_stage(folder, "checkpoints/step_00000010/rank_0000.safetensors", "checkpoints/step_00000010/COMPLETE")
    write(folder, "checkpoints/step_00000020/rank_0000.safetensors", "checkpoints/step_00000020/index.json")
    assert found(folder) == {}  # it may be in the writing
    write(folder, "checkpoints/step_00000030/COMPLETE")
    assert found(folder) == {"checkpoints/step_00000020/": "old checkpoint"}
    assert found(f"{folder}/checkpoints") == {"step_00000020/": "old checkpoint"}
    write(folder, "checkpoints/step_00000020/KEEP")
    assert found(folder) == {}


def test_files_of_a_dead_attempt_in_a_complete_checkpoint_are_leftovers(folder: str) -> None:
    step = f"{folder}/checkpoints/step_00000010"
    files = [
        f"rank_{rank:04d}-{attempt}.{kind}" for attempt in "ab" for rank in (0, 1) for kind in ("safetensors", "json")
    ]
    write_stage(folder)
    write(step, *files[:-1])  # the dead one did not come to its last file
    storage.write_json(f"{step}/index.json", {"files": [{"name": f"rank_000{rank}-a.safetensors"} for rank in (0, 1)]})
    assert found(folder) == {}  # nothing says yet which attempt is the one
    write(step, "COMPLETE", "state.json", "KEEP")
    assert found(folder) == {f"checkpoints/step_00000010/{name}": "stray rank file" for name in files[4:-1]}


@pytest.mark.parametrize("index", [b"{", b"[]", b'{"files": 3}', b'{"files": [3]}', b'{"files": [{"name": 3}]}'])
def test_of_a_checkpoint_whose_index_is_damaged_no_file_is_a_leftover(tmp_path: Path, index: bytes) -> None:
    step = f"{tmp_path}/checkpoints/step_00000010"
    write_stage(str(tmp_path))
    write(step, "rank_0000-a.safetensors", "state.json", "COMPLETE")
    storage.write_bytes(f"{step}/index.json", index)
    assert found(str(tmp_path)) == {}


def test_checkpoints_of_two_stages_do_not_judge_each_other(folder: str) -> None:
    write_stage(f"{folder}/a", "checkpoints/step_00000010/rank_0000.safetensors")
    write_stage(f"{folder}/b", "checkpoints/step_00000030/COMPLETE")
    assert found(folder) == {}


def test_a_folder_with_one_young_file_is_young(tmp_path: Path) -> None:
    steps = ("checkpoints/step_00000010/rank_0000.safetensors", "checkpoints/step_00000020/COMPLETE")
    write_stage(str(tmp_path), *steps)
    assert find_leftovers(str(tmp_path), older_than=HOUR) == []
    assert set(names(str(tmp_path), find_leftovers(str(tmp_path), older_than=0))) == {"checkpoints/step_00000010/"}


# ------------------------------------------------------------------------------------------------------------ uploads


def begin_upload(uri: str, *, marked: bool) -> str:
    """Parts of an object that are never put together."""
    key = uri.removeprefix(f"s3://{BUCKET}/")
    call = storage.filesystem(uri).call_s3
    upload: str = call("create_multipart_upload", Bucket=BUCKET, Key=key)["UploadId"]
    call("upload_part", Bucket=BUCKET, Key=key, UploadId=upload, PartNumber=1, Body=bytes(5 * 2**20))
    if marked:
        storage.write_bytes(upload_marks.place(uri, upload), upload_marks.encode(uri, upload))
    return upload


def test_an_unfinished_upload_of_ours_is_found_and_removed(s3_uri: str) -> None:
    write_images(f"{s3_uri}/run/train", "images-00000")
    begin_upload(f"{s3_uri}/run/train/images-00001.tar", marked=True)
    assert find_leftovers(s3_uri, clock=later(HOUR / 2)) == []
    assert find_leftovers(f"{s3_uri}/other", clock=later(2 * HOUR)) == []
    leftovers = find_leftovers(s3_uri, clock=later(2 * HOUR))
    assert names(s3_uri, leftovers) == {"run/train/images-00001.tar": "unfinished upload"}
    assert list(remove(leftovers)) == leftovers
    assert found(s3_uri) == {}
    assert storage.unfinished_uploads(s3_uri) == []
    assert not [name for name in storage.entries(s3_uri) if ".foldtrain-uploads" in name]


@pytest.mark.parametrize("name", ["run/train/images-00001.tar", "run/train/theirs.bin", "elsewhere/images-00001.tar"])
def test_an_upload_of_another_program_is_left_alone(s3_uri: str, name: str) -> None:
    write_images(f"{s3_uri}/run/train", "images-00000")
    begin_upload(f"{s3_uri}/{name}", marked=False)
    assert found(s3_uri) == {}
    assert len(storage.unfinished_uploads(s3_uri)) == 1


def test_a_mark_speaks_for_its_own_upload_alone(s3_uri: str) -> None:
    write_images(f"{s3_uri}/train", "images-00000")
    theirs = begin_upload(f"{s3_uri}/train/images-00001.tar", marked=False)
    copied = storage.canonical_json({"key": "images-00001.tar", "upload": theirs})
    storage.write_bytes(f"{s3_uri}/train/.foldtrain-uploads/{'0' * 32}.json", copied)
    assert found(s3_uri) == {}


def test_a_mark_whose_upload_is_gone_is_a_leftover(s3_uri: str) -> None:
    write_images(f"{s3_uri}/train", "images-00000")
    path = upload_marks.place(f"{s3_uri}/train/images-00001.tar", "gone")
    storage.write_bytes(path, upload_marks.encode(f"{s3_uri}/train/images-00001.tar", "gone"))
    assert set(found(s3_uri).values()) == {"upload mark"}


def test_uploads_of_the_package_are_marked_while_they_run_and_not_after(
    s3_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(object_writes, "PART_BYTES", 5 * 2**20)
    send, seen = object_writes._Upload._send_parts, list[str]()

    def look(upload: object_writes._Upload) -> list[dict[str, object]]:
        seen.extend(name for name in storage.entries(s3_uri) if ".foldtrain-uploads" in name)
        return send(upload)

    monkeypatch.setattr(object_writes._Upload, "_send_parts", look)
    storage.write_bytes(f"{s3_uri}/images-00000.tar", bytes(6 * 2**20))
    assert len(seen) == 1
    assert list(storage.entries(s3_uri)) == ["images-00000.tar"]


# ------------------------------------------------------------------------------------------- what belongs to others


def test_a_whole_bucket_is_refused() -> None:
    for uri in (f"s3://{BUCKET}", f"s3://{BUCKET}/", "/"):
        with pytest.raises(UsageError, match="whole"):
            find_leftovers(uri)


def test_names_like_ours_in_a_folder_without_a_record_are_left_alone(folder: str) -> None:
    write(folder, "theirs/checkpoints/step_00000010/rank_0000.safetensors", "theirs/checkpoints/step_00000020/COMPLETE")
    write(folder, "theirs/step_00000010/rank_0000.safetensors", "theirs/step_00000020/COMPLETE", f"theirs/{DRAFT}")
    write_images(f"{folder}/ours", "images-00000")
    write_stage(f"{folder}/stage")
    said: list[str] = []
    assert found(folder) == {}
    assert find_leftovers(f"{folder}/theirs", clock=later(2 * HOUR), say=said.append) == []
    assert "nothing there is ours" in said[0]


@pytest.mark.parametrize("record", [b"[]", b"{", b'{"stage": "other", "section": {}, "lineage": {}}', b'{"stage": []}'])
def test_settings_of_another_program_make_no_stage(tmp_path: Path, record: bytes) -> None:
    write_stage(str(tmp_path), "checkpoints/step_00000010/rank_0000.json", "checkpoints/step_00000020/COMPLETE")
    assert len(found(str(tmp_path))) == 1
    (tmp_path / "settings.json").write_bytes(record)
    assert found(str(tmp_path)) == {}


def test_names_that_are_not_ours_in_a_folder_of_ours_are_left_alone(folder: str) -> None:
    write_images(f"{folder}/train", "images-00000")
    write(f"{folder}/train", "images-00009.txt", "tokens-00009.tar", "images-9.tar", ".tmp-notes", ".tmp-0-theirs.bin")
    write(f"{folder}/train", "deep/down/images-00009.tar", f"deep/{DRAFT}", "images-00009.tar.bak")
    assert found(folder) == {}


def test_a_file_of_others_in_an_old_checkpoint_stays(folder: str) -> None:
    write_stage(folder, "checkpoints/step_00000010/rank_0000.safetensors", "checkpoints/step_00000010/notes.txt")
    write(folder, "checkpoints/step_00000020/COMPLETE")
    list(remove(find_leftovers(folder, clock=later(2 * HOUR))))
    assert "checkpoints/step_00000010/notes.txt" in storage.entries(folder)
    assert "checkpoints/step_00000010/rank_0000.safetensors" not in storage.entries(folder)


def test_no_link_is_followed(tmp_path: Path) -> None:
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    write_stage(str(ours), "checkpoints/step_00000020/COMPLETE")
    write_images(str(theirs), "images-00000")
    write(str(theirs), "images-00009.tar", "step/rank_0000.safetensors", DRAFT)
    (ours / "checkpoints/step_00000010").symlink_to(theirs / "step")
    (ours / "train").symlink_to(theirs)
    (ours / DRAFT).symlink_to(theirs / DRAFT)
    linked = tmp_path / "linked"
    write_stage(str(linked))
    write(str(theirs), "step_00000010/rank_0000.safetensors", "step_00000020/COMPLETE")
    (linked / "checkpoints").symlink_to(theirs)
    for uri in (ours, linked, linked / "checkpoints"):
        assert find_leftovers(str(uri), clock=later(2 * HOUR)) == []


# --------------------------------------------------------------------------------------------------- drivers at work


def leave_two(folder: str) -> None:
    """An old checkpoint in a stage, and a stray shard in a data set."""
    write_stage(f"{folder}/stage", "checkpoints/step_00000010/rank_0000.json", "checkpoints/step_00000020/COMPLETE")
    write_images(f"{folder}/images/train", "images-00000")
    write(f"{folder}/images/train", "images-00009.tar")


@pytest.mark.parametrize("inside", ["", "/images/train", "/images"])
def test_where_a_driver_is_at_work_nothing_is_a_leftover(tmp_path: Path, inside: str) -> None:
    leave_two(str(tmp_path))
    said: list[str] = []
    with only_driver(str(tmp_path / "images"), "ingest"):
        kinds = {each.kind for each in find_leftovers(f"{tmp_path}{inside}", clock=later(2 * HOUR), say=said.append)}
    assert kinds == (set() if inside else {"old checkpoint"})
    assert "ingest on" in said[0]
    assert "at work" in said[0]


def test_a_driver_of_another_machine_is_at_work_until_it_was_silent_for_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    leave_two(str(tmp_path))
    take(str(tmp_path / "images"), "ingest")
    monkeypatch.setattr(lease_record, "_machine", lambda: "another")
    for seconds, count in ((60, 1), (2 * HOUR, 2)):
        assert len(find_leftovers(str(tmp_path), older_than=1, clock=later(seconds))) == count


def test_a_driver_that_began_meanwhile_keeps_its_files(tmp_path: Path) -> None:
    leave_two(str(tmp_path))
    leftovers, said = find_leftovers(str(tmp_path), clock=later(2 * HOUR)), list[str]()
    assert len(leftovers) == 2
    with only_driver(str(tmp_path / "images"), "ingest"):
        assert [each.kind for each in remove(leftovers, said.append)] == ["old checkpoint"]
    assert (tmp_path / "images/train/images-00009.tar").exists()
    assert "another driver is at work there: ingest" in said[0]


def test_no_driver_begins_while_leftovers_are_removed(tmp_path: Path) -> None:
    leave_two(str(tmp_path))
    for leftover in remove(find_leftovers(str(tmp_path), clock=later(2 * HOUR))):
        with pytest.raises(LeaseHeldError, match="gc on"):
            take(leftover.lease, "train")


def test_what_was_written_or_named_meanwhile_is_no_leftover_any_more(folder: str) -> None:
    write_images(f"{folder}/train", "images-00000")
    write(f"{folder}/train", "images-00008.tar", "images-00009.tar", "images-00009.index.json")
    leftovers, said = find_leftovers(folder, clock=later(2 * HOUR)), list[str]()
    assert len(leftovers) == 3
    storage.write_bytes(f"{folder}/train/images-00008.tar", b"of a run that goes on")
    write_images(f"{folder}/train", "images-00000", "images-00009")
    assert list(remove(leftovers, said.append)) == []
    assert len(said) == 3
    assert {"train/images-00008.tar", "train/images-00009.tar"} <= set(storage.entries(folder))


def test_removing_takes_the_leftovers_and_nothing_else(folder: str) -> None:
    write_images(f"{folder}/train", "images-00000")
    write(folder, "train/images-00001.tar")
    steps = ("checkpoints/step_00000010/rank_0000.safetensors", "checkpoints/step_00000020/COMPLETE")
    write_stage(f"{folder}/c", *steps)
    list(remove(find_leftovers(folder, clock=later(2 * HOUR))))
    kept = ["c/checkpoints/step_00000020/COMPLETE", "c/settings.json"]
    kept += [f"train/{name}" for name in ("images-00000.index.json", "images-00000.tar", "manifest.json", "shards.bin")]
    assert [name for name in storage.walk(folder) if "lease/" not in name] == kept


def test_a_finished_data_set_of_the_package_has_no_leftovers_and_stays_whole(
    make_plan: Callable[..., TokenPlan], tokens: Path
) -> None:
    before = contents(tokens)
    (tokens / "tokens-00009.tar").write_bytes(b"of a run with more shards")
    assert set(found(str(tokens))) == {"tokens-00009.tar"}
    list(remove(find_leftovers(str(tokens), clock=later(2 * HOUR))))
    assert {name: data for name, data in contents(tokens).items() if not name.startswith("lease/")} == before
    check_tokens(str(tokens), every_byte=True)


def test_a_shard_of_which_nothing_was_left_is_no_leftover(tmp_path: Path) -> None:
    photos = write_photos(tmp_path / "photos", classes=1, per_class=4)
    for path in sorted((photos / "class0").iterdir())[:2]:
        path.write_bytes(b"no image")
    config = DataConfig(source=FolderSource(path=str(photos)), shard_samples=1, max_bad_share=0.5)
    ingest(config, str(tmp_path / "images"), seed=0)
    assert find_leftovers(str(tmp_path / "images"), older_than=0, clock=lambda: time.time() + 10) == []


def test_the_work_grows_with_the_folders_and_no_faster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looked_at: dict[int, int] = {}
    rest = owned_folders.Owned.rest
    for sets in (5, 20):
        for number in range(sets):
            write_images(f"{tmp_path}/{sets}/run{number}/images/train", "images-00000")
            write(f"{tmp_path}/{sets}", f"run{number}/images/train/images-00001.tar")

        def count(owned: owned_folders.Owned, name: str, sets: int = sets) -> str | None:
            looked_at[sets] = looked_at.get(sets, 0) + 1
            return rest(owned, name)

        monkeypatch.setattr(owned_folders.Owned, "rest", count)
        assert len(found(f"{tmp_path}/{sets}")) == sets
    assert looked_at[20] < 4.5 * looked_at[5]
