"""Elementwise arithmetic as one kernel on a GPU, where the block around it is not compiled.

    @fused
    def gated_sum(x: Tensor, gate: Tensor, branch: Tensor) -> Tensor:
        return x + gate * branch

What autograd needs is not part of it: a function that is trained through has its backward written out, of fused
functions itself (dropout.py, modulation.py).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor

_Given = ParamSpec("_Given")
_Made = TypeVar("_Made")


def is_fused(tensor: Tensor) -> bool:
    """Whether what `fused` marks is one kernel for such a tensor: on a GPU with Triton, outside of a compiler."""
    if not tensor.is_cuda or torch.compiler.is_compiling():
        return False
    from torch.utils._triton import has_triton

    return bool(has_triton())


def fused(function: Callable[_Given, _Made]) -> Callable[_Given, _Made]:
    """Compile a function of tensors by itself where `is_fused` says so of the first; elsewhere it runs as it stands."""

    @functools.wraps(function)
    def run(*arguments: _Given.args, **named: _Given.kwargs) -> _Made:
        first = next(each for each in arguments if isinstance(each, Tensor))
        chosen = _compiled(function) if is_fused(first) else function
        made: _Made = chosen(*arguments, **named)
        return made

    return run


@functools.lru_cache(maxsize=64)
def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    return torch.compile(function, dynamic=False, fullgraph=True)
