"""A GPU that is not there: fake CUDA tensors under a mode that refuses what a step on a real one must not do.

Fake tensors have a device, a dtype and a shape, and no data, so forward passes run on "cuda" anywhere. Two things have
to be stood in for: which attention kernel torch's dispatcher takes (it asks the driver), and the GPU's generation.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from model.generators import masked_sampling
from model.layers import attention, flash_attention, flex_attention, visibility

ROOT = Path(__file__).resolve().parents[2]
WAITS = {
    "_local_scalar_dense",
    "_unique2",
    "bincount",
    "equal",
    "is_nonzero",
    "item",
    "masked_select",
    "nonzero",
    "repeat_interleave",
    "unique_consecutive",
    "unique_dim",
}
"""Operations whose result's shape or value the host has to wait for."""
PRODUCTS = {"mm", "addmm", "bmm", "baddbmm", "convolution"}
FUSED_ATTENTION = {"_scaled_dot_product_flash_attention", "_scaled_dot_product_efficient_attention"}


class GpuRules(TorchDispatchMode):
    """Refuses waiting for the device, and copies and mixtures of devices; notes products and attention kernels."""

    def __init__(self) -> None:
        super().__init__()
        self.broken: Counter[str] = Counter()
        self.products: Counter[tuple[str, torch.dtype]] = Counter()
        """By the function of ours that asked for it, and the dtype."""
        self.kernels: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        tensors = [leaf for leaf in tree_leaves((args, kwargs, out)) if isinstance(leaf, Tensor)]
        if len({tensor.device.type for tensor in tensors} - {"meta"}) > 1:
            self.broken[f"{name} of several devices in {_ours()}"] += 1
        if name in WAITS or (name in {"index", "index_put_"} and _has_mask(args[1])):
            self.broken[f"{name} waits for the device in {_ours()}"] += 1
        if name in PRODUCTS:
            self.products[_ours(), tensors[-1].dtype] += 1
        if "attention" in name or (name in {"_softmax", "_safe_softmax"} and _is_square(tensors[0])):
            self.kernels.add(name)
        return out


def _has_mask(indices: Any) -> bool:
    return any(isinstance(index, Tensor) and index.dtype in (torch.bool, torch.uint8) for index in indices)


def _is_square(tensor: Tensor) -> bool:
    return tensor.ndim == 4 and tensor.shape[-1] == tensor.shape[-2]


def _ours() -> str:
    """The innermost function of this project that is at work, by name."""
    frame = sys._getframe(2)
    while frame is not None:
        path = Path(frame.f_code.co_filename)
        if path.is_relative_to(ROOT) and path.relative_to(ROOT).parts[0] in {"model", "trainer"}:
            return frame.f_code.co_name
        frame = frame.f_back  # type: ignore[assignment]
    return "the test"


def _kernel_of_a_gpu(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """What torch dispatches to on an Ampere GPU or a newer one (`aten/native/transformers/cuda/sdp_utils.cpp`)."""
    assert query.dtype == key.dtype == value.dtype
    aten = torch.ops.aten
    if attn_mask is None and query.dtype != torch.float32:
        assert query.shape[-1] % 8 == 0, "flash wants heads in steps of 8: torch pads them"
        return aten._scaled_dot_product_flash_attention(query, key, value, dropout_p, is_causal, scale=scale)[0]
    if attn_mask is not None:
        assert attn_mask.dtype == query.dtype, "a mask of booleans is converted at each call"
        assert all(stride % 8 == 0 for stride in attn_mask.stride()[:-1]), "torch pads a bias at each call"
        attn_mask = attn_mask.expand(*query.shape[:-1], key.shape[-2])
    out = aten._scaled_dot_product_efficient_attention(
        query, key, value, attn_mask, query.requires_grad, dropout_p, is_causal, scale=scale
    )
    return out[0]


@contextmanager
def fake_gpu() -> Iterator[None]:
    """Fake tensors for what is done inside, autocast to bf16 on "cuda", and caches that keep none of them."""
    before = torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda")
    _forget()
    torch.set_autocast_dtype("cuda", torch.bfloat16)
    torch.set_autocast_enabled("cuda", True)
    try:
        with pytest.MonkeyPatch.context() as patched, FakeTensorMode(allow_non_fake_inputs=False):
            patched.setattr(torch.cuda, "get_device_capability", lambda *_: (9, 0))
            patched.setattr(F, "scaled_dot_product_attention", _kernel_of_a_gpu)
            yield
    finally:
        torch.set_autocast_enabled("cuda", before[0])
        torch.set_autocast_dtype("cuda", before[1])
        torch.clear_autocast_cache()
        _forget()


def _forget() -> None:
    visibility.forget_masks()
    attention._chosen.cache_clear()
    flash_attention._cached_packing.cache_clear()
    flash_attention.load_flash.cache_clear()
    flex_attention._made_block_mask.cache_clear()
    masked_sampling._counts_of_all.cache_clear()


@contextmanager
def gpu_rules() -> Iterator[GpuRules]:
    """The rules, for what is done inside. Fails with all that was against them."""
    rules = GpuRules()
    with rules:
        yield rules
    assert not rules.broken, "\n".join(f"{count}x {what}" for what, count in rules.broken.items())


Network = TypeVar("Network", bound=nn.Module)


def on_fake_gpu(make: Callable[[], Network]) -> Network:
    """A network with fake CUDA tensors for parameters and buffers. Its constructor may read values, so that is real."""
    with unset_fake_temporarily():
        network = make()
    overwrite = torch.__future__.get_overwrite_module_params_on_conversion()
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    try:
        return network._apply(lambda tensor: torch.empty(tensor.shape, dtype=tensor.dtype, device="cuda"))
    finally:
        torch.__future__.set_overwrite_module_params_on_conversion(overwrite)
