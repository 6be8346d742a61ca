"""Which samples a training stage has consumed, and the proof that it was each of them once per epoch.

A stage appends to ledger.jsonl in its folder (trainer/loop/ledger_writer.py):

    {"event": "order", ...}      what the order of its data follows from (`DataOrder`), once
    {"event": "start", "step": s, "world": w}      training began, or went on after step s, with w ranks
    {"event": "segment", "first": a, "stop": b, "world": w, "crc": [...]}      steps a to b - 1 were consumed: for each
        rank the CRC-32 over the keys of its samples, as they came out of the loader, in their order. "skipped", if it
        is there, lists ranges [c, d) of steps among them that were passed over (trainer/rollback/spikes.py)

A segment ends with each checkpoint. What was consumed after the checkpoint that a later start went on from was thrown
away with the weights that it made, so it does not count; the audit says how many steps that were.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field

from data_pipeline.errors import UsageError
from data_pipeline.order.mixing import MixPart, Order, order_of
from data_pipeline.order.permutations import ORDER_VERSION, SampleOrder, ShardSizes, step_positions

Keys = npt.NDArray[np.bytes_]

FILE = "ledger.jsonl"
MOST_STEPS = 10**8
"""Steps of a segment, which ends with each checkpoint."""

_AT_ONCE = 2**18
"""Positions that an audit looks at together."""


class DataOrder(BaseModel):
    """What the order of a stage's samples follows from."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    version: int = ORDER_VERSION
    """Of the permutations (order/permutations.py)."""
    data: str
    """URI of the data set."""
    kind: str
    """images or tokens."""
    fingerprint: str
    """Of the data set."""
    seed: int
    """Of the permutations."""
    window: int | None
    """Shards that are shuffled together."""
    global_batch: int
    """Samples of a step."""
    mix: tuple[MixPart, ...] = Field((), exclude_if=lambda mix: not mix)
    """Of a mix of data sets: shards and samples per epoch of each."""
    check: int
    """CRC-32 over the first indices, by which another computation of the same version would be found."""

    def samples(self, shards: ShardSizes) -> Order:
        """The order of a data set with shards of these sizes."""
        return order_of(self.seed, shards, self.window, self.mix)


@dataclass(frozen=True)
class Segment:
    """Steps `first` to `stop` - 1, consumed by `world` ranks."""

    first: int
    stop: int
    world: int
    crc: tuple[int, ...]
    skipped: tuple[tuple[int, int], ...] = ()
    """Ranges of steps that were passed over."""

    def steps(self) -> list[int]:
        """The steps that were consumed."""
        passed = {step for first, stop in self.skipped for step in range(first, stop)}
        return [step for step in range(self.first, self.stop) if step not in passed]

    @classmethod
    def parse(cls, record: dict[str, Any]) -> Segment:
        """A record of the ledger."""
        first, stop, world = (int(record[name]) for name in ("first", "stop", "world"))
        skipped = tuple((int(a), int(b)) for a, b in record.get("skipped", []))
        if not 0 <= first < stop <= min(first + MOST_STEPS, 2**53) or world < 1:
            raise ValueError(f"no segment has the steps {first} to {stop - 1} of {world} ranks")
        if any(not first <= a <= b <= stop for a, b in skipped):
            raise ValueError(f"steps that are passed over lie outside of {first} to {stop - 1}")
        return cls(first, stop, world, tuple(int(crc) for crc in record["crc"]), skipped)


@dataclass
class History:
    """What ledger.jsonl comes to."""

    order: DataOrder
    segments: list[Segment] = field(default_factory=list)
    """What counts: consecutive steps from 0 on."""
    starts: list[tuple[int, int]] = field(default_factory=list)
    """(step, world size) of every start."""
    repeated_steps: int = 0
    """Steps on record that were consumed again after a restart."""

    @property
    def steps(self) -> int:
        """Steps that are on record."""
        return self.segments[-1].stop if self.segments else 0


@dataclass(frozen=True)
class Audit:
    """What an audit found."""

    history: History
    problems: tuple[str, ...]
    epochs: tuple[tuple[int, int, int], ...]
    """For each epoch: samples that were consumed, samples of the data set, most times that one of them was consumed."""


def read_history(path: str, records: Sequence[dict[str, Any]]) -> History:
    """The history that the records of a ledger tell.

    Raises:
        UsageError: if they are no ledger's, or one of an order of another version; it names the file.
    """
    history = None
    for number, record in enumerate(records, start=1):
        try:
            parsed = _parse(record)
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise UsageError(f"{path} is no ledger (record {number}: {error})") from error
        if isinstance(parsed, DataOrder):
            _check_version(path, parsed.version)
            history = history or History(parsed)
        elif history is None:
            raise UsageError(f"{path} is no ledger: it has a record {record.get('event')!r} where none belongs")
        elif isinstance(parsed, Segment):
            history.segments.append(parsed)
        else:
            _restart(history, *parsed)
    if history is None:
        raise UsageError(f"{path} is empty: the stage has not begun")
    return history


def _check_version(path: str, version: int) -> None:
    if version != ORDER_VERSION:
        remedy = "update foldtrain" if version > ORDER_VERSION else "begin the stage anew in another run"
        raise UsageError(
            f"{path}: the stage was begun in an order of its samples of version {version}, but version "
            f"{ORDER_VERSION} is needed, in which the same seed gives another order: {remedy}, or use the foldtrain "
            "that wrote it (environment.json)"
        )


def is_ledger_record(record: dict[str, Any]) -> bool:
    """Whether an object is a record of a ledger, by itself."""
    try:
        _parse(record)
    except (KeyError, TypeError, ValueError, OverflowError):
        return False
    return True


def _parse(record: dict[str, Any]) -> DataOrder | Segment | tuple[int, int]:
    """An order, a segment, or the step and the world size of a start."""
    match record.get("event"):
        case "order":
            return DataOrder.model_validate({"version": 1} | _without_event(record))  # the first stated no version
        case "segment":
            return Segment.parse(record)
        case "start":
            step, world = int(record["step"]), int(record["world"])
            if step < 0 or world < 1:
                raise ValueError(f"nothing starts at step {step} with {world} ranks")
            return step, world
        case other:
            raise ValueError(f"there is no event {other!r}")


def _without_event(record: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in record.items() if name not in {"event", "time"}}


def _restart(history: History, step: int, world: int) -> None:
    history.repeated_steps += max(0, history.steps - step)
    while history.segments and history.segments[-1].stop > step:
        history.segments.pop()
    history.starts.append((step, world))


def step_indices(order: DataOrder, shards: ShardSizes, step: int) -> npt.NDArray[np.int64]:
    """The samples of a step by number, in their order over all ranks, int64 [global_batch]."""
    return order.samples(shards).indices(step_positions(step, order.global_batch))


def chain(crc: int, keys: Keys) -> int:
    """The CRC-32 over the keys of a batch, carried on from the batches before. It does not see how wide they lie."""
    return zlib.crc32(b"".join(key + b"\0" for key in keys.tolist()), crc)


def audit(history: History, keys: Keys, shards: ShardSizes) -> Audit:
    """Compare what was consumed with what should have been, and count every sample.

    Args:
        history: of the stage.
        keys: of the data set, in its order [N].
        shards: samples of each of its shards.
    """
    problems: list[str] = []
    order, end = history.order.samples(shards), 0
    for segment in history.segments:
        if segment.first != end:
            problems.append(f"steps {end} to {segment.first - 1} are not on record")
        problems += _check_segment(segment, history.order, order, keys)
        end = segment.stop
    skipped = [steps for segment in history.segments for steps in segment.skipped]
    passed = np.array([step for first, stop in skipped for step in range(first, stop)], np.int64)
    epochs = []
    for what, size, times in _rounds(order, end * history.order.global_batch, passed, history.order.global_batch):
        epochs.append((int(times.sum()), size, int(times.max())))
        if times.max() > 1:
            name = bytes(keys[int(times.argmax())]).decode(errors="replace")
            problems.append(f"{what} has sample {name} {times.max()} times")
    return Audit(history, tuple(problems), tuple(epochs))


def _rounds(
    order: Order, end: int, passed: npt.NDArray[np.int64], global_batch: int
) -> Iterator[tuple[str, int, npt.NDArray[np.int32]]]:
    """How often each sample stands in each epoch up to position `end`, without steps that were passed over.

    Of a mix, in each round through each of its sets: in a round, too, each sample of the set comes once.

    Yields:
        The name of the round, the samples that it has when it is whole, and the counts of all samples [N].
    """
    if isinstance(order, SampleOrder):
        for first in range(0, end, order.count):
            times = np.zeros(order.count, np.int32)
            for positions in _consumed(first, min(first + order.count, end), passed, global_batch):
                np.add.at(times, order.indices(positions), 1)
            yield f"epoch {first // order.count}", order.count, times
        return
    total = sum(stream.order.count for stream in order.streams)
    counts: dict[tuple[int, int], npt.NDArray[np.int32]] = {}
    for positions in _consumed(0, end, passed, global_batch):
        for number, (stream, _, own) in enumerate(order.split(positions)):
            for turn in np.unique(own // stream.order.count).tolist():
                times = counts.setdefault((number, turn), np.zeros(total, np.int32))
                here = own[own // stream.order.count == turn]
                np.add.at(times, stream.order.indices(here) + stream.first_sample, 1)
        latest = dict(sorted(counts))
        for number, turn in sorted(counts):  # rounds that are over
            if turn < latest[number]:
                yield f"round {turn} of set {number}", order.streams[number].order.count, counts.pop((number, turn))
    for (number, turn), times in sorted(counts.items()):
        yield f"round {turn} of set {number}", order.streams[number].order.count, times


def _consumed(
    first: int, stop: int, passed: npt.NDArray[np.int64], global_batch: int
) -> Iterator[npt.NDArray[np.int64]]:
    """The positions `first` to `stop` - 1, some at a time, without those of steps that were passed over."""
    for start in range(first, stop, _AT_ONCE):
        positions = np.arange(start, min(start + _AT_ONCE, stop))
        yield positions[~np.isin(positions // global_batch, passed)] if passed.size else positions


def _check_segment(segment: Segment, data: DataOrder, order: Order, keys: Keys) -> list[str]:
    problems = []
    if len(segment.crc) != segment.world:
        return [f"steps {segment.first} to {segment.stop - 1}: {len(segment.crc)} of {segment.world} ranks on record"]
    at_once = max(1, _AT_ONCE * segment.world // data.global_batch)
    for rank, found in enumerate(segment.crc):
        crc = 0
        for first, stop in _runs(segment.steps()):
            for step in range(first, stop, at_once):
                steps = min(at_once, stop - step)
                positions = step_positions(step, data.global_batch, rank, segment.world, steps)
                crc = chain(crc, keys[order.indices(positions)])
        if crc != found:
            problems.append(
                f"steps {segment.first} to {segment.stop - 1}: rank {rank} of {segment.world} consumed other samples"
            )
    return problems


def _runs(steps: Sequence[int]) -> list[tuple[int, int]]:
    """Ascending numbers as ranges [first, stop)."""
    cuts = [i for i in range(len(steps)) if i == 0 or steps[i] != steps[i - 1] + 1]
    return [
        (steps[a], steps[b - 1] + 1) for a, b in zip(cuts, [*cuts[1:], len(steps)], strict=False)
    ]  # no cut: no range
