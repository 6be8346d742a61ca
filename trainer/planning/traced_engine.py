"""An engine (trainer.engine.engine) whose network is on a fake device: a stage's step is traced by it.

What `forward` gives is cut off from its graph, which only the engine holds, so that what the graph saved goes as soon
as backward has used it. `accumulate` goes back through what the stage made of the outputs, then through the graph.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from trainer.engine.engine import Engine, Found, Update
from trainer.engine.trainable import Trainable
from trainer.planning.backward import run_backward
from trainer.planning.fake_device import FakeDevice
from trainer.planning.memory import Held
from trainer.planning.trace import Trace


class StepRecord:
    """What is noted at the moments of a step, over all of its engines.

    Args:
        trace: that is on.
        goes_back: whether to run backward, too.
    """

    def __init__(self, trace: Trace, *, goes_back: bool = True) -> None:
        self.trace, self.goes_back = trace, goes_back
        self.needed_later: set[int] = set()
        """Storages of weights' gradients."""
        self._kept: int | None = None
        self._casts = self._forward_peak = self._backward_peak = 0
        self._first_gradient: int | None = None

    @property
    def _now(self) -> int:
        return self.trace.live.now - self.trace.live.casts

    def begin_backward(self) -> None:
        """Of the first micro-batch what forward keeps, of all the most that forward had."""
        live = self.trace.live
        if self._kept is None:
            self._kept, self._casts = self._now, live.casts
        self._forward_peak = max(self._forward_peak, live.peak)
        live.peak = self._now
        self.trace.phase = "backward"

    def end_backward(self) -> None:
        """Of all the most that backward had."""
        live = self.trace.live
        self._backward_peak = max(self._backward_peak, live.peak)
        live.peak = self._now
        self.trace.phase = "forward"

    def on_weight(self, weight: Tensor, gradient: Tensor) -> None:
        """A gradient is there."""
        self.needed_later.add(self.trace.live.number(gradient))
        if weight.ndim > 1 and self._first_gradient is None:
            self._first_gradient = self._now - gradient.untyped_storage().nbytes()

    def held(self) -> Held:
        """Bytes."""
        kept = self._kept or 0
        first = kept if self._first_gradient is None else self._first_gradient
        return Held(kept, self._forward_peak, self._backward_peak, first, self._casts)


class TracedEngine(Engine):
    """Does what stages ask of an engine on fake tensors."""

    def __init__(self, trainable: Trainable, fake: FakeDevice, record: StepRecord, accumulation: int) -> None:
        super().__init__(trainable, fake.device)
        self._fake, self._record, self._accumulation = fake, record, accumulation
        self._graphs: dict[int, tuple[Tensor, Tensor]] = {}
        """By the id of what stands in for an output: that, and the output."""

    @property
    def accumulation(self) -> int:
        """Micro-batches per update."""
        return self._accumulation

    def forward(self, work: Callable[[], Found]) -> Found:
        """Do work that uses the network."""
        if self._record.trace.phase == "ahead":
            self._record.trace.phase = "forward"
        with self._fake.autocast():
            found = work()
        cut: Found = tree_map_only(Tensor, self._cut, found)
        return cut

    def preview(self, work: Callable[[], Found]) -> Found:
        """The same without gradients."""
        with torch.no_grad(), self._fake.autocast():
            return work()

    def probe(self, parameter: str, work: Callable[[], Found]) -> Found:
        """The same with gradients to one parameter."""
        with self._without_gradients(but=parameter), self._fake.autocast():
            return work()

    def through(self, work: Callable[[], Found]) -> Found:
        """Work within another engine's forward."""
        self._check_frozen()
        return work()

    def accumulate(self, loss: Tensor) -> None:
        """Backward of one micro-batch."""
        if not self._record.goes_back:
            self._graphs.clear()
            return
        self._record.begin_backward()
        roots = self._graphs.pop(id(loss), None)
        seeds = self._through_outputs(loss) if roots is None else [(roots[1], torch.ones_like(loss))]
        del loss, roots
        self._graphs.clear()
        run_backward(_handed_over(seeds), self._record.on_weight)
        self._record.end_backward()

    def update(self, rate: float) -> Update:  # noqa: ARG002 - an engine has it
        """The optimizer is not traced (trainer/planning/update.py)."""
        applied, norm = torch.ones((), dtype=torch.bool), torch.ones(())
        return Update(self._fake.like(applied), self._fake.like(norm))

    def take_update(self) -> Update | None:
        """None."""
        return None

    def _cut(self, output: Tensor) -> Tensor:
        if output.grad_fn is None:
            return output
        stand_in = output.detach().requires_grad_()
        self._graphs[id(stand_in)] = stand_in, output
        return stand_in

    def _through_outputs(self, loss: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Gradients to the outputs that a loss was made of."""
        seeds: list[tuple[Tensor, Tensor]] = []

        def on_weight(leaf: Tensor, gradient: Tensor) -> None:
            graph = self._graphs.pop(id(leaf), None)
            if graph is None:
                self._record.on_weight(leaf, gradient)
            else:
                seeds.append((graph[1], gradient))

        run_backward([(loss, torch.ones_like(loss))], on_weight)
        return seeds


def _handed_over(seeds: list[Any]) -> list[Any]:
    """The items of a list, which no longer has them."""
    taken = seeds[:]
    seeds.clear()
    return taken
