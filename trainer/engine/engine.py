"""What a stage uses of an engine: `accumulate` the gradients of micro-batches, then `update` the weights.

One optimizer step of a trainable on this rank:

    for micro_batch in micro_batches:                        # as many as `accumulation`
        terms = engine.forward(lambda: stage.terms(micro_batch))
        engine.accumulate(terms["loss"])
    engine.update(rate)                                      # skipped, on all ranks, if a gradient is not finite

A stage with one network says that in one line (`train`). A stage with a generator and a critic has an engine of each;
while one learns through the other, that one is `frozen`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from trainer.engine.scalars import Scalars, Terms
from trainer.engine.trainable import Trainable

Found = TypeVar("Found")


@dataclass(frozen=True)
class Update:
    """What became of an optimizer update. What is a tensor is on the device: reading it waits for the device."""

    applied: Tensor
    """Whether the weights moved, a bool."""
    grad_norm: Tensor
    """Norm of the gradient before clipping."""
    loss_scale: float = 1.0


@dataclass(frozen=True)
class StepResult:
    """What one optimizer step of a stage did on this rank."""

    terms: Scalars
    """Means over this rank's micro-batches, one of them "loss"."""
    updates: Mapping[str, Update]
    """By trainable."""


class Engine(ABC):
    """One trainable on one rank: under DeepSpeed (deepspeed_engine.py), or traced (trainer.planning.traced_engine).

    Args:
        trainable: the network.
        device: of this rank.
    """

    def __init__(self, trainable: Trainable, device: torch.device) -> None:
        self.module, self.device = trainable.module, device
        self._learning = [p for p in self.module.parameters() if p.requires_grad]

    @property
    @abstractmethod
    def accumulation(self) -> int:
        """Micro-batches per update."""

    @abstractmethod
    def forward(self, work: Callable[[], Found]) -> Found:
        """Do work that uses the network, as the begin of one pass, in the trainer's precision.

        Args:
            work: takes nothing and gives a tensor, or a tuple, list or dict of them.
        """

    @abstractmethod
    def preview(self, work: Callable[[], Found]) -> Found:
        """The same without gradients, before the pass that it belongs to."""

    @abstractmethod
    def probe(self, parameter: str, work: Callable[[], Found]) -> Found:
        """The same with gradients to one parameter alone, which the work itself asks for (torch.autograd.grad)."""

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """While others learn through this network, from their forward to their `accumulate`, it gets no gradients."""
        with self._without_gradients():
            yield

    @contextmanager
    def _without_gradients(self, but: str | None = None) -> Iterator[None]:
        kept = None if but is None else self.module.get_parameter(but)
        stopped = [parameter for parameter in self._learning if parameter is not kept]
        for parameter in stopped:
            parameter.requires_grad_(False)
        try:
            yield
        finally:
            for parameter in stopped:
                parameter.requires_grad_(True)

    @abstractmethod
    def through(self, work: Callable[[], Found]) -> Found:
        """Work that uses the frozen network inside of another engine's forward.

        Gradients flow through it to what it was given.
        """

    def _check_frozen(self) -> None:
        assert not any(p.requires_grad for p in self._learning), "only inside of `frozen`"

    @abstractmethod
    def accumulate(self, loss: Tensor) -> None:
        """Backward of one micro-batch, whose loss is a mean over its samples; gradients add up to the step's mean."""

    @abstractmethod
    def update(self, rate: float) -> Update:
        """Move the weights by the accumulated gradients; not if one of these is not finite.

        Args:
            rate: the schedule's learning rate.
        """

    @abstractmethod
    def take_update(self) -> Update | None:
        """What the last `update` came to; None if there was none since the last call."""


Engines = Mapping[str, Engine]
"""Of a stage's trainables, by their names."""


def train(engine: Engine, works: Iterable[Callable[[], Terms]], rate: float) -> Scalars:
    """A whole step of one network: forward and backward of each micro-batch, then the update (a collective).

    Args:
        engine: of the network.
        works: for each micro-batch, what gives its terms; "loss" among them is minimized.
        rate: the schedule's learning rate.

    Returns:
        The terms, each the mean over this rank's micro-batches.
    """
    total: Scalars | None = None
    for work in works:
        terms = engine.forward(work)
        engine.accumulate(terms["loss"])
        found = Scalars.of(terms, engine.accumulation)
        total = found if total is None else total + found
    engine.update(rate)
    assert total is not None
    return total
