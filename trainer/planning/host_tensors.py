"""Beside fake tensors of a device: real tensors of the host, and small constants of the device whose values are known.

What has no fake tensor among its inputs, and is not made on the fake device, is computed for real. A small tensor that
goes from the host to the device, or is made there by a formula (arange, zeros, ...), keeps its values beside it, and so
does what follows from such tensors alone. So masks are known, and shapes that depend on values. What a network asks of
an unknown value is answered with a one.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.weak import WeakIdKeyDictionary

aten = torch.ops.aten
_LARGEST = 4_000_000
"""Bytes of a tensor whose values are kept."""
_MADE_BY_FORMULA = {aten.arange, aten.zeros, aten.ones, aten.full, aten.scalar_tensor, aten.eye, aten.linspace}
_values = WeakIdKeyDictionary()


def known_value(tensor: Tensor) -> Tensor | None:
    """The values of a tensor, on the host, if they are known."""
    if not isinstance(tensor, FakeTensor):
        return tensor
    found: Tensor | None = _values.get(tensor)  # type: ignore[no-untyped-call]
    return found


class HostTensors(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Enter it after (inside of) a FakeTensorMode."""

    def __init__(self, device: torch.device) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._kind = device.type

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        target = kwargs.get("device")
        to_device = self._kind != "cpu" and target is not None and torch.device(target).type == self._kind
        if not to_device and not any(isinstance(tensor, FakeTensor) for tensor in tensors):
            with unset_fake_temporarily():
                return func(*args, **kwargs)
        known = self._compute(func, tensors, args, kwargs)
        out = _answer(func, args, kwargs, known)
        _remember(out, known)
        return out

    def _compute(self, func: Any, tensors: list[Tensor], args: Any, kwargs: Any) -> Any:
        """The real result, if all that it follows from is known and small."""
        values = {id(tensor): known_value(tensor) for tensor in tensors[:1]}
        if tensors and values[id(tensors[0])] is None:  # the common case, quickly
            return None
        if func.namespace != "aten" or (not tensors and func.overloadpacket not in _MADE_BY_FORMULA):
            return None
        values |= {id(tensor): known_value(tensor) for tensor in tensors[1:]}
        if any(value is None or value.untyped_storage().nbytes() > _LARGEST for value in values.values()):
            return None
        real_args, real_kwargs = tree_map_only(Tensor, lambda tensor: values[id(tensor)], (args, kwargs))
        if "device" in real_kwargs:
            real_kwargs["device"] = torch.device("cpu")
        with unset_fake_temporarily():
            return func(*real_args, **real_kwargs)


def _remember(out: Any, known: Any) -> None:
    for fake, value in zip(tree_leaves(out), tree_leaves(known), strict=False):
        if isinstance(fake, FakeTensor) and isinstance(value, Tensor) and value.untyped_storage().nbytes() <= _LARGEST:
            _values[fake] = value


def _answer(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], known: Any) -> Any:
    """What an operation gives, also where that depends on values."""
    packet = func.overloadpacket
    first: Any = args[0] if args else None
    if packet is aten._local_scalar_dense:
        return torch.tensor(1).to(first.dtype).item() if known is None else known
    if packet is aten.equal:
        return known if known is not None else True
    if packet is aten.index and any(index is not None and index.dtype == torch.bool for index in args[1]):
        return func(first, _as_places(args[1]))
    size: tuple[int, ...] | None = None
    if packet is aten.repeat_interleave and func._overloadname == "Tensor":
        size = (first.numel(),)
    elif packet is aten.bincount:
        size = (int(kwargs.get("minlength", args[2] if len(args) > 2 else 0)) or 1,)
    elif packet is aten.nonzero:
        size = (first.numel(), first.ndim)
    elif packet is aten.masked_select:
        size = (first.numel(),)
    if size is None:
        return func(*args, **kwargs)
    dtype = first.dtype if packet is aten.masked_select else torch.int64
    return first.new_empty(size if known is None else tuple(known.shape), dtype=dtype)


def _as_places(indices: list[Tensor | None]) -> list[Tensor | None]:
    """Masks as numbers of places: all places, as nobody knows which of them are true."""
    found: list[Tensor | None] = []
    for index in indices:
        if index is None or index.dtype != torch.bool:
            found.append(index)
        else:
            found += [index.new_empty(index.numel(), dtype=torch.int64) for _ in range(index.ndim)]
    return found
