"""Records in object storage go up once, whatever kills their writer; and are read back as they were written."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any
from uuid import uuid4

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data_pipeline import storage
from data_pipeline.errors import CorruptShardError
from data_pipeline.leases.lease import LeaseLostError
from data_pipeline.record_files.layout import segments_folder
from data_pipeline.record_files.reading import open_state
from trainer.records import segmented_object
from trainer.records.jsonl import Continued, JsonlWriter, RecordCursor, read_records

Record = dict[str, Any]
LATER = 3600.0
"""An interval that is longer than a test: only `flush` and `close` upload."""


def anything(_record: Record) -> bool:
    return True


@pytest.fixture
def uri() -> str:
    """A file of no server, that is treated as one in object storage."""
    return f"memory://{uuid4().hex}/stage/metrics.jsonl"


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Segments of a few lines."""
    for name, size in (("SEAL_BYTES", 60), ("MIDDLE_BYTES", 240), ("LARGEST_BYTES", 960)):
        monkeypatch.setattr(segmented_object, name, size)


class Storage:
    """Counts what is put, and can lose its connection."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.bytes = self.puts = 0
        self.left: int | None = None
        """Puts and removals until a kill; None for no kill."""
        self._write, self._remove = storage.write_bytes, storage.remove_file
        patch.setattr(storage, "write_bytes", self.write)
        patch.setattr(storage, "remove_file", self.remove)

    def write(self, uri: str, data: bytes) -> None:
        self._go()
        self.bytes, self.puts = self.bytes + len(data), self.puts + 1
        self._write(uri, data)

    def remove(self, uri: str) -> None:
        self._go()
        self._remove(uri)

    def _go(self) -> None:
        if self.left == 0:
            raise RuntimeError("killed")
        if self.left is not None:
            self.left -= 1


def steps(uri: str) -> list[int]:
    return [record["step"] for record in read_records(uri)]


def uploaded(uri: str, rows: int, seen: Storage) -> tuple[int, int]:
    """Bytes and puts of a run with a flush after each of its records."""
    before = seen.bytes, seen.puts
    writer = JsonlWriter(uri, keep=[], interval=LATER)
    for step in range(rows):
        writer.write({"step": step, "loss": 0.123456789, "note": "x" * 400})
        assert writer.flush(60)
    writer.close()
    assert steps(uri) == list(range(rows))
    return seen.bytes - before[0], seen.puts - before[1]


def test_bytes_and_requests_are_linear_in_the_records(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = Storage(monkeypatch)
    few, many = uploaded(uri + "1.jsonl", 1000, seen), uploaded(uri + "2.jsonl", 2000, seen)
    assert many[0] < 2.2 * few[0]
    assert many[1] < 2.1 * few[1]
    assert many[0] < 2000 * 24 * 2**10  # half of what the newest lines have at most, and some


def test_sealed_records_are_kept_in_no_memory(uri: str, small: None) -> None:
    writer = JsonlWriter(uri, keep=[], interval=LATER)
    for step in range(200):
        writer.write({"step": step})
        assert writer.flush(60)
        assert len(writer._lines) < 10
    writer.close()


def test_small_segments_are_put_together(uri: str, small: None) -> None:
    writer = JsonlWriter(uri, keep=[], interval=LATER)
    for step in range(1000):
        writer.write({"step": step})
        assert writer.flush(60)
    writer.close()
    sizes = [segment.bytes for segment in open_state(uri).segments]
    assert sum(size < 240 for size in sizes) <= 4
    assert sum(240 <= size < 960 for size in sizes) <= 4
    assert len(sizes) < 25
    assert steps(uri) == list(range(1000))


def test_what_was_put_together_is_removed_one_flush_later_and_no_sooner(uri: str, small: None) -> None:
    writer = JsonlWriter(uri, keep=[], interval=LATER)
    before = set[str]()
    for step in range(120):
        writer.write({"step": step})
        assert writer.flush(60)
        assert before <= set(storage.list_names(segments_folder(uri)))  # a reader that has read the last list may come
        before = {segment.name for segment in open_state(uri).segments}
    writer.close()
    assert len(set(storage.list_names(segments_folder(uri))) - before) < 12


def test_records_that_are_dropped_while_others_go_up_are_never_seen_beside_their_successors(
    uri: str, small: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen, armed = list[list[int]](), list[bool]()
    write = storage.write_bytes

    def watched(place: str, data: bytes) -> None:
        write(place, data)
        if place == uri:
            seen.append(steps(uri))

    def guard() -> None:  # is asked between what is sealed and what is put
        if armed:
            armed.clear()
            writer.drop(lambda record: record["step"] >= 20)
            for step in range(20, 25):
                writer.write({"step": step, "again": 1})

    monkeypatch.setattr(storage, "write_bytes", watched)
    writer = JsonlWriter(uri, keep=[], interval=LATER, guard=guard)
    for step in range(60):
        writer.write({"step": step})
        assert writer.flush(60)
    writer.write({"step": 60})
    armed.append(True)
    assert writer.flush(60)
    writer.close()
    assert all(each == sorted(set(each)) for each in seen)
    assert read_records(uri)[20:] == [{"step": step, "again": 1} for step in range(20, 25)]


def test_a_resumed_run_drops_what_is_beyond_its_checkpoint_and_reads_no_more_than_that(uri: str, small: None) -> None:
    first = JsonlWriter(uri, keep=[], interval=LATER)
    for step in range(500):
        first.write({"step": step})
        assert first.flush(60)
    first.close()
    with storage.counted() as found:
        second = JsonlWriter(uri, keep=Continued(anything, lambda record: record["step"] > 470), interval=LATER)
        assert second.flush(60)
    assert found["get"] < 12
    assert steps(uri) == list(range(471))
    for step in range(471, 480):
        second.write({"step": step})
    second.close()
    assert steps(uri) == list(range(480))


def test_what_a_resume_drops_is_removed_one_flush_after_it_too(uri: str, small: None) -> None:
    first = JsonlWriter(uri, keep=[], interval=LATER)
    for step in range(50):
        first.write({"step": step})
        assert first.flush(60)
    first.close()
    named = {segment.name for segment in open_state(uri).segments}
    again = segmented_object.SegmentedObject(uri, in_columns=False)
    again.take_over(anything, lambda record: record["step"] > 5)
    again.publish(b"")
    again.clean()
    assert named <= set(storage.list_names(segments_folder(uri)))
    again.publish(b"")
    again.clean()
    assert not named & set(storage.list_names(segments_folder(uri)))


def test_records_that_are_done_again_after_a_drop_stay(uri: str, small: None) -> None:
    writer = JsonlWriter(uri, keep=[], interval=LATER)
    for step in range(100):
        writer.write({"step": step})
        assert writer.flush(60)
    writer.drop(lambda record: record["step"] > 30)
    for step in range(31, 90):
        writer.write({"step": step, "again": True})
    assert writer.flush(60)
    writer.close()
    assert read_records(uri) == [{"step": step} | ({"again": True} if step > 30 else {}) for step in range(90)]


def test_a_writer_that_lost_its_lease_takes_nothing_from_its_successor(uri: str, small: None) -> None:
    lost = list[bool]()

    def guard() -> None:
        if lost:
            raise LeaseLostError("another driver took over")

    first = JsonlWriter(uri, keep=[], interval=LATER, guard=guard)
    for step in range(50):
        first.write({"step": step})
        assert first.flush(60)
    lost.append(True)
    second = JsonlWriter(uri, keep=Continued(anything, lambda record: record["step"] > 20), interval=LATER)
    for step in range(50, 90):
        first.write({"step": step, "of": "the first"})
        second.write({"step": step - 29})
        assert second.flush(60)
        first.flush(0)
    first.close()
    second.close()
    assert read_records(uri) == [{"step": step} for step in range(61)]


@pytest.mark.parametrize("damage", ["gone", "cut"])
def test_a_segment_that_was_damaged_keeps_no_new_record_from_going_up(
    uri: str, small: None, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    writer = JsonlWriter(uri, keep=[], interval=LATER)
    for step in range(10):
        writer.write({"step": step})
        assert writer.flush(60)
    (first, *_) = open_state(uri).segments
    place = storage.join(segments_folder(uri), first.name)
    storage.remove_file(place)
    if damage == "cut":
        storage.write_bytes(place, b"{}\n")
    for step in range(10, 200):
        writer.write({"step": step})
        assert writer.flush(60)
    writer.close()
    state = open_state(uri)
    assert b'"step": 199' in state.read(state.size - 30, state.size)
    assert caplog.text.count("its small segments stay apart") == 1
    with pytest.raises(CorruptShardError, match=first.name):
        read_records(uri)


def test_strays_of_a_killed_writer_are_removed_by_the_next(uri: str, small: None) -> None:
    stray = storage.join(segments_folder(uri), "0" * 16)
    storage.write_bytes(stray, b'{"step": 5}\n')
    writer = JsonlWriter(uri, keep=Continued(anything), interval=LATER)
    for step in range(2):
        writer.write({"step": step})
        assert writer.flush(60)
    writer.write({"step": 2})
    assert writer.flush(60)
    writer.close()
    assert not storage.exists(stray)
    assert steps(uri) == [0, 1, 2]


def test_a_file_of_an_earlier_version_is_gone_on_with(uri: str, small: None) -> None:
    storage.write_bytes(uri, b"".join(b'{"step": %d}\n' % step for step in range(300)))
    writer = JsonlWriter(uri, keep=Continued(anything, lambda record: record["step"] > 250), interval=LATER)
    writer.write({"step": 251})
    writer.close()
    assert steps(uri) == list(range(252))
    assert open_state(uri).segments


OPERATIONS = st.lists(
    st.one_of(
        st.tuples(st.just("write"), st.integers(1, 12)),
        st.tuples(st.just("drop"), st.integers(1, 30)),
        st.tuples(st.just("flush"), st.just(0)),
        st.tuples(st.just("resume"), st.integers(0, 20)),
        st.tuples(st.just("kill"), st.integers(0, 6)),
    ),
    min_size=3,
    max_size=25,
)


class History:
    """Writers of one file after one another, and every state that the file may rightly have."""

    def __init__(self, uri: str, seen: Storage) -> None:
        self._uri, self._seen = uri, seen
        self._number = 0
        self.rows = list[int]()
        self.states = [list[int]()]
        """From the last one that is known to be stored."""
        self._is_dead = [False]
        self._writer = self._open([])

    def _open(self, keep: Any) -> JsonlWriter:
        is_dead = self._is_dead = [False]

        def guard() -> None:
            if is_dead[0]:
                raise LeaseLostError("killed")

        return JsonlWriter(self._uri, keep=keep, interval=LATER, guard=guard)

    def write(self, count: int) -> None:
        for _ in range(count):
            self._number += 1
            self._writer.write({"step": len(self.rows), "number": self._number})
            self.rows = [*self.rows, self._number]
            self.states.append(self.rows)

    def drop(self, count: int) -> None:
        first = max(0, len(self.rows) - count)
        self._writer.drop(lambda record: record["step"] >= first)
        self.rows = self.rows[:first]
        self.states.append(self.rows)

    def flush(self, _count: int) -> None:
        if self._writer.flush(0.5 if self._seen.left == 0 else 60):
            self.states = [self.rows]

    def kill(self, puts: int) -> None:
        """After so many more puts and removals; then another writer goes on."""
        self._seen.left = puts
        self._writer.flush(0.02)
        self._end()
        self._check()
        self.states = [self.found()]
        self.rows = self.states[0]
        self._writer = self._open(Continued(anything))

    def resume(self, count: int) -> None:
        self._writer.close()
        self.states = [self.rows]
        self._check()
        self.rows = self.rows[: max(0, len(self.rows) - count)]
        keep = len(self.rows)
        self.states.append(self.rows)
        self._writer = self._open(Continued(anything, lambda record: record["step"] >= keep))

    def _end(self) -> None:
        self._is_dead[0] = True
        self._seen.left = 0
        self._writer.close()
        self._seen.left = None

    def close(self) -> None:
        self._writer.close()
        self.states = [self.rows]
        self._check()

    def found(self) -> list[int]:
        return [record["number"] for record in read_records(self._uri)]

    def _check(self) -> None:
        assert self.found() in self.states


@pytest.mark.slow
@given(OPERATIONS)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_record_is_lost_or_comes_twice_whenever_a_writer_is_killed(
    monkeypatch: pytest.MonkeyPatch, small: None, operations: list[tuple[str, int]]
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(logging.getLogger("trainer.records.jsonl"), "disabled", True)
        history = History(f"memory://{uuid4().hex}/metrics.jsonl", Storage(patch))
        for name, count in operations:
            act: Callable[[int], None] = getattr(history, name)
            act(count)
        history.close()


@pytest.mark.parametrize("most", [None, 200])
def test_a_reader_sees_each_record_once_while_segments_are_put_together(
    uri: str, small: None, most: int | None
) -> None:
    writer, cursor = JsonlWriter(uri, keep=[], interval=LATER), RecordCursor(uri, most)
    seen = list[int]()
    for step in range(300):
        writer.write({"step": step})
        assert writer.flush(60)
        if step % 7 == 0:
            records, is_other = cursor.look()
            assert not is_other
            seen += [record["step"] for record in records]
    writer.close()
    assert seen == list(range(295))


@pytest.mark.xdist_group("s3")
def test_on_s3_records_go_up_in_segments_and_come_back(s3_uri: str, small: None) -> None:
    uri = f"{s3_uri}/metrics.jsonl"
    writer = JsonlWriter(uri, keep=[], interval=LATER)
    for step in range(40):
        writer.write({"step": step})
        assert writer.flush(60)
    writer.drop(lambda record: record["step"] > 20)
    writer.close()
    assert steps(uri) == list(range(21))
    assert open_state(uri).segments
