"""Ranges of a checkpoint's tensors, whatever files they lie in: only the bytes that are needed are read.

A wanted range is widened to whole blocks, each of which has a CRC-32 in the index. Neighbours in a file become one
request; requests run side by side. On top of that: what a start restores, and `verify`, which reads all of it.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from data_pipeline import storage
from data_pipeline.errors import CorruptShardError, UsageError
from data_pipeline.shards.manifest import differences
from data_pipeline.shards.safetensors_header import ITEM_BYTES
from trainer.checkpoints.catalog import step_folder
from trainer.checkpoints.commits import INDEX, STATE, Committed, DamagedCheckpointError, TrainableState, read_committed
from trainer.checkpoints.index import BLOCK_BYTES, Entry, Index
from trainer.checkpoints.snapshot import BUFFER, DTYPES, Trained, saved_buffers, tensor_name

_GAP_BYTES = 256 * 1024
"""Bytes between two ranges that are rather read than asked for in a second request."""
_REQUEST_BYTES = 64 * 2**20
_REQUESTS = 4


@dataclass(frozen=True)
class Wanted:
    """A flat tensor to be filled with elements of `role`/`name` from `start` on."""

    role: str
    name: str
    start: int
    target: Tensor


@dataclass(frozen=True)
class Span:
    """Bytes [first, last) of a file: whole blocks of one entry. `use` is called with them once they are checked."""

    entry: Entry
    first: int
    last: int
    use: Callable[[bytes], None]


class CheckpointReader:
    """One complete checkpoint.

    Raises:
        UsageError: if there is none, or it is of another format.
        DamagedCheckpointError: if its records are damaged.
    """

    def __init__(self, folder: str) -> None:
        self.folder = folder
        committed: Committed = read_committed(folder)
        self.state = committed.state
        try:
            self.index = Index.from_bytes(committed.index)
        except ValueError as error:
            raise DamagedCheckpointError(storage.join(folder, INDEX), f"it is no index ({error})") from None

    def count(self, name: str) -> int:
        """A number of its state.

        Raises:
            DamagedCheckpointError: if the state lacks it.
        """
        if name not in self.state:
            raise DamagedCheckpointError(storage.join(self.folder, STATE), f"it lacks {name}")
        return int(self.state[name])

    @property
    def exported(self) -> str:
        """The trainable that is the stage's result.

        Raises:
            DamagedCheckpointError: if the state lacks it.
        """
        name = self.state.get("exported")
        if not isinstance(name, str) or name not in self.state.get("trainables", {}):
            raise DamagedCheckpointError(storage.join(self.folder, STATE), "it names no trainable that is exported")
        return name

    def trainable(self, name: str) -> TrainableState:
        """What its state says of a trainable.

        Raises:
            DamagedCheckpointError: if the state has none at all.
            CorruptShardError: if there is none of that name.
        """
        if "trainables" not in self.state:
            raise DamagedCheckpointError(storage.join(self.folder, STATE), "it lacks trainables")
        found = self.state["trainables"].get(name)
        if found is None:
            raise CorruptShardError(f"{self.folder}/{STATE} knows no {name}: the checkpoint is of another network")
        return TrainableState.model_validate(found)

    def fill(self, wanted: Sequence[Wanted]) -> None:
        """Fill tensors, on whatever device and of whatever dtype they are.

        Raises:
            DamagedCheckpointError: if bytes are damaged.
            CorruptShardError: if the index lacks a parameter or a part of it.
        """
        tables = {role: self.index.by_tensor(role) for role in {want.role for want in wanted}}
        spans: list[Span] = []
        for want in wanted:
            entries = tables[want.role].get(want.name, [])
            found = [span for entry in entries if (span := _span(entry, want))]
            covered = sum(
                min(s.entry.stop, want.start + want.target.numel()) - max(s.entry.start, want.start) for s in found
            )
            if covered != want.target.numel():
                raise CorruptShardError(
                    f"{self.folder}/index.json covers {covered} of the {want.target.numel()} elements of "
                    f"{want.role}/{want.name} that are needed: the checkpoint is of another network"
                )
            spans += found
        self.read(spans)

    def read(self, spans: Iterable[Span]) -> None:
        """Read spans and give each its bytes.

        Raises:
            DamagedCheckpointError: if bytes are not those that were committed; it names file and tensor.
        """
        with ThreadPoolExecutor(_REQUESTS, thread_name_prefix="checkpoint-read") as pool:
            for _ in pool.map(self._request, _requests(spans)):
                pass

    def _request(self, spans: list[Span]) -> None:
        first, last = spans[0].first, max(span.last for span in spans)
        path = storage.join(self.folder, spans[0].entry.file)
        try:
            data = storage.read_range(path, first, last - first)
        except FileNotFoundError:
            raise DamagedCheckpointError(path, "it is missing") from None
        for span in spans:
            piece = data[span.first - first : span.last - first]
            if len(piece) < span.last - span.first:
                size = self.index.files[span.entry.file]
                raise DamagedCheckpointError(path, f"it ends at byte {first + len(data)} of {size}")
            begin = (span.first - span.entry.offset) // BLOCK_BYTES
            blocks = [zlib.crc32(piece[at : at + BLOCK_BYTES]) for at in range(0, len(piece), BLOCK_BYTES)]
            if tuple(blocks) != span.entry.crcs[begin : begin + len(blocks)]:
                raise DamagedCheckpointError(
                    path, f"the bytes of {span.entry.key} are not those that were written (CRC-32)"
                )
            span.use(piece)


def whole_span(entry: Entry, use: Callable[[bytes], None]) -> Span:
    """All of an entry."""
    return Span(entry, entry.offset, entry.offset + entry.bytes, use)


def _span(entry: Entry, want: Wanted) -> Span | None:
    """The blocks of an entry that hold wanted elements, and how to put these in place."""
    start, stop = max(entry.start, want.start), min(entry.stop, want.start + want.target.numel())
    if start >= stop:
        return None
    item = ITEM_BYTES[entry.tensor.dtype]
    begin, end = (start - entry.start) * item, (stop - entry.start) * item
    first = begin // BLOCK_BYTES * BLOCK_BYTES
    last = min(-(-end // BLOCK_BYTES) * BLOCK_BYTES, entry.bytes)

    def use(data: bytes) -> None:
        piece = bytearray(data[begin - first : end - first])
        values = torch.frombuffer(piece, dtype=DTYPES[entry.tensor.dtype])
        want.target[start - want.start : stop - want.start].copy_(values)

    return Span(entry, entry.offset + first, entry.offset + last, use)


def _requests(spans: Iterable[Span]) -> list[list[Span]]:
    """Spans that one request reads: neighbours in a file, up to some size."""
    groups: list[list[Span]] = []
    for span in sorted(spans, key=lambda span: (span.entry.file, span.first)):
        group = groups[-1] if groups else None
        if (
            group
            and group[0].entry.file == span.entry.file
            and span.first - max(other.last for other in group[-2:]) <= _GAP_BYTES
            and span.last - group[0].first <= _REQUEST_BYTES
        ):
            group.append(span)
        else:
            groups.append([span])
    return groups


# -------------------------------------------------------------------------------------------------- a start


def load_checkpoint(reader: CheckpointReader, trained: Mapping[str, Trained]) -> None:
    """Restore what this rank needs, and with it all weights (a collective).

    Raises:
        DamagedCheckpointError: if bytes differ from what was committed.
        CorruptShardError: if a parameter is missing.
    """
    adopt(reader, trained, read_own(reader, trained))


def read_own(reader: CheckpointReader, trained: Mapping[str, Trained]) -> dict[str, Tensor]:
    """Read what this rank needs, into masters, moments and averages; asks no other rank. `adopt` is next.

    Returns:
        The buffers, flat, by the names that they have in the checkpoint.

    Raises:
        DamagedCheckpointError: if bytes differ from what was committed; some tensors may have been filled by then.
        CorruptShardError: if a parameter is missing.
    """
    wanted = [
        Wanted(role, tensor_name(trainable, fragment.name), fragment.start, flat)
        for trainable, each in trained.items()
        for fragment in (*each.owned.held(), *each.owned.frozen())
        for role, flat in fragment.roles.items()
    ]
    buffers = {
        tensor_name(trainable, name): torch.empty(buffer.numel(), dtype=buffer.dtype)
        for trainable, each in trained.items()
        for name, buffer in saved_buffers(each.module)
    }
    wanted += [Wanted(BUFFER, name, 0, flat) for name, flat in buffers.items()]
    reader.fill(wanted)
    return buffers


def adopt(reader: CheckpointReader, trained: Mapping[str, Trained], buffers: dict[str, Tensor]) -> None:
    """Go on from what all ranks have read (a collective)."""
    for trainable, each in trained.items():
        for name, buffer in saved_buffers(each.module):
            buffer.copy_(buffers[tensor_name(trainable, name)].view(buffer.shape))
        each.owned.optimizer_step = reader.trainable(trainable).optimizer_step
        each.owned.publish()


def check_origin(reader: CheckpointReader, origin: dict[str, Any]) -> None:
    """Make sure that a checkpoint comes from the same data and the same seed.

    Raises:
        UsageError: if not; it shows the difference.
    """
    found = differences(reader.state.get("origin"), origin)
    if found:
        raise UsageError(
            f"{reader.folder} was trained from something else (there -> now):\n  "
            + "\n  ".join(found)
            + "\nRestore those inputs, or set `run` to another folder, or delete the checkpoints to start anew."
        )


# --------------------------------------------------------------------------------------------- verification


def verify(checkpoints: str, step: int) -> int:
    """Read all tensors of a checkpoint, and make sure that each element of each is there once.

    Returns:
        Bytes of its files.

    Raises:
        UsageError: if there is no complete checkpoint at the step.
        CorruptShardError: if bytes are damaged, or elements are missing or there twice; it names them.
    """
    reader = CheckpointReader(step_folder(checkpoints, step))
    _check_coverage(reader.index, reader.folder)
    reader.read(whole_span(entry, lambda _: None) for entry in reader.index.entries)
    return sum(reader.index.files.values())


def _check_coverage(index: Index, folder: str) -> None:
    for role in sorted({entry.role for entry in index.entries}):
        for name, entries in index.by_tensor(role).items():
            at = 0
            for entry in entries:
                if entry.start != at:
                    raise CorruptShardError(
                        f"{folder}/index.json: {role}/{name} has a gap or an overlap at element {at}"
                    )
                at = entry.stop
            if at != math.prod(entries[0].tensor.shape):
                raise CorruptShardError(f"{folder}/index.json: {role}/{name} ends at element {at}")
