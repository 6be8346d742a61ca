"""Validation while a tokenizer trains: how well held-out images are reconstructed, and which codes are used.

1. the moving average of the weights is gathered into a copy of the network (engine/gathering.py)
2. the images are cut into batches of a fixed size, which are dealt to the ranks in turn
3. each batch gives sums in float64, and counts of codes; all ranks get all of them
4. they are added up in the order of the batches: so the numbers are the same at any number of ranks and ZeRO stage

Nothing is drawn at random, and nothing of the training is written to: a run with validation is the run without.

Shapes: B images, C channels, H height, W width, L positions, F folds, G groups, V codes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from data_pipeline.images.transforms import Transform
from data_pipeline.shards.image_shards import ImageShards
from model.protocols import Tokenizer
from trainer.config import TokenizerStageConfig, ValidationConfig
from trainer.engine.batches import normalized
from trainer.engine.deepspeed_engine import DeepSpeedEngine
from trainer.engine.gathering import NetworkCopy
from trainer.evaluation.film_strip import frame
from trainer.evaluation.networks.teacher import Teacher
from trainer.evaluation.quality import psnr, squared_error, ssim
from trainer.evaluation.tokenizers.codes import CodeUse, code_use, count_codes
from trainer.evaluation.tokenizers.tokenizer_measure import spread
from trainer.job import TrainJob
from trainer.stages.fixed_images import FixedImages
from trainer.stages.inputs import open_held_out
from trainer.stages.reconstruction_distance import ReconstructionDistance, Reconstructs, reconstruction_distance
from trainer.stages.small_sample_distance import EVENT_KEY, of_first
from trainer.stages.stage import Validated

PerceptualDistance = Callable[[Tensor, Tensor], Tensor]
"""A perceptual distance: images and others in [-1, 1] -> [B]."""

PICTURE = "reconstructions"
"""Name of the film strip's frames."""
_QUALITIES = ("mse", "psnr", "ssim", "perceptual")


@dataclass(frozen=True)
class Quality:
    """Means over images of each prefix of the tokens."""

    mse: tuple[float, ...]
    psnr: tuple[float, ...]
    ssim: tuple[float, ...]
    perceptual: tuple[float, ...] | None
    """None without a distance."""


class Validation:
    """Looks at a tokenizer every so many steps.

    Args:
        config: how often, and at what.
        steps: of the training, whose last has a look.
        network: what is trained, before DeepSpeed has it.
        held_out: images that nothing is trained on.
        training: of those that it is trained on; of none if nothing is to be compared.
        distance: a perceptual one; None for none.
        frechet: a small-sample distance, on the first rank, where one is asked for.
    """

    def __init__(
        self,
        config: ValidationConfig,
        steps: int,
        network: Tokenizer,
        *,
        held_out: FixedImages,
        training: FixedImages | None,
        distance: PerceptualDistance | None,
        frechet: ReconstructionDistance | None = None,
    ) -> None:
        self._config, self._steps = config, steps
        self._copy = NetworkCopy(cast("nn.Module", network))
        self._layout = network.layout if network.config.has_tokens else None
        self._prefixes = spread(network.prefixes)
        self._folds = [name.replace(" ", "_") for name in network.config.fold_names] if self._layout else []
        self._held_out, self._training, self._distance = held_out, training, distance
        self._frechet = frechet

    def is_due(self, step: int) -> bool:
        """Whether a look at qualities, or a distance, are due after so many steps."""
        return self._measures(step) or self._compares(step)

    def _measures(self, step: int) -> bool:
        return self._is_turn(step, self._config.every)

    def _compares(self, step: int) -> bool:
        return self._config.distance is not None and self._is_turn(step, self._config.distance_every)

    def _is_turn(self, step: int, every: int) -> bool:
        return step % every == 0 or step >= self._steps

    @torch.no_grad()
    def look(self, engine: DeepSpeedEngine, step: int) -> Validated:
        """Look at the network after so many steps (a collective)."""
        found, compared = Validated({}, {}), None
        with self._copy.averaged(engine) as module:
            network = cast("Tokenizer", module)
            if self._measures(step):
                found = self._qualities(network, engine.device)
            if self._compares(step):
                compared = of_first(None if self._frechet is None else self._frechet.measure(network, step))
        if compared is None:
            return found
        details = found.details | {EVENT_KEY: compared.details}
        return Validated(found.numbers | compared.numbers, details, found.pictures)

    def _qualities(self, network: Tokenizer, device: torch.device) -> Validated:
        """Qualities of reconstructions, code use, and a picture (a collective)."""
        quality, hits = self._measure(network, self._held_out, device)
        trained = None if self._training is None else self._measure(network, self._training, device)[0]
        is_shown = self._config.strip > 0 and dist.get_rank() == 0
        pictures = {PICTURE: self._frame(network, device)} if is_shown else {}
        uses = [code_use(hits_GV.cpu().numpy()) for hits_GV in hits]
        details = {"images": self._held_out.count, "prefixes": list(self._prefixes)} | asdict(quality)
        details |= {"training": asdict(trained) if trained else None}
        details |= {"codes": {name: asdict(use) for name, use in zip(self._folds, uses, strict=True)}}
        return Validated(self._numbers(quality, trained, uses), _finite(details), pictures)

    def _measure(self, network: Tokenizer, images: FixedImages, device: torch.device) -> tuple[Quality, list[Tensor]]:
        """Qualities by prefix, and how often each code was chosen, [G, V] of each fold (a collective)."""
        sums = torch.zeros(images.batches, len(self._prefixes), len(_QUALITIES), dtype=torch.float64, device=device)
        hits = self._no_hits(device)
        for number, pixels_BCHW in images.mine():
            image_BCHW = normalized(pixels_BCHW.to(device))
            for place, made_BCHW in enumerate(self._decoded(network, image_BCHW, hits)):
                sums[number, place] = self._compare(made_BCHW, image_BCHW)
        for each in (sums, *hits):
            dist.all_reduce(each)  # each batch is one rank's, so nothing is rounded
        means = (sums.sum(0) / images.count).T.tolist()
        perceptual = tuple(means[3]) if self._distance else None
        return Quality(tuple(means[0]), tuple(means[1]), tuple(means[2]), perceptual), hits

    def _no_hits(self, device: torch.device) -> list[Tensor]:
        layout = self._layout
        if layout is None:
            return []
        return [
            torch.zeros(len(layout.groups), codes, dtype=torch.int64, device=device) for codes in layout.vocabularies
        ]

    def _decoded(self, network: Tokenizer, image_BCHW: Tensor, hits: list[Tensor]) -> Iterator[Tensor]:
        """What each prefix gives; codes are counted in `hits`."""
        if self._layout is None:
            yield cast("Reconstructs", network).reconstruct(image_BCHW)
            return
        tokens_BLF = network.tokenize(image_BCHW)
        for counted, found in zip(hits, count_codes(tokens_BLF, self._layout), strict=True):
            counted += found
        for keep in self._prefixes:
            yield network.detokenize(tokens_BLF, keep)

    def _compare(self, made_BCHW: Tensor, image_BCHW: Tensor) -> Tensor:
        """Sums over images of each quality, [4], float64."""
        error_B = squared_error(made_BCHW, image_BCHW)
        distance_B = self._distance(made_BCHW, image_BCHW).double() if self._distance else torch.zeros_like(error_B)
        return torch.stack([error_B, psnr(error_B), ssim(made_BCHW, image_BCHW), distance_B]).sum(1)

    def _frame(self, network: Tokenizer, device: torch.device) -> bytes:
        shown = min(self._config.strip, self._held_out.count)
        image_BCHW = normalized(self._held_out.pixels(0, shown).to(device))
        return frame(image_BCHW, list(self._decoded(network, image_BCHW, self._no_hits(device))), self._prefixes)

    def _numbers(self, quality: Quality, trained: Quality | None, uses: Sequence[CodeUse]) -> dict[str, float | None]:
        """What trackers and curves show: of all positions, of prefixes the error, of codes the last group."""
        found = {name: values[-1] for name in _QUALITIES if (values := getattr(quality, name))}
        found |= {f"mse_of_{keep}": error for keep, error in zip(self._prefixes, quality.mse, strict=True)}
        if trained:
            found |= {"training_mse": trained.mse[-1]}
        for name, use in zip(self._folds, uses, strict=True):
            found |= {f"use_{name}": use.use[-1], f"perplexity_{name}": use.perplexity[-1], f"dead_{name}": use.dead}
        numbers: dict[str, float | None] = _finite({f"validation_{name}": value for name, value in found.items()})
        return numbers


def _finite(value: Any) -> Any:
    """The same, with None for what JSON has no number for."""
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def validation_of(
    job: TrainJob,
    network: Tokenizer,
    images: ImageShards,
    distance: PerceptualDistance | None,
    device: torch.device,
) -> Validation | None:
    """What a job asks for; None if it asks for none.

    Args:
        job: that trains a tokenizer.
        network: what is trained, before DeepSpeed has it.
        images: that it is trained on.
        distance: a perceptual one; None for none.
        device: of this rank.
    """
    section = job.section
    assert isinstance(section, TokenizerStageConfig)
    config = section.validation
    if config is None:
        return None
    transform = Transform(section.model.image_size, job.fit, job.reading.decode)
    training = FixedImages(images, transform, config.training_images, config.batch) if config.training_images else None
    return Validation(
        config,
        section.trainer.steps,
        network,
        held_out=FixedImages(open_held_out(job), transform, config.images, config.batch),
        training=training,
        distance=distance,
        frechet=reconstruction_distance(job, section, device) if dist.get_rank() == 0 else None,
    )


def teacher_distance(teacher: Teacher | None) -> PerceptualDistance | None:
    """Mean squared error of the features that a run's own teacher sees; None without one."""
    if teacher is None:
        return None
    return lambda made, image: (teacher.features(made).float() - teacher.features(image).float()).square().mean(1)
