"""What is committed of a token plan is found with few requests, and nothing is believed that is not there."""

from __future__ import annotations

import dataclasses
import json
import pickle
from collections.abc import Callable, Iterator
from uuid import uuid4

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline import storage
from data_pipeline.errors import FoldtrainError, UsageError
from data_pipeline.shards.image_shards import ImageShards
from data_pipeline.shards.manifest import ShardRecord, TokenCommit, TokenManifest
from data_pipeline.storage import Entry
from data_pipeline.tokens import commits as commits_module
from data_pipeline.tokens.commits import Commits, read_commits, record_name
from data_pipeline.tokens.plan import PlannedShards, TokenPlan
from data_pipeline.tokens.tokenizing import finish, tokenize_shard
from tests.data_pipeline.small_data import encode
from tests.data_pipeline.stub_s3 import Answer, stub_s3

Plans = Callable[..., TokenPlan]
SHARDS = 40
TAR = b"t" * 6000


@pytest.fixture
def plan(make_plan: Plans) -> TokenPlan:
    """Forty shards on storage that counts its requests."""
    return dataclasses.replace(make_plan(), output=f"memory://{uuid4().hex}", samples=SHARDS * 8 - 3)


def commit(plan: TokenPlan, number: int, software: dict[str, str] | None = None, tar: bytes = TAR) -> TokenCommit:
    """What a worker leaves of a shard; nobody here looks into the tar."""
    shard = plan.shards[number]
    samples = shard.stop - shard.start
    record = ShardRecord(name=shard.name, samples=samples, bytes=len(tar), sha256=f"{number:064x}")
    made = TokenCommit(shard=record, made_by=plan.made_by(), software=software or plan.software)
    storage.write_bytes(storage.join(plan.output, shard.name), tar)
    storage.write_json(storage.join(plan.output, record_name(shard.name)), made.model_dump(mode="json"))
    return made


def age(monkeypatch: pytest.MonkeyPatch, **seconds: float) -> None:
    """Have storage list files as written so many seconds ago: by the name's beginning, others 1,000."""
    listed = storage.iter_entries

    def entries(uri: str) -> Iterator[tuple[str, Entry]]:
        def written(name: str) -> float:
            return next((ago for start, ago in seconds.items() if name.startswith(start.replace("_", "-"))), 1000)

        return ((name, Entry(entry.bytes, 1e9 - written(name))) for name, entry in listed(uri))

    monkeypatch.setattr(commits_module.storage, "iter_entries", entries)


@given(st.integers(1, 10**9), st.integers(1, 10**6))
def test_the_shards_of_a_plan_hold_every_image_once_in_order(samples: int, size: int) -> None:
    shards = PlannedShards(samples, size)
    first, last = shards[0], shards[-1]
    assert (first.start, last.stop, last.number) == (0, samples, len(shards) - 1)
    middle = shards[len(shards) // 2]
    assert middle.start == (len(shards) // 2) * size
    assert shards.number_of(middle.name) == middle.number
    assert [shard.stop - shard.start for shard in shards[:2]] == [min(size, samples), min(size, samples - size)][
        : len(shards)
    ]


@pytest.mark.parametrize("name", ["tokens-00003.tar", "tokens-000001.tar", "images-00001.tar", "tokens-1.tar", ""])
def test_what_is_no_shard_of_the_plan_has_no_number(name: str) -> None:
    assert PlannedShards(30, 10).number_of(name) is None


def test_a_plan_of_a_billion_images_is_as_small_as_one_of_twenty(make_plan: Plans) -> None:
    small = make_plan()
    large = dataclasses.replace(small, samples=10**9, shard_samples=100)
    assert len(large.shards) == 10**7
    assert len(pickle.dumps(large)) <= len(pickle.dumps(small)) + 16


def test_an_interrupted_run_reads_each_record_once_in_one_request(plan: TokenPlan) -> None:
    for number in range(0, SHARDS, 2):
        commit(plan, number)
    with storage.counted() as asked:
        found = read_commits(plan)
    assert (asked["list"], asked["get"]) == (1, SHARDS // 2)
    assert found.missing.tolist() == list(range(1, SHARDS, 2))
    assert found.images(found.missing) == SHARDS // 2 * 8 - 3


def test_a_second_look_reads_what_is_new_and_nothing_else(plan: TokenPlan, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(10):
        commit(plan, number)
    age(monkeypatch)
    found = read_commits(plan)
    commit(plan, 20)
    commit(plan, 3, {"numpy": "0"})
    age(monkeypatch, tokens_00003=5)
    with storage.counted() as asked:
        found.refresh()
    assert (asked["list"], asked["get"]) == (1, 2)
    assert set(found.missing) == set(range(10, SHARDS)) - {20}
    assert found.software()["numpy"] == sorted({"0", plan.software["numpy"]})


def test_what_workers_report_is_not_read_again_and_gives_the_same_manifest(plan: TokenPlan) -> None:
    found = read_commits(plan)
    for number in range(SHARDS):
        made = commit(plan, number, {"numpy": str(number % 2)})
        found.add(number, made.shard.bytes, made.shard.sha256, made.software)
    with storage.counted() as asked:
        found.refresh()
        manifest = finish(plan, found)
    assert (asked["list"], asked["get"], asked["put"]) == (1, 0, 2)  # puts: the table of the shards, and the manifest
    assert manifest.shards[7] == made.shard.model_copy(
        update={"name": "tokens-00007.tar", "sha256": f"{7:064x}", "samples": 8}
    )
    assert manifest.software["numpy"] == ["0", "1"]
    storage.remove_file(storage.join(plan.output, "manifest.json"))
    assert finish(plan) == manifest


@pytest.mark.parametrize("lost", ["tokens-00007.tar", "tokens-00007.json"])
def test_what_a_worker_reports_and_storage_does_not_have_is_missing(plan: TokenPlan, lost: str) -> None:
    found = read_commits(plan)
    for number in range(SHARDS):
        made = commit(plan, number)
        found.add(number, made.shard.bytes, made.shard.sha256, made.software)
    storage.remove_file(storage.join(plan.output, lost))
    found.refresh()
    with pytest.raises(FoldtrainError, match=r"still misses tokens-00007\.tar \(1 of 40 shards\)"):
        finish(plan, found)


def test_with_everything_done_one_record_is_read_and_nothing_written(
    plan: TokenPlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(SHARDS):
        commit(plan, number, {"numpy": str(number % 2)})
    manifest = finish(plan)
    age(monkeypatch, manifest=10)
    with storage.counted() as asked:
        found = read_commits(plan)
        assert finish(plan, found) == manifest
    assert len(found.missing) == 0
    assert (asked["list"], asked["put"]) == (1, 0)
    assert asked["get"] <= 3  # the manifest, its table, and the first record


@pytest.mark.parametrize(("ago", "read"), [(11, 1), (10, 2), (9.5, 2), (5, 2)])
def test_a_record_that_may_be_younger_than_the_manifest_is_read(
    plan: TokenPlan, monkeypatch: pytest.MonkeyPatch, ago: float, read: int
) -> None:
    for number in range(SHARDS):
        commit(plan, number)
    finish(plan)
    age(monkeypatch, manifest=10, tokens_00005=ago)
    with storage.counted() as asked:
        read_commits(plan)
    assert asked["get"] == 2 + read  # the manifest, its table, and records


def test_a_shard_that_was_made_again_after_the_manifest_is_what_its_record_says(
    plan: TokenPlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(SHARDS):
        commit(plan, number)
    finish(plan)
    commit(plan, 5, {"numpy": "0"}, TAR + TAR)
    age(monkeypatch, manifest=10, tokens_00005=5)
    manifest = finish(plan)
    assert manifest.shards[5].bytes == 2 * len(TAR)
    assert TokenManifest.read(plan.output) == manifest


@pytest.mark.parametrize("loss", ["removed", "cut"])
def test_a_record_whose_tar_is_lost_is_gone_before_another_tar_comes(plan: TokenPlan, loss: str) -> None:
    """Another processor's tar has the same length: with the old record beside it, it would pass for committed."""
    for number in range(3):
        commit(plan, number)
    path = f"{plan.output}/tokens-00001.tar"
    storage.remove_file(path) if loss == "removed" else storage.write_bytes(path, TAR[:-1])
    found = read_commits(plan)
    found.remove_stale()
    storage.write_bytes(path, TAR[::-1])  # and the worker is killed
    assert set(read_commits(plan).missing) == {1, *range(3, SHARDS)}
    assert {f"tokens-{number:05d}.json" for number in (0, 2)} <= storage.walk(plan.output).keys()


def test_where_versions_are_mixed_and_a_shard_is_lost_the_records_say_who_made_the_rest(
    plan: TokenPlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(SHARDS):
        commit(plan, number, {"numpy": "0" if number == 5 else "1"})
    finish(plan)
    storage.remove_file(storage.join(plan.output, "tokens-00005.tar"))
    age(monkeypatch, manifest=10)
    found = read_commits(plan)
    assert found.missing.tolist() == [5]
    made = commit(plan, 5, {"numpy": "2"})
    found.add(5, made.shard.bytes, made.shard.sha256, made.software)
    found.refresh()
    assert finish(plan, found).software["numpy"] == ["1", "2"]


def test_a_tar_that_is_lost_after_the_first_look_leaves_the_versions_of_the_others_right(
    plan: TokenPlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(SHARDS):
        commit(plan, number, {"numpy": "1" if number == 5 else "0"})
    finish(plan)
    age(monkeypatch, manifest=10)
    found = read_commits(plan)
    storage.remove_file(f"{plan.output}/tokens-00007.tar")
    found.refresh()
    assert found.missing.tolist() == [7]
    assert found.software()["numpy"] == ["0", "1"]


def test_a_manifest_whose_shards_are_cut_otherwise_stands_for_nothing(
    plan: TokenPlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(SHARDS):
        commit(plan, number)
    manifest = finish(plan)
    first, second, *rest = manifest.shards
    cut = [first.model_copy(update={"samples": 7}), second.model_copy(update={"samples": 9}), *rest]
    TokenManifest.build(**plan.manifest_fields(), software=manifest.software, shards=cut).write(plan.output)
    age(monkeypatch, manifest=10)
    assert finish(plan) == manifest
    assert TokenManifest.read(plan.output) == manifest


def test_a_manifest_whose_table_is_damaged_stands_for_nothing(plan: TokenPlan, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(SHARDS):
        commit(plan, number)
    manifest, table = finish(plan), storage.read_bytes(f"{plan.output}/shards.bin")
    storage.write_bytes(f"{plan.output}/shards.bin", table[:-1] + bytes([table[-1] ^ 1]))
    age(monkeypatch, manifest=10)
    with storage.counted() as asked:
        assert finish(plan) == manifest
    assert asked["get"] >= SHARDS
    assert storage.read_bytes(f"{plan.output}/shards.bin") == table


@pytest.mark.parametrize("change", [{"batch": 5}, {"precision": "bf16"}, {"source": "0" * 64}])
def test_a_complete_set_of_another_plan_is_refused_although_its_manifest_does_not_say_all(
    plan: TokenPlan, monkeypatch: pytest.MonkeyPatch, change: dict[str, object]
) -> None:
    for number in range(SHARDS):
        commit(plan, number)
    finish(plan)
    age(monkeypatch, manifest=10)
    with pytest.raises(UsageError, match=rf"{next(iter(change))}: .* -> "):
        read_commits(dataclasses.replace(plan, **change))


def test_records_beyond_the_plan_are_of_other_tokens_and_refused(plan: TokenPlan) -> None:
    commit(dataclasses.replace(plan, samples=1000, batch=7), 100)
    with pytest.raises(UsageError, match=r"tokens-00100\.json belongs to tokens that were made otherwise"):
        read_commits(plan)


def test_a_record_of_another_shard_is_refused(plan: TokenPlan) -> None:
    commit(plan, 4)
    for name in ("tokens-00009.json", "tokens-00009.tar"):
        storage.write_bytes(f"{plan.output}/{name}", storage.read_bytes(f"{plan.output}/{name.replace('9', '4')}"))
    with pytest.raises(UsageError, match=r"00009\.json is the commit record of tokens-00004\.tar, another shard"):
        read_commits(plan)


def test_a_record_of_other_samples_than_planned_is_refused(plan: TokenPlan) -> None:
    commit(plan, 4)
    path = f"{plan.output}/tokens-00004.json"
    record = json.loads(storage.read_bytes(path))
    record["shard"]["samples"] = 7
    storage.write_json(path, record)
    with pytest.raises(UsageError, match=r"00004\.json states 7 samples, and the shard has 8"):
        read_commits(plan)


def test_a_record_that_was_replaced_or_removed_since_the_listing_is_no_error(
    plan: TokenPlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(3):
        commit(plan, number)
    listed = storage.iter_entries

    def late(uri: str) -> Iterator[tuple[str, Entry]]:
        found = list(listed(uri))
        commit(plan, 1, {"numpy": "another, longer version"})
        storage.remove_file(f"{uri}/tokens-00002.json")
        return iter(found)

    monkeypatch.setattr(commits_module.storage, "iter_entries", late)
    found = read_commits(plan)
    assert set(found.missing) == set(range(2, SHARDS))
    assert found.software()["numpy"] == sorted({plan.software["numpy"], "another, longer version"})


def test_a_row_takes_some_sixty_bytes(make_plan: Plans) -> None:
    plan = dataclasses.replace(make_plan(), samples=10**6, shard_samples=10)
    arrays = [value for value in vars(Commits(plan)).values() if isinstance(value, np.ndarray)]
    assert sum(array.nbytes for array in arrays) <= 60 * len(plan.shards)


@pytest.mark.xdist_group("stub_s3")
def test_a_worker_commits_a_shard_in_two_requests(make_plan: Plans, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each creates what is not there, so that a worker has nothing to look for before it writes, or after."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    plan = dataclasses.replace(make_plan(), output="s3://bucket/tokens")
    with stub_s3(lambda _: Answer()) as (url, asked), storage.counted() as counted:
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        tokenize_shard(plan, plan.shards[0], ImageShards(plan.images), encode)
    assert [(request.method, request.path, request.headers["if-none-match"]) for request in asked] == [
        ("PUT", "/bucket/tokens/tokens-00000.tar", "*"),
        ("PUT", "/bucket/tokens/tokens-00000.json", "*"),
    ]
    assert counted == {"put": 2}


def test_a_worker_reads_the_images_of_a_shard_in_a_request_for_each_tar_they_lie_in(make_plan: Plans) -> None:
    plan, there = make_plan(), f"memory://{uuid4().hex}"
    for name in storage.walk(plan.images):
        storage.write_bytes(f"{there}/{name}", storage.read_bytes(f"{plan.images}/{name}"))
    images = ImageShards(there)
    assert (plan.shards[1].start, plan.shards[1].stop, images.starts.tolist()) == (8, 16, [0, 7, 14, 20])
    with storage.counted() as asked:
        tokenize_shard(plan, plan.shards[1], images, encode)
    assert asked == {"get": 2}
