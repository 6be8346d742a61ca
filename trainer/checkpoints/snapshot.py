"""What one rank writes, copied to host memory in the form of the file that it will be.

Nothing changes masters, moments and average between two optimizer updates, so they are copied by a thread while the
next forward and backward run; only what is small or changes in forward is copied at once. The memory is allocated once
and used again by each checkpoint; if tensors are on a GPU it is pinned, so that copies run at full speed.
"""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Protocol, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from data_pipeline.shards.safetensors_header import ITEM_BYTES
from trainer.checkpoints.index import BLOCK_BYTES, Entry, Index, TensorInfo
from trainer.engine.fragments import Fragment, OwnedState

BUFFER, STAGE = "buffer", "stage"
DTYPES = {
    "F64": torch.float64,
    "I64": torch.int64,
    "F32": torch.float32,
    "I32": torch.int32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
"""By the names that safetensors uses."""
_DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True)
class Piece:
    """A flat tensor to be written, and what it is a part of."""

    role: str
    tensor: TensorInfo
    start: int
    data: Tensor


class Trained(Protocol):
    """A trainable under its engine."""

    @property
    def module(self) -> nn.Module:
        """The network."""
        ...

    @property
    def owned(self) -> OwnedState:
        """What this rank has of its weights and moments."""
        ...


def tensor_name(trainable: str, name: str) -> str:
    """The name that a parameter or a buffer of a trainable has in checkpoints."""
    return f"{trainable}.{name}"


def saved_buffers(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The buffers that outlive a run, by name: without those that the module makes anew (`persistent=False`)."""
    saved = module.state_dict().keys()
    return ((name, buffer) for name, buffer in module.named_buffers() if name in saved)


def pieces(trained: Mapping[str, Trained], stage_state: dict[str, Tensor]) -> list[Piece]:
    """All that this rank writes: its fragments; on rank 0 the buffers and the stage's own tensors, too."""
    found: list[Piece] = []
    for trainable, each in trained.items():
        for fragment in (*each.owned.owned(), *_frozen(each.owned)):
            name = tensor_name(trainable, fragment.name)
            found += [
                Piece(role, TensorInfo(name, fragment.shape, _DTYPE_NAMES[data.dtype]), fragment.start, data)
                for role, data in fragment.roles.items()
            ]
        if dist.get_rank() == 0:
            found += [_whole(BUFFER, tensor_name(trainable, name), b) for name, b in saved_buffers(each.module)]
    if dist.get_rank() == 0:
        found += [_whole(STAGE, name, tensor) for name, tensor in stage_state.items()]
    # Wide elements first, as safetensors aligns them; then role by role, so that reading one role is one stretch.
    return sorted(found, key=lambda piece: (-piece.data.element_size(), piece.role))


def _frozen(owned: OwnedState) -> Iterator[Fragment]:
    """What this rank writes of weights that are not trained: parts, and, on rank 0, what all ranks have whole."""
    for fragment in owned.frozen():
        if dist.get_rank() == 0 or fragment.stop - fragment.start < math.prod(fragment.shape):
            yield fragment


def _whole(role: str, name: str, tensor: Tensor) -> Piece:
    info = TensorInfo(name, tuple(tensor.shape), _DTYPE_NAMES[tensor.dtype])
    return Piece(role, info, 0, tensor.detach().flatten())


class Snapshot:
    """The bytes of a rank's safetensors file in host memory, and its part of the index."""

    def __init__(self) -> None:
        self._memory = torch.empty(0, dtype=torch.uint8)
        self._size = 0
        self._entries: list[Entry] = []
        self._left: list[tuple[Tensor, Tensor]] = []
        self._device: torch.device | None = None
        self._ready: torch.cuda.Event | None = None

    def begin(self, found: list[Piece], file: str) -> None:
        """Lay out the file and copy buffers; the memory must not be in use by an upload."""
        header, self._entries, self._size = _layout(found, file)
        self._reserve(self._size, found)
        self._memory[: len(header)] = torch.frombuffer(bytearray(header), dtype=torch.uint8)
        self._left = []
        for piece, entry in zip(found, self._entries, strict=True):
            target = self._memory[entry.offset : entry.offset + entry.bytes].view(piece.data.dtype)
            if piece.role in {BUFFER, STAGE}:
                target.copy_(piece.data)
            else:
                self._left.append((target, piece.data.detach()))
        self._device = _cuda_device(self._left)
        self._ready = torch.cuda.current_stream(self._device).record_event() if self._device else None

    def complete(self) -> None:
        """Copy the rest, on any thread. Until this returns, nothing may change what is copied."""
        if self._device is None or self._ready is None:
            for target, source in self._left:
                target.copy_(source)
        else:
            self._copy_beside(self._device, self._ready)
        self._left = []

    def _copy_beside(self, device: torch.device, ready: torch.cuda.Event) -> None:
        """Copy on a stream of the device that the sources are on: a thread's own current device is always cuda:0."""
        with torch.cuda.device(device):
            stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
            stream.wait_event(ready)
            with torch.cuda.stream(stream):
                for target, source in self._left:
                    target.copy_(source, non_blocking=True)
            stream.synchronize()

    def reserve(self, found: list[Piece]) -> None:
        """Allocate the memory for such pieces beforehand, and touch it, so that no checkpoint has to wait for that."""
        self._reserve(_layout(found, "")[2], found)
        self._memory.zero_()

    def _reserve(self, size: int, found: list[Piece]) -> None:
        if len(self._memory) < size:
            pinned = any(piece.data.device.type == "cuda" for piece in found)
            self._memory = torch.empty(size, dtype=torch.uint8, pin_memory=pinned)

    def data(self) -> memoryview:
        """The file's bytes, not copied."""
        return memoryview(cast("bytearray", self._memory.numpy()))[: self._size]

    def index(self) -> Index:
        """This rank's part of the index, with the CRC-32 of all blocks."""
        data = self.data()
        entries = [
            replace(entry, crcs=tuple(block_crcs(data[entry.offset : entry.offset + entry.bytes])))
            for entry in self._entries
        ]
        return Index(entries, {entries[0].file: self._size} if entries else {})


def _cuda_device(copies: list[tuple[Tensor, Tensor]]) -> torch.device | None:
    """The one GPU that sources are on; None if all are in host memory, as with `offload`."""
    devices = {source.device for _, source in copies if source.device.type == "cuda"}
    assert len(devices) <= 1, devices  # a rank has one
    return next(iter(devices), None)


def block_crcs(data: memoryview) -> Iterator[int]:
    """CRC-32 of each block of a tensor's bytes."""
    for start in range(0, len(data), BLOCK_BYTES):
        yield zlib.crc32(data[start : start + BLOCK_BYTES])


def _layout(found: list[Piece], file: str) -> tuple[bytes, list[Entry], int]:
    """The safetensors header, where each piece lies, and the file's size."""
    entries, at = [], 0
    header: dict[str, object] = {}
    for piece in found:
        entry = Entry(piece.role, piece.tensor, piece.start, piece.start + piece.data.numel(), file, at)
        header[entry.key] = {
            "dtype": piece.tensor.dtype,
            "shape": [piece.data.numel()],
            "data_offsets": [at, at + entry.bytes],
        }
        assert entry.bytes == piece.data.numel() * ITEM_BYTES[piece.tensor.dtype]
        entries.append(entry)
        at += entry.bytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the data begins at a multiple of 8 bytes
    start = 8 + len(text)
    placed = [replace(entry, offset=start + entry.offset) for entry in entries]
    return len(text).to_bytes(8, "little") + text, placed, start + at
