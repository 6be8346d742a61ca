"""Where and by whom the images of a run are measured: in this process, or on Ray."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from cluster.config.run import ClusterConfig, RunConfig
from cluster.pool.measuring import MeasureWork, measure_all
from data_pipeline import storage
from trainer.evaluation.measures import Measure
from trainer.evaluation.row_files import RowPlan, StoredRows
from trainer.evaluation.sets import ImageSet

if TYPE_CHECKING:
    import torch

FOLDER = "evaluation"
"""Of rows, in the run."""
BATCH = 64
"""Images that a network sees at once."""


@dataclass(frozen=True)
class Measuring:
    """Measures sets of images, and keeps the rows in a folder."""

    folder: str
    """URI."""
    device: torch.device
    """Of this process."""
    cluster: ClusterConfig | None = None
    """Whose workers measure; None for this process."""

    @classmethod
    def of_run(cls, config: RunConfig, device: torch.device) -> Measuring:
        """As the config of a run says."""
        workers = config.evaluation.workers
        cluster = None if workers is None else config.cluster.model_copy(update={"workers": workers})
        return cls(storage.join(config.run, FOLDER), device, cluster)

    def rows(self, name: str, images: ImageSet, measure: Measure, batch: int = BATCH) -> StoredRows:
        """The rows of a set of images, measured as far as they are not there.

        Args:
            name: of their folder, which ends in a hash of all that decides them.
            images: what is measured.
            measure: what of it.
            batch: images that a network sees at once.
        """
        gpus = 0 if self.cluster is None else self.cluster.gpus_per_worker
        kind = self.device.type if self.cluster is None else "cuda" if gpus else "cpu"
        plan = RowPlan("", images.identity(), measure.identity(), images.count, batch, kind)
        plan = replace(plan, folder=storage.join(self.folder, f"{name}-{plan.fingerprint[:12]}"))
        work = MeasureWork(plan, images, measure, gpus)
        return measure_all(work, self.cluster or self.device, f"evaluate {name}")
