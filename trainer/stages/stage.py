"""What a stage is to the loop that trains it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor

from data_pipeline.order.ledger import DataOrder
from data_pipeline.shards.token_windows import KeyColumn
from trainer.engine.deepspeed_engine import DeepSpeedEngine, DeepSpeedEngines
from trainer.engine.engine import Engines
from trainer.engine.scalars import Scalars
from trainer.engine.trainable import Trainables


class Samples(Protocol):
    """The data set that a stage's batches are drawn from."""

    @property
    def keys(self) -> KeyColumn:
        """Keys of all samples."""
        ...

    @property
    def held(self) -> str:
        """How this node holds the data set, for people."""
        ...

    @property
    def views(self) -> int:
        """Views that there are of each sample, of which an epoch draws one; 1 where crops are not counted."""
        ...

    def order(self) -> DataOrder:
        """What the order of the samples follows from."""
        ...

    def step_keys(self, step: int) -> list[str]:
        """Keys of the samples of a step (from 0), over all ranks."""
        ...


@dataclass(frozen=True)
class Validated:
    """What a look at a network between two steps has found; the same on all ranks, but for the pictures."""

    numbers: dict[str, float | None]
    """For the record of the step in metrics.jsonl, with names that begin with validation_; None where not finite."""
    details: dict[str, Any]
    """For an event of events.jsonl."""
    pictures: dict[str, bytes] = field(default_factory=dict)
    """PNG by name, on the first rank."""


class Validation(Protocol):
    """Looks at a network every so many steps, and changes nothing of its training."""

    def is_due(self, step: int) -> bool:
        """Whether a look is due after so many steps; equal on all ranks."""
        ...

    def look(self, engine: DeepSpeedEngine, step: int) -> Validated:
        """Look at what an engine trains (a collective)."""
        ...


class Stage(Protocol):
    """What differs between the networks that are trained."""

    @property
    def samples(self) -> Samples | None:
        """Where batches come from; each then says which samples it holds (`Batch.index_B`)."""
        ...

    @property
    def trainables(self) -> Trainables:
        """What is trained. Frozen networks that nobody needs to export are kept outside of it."""
        ...

    @property
    def exported(self) -> str:
        """The trainable that is the stage's result, which `card` rebuilds."""
        ...

    @property
    def validation(self) -> Validation | None:
        """What looks at the exported network while it trains; None if nothing does."""
        ...

    def card(self) -> dict[str, Any]:
        """The config that rebuilds the exported network."""
        ...

    def batch(self, step: int) -> Any:
        """This rank's samples of an optimizer step, a `Batch` on the host. From any thread, ahead of its step."""
        ...

    def blank_batch(self, size: int) -> Any:
        """What `batch` gives for so many samples, without an index and with zeros in it; needs no data set."""
        ...

    def step(self, micro_batches: Sequence[Any], engines: Engines, rate: float) -> Scalars:
        """Train on the micro-batches of one step (a collective): each engine accumulates all of them, and updates once.

        Args:
            micro_batches: of this rank, parts of what `batch` gave, on its device.
            engines: of the trainables.
            rate: the schedule's learning rate.

        Returns:
            Scalars of the step, means over the micro-batches, one of them "loss".
        """
        ...

    def after_step(self, step: int, engines: DeepSpeedEngines) -> dict[str, dict[str, Any]]:
        """Anything to do between steps. What it returns goes into events.jsonl: names of events, and their details."""
        ...

    def state(self) -> dict[str, Tensor]:
        """Counts that outlive a step, summed over all ranks (a collective): saved with each checkpoint."""
        ...

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Go on from what `state` gave. One rank gets it, the others get nothing, so that sums stay what they were."""
        ...
