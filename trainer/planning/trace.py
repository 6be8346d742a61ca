"""Every operation of a piece of code on a fake device, the places where the host waits, and the bytes that are alive.

    with fake_device("cuda", torch.bfloat16) as fake: ...
        with Trace(fake.device) as trace:
            loss = stage.terms(batch)["loss"]

Views cost nothing: an operation whose results share the storage of its inputs, and which changes none of them, is none.
Bytes are those of all tensors that go in and come out, as if nothing stayed in a cache. FLOPs are torch's own formulas
(torch.utils.flop_counter): two for a multiplication with its addition. Of attention those of all pairs of queries and
keys are multiplied by the share that the kernel computes (`flops`), and by the share that is seen (`exact_flops`).
"""

from __future__ import annotations

import itertools
import sys
import weakref
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from types import FrameType
from typing import Any, Self, TypeVar

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from trainer.planning.attention_pairs import ALL_PAIRS, Pairs, current_pairs
from trainer.planning.operation import Operation
from trainer.planning.roofline import fuse

_FLOPS = {
    **flop_registry,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: flop_registry[
        torch.ops.aten._scaled_dot_product_flash_attention
    ],
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: flop_registry[
        torch.ops.aten._scaled_dot_product_flash_attention_backward
    ],
}
"""Torch's formulas, by operator; those of a GPU's attention hold for a CPU's, too."""
_WAITS = {"_local_scalar_dense", "nonzero", "bincount", "masked_select", "_unique2", "unique_dim", "equal"}
"""Operators whose result, or its shape, the host has to know before it goes on."""
_ALLOCATIONS = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "_unsafe_view", "lift_fresh"}
_REDUCTIONS = {"sum", "mean", "amax", "amin", "native_layer_norm", "native_layer_norm_backward", "_softmax"}
_REDUCTIONS |= {
    "_log_softmax",
    "_softmax_backward_data",
    "_log_softmax_backward_data",
    "linalg_vector_norm",
    "var_mean",
}
_SHAPING = {"cat", "stack", "slice_backward", "select_backward", "constant_pad_nd", "expand", "zeros", "zeros_like"}
_SHAPING |= {"ones_like", "full", "full_like", "clone", "_to_copy", "copy_", "fill_", "zero_", "scalar_tensor"}
_PROJECT = ("model", "trainer", "data_pipeline", "cluster")


_Made = TypeVar("_Made")
_entered: list[Trace] = []
"""The traces that are at work, the innermost last."""


def in_one_kernel(work: Callable[[], _Made]) -> _Made:
    """Have the innermost trace record what a compiler makes of some work: each chain of elementwise operations once.

    What is alive within a chain takes no memory.
    """
    return _entered[-1].fusing(work) if _entered else work()


class Trace(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Records all that happens on a device while it is entered."""

    def __init__(self, device: torch.device, phase: str = "forward") -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.phase = phase
        self.operations: list[Operation] = []
        self.live = LiveBytes()
        self._kind = device.type
        self._pairs: dict[int, Pairs] = {}
        """By the number of the storage that an attention call made."""
        self.syncs: Counter[tuple[str, str, str]] = Counter()
        """How often the host waited, by phase, operator and place."""

    def __enter__(self) -> Self:
        super().__enter__()  # type: ignore[no-untyped-call]
        _entered.append(self)
        return self

    def __exit__(self, *error: object) -> None:
        _entered.remove(self)
        super().__exit__(*error)  # type: ignore[no-untyped-call]

    def fusing(self, work: Callable[[], _Made]) -> _Made:
        """See `in_one_kernel`."""
        before, peak = len(self.operations), self.live.peak
        made = work()
        results = [leaf for leaf in tree_leaves(made) if isinstance(leaf, Tensor)]
        recorded = [replace(each, fusible=not each.flops) for each in self.operations[before:]]
        self.operations[before:] = fuse(recorded, map(self.live.number, results))
        self.live.peak = max(peak, self.live.now - self.live.casts)
        return made

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func.namespace == "prim":
            return func(*args, **kwargs)
        inputs = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        out = func(*args, **kwargs)
        outputs = [leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
        self._find_sync(func, inputs, outputs)
        if any(tensor.device.type == self._kind for tensor in (*inputs, *outputs)):
            self._record(func, args, kwargs, out, inputs, outputs)
        return out

    def _record(self, func: Any, args: Any, kwargs: Any, out: Any, inputs: list[Tensor], outputs: list[Tensor]) -> None:
        name = func.overloadpacket.__name__
        here = [tensor for tensor in inputs if tensor.device.type == self._kind]
        known = {_address(tensor) for tensor in here}
        fresh = [tensor for tensor in outputs if _address(tensor) not in known]
        reads = tuple((self.live.number(tensor), _bytes(tensor)) for tensor in here)
        for tensor in fresh:
            self.live.add(tensor, cast=name == "_to_copy" and _is_weight(inputs[0]))
        if name in _ALLOCATIONS or (not fresh and not func._schema.is_mutable) or not outputs:
            return
        exact, computed = self._count(func, args, kwargs, out, here, outputs)
        self.operations.append(
            Operation(
                phase=self.phase,
                name=name,
                dtype=str(outputs[0].dtype).removeprefix("torch."),
                flops=computed,
                exact_flops=exact,
                reads=reads,
                writes=tuple((self.live.number(tensor), _bytes(tensor)) for tensor in outputs),
                fusible=_is_fusible(func),
            )
        )

    def _count(
        self, func: Any, args: Any, kwargs: Any, out: Any, inputs: list[Tensor], outputs: list[Tensor]
    ) -> tuple[int, int]:
        """FLOPs of the pairs that an attention call sees, and of those that it computes; equal for all else."""
        count = _FLOPS.get(func.overloadpacket)
        if count is None:
            return 0, 0
        flops = int(count(*args, **kwargs, out_val=out))
        if "attention" not in func.overloadpacket.__name__:
            return flops, flops
        pairs = current_pairs()
        if pairs is ALL_PAIRS:  # a backward kernel has the output and the row sums of its forward one
            numbers = map(self.live.number, inputs)
            pairs = next((self._pairs[number] for number in numbers if number in self._pairs), ALL_PAIRS)
        else:
            for tensor in outputs:
                self._pairs[self.live.number(tensor)] = pairs
        return round(flops * pairs.seen), round(flops * pairs.computed)

    def _find_sync(self, func: Any, inputs: list[Tensor], outputs: list[Tensor]) -> None:
        if self._kind == "cpu":
            return
        name = func.overloadpacket.__name__
        here = [tensor.device.type == self._kind for tensor in inputs]
        there = [tensor.device.type == self._kind for tensor in outputs]
        waits = name in _WAITS or (name == "repeat_interleave" and func._overloadname == "Tensor")
        waits |= name in {"index", "index_put_"} and any(t.dtype is torch.bool for t in inputs[1:])
        copies = name in {"_to_copy", "copy_"} and any([*here, *there]) and not all([*here, *there])
        mixed = not copies and any(here) and any(not h and t.ndim for h, t in zip(here, inputs, strict=True))
        if (waits and any(here)) or copies or mixed:
            what = f"{name}: {'a copy between host and device' if copies else 'tensors of both' if mixed else 'waits'}"
            self.syncs[self.phase, what, _place()] += 1


class LiveBytes:
    """Numbers of storages, and the bytes of those that a trace made and that are still alive."""

    def __init__(self) -> None:
        self.now = 0
        self.casts = 0
        """Of weights in another number format."""
        self.peak = 0
        """The most without those."""
        self._numbers: dict[int, int] = {}
        self._counted: set[int] = set()
        self._next = itertools.count()

    def number(self, tensor: Tensor) -> int:
        """Of the tensor's storage, never given twice."""
        storage = tensor.untyped_storage()
        address = storage._cdata
        if address not in self._numbers:
            self._numbers[address] = next(self._next)
            weakref.finalize(storage, self._numbers.pop, address, None).atexit = False
        return self._numbers[address]

    def add(self, tensor: Tensor, *, cast: bool = False) -> None:
        """Count a tensor until its storage is freed."""
        number, storage = self.number(tensor), tensor.untyped_storage()
        if number in self._counted:
            return
        size = storage.nbytes()
        self._counted.add(number)
        self.now += size
        self.casts += size if cast else 0
        self.peak = max(self.peak, self.now - self.casts)
        weakref.finalize(storage, self._free, size, cast).atexit = False

    def _free(self, size: int, cast: bool) -> None:
        self.now -= size
        self.casts -= size if cast else 0


def _address(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _is_weight(tensor: Tensor) -> bool:
    return isinstance(tensor, torch.nn.Parameter) or (tensor.is_leaf and tensor.requires_grad)


@lru_cache(maxsize=4096)
def _is_fusible(func: Any) -> bool:
    name = func.overloadpacket.__name__
    return torch.Tag.pointwise in func.tags or name in _REDUCTIONS or name in _SHAPING


def _place() -> str:
    """The line of the project's code that is at work."""
    frame: FrameType | None = sys._getframe(2)
    while frame is not None:
        module = frame.f_globals.get("__name__", "")
        if module.startswith(_PROJECT) and not module.startswith("trainer.planning"):
            return f"{module.replace('.', '/')}.py:{frame.f_lineno} {frame.f_code.co_name}"
        frame = frame.f_back
    return "elsewhere"
