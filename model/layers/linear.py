"""Linear layers that sample on a CPU: each weight is laid out once for the kernels.

Shape suffixes: N rows, C channels that are read, K channels that are made.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.layers.precision import compute_dtype

LEAST_WEIGHTS = 2**17
"""Of a layer that gains: in smaller ones a call itself takes longer than it saves. On one thread of a CPU with AVX-512,
microseconds of `F.linear` and of a packed product of 4 rows in float32: 128 to 384 channels 10 and 18, 256 to 768
channels 44 and 34, 768 to 3072 channels 500 and 210."""


@dataclass(frozen=True)
class _Packed:
    """A weight in the kernels' order, and what it was made of."""

    weight_KC: Tensor
    """Held, so that no other weight gets its place in memory."""
    version: int
    packed: Tensor


class PackedWeights:
    """Weights in the order that a CPU's kernels read, each made for its first product and kept.

    In bf16 torch makes that order (oneDNN's) anew for every product. In float32 it takes another library (MKL), which
    is slower on some CPUs, and for few rows on all: the fewer, the more. The price is the memory of the weights, once
    more. A weight that has changed in place is packed again.
    """

    def __init__(self) -> None:
        self._made: dict[tuple[object, ...], _Packed] = {}

    @contextmanager
    def used(self) -> Iterator[None]:
        """Within it, and in this thread, `linear` uses them; where torch has no oneDNN, nothing changes."""
        before = _USED.set(self if _has_kernels() else None)
        try:
            yield
        finally:
            _USED.reset(before)

    def product(self, x_C: Tensor, weight_KC: Tensor, bias_K: Tensor | None, dtype: torch.dtype) -> Tensor:
        """`F.linear` in a dtype: sums in float32, rounded once."""
        bias_K = None if bias_K is None else bias_K.detach().to(dtype)
        packed = self._packed(weight_KC.detach(), dtype)
        made: Tensor = torch.ops.mkldnn._linear_pointwise.default(
            x_C.detach().to(dtype).contiguous(), packed, bias_K, "none", [], ""
        )
        return made

    def _packed(self, weight_KC: Tensor, dtype: torch.dtype) -> Tensor:
        # By its place in memory and not by its object: the folds of a head are views, made for each product.
        key = (weight_KC.data_ptr(), weight_KC.shape, weight_KC.stride(), weight_KC.dtype, dtype)
        found = self._made.get(key)
        if found is None or found.version != weight_KC._version:
            packed: Tensor = torch.ops.mkldnn._reorder_linear_weight.default(weight_KC.to(dtype), None)
            found = self._made[key] = _Packed(weight_KC, weight_KC._version, packed)
        return found.packed


_USED: ContextVar[PackedWeights | None] = ContextVar("packed_weights", default=None)


def linear(x_C: Tensor, weight_KC: Tensor, bias_K: Tensor | None = None) -> Tensor:
    """`F.linear`; within `PackedWeights.used`, on a CPU and without gradients, by a packed weight where that gains."""
    if torch.compiler.is_compiling() or (packed := _USED.get()) is None or weight_KC.numel() < LEAST_WEIGHTS:
        return F.linear(x_C, weight_KC, bias_K)
    dtype = compute_dtype(weight_KC)
    if not _can_be_packed(x_C, weight_KC, dtype):
        return F.linear(x_C, weight_KC, bias_K)
    return packed.product(x_C, weight_KC, bias_K, dtype)


class Linear(nn.Linear):
    """`nn.Linear` by `linear`."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - torch's name
        """[..., C] -> [..., K]."""
        return linear(input, self.weight, self.bias)


def _can_be_packed(x_C: Tensor, weight_KC: Tensor, dtype: torch.dtype) -> bool:
    if torch.is_grad_enabled() or x_C.device.type != "cpu" or not x_C.numel() or weight_KC.is_inference():
        return False
    if x_C.dtype != weight_KC.dtype and not torch.is_autocast_enabled("cpu"):
        return False  # torch says what is wrong
    return dtype == torch.float32 or (dtype == torch.bfloat16 and _has_bf16())


def _has_kernels() -> bool:
    library = torch.backends.mkldnn
    return bool(library.is_available()) and bool(library.enabled)  # type: ignore[no-untyped-call]


def _has_bf16() -> bool:
    """Whether oneDNN multiplies in bf16 on this CPU (AVX-512 or newer)."""
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
