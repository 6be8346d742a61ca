"""What a stage is to the loop that trains it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from torch import Tensor, nn

from data_pipeline.order.ledger import DataOrder
from trainer.engine.deepspeed_engine import Batch, Engine, Terms

Look = Callable[[Batch], Terms]
"""The stage's `terms` of a micro-batch without gradients, where weights may be sharded (a collective)."""


class Samples(Protocol):
    """The data set that a stage's batches are drawn from."""

    @property
    def keys(self) -> npt.NDArray[np.bytes_]:
        """Keys of all samples."""
        ...

    def order(self) -> DataOrder:
        """What the order of the samples follows from."""
        ...

    def step_keys(self, step: int) -> list[str]:
        """Keys of the samples of a step (from 0), over all ranks."""
        ...


class Stage(Protocol):
    """What differs between the networks that are trained."""

    @property
    def samples(self) -> Samples | None:
        """Where batches come from; each then says which samples it holds (`INDEX`)."""
        ...

    @property
    def network(self) -> nn.Module:
        """What is trained and exported. Anything frozen is kept outside of it."""
        ...

    @property
    def no_decay(self) -> set[str]:
        """Parameters of the network (by name) that weight decay leaves alone, besides all vectors."""
        ...

    def card(self) -> dict[str, Any]:
        """The config that rebuilds the network."""
        ...

    def batch(self, step: int) -> Batch:
        """This rank's samples of an optimizer step, on its device."""
        ...

    def blank_batch(self, size: int) -> Batch:
        """What `batch` gives for so many samples, without an index and with zeros in it; needs no data set."""
        ...

    def prepare(self, micro_batches: Sequence[Batch], look: Look) -> Sequence[Batch]:
        """The micro-batches of a step, with what their terms need to know of each other (may be a collective)."""
        ...

    def terms(self, batch: Batch) -> Terms:
        """Scalars of a micro-batch, one of them "loss", which is minimized."""
        ...

    def after_step(self, step: int, engine: Engine) -> dict[str, Any]:
        """Anything to do between steps; what it returns goes into events.jsonl if there is any."""
        ...

    def state(self) -> dict[str, Tensor]:
        """Counts that outlive a step, summed over all ranks (a collective): saved with each checkpoint."""
        ...

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Go on from what `state` gave. One rank gets it, the others get nothing, so that sums stay what they were."""
        ...
