"""How many workers a training stage may have: as the config says, or as `foldtrain scale` asks while it runs."""

from __future__ import annotations

from dataclasses import replace

from cluster.config.run import ClusterConfig
from cluster.pool.scale import read_asked
from cluster.training.elastic_sizes import same_micro_batch, usable_sizes
from data_pipeline.errors import FoldtrainError
from data_pipeline.storage.retries import patience
from data_pipeline.text.counted import counted
from trainer.config import TrainerConfig
from trainer.job import TrainJob

_ASIDE_SECONDS = 5.0
"""How long storage is waited for: the run does not depend on it."""


class SizeControl:
    """The numbers of workers of a stage.

    Args:
        folder: of the stage, where `foldtrain scale` leaves what it asks for.
        trainer: settings of the config, of which none has been changed.
        cluster: what the config says.
    """

    def __init__(self, folder: str, trainer: TrainerConfig, cluster: ClusterConfig) -> None:
        self._folder, self._trainer = folder, trainer
        self._given = self._seen = self.asked = (cluster.fewest_workers, cluster.most_workers)
        self.sizes = usable_sizes(trainer, *self._given)
        """Those that can be used, ascending."""
        self._complaint = ""
        self._checkpoint: float | None = None  # the last request for one
        self._has_looked = self._wants_checkpoint = False

    @property
    def is_elastic(self) -> bool:
        """Whether the number may change while the stage runs."""
        return self.asked != self._given or self.asked[0] != self.asked[1]

    def look(self) -> tuple[str, bool]:
        """Read what is asked for. Returns what there is to say of it, if anything is, and whether it has changed."""
        try:
            with patience(_ASIDE_SECONDS):
                asked = read_asked(self._folder)
        except (OSError, FoldtrainError) as error:  # storage that is away, or a file that was edited, stops no run
            said, self._complaint = self._complaint, str(error)
            return ("" if said == self._complaint else self._complaint), False
        self._wants_checkpoint = self._wants_checkpoint or (self._has_looked and asked.checkpoint != self._checkpoint)
        self._checkpoint, self._has_looked = asked.checkpoint, True
        found = asked.workers or self._given
        if found == self._seen:
            return "", False
        self._seen = found
        sizes = usable_sizes(self._trainer, *found)
        if not sizes:
            return (
                f"`foldtrain scale` asks for {_workers(found)}, over which a global batch of "
                f"{self._trainer.global_batch} cannot be cut: goes on with {_in_words(self.asked)}",
                False,
            )
        self.asked, self.sizes = found, sizes
        if found == self._given:
            return f"{_workers(found)}, as the config says", True
        return f"{_workers(found)}, as `foldtrain scale` asked; the config says {_in_words(self._given)}", True

    def take_checkpoint(self) -> bool:
        """Whether a checkpoint was asked for since the last call; what was asked for before the first look is past."""
        wants, self._wants_checkpoint = self._wants_checkpoint, False
        return wants

    def applied(self, job: TrainJob) -> TrainJob:
        """The stage with a micro batch that suits all sizes that the config or `foldtrain scale` allows."""
        if not self.is_elastic:
            return job
        fewest = min(self.sizes[0], self._given[0])
        trainer = same_micro_batch(self._trainer, fewest, max(self.sizes[-1], self._given[1]))
        return replace(job, section=job.section.model_copy(update={"trainer": trainer}))


def _workers(size: tuple[int, int]) -> str:
    return counted(size[0], "worker") if size[0] == size[1] else f"{_in_words(size)} workers"


def _in_words(size: tuple[int, int]) -> str:
    return str(size[0]) if size[0] == size[1] else f"{size[0]} to {size[1]}"
