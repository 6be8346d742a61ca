"""A device that computes nothing: tensors with shapes, number formats and a device, but without memory.

    with fake_device("cuda", torch.bfloat16) as device: ...

Networks take the branches that they take on a real device of that kind, whether there is one or not. What does not
work on fake tensors by itself is mended here:

* Tensors of the host stay real, so that what depends on their values works as ever (trainer/planning/host_tensors.py).
* Without a GPU, `torch.autocast("cuda")` switches itself off.
* Without a GPU, scaled_dot_product_attention is taken apart into matrix products. On a real one it is a single kernel:
  flash where that takes the arguments, the memory-efficient one elsewhere (trainer/planning/attention_pairs.py).

The engine of autograd needs a real device, too: see trainer/planning/backward.py.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Literal, cast
from unittest import mock

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from trainer.planning.attention_pairs import CountedAttention, flex_kernel
from trainer.planning.backward import leaf_gradients
from trainer.planning.host_tensors import HostTensors
from trainer.planning.trace import in_one_kernel

Kind = Literal["cpu", "cuda"]
_PACKAGES = ("model.", "data_pipeline.", "trainer.")
_FLASH_PACKAGES = ("flash_attn", "flash_attn.cute", "flash_attn_interface")
_CAPABILITY = (9, 0)
"""Of an H100; all devices from Ampere on take the same branches."""


@dataclass(frozen=True)
class FakeDevice:
    """Makes fake tensors."""

    device: torch.device
    dtype: torch.dtype
    """Of matrix products within `autocast`."""
    mode: FakeTensorMode

    def autocast(self) -> torch.autocast:
        """What the training loop has around forward."""
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32)

    def like(self, tensor: Tensor) -> FakeTensor:
        """A fake tensor with the shape and number format of another."""
        bare = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")
        return FakeTensor(self.mode, bare, self.device)

    def fill(self, module: object) -> None:
        """Give an `nn.Module` that was made on the meta device fake parameters and buffers.

        It is on its device then, and stays there: torch does not move modules whose parameters are fake.
        """
        network = cast("nn.Module", module)
        network._apply(self.like)  # type: ignore[no-untyped-call]
        vars(network)["to"] = lambda *_args, **_kwargs: network


@contextmanager
def fake_device(kind: Kind, dtype: torch.dtype = torch.float32) -> Iterator[FakeDevice]:
    """Inside, what is made on the device is fake."""
    device = torch.device(kind, 0) if kind == "cuda" else torch.device(kind)
    with ExitStack() as stack:
        stack.callback(_forget_cached_tensors)
        _forget_cached_tensors()
        if kind == "cuda":
            _enter_gpu(stack)
        stack.enter_context(CountedAttention())
        mode = stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        stack.enter_context(HostTensors(device))
        yield FakeDevice(device, dtype, mode)


def _enter_gpu(stack: ExitStack) -> None:
    """Answer as a GPU would what networks ask of torch before they choose a branch."""
    answers: dict[str, Any] = {
        "torch.cuda.amp.common.amp_definitely_not_available": lambda: False,
        "torch.cuda.is_bf16_supported": lambda *_, **__: True,
        "torch.cuda.get_device_capability": lambda *_: _CAPABILITY,
        "torch.utils._triton.has_triton": lambda: True,
        "torch.compile": _uncompiled,
        "torch.autograd.grad": leaf_gradients,
    }
    for name, answer in answers.items():
        stack.enter_context(mock.patch(name, answer))
    stack.enter_context(_without_modules(_FLASH_PACKAGES))


@contextmanager
def _without_modules(names: tuple[str, ...]) -> Iterator[None]:
    """As if these packages were not installed: their kernels refuse fake tensors, and cost what torch's own cost."""
    before = {name: sys.modules[name] for name in names if name in sys.modules}
    sys.modules.update(dict.fromkeys(names))  # type: ignore[arg-type]
    try:
        yield
    finally:
        for name in names:
            sys.modules.pop(name, None)
        sys.modules.update(before)


def _uncompiled(function: Any = None, **_: Any) -> Any:
    """What torch.compile gives: FlexAttention's kernel; of other functions one kernel for each chain in them."""
    from torch.nn.attention.flex_attention import flex_attention

    if function is None:
        return _uncompiled
    return flex_kernel if function is flex_attention else functools.partial(_compiled_call, function)


def _compiled_call(function: Any, *arguments: Any, **named: Any) -> Any:
    """On the branches that the function takes under the compiler."""
    with mock.patch("torch.compiler.is_compiling", return_value=True):
        return in_one_kernel(lambda: function(*arguments, **named))


def _forget_cached_tensors() -> None:
    """Empty the project's own `lru_cache`s: a fake tensor in one of them would meet real ones later."""
    for name, module in list(sys.modules.items()):
        if name.startswith(_PACKAGES):
            for value in vars(module).values():
                if isinstance(value, functools._lru_cache_wrapper):
                    value.cache_clear()
