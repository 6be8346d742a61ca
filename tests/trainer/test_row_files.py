"""Rows of images in parts: in the order of the images, resumed after a kill, and never those of something else."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from data_pipeline import storage
from data_pipeline.errors import CorruptShardError, UsageError
from trainer.evaluation.measures import Rows
from trainer.evaluation.row_files import (
    FinishedRows,
    Parts,
    RowPlan,
    StoredRows,
    begin,
    digest_pixels,
    read_finished,
    read_part,
    write_part,
)

COUNT, BATCH = 1301, 64  # three parts of 512 images, the last one of 277


def plan_in(folder: Path, **others: object) -> RowPlan:
    fields = {"images": {"sha256": "a"}, "measure": {"kind": "number"}, "count": COUNT, "batch": BATCH} | others
    return RowPlan(str(folder / "rows"), **fields)  # type: ignore[arg-type]


def rows_of(start: int, stop: int) -> Rows:
    numbers_N = np.arange(start, stop, dtype=np.float32)
    return {"number": numbers_N, "pair": np.stack([numbers_N, -numbers_N], 1), "code": np.uint16(numbers_N % 60)}


def make(plan: RowPlan, part: int) -> None:
    write_part(
        plan, part, rows_of(*plan.span(part)), digest_pixels(np.full((1, 2, 2, 3), part, np.uint8)), {"numpy": "2"}
    )


def made(plan: RowPlan) -> FinishedRows:
    begin(plan)
    parts = Parts(plan)
    parts.look()
    for part in parts.missing.tolist():
        make(plan, part)
    parts.look()
    return parts.finish()


def test_parts_are_whole_batches_and_cover_every_image_once(tmp_path: Path) -> None:
    plan = plan_in(tmp_path)

    spans = [plan.span(part) for part in range(plan.parts)]

    assert spans == [(0, 512), (512, 1024), (1024, COUNT)]
    assert [plan.size(part) for part in range(plan.parts)] == [512, 512, 277]


def test_rows_come_in_the_order_of_the_images(tmp_path: Path) -> None:
    plan = plan_in(tmp_path)
    begin(plan)
    for part in (2, 0, 1):
        make(plan, part)

    rows = StoredRows(plan, made(plan))

    found = np.concatenate([each["pair"] for each in rows.parts("pair")])
    np.testing.assert_array_equal(found[:, 1], -np.arange(COUNT))
    column = rows.column("code")
    assert column.dtype == np.uint16
    np.testing.assert_array_equal(column, np.arange(COUNT) % 60)


def test_only_the_names_that_are_asked_for_are_given(tmp_path: Path) -> None:
    plan = plan_in(tmp_path)
    made(plan)

    assert set(read_part(plan, 0, ("pair",))) == {"pair"}
    assert set(read_part(plan, 0)) == {"number", "pair", "code"}


def test_the_first_images_alone(tmp_path: Path) -> None:
    plan = plan_in(tmp_path)

    rows = StoredRows(plan, made(plan)).first(600)

    assert rows.count == 600
    assert sum(len(each["number"]) for each in rows.parts("number")) == 600
    np.testing.assert_array_equal(rows.column("number"), np.arange(600))


def test_what_is_committed_is_not_made_again(tmp_path: Path) -> None:
    plan = plan_in(tmp_path)
    begin(plan)
    make(plan, 1)

    parts = Parts(plan)
    parts.look()

    assert parts.missing.tolist() == [0, 2]


def test_the_record_at_the_end_says_which_images_these_were(tmp_path: Path) -> None:
    first, second = plan_in(tmp_path / "one"), plan_in(tmp_path / "two")
    assert read_finished(first) is None

    one, two = made(first), made(second)

    assert read_finished(first) == one
    assert one.pixels == two.pixels
    assert one.software == {"numpy": ("2",)}


def test_other_images_have_another_digest() -> None:
    black = np.zeros((2, 4, 4, 3), np.uint8)

    assert digest_pixels(black) != digest_pixels(black + 1)
    assert digest_pixels(black) != digest_pixels(black.reshape(1, 8, 4, 3))


def test_a_folder_of_other_rows_is_refused_and_the_difference_named(tmp_path: Path) -> None:
    made(plan_in(tmp_path))

    with pytest.raises(UsageError, match=r"plan\.json is of other rows(?s:.*)batch: 64 -> 32"):
        begin(plan_in(tmp_path, batch=32))
    with pytest.raises(UsageError, match="is of other rows"):
        read_finished(plan_in(tmp_path, batch=32))


def test_a_part_of_other_rows_is_refused(tmp_path: Path) -> None:
    plan, other = plan_in(tmp_path), plan_in(tmp_path / "other", measure={"kind": "another"})
    made(plan)
    storage.write_bytes(plan.uri(1), _bytes(other))

    with pytest.raises(CorruptShardError, match=r"00001\.safetensors is of other rows: delete it"):
        Parts(plan).look()


def _bytes(plan: RowPlan) -> bytes:
    made(plan)
    return storage.read_bytes(plan.uri(1))


def test_a_damaged_part_is_named(tmp_path: Path) -> None:
    plan = plan_in(tmp_path)
    made(plan)
    whole = storage.read_bytes(plan.uri(2))
    storage.write_bytes(plan.uri(2), whole[: len(whole) // 2])

    with pytest.raises(CorruptShardError, match=r"00002\.safetensors .*: delete it and run the same command again"):
        read_part(plan, 2)
    storage.write_bytes(plan.uri(2), b"\xff" * 20)
    with pytest.raises(CorruptShardError, match=r"00002\.safetensors is no safetensors file"):
        Parts(plan).look()


def test_a_missing_part_or_name_is_named(tmp_path: Path) -> None:
    plan = plan_in(tmp_path)
    made(plan)

    with pytest.raises(CorruptShardError, match="has no rows 'colour'"):
        read_part(plan, 0, ("colour",))
    storage.remove_file(plan.uri(0))
    with pytest.raises(CorruptShardError, match=r"00000\.safetensors is missing"):
        read_part(plan, 0)
