"""The drawing of a batch as one launch: on a GPU its kernels are recorded once, and launched again for other images.

An order draws hundreds of steps of many small kernels, each of which the host launches in a few microseconds: for small
networks and batches that takes longer than the kernels themselves. What a batch launches follows from its settings and
shapes alone, and nothing waits for the device, so that all of it is one CUDA graph: keys and values of each length
included. Classes, random numbers and kept tokens are copied to where the recording reads them.

Weights are read where they were at the recording: they must stay there, and may change in place.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from data_pipeline.errors import UsageError
from model.protocols import SamplingPlan

Draw = Callable[[SamplingPlan], Tensor]
"""Tokens of a plan."""
Work = Callable[..., Tensor]
"""A function of tensors."""
Recorder = Callable[[Work, tuple[Tensor, ...]], Callable[[], Tensor]]
"""From work and the tensors that it reads -> a function that does it again with whatever these then hold. What that
returns is overwritten by the next call."""

_READ = ("condition_B", "uniform_BLF", "kept_BLF", "seed_B")
"""The tensors of a plan; all else is a setting."""


def recorder_of(device: torch.device) -> Recorder | None:
    """What records on a device; None where there is nothing to gain."""
    return cuda_graph if device.type == "cuda" else None


def cuda_graph(work: Work, given: tuple[Tensor, ...]) -> Callable[[], Tensor]:
    """Record work that has run before, so that all that is made at a first run is there.

    Args:
        work: waits for nothing, and makes tensors of the same shapes each time.
        given: what it reads.

    Raises:
        RuntimeError: of torch, if something in it cannot be recorded.
    """
    graph = torch.cuda.CUDAGraph()
    # Casts that autocast keeps from before would be read after their end.
    torch.clear_autocast_cache()
    # Other threads may use the GPU meanwhile: they write images.
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        made = work(*given)
    torch.clear_autocast_cache()

    def again() -> Tensor:
        graph.replay()
        return made

    return again


@dataclass
class _Recording:
    read: tuple[Tensor, ...]
    """What the recording reads."""
    again: Callable[[], Tensor]


class RecordedDrawing:
    """Draws batches; those of the same settings and shapes as the one before by a recording.

    The first batch of its kind runs as it is, the second is recorded. One recording is kept: its memory is that of
    drawing a batch. Threads take turns.
    """

    def __init__(self) -> None:
        self._turn = threading.Lock()
        self._kind: object = None
        self._recording: _Recording | None = None

    def draw(self, draw: Draw, plan: SamplingPlan, setting: object = None) -> Tensor:
        """The tokens of a plan.

        Args:
            draw: draws them; with the same setting the same function of the plan each time, with the same weights.
            plan: its tensors are on one device.
            setting: what decides beside the plan.

        Raises:
            UsageError: if something in it cannot be recorded; it says what torch says.
        """
        record = recorder_of(plan.condition_B.device)
        if record is None:
            return draw(plan)
        with self._turn:
            return self._drawn(record, draw, plan, (setting, _kind(plan)))

    def _drawn(self, record: Recorder, draw: Draw, plan: SamplingPlan, kind: object) -> Tensor:
        if kind != self._kind:
            self._kind, self._recording = kind, None
            return draw(plan)
        given = _tensors(plan)
        if self._recording is None:
            with torch.inference_mode(False):  # or nothing could be copied there outside of it
                read = tuple(tensor.clone() for tensor in given.values())
            work = _of_tensors(draw, plan, tuple(given))
            try:
                self._recording = _Recording(read, record(work, read))
            except RuntimeError as error:
                why = str(error).partition("\n")[0]
                raise UsageError(
                    f"sampling.cuda_graphs: drawing cannot be recorded ({why}): set it to false"
                ) from error
        for place, tensor in zip(self._recording.read, given.values(), strict=True):
            place.copy_(tensor)
        return self._recording.again().clone()


def _tensors(plan: SamplingPlan) -> dict[str, Tensor]:
    return {name: getattr(plan, name) for name in _READ if getattr(plan, name) is not None}


def _kind(plan: SamplingPlan) -> object:
    """What two plans must share to launch the same kernels."""
    tensors = {name: (tensor.shape, tensor.dtype, tensor.device) for name, tensor in _tensors(plan).items()}
    return tensors, {each.name: getattr(plan, each.name) for each in fields(plan) if each.name not in _READ}


def _of_tensors(draw: Draw, plan: SamplingPlan, names: tuple[str, ...]) -> Work:
    return lambda *tensors: draw(replace(plan, **dict(zip(names, tensors, strict=True))))
