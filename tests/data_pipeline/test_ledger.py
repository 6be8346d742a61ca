"""The ledger tells what was consumed over restarts at any world size, and the audit finds what should not be."""

from __future__ import annotations

import json
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline.errors import UsageError
from data_pipeline.order.ledger import DataOrder, audit, chain, is_ledger_record, read_history, step_indices
from data_pipeline.order.mixing import MixPart
from data_pipeline.order.permutations import SampleOrder, step_positions
from data_pipeline.record_files.reading import open_state
from data_pipeline.tools.auditing import audit_stage, stage_history
from trainer.records import segmented_object
from trainer.records.jsonl import JsonlWriter

SHARDS = (7, 3, 10)
KEYS = np.array([f"image{number}" for number in range(20)], "S")
ORDER = DataOrder(data="s3://data/tokens", kind="tokens", fingerprint="f", seed=3, window=None, global_batch=8, check=0)
Record = dict[str, Any]


def started(step: int, world: int) -> Record:
    return {"event": "start", "step": step, "world": world}


def segment(
    first: int, stop: int, world: int, order: DataOrder = ORDER, skipped: AbstractSet[int] = frozenset()
) -> Record:
    """What honest ranks record of some steps, of which they passed over those in `skipped`."""
    crcs = []
    for rank in range(world):
        crc = 0
        for step in sorted(set(range(first, stop)) - skipped):
            positions = step_positions(step, order.global_batch, rank, world)
            crc = chain(crc, KEYS[order.samples(SHARDS).indices(positions)])
        crcs.append(crc)
    ranges = [[step, step + 1] for step in sorted(skipped)]
    return {"event": "segment", "first": first, "stop": stop, "world": world, "crc": crcs, "skipped": ranges}


def ledger(*records: Record, order: DataOrder = ORDER) -> list[Record]:
    return [{"event": "order"} | order.model_dump(), *records]


def problems(*records: Record) -> tuple[str, ...]:
    return audit(read_history("ledger.jsonl", ledger(*records)), KEYS, SHARDS).problems


def test_restarts_at_other_world_sizes_are_clean_and_repeated_steps_are_counted() -> None:
    records = [
        *(started(0, 1), segment(0, 4, 1), segment(4, 8, 1)),
        *(started(4, 4), segment(4, 6, 4)),
        *(started(6, 2), segment(6, 10, 2)),
    ]
    found = audit(read_history("ledger.jsonl", ledger(*records)), KEYS, SHARDS)
    assert found.problems == ()
    assert found.history.starts == [(0, 1), (4, 4), (6, 2)]
    assert found.history.repeated_steps == 4
    assert found.epochs == ((20, 20, 1), (20, 20, 1), (20, 20, 1), (20, 20, 1))


@given(st.lists(st.tuples(st.sampled_from([1, 2, 4, 8]), st.integers(1, 6), st.integers(0, 3)), max_size=6))
def test_any_history_of_kills_and_resumes_is_clean(turns: list[tuple[int, int, int]]) -> None:
    records, done = [], 0
    for world, steps, lost in turns:
        back = max(0, done - lost)
        done = next((r["first"] for r in records if r["event"] == "segment" and r["first"] >= back), done)
        records += [started(done, world), *(segment(step, step + 1, world) for step in range(done, done + steps))]
        done += steps
    assert problems(*records) == ()


def test_a_rank_that_consumed_other_samples_is_named() -> None:
    wrong = segment(0, 4, 2)
    wrong["crc"][1] ^= 1
    assert problems(started(0, 2), wrong) == ("steps 0 to 3: rank 1 of 2 consumed other samples",)


def test_steps_that_are_not_on_record_are_named() -> None:
    assert problems(started(0, 1), segment(0, 2, 1), segment(3, 4, 1)) == ("steps 2 to 2 are not on record",)


def test_a_rank_that_is_missing_is_named() -> None:
    short = segment(0, 4, 2)
    short["crc"].pop()
    assert problems(started(0, 2), short) == ("steps 0 to 3: 1 of 2 ranks on record",)


def test_another_order_of_the_same_samples_is_found() -> None:
    other = ORDER.model_copy(update={"seed": 4})
    assert len(problems(started(0, 1), segment(0, 5, 1, other))) == 1


def test_the_samples_of_a_step_are_those_of_its_positions() -> None:
    first = ORDER.samples(SHARDS).indices(np.arange(8, 16))
    assert step_indices(ORDER, SHARDS, 1).tolist() == first.tolist()


@given(st.sets(st.integers(0, 11)), st.sampled_from([1, 2, 4, 8]))
def test_steps_that_were_passed_over_are_accounted_for_at_any_world_size(passed: set[int], world: int) -> None:
    records = [started(0, world), *(segment(a, a + 4, world, skipped=passed & set(range(a, a + 4))) for a in (0, 4, 8))]
    found = audit(read_history("ledger.jsonl", ledger(*records)), KEYS, SHARDS)
    assert found.problems == ()
    assert sum(consumed for consumed, _, _ in found.epochs) == (12 - len(passed)) * 8


def test_a_step_that_was_not_passed_over_as_recorded_is_found() -> None:
    lie = segment(0, 4, 1) | {"skipped": [[2, 3]]}
    assert problems(started(0, 1), lie) == ("steps 0 to 3: rank 0 of 1 consumed other samples",)


@pytest.mark.parametrize(
    ("stated", "said"),
    [
        ({"version": 1}, "of version 1, but version 2 is needed.*begin the stage anew"),
        ({"version": 3}, "of version 3, but version 2 is needed.*update foldtrain"),
        ({}, "of version 1, but version 2 is needed.*begin the stage anew"),
    ],
)
def test_an_order_of_another_version_is_refused_by_name(stated: Record, said: str) -> None:
    order = {"event": "order"} | ORDER.model_dump(exclude={"version"}) | stated
    assert is_ledger_record(order)  # a start that left it out would begin another order in the same ledger
    with pytest.raises(UsageError, match=r"a/ledger\.jsonl.*" + said):
        read_history("a/ledger.jsonl", [order, started(0, 1), segment(0, 4, 1)])


def test_an_audit_of_a_stage_in_the_old_order_is_refused_by_name(tmp_path: Path) -> None:
    records = [{"event": "order"} | ORDER.model_dump(exclude={"version"}), started(0, 1), segment(0, 4, 1)]
    (tmp_path / "ledger.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    with pytest.raises(UsageError, match=rf"{tmp_path}/ledger\.jsonl: the stage was begun in an order .* of version 1"):
        audit_stage(str(tmp_path))


def test_an_audit_in_small_parts_finds_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    records = [started(0, 2), segment(0, 4, 2), segment(4, 9, 2, skipped={5, 7})]
    twice = segment(9, 12, 2)
    history = read_history("ledger.jsonl", ledger(*records, twice))
    whole = audit(history, KEYS, SHARDS)
    monkeypatch.setattr("data_pipeline.order.ledger._AT_ONCE", 3)
    assert audit(history, KEYS, SHARDS) == whole
    assert whole.problems == ()
    assert whole.epochs == ((20, 20, 1), (20, 20, 1), (8, 20, 1), (16, 20, 1), (16, 20, 1))


@pytest.mark.parametrize(
    "records", [[], [{"event": "segment"}], [{"event": "order", "data": 3}], ledger({"event": "other"})]
)
def test_what_is_no_ledger_is_refused_by_name(records: list[Record]) -> None:
    with pytest.raises(UsageError, match=r"a/ledger\.jsonl"):
        read_history("a/ledger.jsonl", records)


@pytest.mark.parametrize(
    "bad",
    [
        {},
        {"event": None},
        {"event": ["order"]},
        {"event": "start", "step": "x", "world": 1},
        {"event": "start", "step": 0, "world": 0},
        {"event": "start", "step": 1e400, "world": 1},
        segment(0, 2, 1) | {"stop": 10**15},
        segment(0, 2, 1) | {"first": -1},
        segment(0, 2, 1) | {"skipped": [[0, 10**15]]},
        segment(0, 2, 1) | {"skipped": 7},
        segment(0, 2, 1) | {"crc": None},
        {"event": "order", "data": 7},
    ],
)
def test_a_record_that_cannot_be_is_none_of_a_ledger(bad: Record) -> None:
    assert not is_ledger_record(bad)
    with pytest.raises(UsageError, match="x is no ledger"):
        read_history("x", [{"event": "order"} | ORDER.model_dump(), bad])


def test_what_ranks_record_is_of_a_ledger() -> None:
    records = [{"event": "order", "time": 1.5} | ORDER.model_dump(), started(0, 2), segment(0, 4, 2, skipped={1})]
    assert all(map(is_ledger_record, records))


def test_a_ledger_in_segments_is_audited_like_any_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segmented_object, "SEAL_BYTES", 400)
    folder = f"memory://{uuid4().hex}/generator"
    records = ledger(started(0, 2), *(segment(step, step + 1, 2) for step in range(30)))
    writer = JsonlWriter(f"{folder}/ledger.jsonl", keep=records, interval=3600)
    writer.close()
    assert open_state(f"{folder}/ledger.jsonl").segments
    assert stage_history(folder) == read_history("x", records)


def test_an_audit_names_a_line_that_is_no_record(tmp_path: Path) -> None:
    order = json.dumps({"event": "order"} | ORDER.model_dump())
    (tmp_path / "ledger.jsonl").write_text(f"{order}\n{'[' * 100_000}\n{json.dumps(started(0, 1))}\ncut")
    with pytest.raises(UsageError, match=r"ledger\.jsonl is no ledger: line 2 is no record"):
        stage_history(str(tmp_path))
    (tmp_path / "ledger.jsonl").write_text(f"{order}\n{json.dumps(started(0, 1))}\ncut")
    assert stage_history(str(tmp_path)).starts == [(0, 1)]


# -------------------------------------------------------------------------------------------------------------- a mix

MIX = ORDER.model_copy(update={"mix": (MixPart(2, 5), MixPart(1, 15))})
"""Ten samples of two shards, half of them in an epoch, and ten of one, one and a half times."""


@pytest.mark.parametrize("at_once", [7, 2**18])
def test_a_mix_is_audited_by_the_rounds_of_each_set(monkeypatch: pytest.MonkeyPatch, at_once: int) -> None:
    monkeypatch.setattr("data_pipeline.order.ledger._AT_ONCE", at_once)
    records = ledger(started(0, 2), segment(0, 5, 2, MIX), segment(5, 10, 2, MIX), order=MIX)
    found = audit(read_history("ledger.jsonl", records), KEYS, SHARDS)  # 80 positions: four epochs of 20
    assert found.problems == ()
    assert sorted(found.epochs) == [(10, 10, 1)] * 8  # 20 draws of the first set and 60 of the second
    assert MIX.samples(SHARDS).count == 20


def test_a_step_that_is_taken_from_another_mix_is_found() -> None:
    other = MIX.model_copy(update={"mix": (MixPart(2, 10), MixPart(1, 10))})
    records = ledger(started(0, 1), segment(0, 5, 1, other), order=MIX)
    found = audit(read_history("ledger.jsonl", records), KEYS, SHARDS)
    assert found.problems == ("steps 0 to 4: rank 0 of 1 consumed other samples",)


def test_a_mix_in_which_a_sample_comes_twice_in_a_round_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SampleOrder, "indices", lambda order, positions: positions % (order.count - 1))
    records = ledger(started(0, 1), segment(0, 10, 1, MIX), order=MIX)
    found = audit(read_history("ledger.jsonl", records), KEYS, SHARDS)
    assert "round 0 of set 0 has sample image0 2 times" in found.problems
