"""Attention on a fake device: on a GPU each call is the one kernel that would run there; and which pairs it sees.

A kernel computes all pairs of a query and a key, or the blocks of pairs of which one is seen; what the model asks for
is the pairs that are seen. `pairs_of` gives both shares, for the forward kernel and for the backward one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from trainer.planning.host_tensors import known_value

aten = torch.ops.aten
_FLASH_HEAD = 256
"""Largest size of a head that torch's flash kernel takes."""


@dataclass(frozen=True)
class Pairs:
    """Shares of all pairs of a query and a key."""

    seen: float = 1.0
    """That the mask lets through."""
    computed: float = 1.0
    """That the kernel computes."""


ALL_PAIRS = Pairs()
_current = [ALL_PAIRS]


def current_pairs() -> Pairs:
    """Those of the attention call under way."""
    return _current[-1]


@contextmanager
def _with_pairs(pairs: Pairs) -> Iterator[None]:
    _current.append(pairs)
    try:
        yield
    finally:
        _current.pop()


class CountedAttention(TorchFunctionMode):
    """scaled_dot_product_attention: on a GPU as one kernel, elsewhere as it is; with the pairs that it sees."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is not F.scaled_dot_product_attention:
            return func(*args, **kwargs)
        query: Tensor = args[0] if args else kwargs["query"]
        if query.device.type == "cuda":
            return _one_kernel(*args, **kwargs)
        with _with_pairs(_pairs_on_cpu(*args, **kwargs)):
            return func(*args, **kwargs)


def _one_kernel(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Flash for halves without a mask, else the memory-efficient kernel: what torch chooses on Ampere and newer."""
    if enable_gqa:
        groups = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    if torch.is_autocast_enabled("cuda"):
        query, key, value = (tensor.to(torch.get_autocast_dtype("cuda")) for tensor in (query, key, value))
    if attn_mask is None and _is_half(query):
        return _flash(query, key, value, is_causal, scale, dropout_p)
    keeps = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (query, key, value))
    bias, pairs = None, _causal(query, key) if is_causal else ALL_PAIRS
    if attn_mask is not None:
        seen = _share_of_mask(attn_mask)
        pairs = Pairs(seen, 1.0)
        bias = attn_mask
        if attn_mask.dtype == torch.bool:
            bias = torch.zeros_like(attn_mask, dtype=query.dtype).masked_fill(~attn_mask, float("-inf"))
        bias = bias.expand((*query.shape[:3], key.shape[2]))
    with _with_pairs(pairs):
        efficient = aten._scaled_dot_product_efficient_attention
        result: Tensor = efficient(query, key, value, bias, keeps, dropout_p, is_causal, scale=scale)[0]
    return result


def flex_kernel(
    query: Tensor, key: Tensor, value: Tensor, *, block_mask: Any = None, scale: float | None = None, **_: Any
) -> Tensor:
    """FlexAttention, compiled: it reads and writes what flash does, and leaves out blocks that nobody sees."""
    if torch.is_autocast_enabled("cuda"):
        query, key, value = (tensor.to(torch.get_autocast_dtype("cuda")) for tensor in (query, key, value))
    pairs = ALL_PAIRS if block_mask is None else _pairs_of_blocks(block_mask, query.shape[2], key.shape[2])
    return _flash(query, key, value, causal=False, scale=scale, dropout=0.0, pairs=pairs)


def _flash(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    causal: bool,
    scale: float | None,
    dropout: float,
    pairs: Pairs | None = None,
) -> Tensor:
    with _with_pairs(pairs or (_causal(query, key) if causal else ALL_PAIRS)):
        flash = aten._scaled_dot_product_flash_attention
        out: Tensor = flash(query, key, value, dropout, causal, False, scale=scale)[0]
    return out


def _is_half(query: Tensor) -> bool:
    return query.dtype in {torch.float16, torch.bfloat16} and query.shape[-1] <= _FLASH_HEAD


def _pairs_on_cpu(
    query: Tensor,
    key: Tensor,
    value: Tensor,  # noqa: ARG001 - as torch names it
    attn_mask: Tensor | None = None,
    **kwargs: Any,
) -> Pairs:
    """All are computed, whatever is seen."""
    if kwargs.get("is_causal"):
        return Pairs(_causal(query, key).seen, 1.0)
    return ALL_PAIRS if attn_mask is None else Pairs(_share_of_mask(attn_mask), 1.0)


def _causal(query: Tensor, key: Tensor) -> Pairs:
    length, keys = query.shape[-2], key.shape[-2]
    seen = sum(min(row + 1, keys) for row in range(length)) / (length * keys)
    return Pairs(seen, seen)


def _share_of_mask(mask: Tensor) -> float:
    value = known_value(mask)
    if value is None:
        return 1.0
    allowed = value if value.dtype == torch.bool else value.isfinite()
    return float(allowed.float().mean())


def _pairs_of_blocks(mask: Any, queries: int, keys: int) -> Pairs:
    """Of a BlockMask: the pairs that its function lets through, and those in blocks that are not left out."""
    device = mask.kv_num_blocks.device
    rows, columns = torch.arange(queries, device=device), torch.arange(keys, device=device)
    zero = torch.zeros((), dtype=torch.int64, device=device)
    seen = known_value(mask.mask_mod(zero, zero, rows[:, None], columns[None, :]))
    parts = [mask.kv_num_blocks, mask.full_kv_num_blocks]
    counts = [known_value(part) for part in parts if part is not None]
    if seen is None or any(count is None for count in counts):
        return ALL_PAIRS
    size = mask.BLOCK_SIZE[0] * mask.BLOCK_SIZE[1]
    blocks = sum(float(count[0, 0].sum()) for count in counts if count is not None)
    share = float(seen.float().mean())
    return Pairs(share, min(1.0, max(share, blocks * size / (queries * keys))))
