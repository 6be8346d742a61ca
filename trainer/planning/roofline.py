"""How long operations take on a device at best: by arithmetic, by memory, and at least as long as a kernel takes.

    time = max(FLOPs / (share of the peak), bytes / (share of the bandwidth), shortest kernel)

The shares are what well-made kernels reach; all of it is stated where it is printed, and can be changed. With fusion a
run of elementwise operations and sums over rows, which nothing else interrupts, is one kernel: it reads what it does
not make, and writes what is read after it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from trainer.planning.devices import Device
from trainer.planning.operation import Kernel, Operation

HALVES = {"bfloat16", "float16"}


@dataclass(frozen=True)
class Assumptions:
    """What is reached of a device's peaks."""

    half_share: float = 0.65
    """Of the peak in 16 bits, by matrix products."""
    single_share: float = 0.75
    """Of the peak in float32."""
    bandwidth_share: float = 0.8
    """Of the memory's bandwidth."""
    link_share: float = 0.7
    """Of the bandwidth between devices, within a node and between nodes."""
    network: float = 400e9
    """Bytes per second from a node to others: eight adapters of 400 Gbit/s, over which rings are spread."""
    shortest_kernel: float = 2e-6
    """Seconds that a kernel takes at least."""
    tf32: bool = False
    """Whether float32 products run as TF32, at half the rate of 16 bits."""

    def describe(self, device: Device) -> str:
        """In words."""
        rates = f"{self.half_share:g} x {device.bf16 / 1e12:g} TFLOP/s in 16 bits, "
        rates += f"{self.single_share:g} x {device.fp32 / 1e12:g} TFLOP/s in fp32{' (as TF32)' if self.tf32 else ''}, "
        rates += f"{self.bandwidth_share:g} x {device.bandwidth / 1e12:g} TB/s"
        return f"{device.name}: {rates}, a kernel takes {self.shortest_kernel * 1e6:g} us at least"


STANDARD = Assumptions()
"""Those that are taken where nothing else is said."""


def seconds(operation: Kernel, device: Device, assumed: Assumptions) -> float:
    """Of one operation."""
    halves = operation.dtype in HALVES
    rate = device.bf16 * assumed.half_share if halves else device.fp32 * assumed.single_share
    if assumed.tf32 and not halves:
        rate = device.bf16 / 2 * assumed.half_share
    moved = operation.bytes / (device.bandwidth * assumed.bandwidth_share)
    return max(operation.flops / rate, moved, assumed.shortest_kernel)


def fuse(operations: Iterable[Operation], needed_later: Iterable[int] = ()) -> list[Operation]:
    """What a compiler makes of them: each run of fusible operations as one kernel per connected part.

    Args:
        operations: in their order.
        needed_later: storages that are read after all of them.
    """
    ordered = list(operations)
    last_read = {number: index for index, op in enumerate(ordered) for number, _ in op.reads}
    last_read |= dict.fromkeys(needed_later, len(ordered))
    fused: list[Operation] = []
    for first, run in _runs(ordered):
        end = first + len(run)
        if not run[0].fusible or len(run) == 1:
            fused += run
            continue
        fused += [_joined(part, end, last_read) for part in _connected(run)]
    return fused


def _runs(operations: list[Operation]) -> Iterator[tuple[int, list[Operation]]]:
    """Neighbours that can be fused, of one phase; others alone. With the index of the first."""
    start = 0
    for index in range(1, len(operations) + 1):
        here = operations[index] if index < len(operations) else None
        before = operations[index - 1]
        if here is None or not (here.fusible and before.fusible and here.phase == before.phase):
            yield start, operations[start:index]
            start = index


def _connected(run: list[Operation]) -> list[list[Operation]]:
    """Parts of a run that share no tensor which one of them makes."""
    parts: list[tuple[set[int], list[Operation]]] = []
    for operation in run:
        reads = {number for number, _ in operation.reads}
        joined = [part for part in parts if part[0] & reads]
        made = set().union(*(part[0] for part in joined), (number for number, _ in operation.writes))
        members = [member for part in joined for member in part[1]] + [operation]
        parts = [part for part in parts if part not in joined] + [(made, members)]
    return [members for _, members in parts]


def _joined(part: list[Operation], end: int, last_read: dict[int, int]) -> Operation:
    made = {number: size for operation in part for number, size in operation.writes}
    read = {number: size for operation in part for number, size in operation.reads if number not in made}
    written = {number: size for number, size in made.items() if last_read.get(number, -1) >= end}
    if not written:  # its result leaves the trace: a term of the loss
        written = dict(part[-1].writes)
    name = part[0].name if len(part) == 1 else "fused"
    last = part[-1]
    return Operation(last.phase, name, last.dtype, 0, 0, tuple(read.items()), tuple(written.items()), fusible=True)
