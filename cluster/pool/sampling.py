"""Samples on the pool, or in this process: a worker holds generator and tokenizer, and commits images part by part.

No image passes through Ray: a worker gets the plan, then numbers of parts, and says what it has committed. What is
committed decides what is left, so a driver or a worker may die at any instant, and no image is drawn in two of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from cluster.config.run import ClusterConfig
from cluster.pool.parts import PartsLeft, make_here, make_on_pool
from cluster.pool.scale import clear_scale
from cluster.pool.shard_pool import Shards
from cluster.pool.shard_worker import Advance, MakeShard
from cluster.session.ray_session import ray_session, require_gpus
from data_pipeline import storage
from data_pipeline.errors import UsageError
from data_pipeline.leases.lease import Lease, only_driver
from trainer.config import SamplingConfig
from trainer.config.evaluation import Rounding
from trainer.evaluation.samples.sample_files import Parts, SamplePlan, digest_of, write_part
from trainer.evaluation.samples.sample_record import begin, finish, is_finished

if TYPE_CHECKING:
    import torch

    from trainer.evaluation.samples.sampler import Sampler
    from trainer.stages.trained_generator import GeneratorSource

_PACKAGES = ("foldtrain", "numpy", "pillow", "torch")


@dataclass(frozen=True)
class SampleWork:
    """What a worker does."""

    plan: SamplePlan
    source: GeneratorSource
    tokenizer: str
    """URI of its export."""
    config: SamplingConfig
    seed: int
    fingerprints: dict[str, str]
    """Of generator and tokenizer, as the plan was made for."""
    gpus: int = 0
    """GPUs that each worker reserves, 0 or 1."""
    kept_LF: npt.NDArray[np.int64] | None = None
    """Tokens that all images keep; those that are negative are drawn."""
    rounding: Rounding = "nearest"
    """How values become bytes."""

    def open(self, threads: int) -> MakeShard:
        """Load both networks.

        Raises:
            UsageError: if they are others than the plan was made for; or this worker reserves a GPU, and sees none.
        """
        import torch

        from trainer.engine.device import given_device

        torch.set_num_threads(threads)
        return self.with_sampler(self.load(given_device(self.gpus)))

    def with_sampler(self, sampler: Sampler) -> MakeShard:
        """As `open`, with networks that are loaded."""
        import torch

        from trainer.evaluation.images import to_bytes

        kept = None if self.kept_LF is None else torch.from_numpy(self.kept_LF)[None]
        software = software_of(sampler.device)

        def make(part: int, advance: Advance) -> dict[str, Any]:
            start, stop = self.plan.span(part)
            label_B = self.plan.labels.between(start, stop)
            label_B[label_B < 0] = sampler.generator.null_class
            pixels = []
            for images in sampler.draw(torch.from_numpy(label_B), start, kept):
                pixels.append(to_bytes(images, self.rounding))
                advance(len(images))
            record = write_part(self.plan, part, np.concatenate(pixels), software)
            return {"digest": digest_of(record["files"]), "software": software}

        return make

    def load(self, device: torch.device) -> Sampler:
        """Both networks.

        Raises:
            UsageError: if they are others than the plan was made for.
        """
        from trainer.evaluation.samples.sampler import Sampler

        generator, card = self.source.load(self.config.ema, device)
        sampler = Sampler.beside(generator, card, self.tokenizer, self.config, self.seed)
        found = fingerprints(sampler, self.config.ema)
        changed = [name for name, fingerprint in self.fingerprints.items() if found[name] != fingerprint]
        if changed:
            raise UsageError(f"the {changed[0]} was trained again meanwhile: choose another --out, and sample again")
        return sampler


def fingerprints(sampler: Sampler, ema: bool) -> dict[str, str]:
    """Of what images are drawn with."""
    tokenizer = sampler.cards["tokenizer"]
    return {"generator": sampler.cards["generator"].fingerprint(ema), "tokenizer": tokenizer.fingerprint()}


def software_of(device: torch.device) -> dict[str, str]:
    """What computes in this process: versions of packages, and the device's name."""
    from importlib.metadata import version

    import torch

    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    return {package: version(package) for package in _PACKAGES} | {"device": name}


def draw_all(work: SampleWork, names: tuple[str, ...], told: dict[str, Any], by: ClusterConfig | Sampler) -> int:
    """Make all parts that are missing, then what is beside them. Returns the images drawn by this call.

    Args:
        work: what to draw.
        names: of the classes, by label.
        told: what sampling.json says beside the plan.
        by: a cluster, whose workers draw; or the networks, with which this process draws.

    Raises:
        UsageError: if the output holds other samples.
        LeaseHeldError: if another driver draws them.
        FoldtrainError: if parts failed too often.
    """
    plan = work.plan
    if is_finished(plan):
        _remove_parts(plan)
        return 0
    if isinstance(by, ClusterConfig):
        with ray_session(by):
            require_gpus(by, min(by.fewest_workers, plan.parts))
            drawn = _draw_all(plan, names, told, lambda left, lease: make_on_pool(work, left, by, lease))
    else:
        drawn = _draw_all(plan, names, told, lambda left, lease: make_here(work.with_sampler(by), left, lease))
    _remove_parts(plan)
    return drawn


def _draw_all(
    plan: SamplePlan, names: tuple[str, ...], told: dict[str, Any], make: Callable[[PartsLeft, Lease], None]
) -> int:
    with only_driver(plan.folder, "sample") as lease:
        if is_finished(plan):  # by another driver, whose end this one has waited for
            return 0
        begin(plan)
        parts = Parts(plan)
        parts.look()
        left = parts.missing
        if len(left):
            make(_left(parts), lease)
        lease.confirm()
        finish(plan, parts, names, told)
        clear_scale(plan.folder)
    return parts.images(left)


def _remove_parts(plan: SamplePlan) -> None:
    """What an npz was put together from goes once it is there."""
    if plan.kind == "npz":
        storage.remove_tree(plan.folder)


def _left(parts: Parts) -> PartsLeft:
    plan = parts.plan
    left = Shards(parts.missing, lambda part: f"part {part}", plan.images)
    return PartsLeft(
        "sample", plan.folder, plan.parts, plan.labels.images, left, lambda part, facts: parts.add(part, **facts)
    )
