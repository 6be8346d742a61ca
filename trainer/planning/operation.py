"""Operations of a step on its device: what each computes, reads and writes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple


@dataclass(frozen=True)
class Operation:
    """A kernel, in the order in which it runs."""

    phase: str
    """ "ahead" (before the micro-batches of a step), "forward", "backward" or "update"."""
    name: str
    """Of the operator, for instance "addmm"."""
    dtype: str
    """Number format of its result: "bfloat16", "float32", ..."""
    flops: int
    """Of matrix products, convolutions and attention as it is computed; 0 for anything else."""
    exact_flops: int
    """The same, but of attention the pairs alone that see each other."""
    reads: tuple[tuple[int, int], ...]
    """The tensors that it reads: number of the storage, bytes."""
    writes: tuple[tuple[int, int], ...]
    """The tensors that it makes or changes."""
    fusible: bool = False
    """Whether a compiler computes it together with its neighbours: element by element, or a sum over rows."""

    @property
    def kernel(self) -> Kernel:
        """Without the tensors that it works on."""
        moved = sum(size for _, size in self.reads) + sum(size for _, size in self.writes)
        return Kernel(self.phase, self.name, self.dtype, self.flops, self.exact_flops, moved)


class Kernel(NamedTuple):
    """What a kernel costs, whatever it works on: equal kernels are counted."""

    phase: str
    name: str
    dtype: str
    flops: int
    exact_flops: int
    bytes: int
    """Read and written."""


@dataclass(frozen=True)
class HostSync:
    """A place where the host waits for the device, or copies between the two."""

    phase: str
    operator: str
    place: str
    """File, line and function."""
    count: int = 1
