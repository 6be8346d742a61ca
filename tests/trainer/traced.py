"""torch's tracer in the place of a GPU's recording of kernels.

It keeps every operation with whatever numbers the host put in, refuses to hand the host a value, and does all of it
again with what the tensors hold then.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from trainer.evaluation.samples.recorded import Work


class Traced:
    """A recorder that counts its recordings."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, work: Work, given: tuple[Tensor, ...]) -> Callable[[], Tensor]:
        self.count += 1
        operations = make_fx(work)(*given)

        def again() -> Tensor:
            with torch.no_grad():
                made: Tensor = operations(*given)
            return made

        return again
