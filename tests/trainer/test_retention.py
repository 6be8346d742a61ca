"""Which checkpoints stay."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline import storage
from data_pipeline.storage import upload_marks
from trainer.checkpoints.retention import Retention, apply, kept, recorded_rule, removable, remove_damaged
from trainer.engine.fragments.zero0 import even_cut
from trainer.rollback.spikes import Rollback

VALUES = st.dictionaries(st.integers(1, 200), st.none() | st.floats(-9, 9), max_size=12)


@given(VALUES, st.integers(1, 5), st.none() | st.integers(1, 20), st.sampled_from([None, "loss"]))
def test_the_newest_always_stays_and_nothing_stays_without_a_reason(
    values: dict[int, float | None], last: int, every: int | None, metric: str | None
) -> None:
    stay = kept(values, Retention(last, every, metric))
    assert stay <= values.keys()
    assert set(sorted(values)[-last:]) <= stay
    best = min((value for value in values.values() if value is not None), default=None)
    for step in stay - set(sorted(values)[-last:]):
        assert (every and step % every == 0) or (metric and values[step] == best)


def test_the_best_is_the_smallest_or_the_largest_and_of_equals_the_newest() -> None:
    values = {1: 2.0, 2: 1.0, 3: 1.0, 4: 3.0, 5: None}
    assert kept(values, Retention(1, None, "loss", "min")) == {3, 5}
    assert kept(values, Retention(1, None, "loss", "max")) == {4, 5}


def checkpoint(folder: Path, step: int, *files: str) -> None:
    for name in (*files, "rank_0000-a.safetensors"):
        storage.write_bytes(str(folder / f"step_{step:08d}" / name), b"")


def names(folder: Path) -> list[int]:
    return sorted(int(path.name.removeprefix("step_")) for path in folder.iterdir())


def test_old_ones_go_and_the_newest_and_the_marked_and_every_hundredth_stay(tmp_path: Path) -> None:
    for step in (50, 100, 150, 200, 250):
        checkpoint(tmp_path, step, "COMPLETE")
    checkpoint(tmp_path, 50, "KEEP")
    assert apply(str(tmp_path), Retention(last=1, every=100)) == [150]
    assert names(tmp_path) == [50, 100, 200, 250]


def test_an_unfinished_one_goes_only_if_a_newer_one_is_complete(tmp_path: Path) -> None:
    checkpoint(tmp_path, 10)
    checkpoint(tmp_path, 20, "COMPLETE")
    checkpoint(tmp_path, 30)  # may be under way
    assert apply(str(tmp_path), Retention(last=1)) == [10]
    assert names(tmp_path) == [20, 30]


def test_a_marked_one_that_a_rollback_took_back_is_neither_the_newest_nor_the_best(tmp_path: Path) -> None:
    for step, skipped, loss in ((10, [], 3.0), (20, [], 2.0), (30, [], 1.0), (28, [[22, 26]], 2.5)):
        checkpoint(tmp_path, step, "COMPLETE")
        state = {"skipped_ranges": skipped, "metrics": {"loss": loss}}
        storage.write_json(str(tmp_path / f"step_{step:08d}" / "state.json"), state)
    checkpoint(tmp_path, 30, "KEEP")
    decisions = [Rollback(20, 22, 26)]
    assert removable(str(tmp_path), Retention(last=1, metric="loss"), decisions) == [10]
    assert apply(str(tmp_path), Retention(last=1), decisions) == [10, 20]
    assert names(tmp_path) == [28, 30]


def test_the_rule_of_a_stage_is_that_of_its_newest_start(tmp_path: Path) -> None:
    trainer = {"keep_checkpoints": 4, "keep_every": 100, "keep_best": {"metric": "loss", "mode": "max"}}
    config = {"evaluation": {"judge": {"trainer": trainer}}, "generator": {"trainer": {"keep_checkpoints": 3}}}
    storage.write_bytes(str(tmp_path / "config.yaml"), json.dumps(config).encode())
    for stage, rule in (("judge", Retention(4, 100, "loss", "max")), ("generator", Retention(3)), ("tokenizer", None)):
        storage.write_json(str(tmp_path / "settings.json"), {"stage": stage})
        assert recorded_rule(str(tmp_path)) == rule


def test_nothing_goes_while_nothing_is_complete(tmp_path: Path) -> None:
    checkpoint(tmp_path, 10)
    assert removable(str(tmp_path), Retention(last=1)) == []


@given(st.lists(st.integers(0, 50), min_size=1, max_size=9), st.integers(1, 9))
def test_an_even_cut_gives_each_element_to_one_rank(sizes: list[int], world: int) -> None:
    cuts = [even_cut(sizes, rank, world) for rank in range(world)]
    for place, size in enumerate(sizes):
        owned = [element for cut in cuts for element in range(*cut[place])]
        assert owned == list(range(size))
    shares = [sum(stop - start for start, stop in cut) for cut in cuts]
    assert max(shares) <= -(-sum(sizes) // world)


def test_a_damaged_one_stays_until_it_is_asked_for_and_does_not_count_as_new(tmp_path: Path) -> None:
    for step in (10, 20, 30, 40):
        checkpoint(tmp_path, step, "COMPLETE")
    checkpoint(tmp_path, 20, "DAMAGED")
    checkpoint(tmp_path, 30, "DAMAGED", "KEEP")
    assert apply(str(tmp_path), Retention(last=2)) == []
    assert apply(str(tmp_path), Retention(last=1)) == [10]
    assert remove_damaged(str(tmp_path)) == [20]
    assert names(tmp_path) == [30, 40]


def test_a_file_of_others_stays_when_its_checkpoint_goes(tmp_path: Path) -> None:
    checkpoint(tmp_path, 10, "COMPLETE", "index.json", "state.json", "notes.txt", "rank_notes.json")
    checkpoint(tmp_path, 20, "COMPLETE")
    assert apply(str(tmp_path), Retention(last=1)) == [10]
    assert sorted(path.name for path in (tmp_path / "step_00000010").iterdir()) == ["notes.txt", "rank_notes.json"]


def test_a_checkpoint_that_is_only_linked_to_stays(tmp_path: Path) -> None:
    checkpoint(tmp_path / "theirs", 10, "COMPLETE", "DAMAGED")
    checkpoint(tmp_path / "ours", 20, "COMPLETE")
    (tmp_path / "ours/step_00000010").symlink_to(tmp_path / "theirs/step_00000010")
    assert apply(str(tmp_path / "ours"), Retention(last=1)) == []
    assert remove_damaged(str(tmp_path / "ours")) == []
    assert len(list((tmp_path / "theirs/step_00000010").iterdir())) == 3


def test_no_link_in_a_checkpoint_is_followed(tmp_path: Path) -> None:
    checkpoint(tmp_path / "theirs", 10, "COMPLETE")
    checkpoint(tmp_path / "ours", 10, "COMPLETE")
    checkpoint(tmp_path / "ours", 20, "COMPLETE")
    (tmp_path / "ours/step_00000010/.foldtrain-uploads").symlink_to(tmp_path / "theirs/step_00000010")
    assert apply(str(tmp_path / "ours"), Retention(last=1)) == [10]
    assert len(list((tmp_path / "theirs/step_00000010").iterdir())) == 2


@pytest.mark.xdist_group("s3")
def test_the_unfinished_uploads_of_a_checkpoint_go_with_it(s3_uri: str) -> None:
    for step in (10, 20):
        storage.write_bytes(f"{s3_uri}/step_{step:08d}/COMPLETE", b"")
    uri = f"{s3_uri}/step_00000010/rank_0000-a.safetensors"
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    call = storage.filesystem(uri).call_s3
    ours, theirs = (call("create_multipart_upload", Bucket=bucket, Key=key)["UploadId"] for _ in range(2))
    storage.write_bytes(upload_marks.place(uri, ours), upload_marks.encode(uri, ours))
    assert apply(s3_uri, Retention(last=1)) == [10]
    assert [upload.upload_id for upload in storage.unfinished_uploads(s3_uri)] == [theirs]
    assert list(storage.entries(s3_uri)) == ["step_00000020/COMPLETE"]
