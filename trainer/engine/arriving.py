"""Numbers of a step on their way to the host, while the next step is launched."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor


class Arriving:
    """A few numbers that the host wants to know later. Reading them waits for what made them, not for what came after.

    Args:
        values_N: on any device.
        work: a collective under way that completes them; None if there is none.
    """

    def __init__(self, values_N: Tensor, work: dist.Work | None = None) -> None:
        self._values_N, self._work = values_N, work
        self._copied: torch.cuda.Event | None = None
        if values_N.device.type == "cuda":
            if work is not None:
                work.wait()  # the stream waits, not the host
            self._values_N = torch.empty(values_N.shape, dtype=values_N.dtype, pin_memory=True)
            self._values_N.copy_(values_N, non_blocking=True)
            self._copied = torch.cuda.current_stream(values_N.device).record_event()

    def get(self) -> list[float]:
        """The numbers."""
        if self._copied is not None:
            self._copied.synchronize()
        elif self._work is not None:
            self._work.wait()
            self._work = None
        found: list[float] = self._values_N.tolist()
        return found
