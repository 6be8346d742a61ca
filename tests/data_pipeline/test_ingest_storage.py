"""Listing and plan on storage: kept while the source is the same, whole or not there, and a resume asks for little."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from uuid import uuid4

import pytest

from data_pipeline import storage
from data_pipeline.config import DataConfig, FolderSource, Source, WebDatasetSource
from data_pipeline.errors import CorruptShardError, FoldtrainError, UsageError
from data_pipeline.ingest import item_files, listing, planning
from data_pipeline.ingest.ingesting import finish, ingest, look, missing, plan_ingest, write_shard
from data_pipeline.ingest.planning import IngestPlan, find_plan, publish
from data_pipeline.shards.image_shards import index_name
from data_pipeline.sources import RawItem, find_source
from tests.data_pipeline.raw_data import every_source, upload, write_every_source, write_webdataset
from tests.data_pipeline.small_data import contents, data_sets, jpeg, write_photos


def tars(folder: Path, **fields: object) -> DataConfig:
    """Two tars of ten images."""
    files = [
        [
            file
            for n in range(10)
            for file in ((f"{tar}{n}.jpg", jpeg(tar * 10 + n)), (f"{tar}{n}.cls", str(n % 2).encode()))
        ]
        for tar in range(2)
    ]
    source = write_webdataset(folder, {f"shard-{tar}.tar": some for tar, some in enumerate(files)})
    return DataConfig(source=source, shard_samples=4).model_copy(update=fields)


def planned(plan: IngestPlan) -> list[tuple[str, str, str, list[object]]]:
    return [(shard.split, shard.name, shard.plan, list(plan.items(shard))) for shard in plan.shards]


def blank(folder: Path) -> None:
    """Overwrite files with nothing, so that a listing of them would fail; their sizes and times stay."""
    for path in folder.iterdir():
        status = path.stat()
        path.write_bytes(b"x" * status.st_size)
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def test_a_second_start_reads_the_plan_in_place_of_the_source(tmp_path: Path) -> None:
    config = tars(tmp_path / "raw")
    first = plan_ingest(config, str(tmp_path / "images"), seed=0)
    blank(tmp_path / "raw")
    assert planned(plan_ingest(config, str(tmp_path / "images"), seed=0)) == planned(first)


def test_another_seed_is_planned_from_the_kept_listing(tmp_path: Path) -> None:
    config = tars(tmp_path / "raw")
    wanted = planned(plan_ingest(config, str(tmp_path / "other"), seed=1))
    plan_ingest(config, str(tmp_path / "images"), seed=0)
    blank(tmp_path / "raw")
    assert planned(plan_ingest(config, str(tmp_path / "images"), seed=1)) == wanted


@pytest.mark.parametrize("change", ["a name", "a size", "a time"])
def test_a_source_that_changed_is_listed_anew(tmp_path: Path, change: str) -> None:
    config = tars(tmp_path / "raw")
    plan_ingest(config, str(tmp_path / "images"), seed=0)
    path = tmp_path / "raw" / "shard-1.tar"
    if change == "a name":
        path.rename(tmp_path / "raw" / "shard-2.tar")
    elif change == "a size":
        path.write_bytes(path.read_bytes() + bytes(512))
    else:
        os.utime(path, (1, 1))
    assert find_plan(config, str(tmp_path / "images"), seed=0) is None
    blank(tmp_path / "raw")
    with pytest.raises(UsageError, match=r"shard-0\.tar is not a tar"):
        plan_ingest(config, str(tmp_path / "images"), seed=0)


def test_a_source_with_another_image_is_another_data_set(tmp_path: Path) -> None:
    config = DataConfig(source=FolderSource(path=str(write_photos(tmp_path / "photos"))), shard_samples=7)
    ingest(config, str(tmp_path / "images"), seed=0)
    before = data_sets(tmp_path / "images")
    (tmp_path / "photos/class0/new.jpg").write_bytes(jpeg(99))
    with pytest.raises(UsageError, match="already holds another data set"):
        ingest(config, str(tmp_path / "images"), seed=0)
    assert data_sets(tmp_path / "images") == before


def test_a_source_whose_times_alone_changed_is_the_same_data_set(tmp_path: Path) -> None:
    config = tars(tmp_path / "raw")
    ingest(config, str(tmp_path / "images"), seed=0)
    before = data_sets(tmp_path / "images")
    os.utime(tmp_path / "raw/shard-0.tar", (1, 1))
    assert missing(plan_ingest(config, str(tmp_path / "images"), seed=0)) == []
    ingest(config, str(tmp_path / "images"), seed=0)
    assert data_sets(tmp_path / "images") == before


@pytest.mark.parametrize("fields", [{"max_bad_share": 0.5}, {"shard_samples": 5}, {"validation_samples": 3}])
def test_a_plan_is_of_what_it_depends_on(tmp_path: Path, fields: dict[str, object]) -> None:
    config = tars(tmp_path / "raw")
    plan_ingest(config, str(tmp_path / "images"), seed=0)
    kept = find_plan(config.model_copy(update=fields), str(tmp_path / "images"), seed=0)
    assert (kept is None) == ("max_bad_share" not in fields)
    assert find_plan(config, str(tmp_path / "images"), seed=1) is None


class KilledError(Exception):
    """Stands for a kill: nothing is written after it."""


def killed_after(writes: int) -> Callable[[], None]:
    left = iter(range(writes))

    def require() -> None:
        if next(left, None) is None:
            raise KilledError

    return require


@pytest.mark.parametrize("writes", range(7))
def test_whoever_is_killed_while_it_lists_or_plans_goes_on_as_if_unbroken(
    tmp_path: Path, writes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(item_files, "PART_ROWS", 8)
    monkeypatch.setattr(listing, "_ROWS_AT_ONCE", 5)
    config = tars(tmp_path / "raw", validation_samples=6)
    plan_ingest(config, str(tmp_path / "unbroken"), seed=0)
    with pytest.raises(KilledError):
        plan_ingest(config, str(tmp_path / "images"), seed=0, require=killed_after(writes))
    assert find_plan(config, str(tmp_path / "images"), seed=0) is None
    plan_ingest(config, str(tmp_path / "images"), seed=0)
    assert contents(tmp_path / "images") == contents(tmp_path / "unbroken")


def test_a_plan_that_was_made_elsewhere_is_the_same_once_it_is_published(tmp_path: Path) -> None:
    config = tars(tmp_path / "raw")
    plan_ingest(config, str(tmp_path / "images"), seed=0)
    wanted = planned(plan_ingest(config, str(tmp_path / "other"), seed=1))
    before = contents(tmp_path / "images")
    blank(tmp_path / "raw")  # the listing that is kept in the output is used
    aside = plan_ingest(config, str(tmp_path / "images"), seed=1, place=str(tmp_path / "aside"))
    assert planned(aside) == wanted
    assert contents(tmp_path / "images") == before
    publish(str(tmp_path / "aside"), str(tmp_path / "images"), lambda: None)
    found = find_plan(config, str(tmp_path / "images"), seed=1)
    assert found is not None
    assert planned(found) == wanted


@pytest.mark.parametrize("name", ["plan/*/plan.json", "plan/*/shards.bin", "plan/*/part-00000.parquet"])
@pytest.mark.parametrize("damage", ["cut", "flipped", "gone"])
def test_a_damaged_plan_is_named_and_made_anew_once_it_is_deleted(tmp_path: Path, name: str, damage: str) -> None:
    config = tars(tmp_path / "raw")
    first = planned(plan_ingest(config, str(tmp_path / "images"), seed=0))
    (path,) = (tmp_path / "images").glob(name)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2] if damage == "cut" else bytes([*data[:200], data[200] ^ 1, *data[201:]]))
    if damage == "gone":
        path.unlink()
    if (damage, path.name) != ("gone", "plan.json"):
        with pytest.raises(FoldtrainError, match=rf"plan/.*({path.name}|the plan of)"):
            planned(plan_ingest(config, str(tmp_path / "images"), seed=0))
        for each in path.parent.iterdir():
            each.unlink()
    assert planned(plan_ingest(config, str(tmp_path / "images"), seed=0)) == first


def test_rows_of_another_plan_are_refused_by_whoever_makes_the_shard(tmp_path: Path) -> None:
    config = tars(tmp_path / "raw")
    plan = plan_ingest(config, str(tmp_path / "images"), seed=0)
    other = plan_ingest(config, str(tmp_path / "images"), seed=1)
    for path in Path(other.inputs.plan).glob("*.parquet"):
        (Path(plan.inputs.plan) / path.name).write_bytes(path.read_bytes())
    with pytest.raises(CorruptShardError, match=r"the plan of train/images-00000\.tar was changed: delete that folder"):
        write_shard(plan.inputs, plan.shards[0])


def test_what_travels_to_a_worker_does_not_grow_with_the_images(tmp_path: Path) -> None:
    plan = plan_ingest(tars(tmp_path / "raw", shard_samples=10), str(tmp_path / "images"), seed=0)
    assert len(pickle.dumps(plan.shards[0])) < 400
    assert len(pickle.dumps(plan.inputs)) < 1000


@pytest.mark.parametrize("number", range(10))
def test_every_source_keeps_its_stamp_until_it_changes(tmp_path: Path, number: int) -> None:
    write_every_source(tmp_path)
    source: Source = every_source(str(tmp_path))[number]
    stamp = find_source(source).stamp()
    assert find_source(source).stamp() == stamp
    for path in [path for path in tmp_path.rglob("*") if path.is_file()]:
        path.write_bytes(path.read_bytes()[::-1] if source.kind == "idx" else path.read_bytes() + b"\n")
    try:
        changed = find_source(source).stamp()
    except UsageError:  # idx files are read at once
        return
    assert changed != stamp


def test_no_more_than_a_part_is_held_whatever_a_source_gives_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(item_files, "PART_ROWS", 6)
    monkeypatch.setattr(listing, "_ROWS_AT_ONCE", 3)
    plan = plan_ingest(tars(tmp_path / "raw"), str(tmp_path / "images"), seed=0)
    assert len(list((tmp_path / "images/listing").rglob("*.parquet"))) >= 2
    assert {shard.place for shard in plan.shards} == {(0, 0), (0, 1), (1, 0), (1, 1), (2, 0)}
    assert sorted(item.key for shard in plan.shards for item in plan.items(shard)) == sorted(
        f"{tar}{n}" for tar in range(2) for n in range(10)
    )


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """Reads of indexes: (name, bytes that were asked for; -1 for all)."""
    seen: list[tuple[str, int]] = []
    ranged, whole = storage.read_range, storage.read_bytes

    def read_range(uri: str, start: int, length: int) -> bytes:
        if uri.endswith(".index.json"):
            seen.append((uri.rpartition("/")[2], length))
        return ranged(uri, start, length)

    def read_bytes(uri: str, most: int | None = None) -> bytes:
        if uri.endswith(".index.json"):
            seen.append((uri.rpartition("/")[2], -1))
        return whole(uri, most)

    monkeypatch.setattr(storage, "read_range", read_range)
    monkeypatch.setattr(storage, "read_bytes", read_bytes)
    return seen


def test_a_start_with_all_shards_done_reads_the_end_of_each_index_once(
    tmp_path: Path, reads: list[tuple[str, int]]
) -> None:
    config = tars(tmp_path / "raw")
    ingest(config, str(tmp_path / "images"), seed=0)
    reads.clear()
    plan = plan_ingest(config, str(tmp_path / "images"), seed=0)
    commits = look(plan)
    commits.look()
    commits.check_bad()
    finish(plan, commits)
    assert sorted(name for name, _ in reads) == [index_name(shard.name) for shard in plan.shards]
    assert all(0 < size <= 512 for _, size in reads)


def test_a_first_start_reads_no_index_before_the_end_and_each_once_there(
    tmp_path: Path, reads: list[tuple[str, int]]
) -> None:
    ingest(tars(tmp_path / "raw"), str(tmp_path / "images"), seed=0)
    assert sorted(reads) == [(f"images-{number:05d}.index.json", -1) for number in range(5)]


def test_an_index_that_names_bad_images_is_read_whole(tmp_path: Path, reads: list[tuple[str, int]]) -> None:
    photos = write_photos(tmp_path / "photos")
    (photos / "class0" / "photo 1.jpg").write_bytes(b"damage")
    config = DataConfig(source=FolderSource(path=str(photos)), shard_samples=7, max_bad_share=0.1)
    manifest = ingest(config, str(tmp_path / "images"), seed=0)
    reads.clear()
    plan = plan_ingest(config, str(tmp_path / "images"), seed=0)
    commits = look(plan)
    assert (commits.bad(), sum(size == -1 for _, size in reads)) == (1, 1)
    assert finish(plan, commits).manifests == manifest


@pytest.mark.parametrize("field", ["plan", "size", "sha256"])
def test_a_shard_whose_index_says_something_else_is_no_shard_of_this_plan(tmp_path: Path, field: str) -> None:
    config = tars(tmp_path / "raw")
    ingest(config, str(tmp_path / "images"), seed=0)
    plan = plan_ingest(config, str(tmp_path / "images"), seed=0)
    path = tmp_path / "images/train/images-00002.index.json"
    record = json.loads(path.read_text())
    record[field] = 1 + record[field] if field == "size" else "0" * 64
    path.write_text(json.dumps(record, sort_keys=True) + "\n")
    if field == "plan":
        with pytest.raises(UsageError, match=r"already holds another data set: images-00002\.tar"):
            look(plan)
    elif field == "size":
        assert [shard.name for shard in look(plan).left()] == ["images-00002.tar"]
    else:  # the manifest does not agree with it, so it is written anew
        finish(plan)
        assert b"0" * 32 not in (tmp_path / "images/train/manifest.json").read_bytes()


def test_a_manifest_that_is_gone_or_of_other_shards_is_written_anew(tmp_path: Path) -> None:
    config = tars(tmp_path / "raw")
    ingest(config, str(tmp_path / "images"), seed=0)
    before = contents(tmp_path / "images")
    for name in ("manifest.json", "shards.bin", "index.bin"):
        path = tmp_path / "images/train" / name
        if path.exists():
            path.unlink()
            ingest(config, str(tmp_path / "images"), seed=0)
            assert contents(tmp_path / "images") == before, name


def test_an_index_that_vanishes_after_it_was_looked_at_is_named(tmp_path: Path) -> None:
    config = tars(tmp_path / "raw")
    ingest(config, str(tmp_path / "images"), seed=0)
    plan = plan_ingest(config, str(tmp_path / "images"), seed=0)
    commits = look(plan)
    (tmp_path / "images/train/manifest.json").unlink()
    (tmp_path / "images/train/images-00003.index.json").unlink()
    with pytest.raises(CorruptShardError, match=r"train/images-00003\.index\.json is gone: run foldtrain ingest again"):
        finish(plan, commits)
    assert not (tmp_path / "images/train/manifest.json").exists()


def test_a_name_that_leads_out_of_the_folder_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"123")
    reader = find_source(FolderSource(path=str(write_photos(tmp_path / "photos")))).reader
    with pytest.raises(UsageError, match="does not lie in"):
        reader.read(RawItem("key", 0, 3, "../secret"))


@pytest.mark.parametrize("part", ["../raw/shard-0.tar", "/etc/passwd"])
def test_a_part_that_leads_out_of_the_source_is_not_read(
    tmp_path: Path, part: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plan_ingest(tars(tmp_path / "raw"), str(tmp_path / "images"), seed=0)
    changed = [item._replace(part=part) for item in plan.items(plan.shards[0])]
    monkeypatch.setattr(planning, "read_place", lambda *_: changed)
    with pytest.raises(CorruptShardError, match="was changed"):
        plan.items(plan.shards[0])


@pytest.fixture(params=["memory", pytest.param("s3", marks=pytest.mark.xdist_group("s3"))])
def bucket(request: pytest.FixtureRequest) -> str:
    """Remote storage: of this process's memory, and of a real server."""
    return f"memory://{uuid4().hex}" if request.param == "memory" else str(request.getfixturevalue("s3_uri"))


def test_the_requests_of_a_start_with_all_shards_done(tmp_path: Path, bucket: str) -> None:
    """Ten shards of one image: a listing and ten small reads, none of the source, and a few for plan and manifest."""
    photos = write_photos(tmp_path / "photos", classes=1)
    upload(photos, f"{bucket}/photos")
    config = DataConfig(source=FolderSource(path=f"{bucket}/photos"), shard_samples=1)
    ingest(config, f"{bucket}/images", seed=0)
    plan = plan_ingest(config, f"{bucket}/images", seed=0)
    with storage.counted() as asked:
        commits = look(plan)
    assert dict(asked) == {"list": 1, "get": 10}
    with storage.counted() as asked:
        finish(plan, commits)
    assert (asked["put"], asked["list"]) == (0, 0)
    assert asked.total() <= 6
    with storage.counted() as asked:
        plan_ingest(config, f"{bucket}/images", seed=0)
    assert asked.total() <= 10


def test_a_remote_tar_is_not_read_at_a_second_start(tmp_path: Path, bucket: str) -> None:
    tars(tmp_path / "raw")
    upload(tmp_path / "raw", f"{bucket}/raw")
    config = DataConfig(source=WebDatasetSource(path=f"{bucket}/raw/shard-{{0..1}}.tar"), shard_samples=4)
    first = planned(plan_ingest(config, f"{bucket}/images", seed=0))
    with storage.counted() as asked:
        plan = plan_ingest(config, f"{bucket}/images", seed=0)
    assert asked["get"] <= 2  # plan.json and shards.bin
    assert asked["head"] <= 4
    assert planned(plan) == first
