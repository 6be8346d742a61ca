"""A stand-in for torch.cuda's graphs on a CPU: it records operations, and does them again with the same tensors.

As on a GPU, what the host computes is a constant of the recording, every tensor that is made has its place, and a
replay writes there. The host cannot be handed a value.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from trainer.evaluation.samples import recorded

_WAITS = (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.is_nonzero.default)


class StandInGraph:
    """What `torch.cuda.CUDAGraph` is."""

    def __init__(self) -> None:
        self.operations: list[Callable[[], None]] = []
        self.replays = 0

    def replay(self) -> None:
        """Do all of it again; of gradients and their modes a GPU knows nothing."""
        self.replays += 1
        with torch.inference_mode():
            for operation in self.operations:
                operation()


class _Recording(TorchDispatchMode):
    def __init__(self, graph: StandInGraph) -> None:
        super().__init__()
        self._graph = graph

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func in _WAITS:
            raise RuntimeError("operation not permitted when stream is capturing: the host waits for a value")
        given = kwargs or {}
        made = func(*args, **given)
        read = {_place(each) for each in _tensors((args, given))}

        def again() -> None:
            for old, new in zip(_tensors(made), _tensors(func(*args, **given)), strict=True):
                if _place(old) not in read:
                    old.copy_(new)

        self._graph.operations.append(again)
        return made


def _tensors(made: Any) -> list[Tensor]:
    return [each for each in tree_leaves(made) if isinstance(each, Tensor)]


def _place(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


class StandIn:
    """What `stand_in_graphs` puts in place of torch.cuda's."""

    def __init__(self) -> None:
        self.graphs: list[StandInGraph] = []

    def new(self) -> StandInGraph:
        """A graph."""
        self.graphs.append(StandInGraph())
        return self.graphs[-1]

    @contextmanager
    def capture(self, graph: StandInGraph, capture_error_mode: str) -> Iterator[None]:
        """As `torch.cuda.graph`; other threads may go on, as those do that write images."""
        assert capture_error_mode == "thread_local"
        with _Recording(graph):
            yield


def stand_in_graphs(monkeypatch: pytest.MonkeyPatch) -> StandIn:
    """Let what runs on the CPU be recorded."""
    stand_in = StandIn()
    monkeypatch.setattr(torch.cuda, "CUDAGraph", stand_in.new)
    monkeypatch.setattr(torch.cuda, "graph", stand_in.capture)
    monkeypatch.setattr(recorded, "recorder_of", lambda device: recorded.cuda_graph)
    return stand_in
