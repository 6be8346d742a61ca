"""Validation while a generator trains: how well it predicts held-out tokens, and what it draws.

1. the moving average of the weights is gathered into a copy of the network (engine/gathering.py)
2. held-out samples, and as many of those that are trained on, are cut into batches of a fixed size, which are dealt to
   the ranks in turn: one view of each sample, no label hidden, all that is random keyed by the sample's number
3. each batch gives the terms of training in float64; all ranks get all of them, and add them up in the order of the
   batches: so the numbers are the same at any number of ranks, whatever the accumulation and the ZeRO stage
4. the first rank draws the same images each time, by seed and class, for pictures and for a distance; the others wait

Nothing of the training is written to: a run with validation is the run without.

Shapes: B samples, L positions, F folds, W views.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from data_pipeline.order.permutations import network_seeds
from data_pipeline.shards.manifest import TokenManifest
from data_pipeline.shards.token_reader import TokenReader
from data_pipeline.shards.token_shards import TokenBlock
from data_pipeline.shards.tokenizers import load_tokenizer
from model.protocols import Generator, TeacherForcing, Tokenizer
from trainer.config import GeneratorStageConfig, GeneratorValidationConfig, PicturesConfig
from trainer.engine.deepspeed_engine import DeepSpeedEngine
from trainer.engine.gathering import NetworkCopy
from trainer.evaluation.film_strip import sheet
from trainer.evaluation.samples.sampler import UNCONDITIONAL, Sampler
from trainer.job import HELD_OUT, TrainJob
from trainer.stages.sample_distance import SampleDistance, sample_distance
from trainer.stages.small_sample_distance import EVENT_KEY, of_first
from trainer.stages.stage import Validated

PICTURE = "samples"
"""Name of the film strip's frames."""


@dataclass(frozen=True)
class TokenPart:
    """Some samples in order: a view of each."""

    number: int
    """Of the batch."""
    index_B: np.ndarray[Any, np.dtype[np.int64]]
    """Of the samples in their data set."""
    tokens_BLF: Tensor
    """int64."""
    condition_B: Tensor
    """Classes, int64."""


class FixedTokens:
    """The first samples of a set of tokens, in batches that are the same at any number of ranks.

    A rank keeps its own, which are read at the first look.

    Args:
        tokens: the data set.
        count: samples, at most.
        batch: of a batch, but for the last.
    """

    def __init__(self, tokens: TokenReader, count: int, batch: int) -> None:
        self._tokens, self._batch = tokens, batch
        self.count = min(count, tokens.manifest.samples)
        self.fingerprint = tokens.manifest.fingerprint
        self._kept: list[TokenPart] | None = None

    @property
    def batches(self) -> int:
        """How many there are, over all ranks."""
        return math.ceil(self.count / self._batch)

    def mine(self) -> list[TokenPart]:
        """This rank's batches.

        Raises:
            CorruptShardError: if a shard is not the one that the manifest names.
        """
        if self._kept is None:
            self._kept = list(self._read())
        return self._kept

    def _read(self) -> Iterator[TokenPart]:
        views, starts = len(self._tokens.manifest.views), self._tokens.manifest.shards.starts
        held: tuple[int, TokenBlock] | None = None
        for number in range(dist.get_rank(), self.batches, dist.get_world_size()):
            first, stop = number * self._batch, min((number + 1) * self._batch, self.count)
            index_B, tokens, conditions = np.arange(first, stop, dtype=np.int64), [], []
            shard_B = np.searchsorted(starts, index_B, side="right") - 1
            for shard in np.unique(shard_B).tolist():
                if held is None or held[0] != shard:  # read once for all batches that lie in it
                    held = shard, self._tokens.block(shard)
                here_B = index_B[shard_B == shard]
                tokens.append(held[1].tokens_NWLF[here_B - starts[shard], here_B % views])
                conditions.append(held[1].condition[here_B - starts[shard]])
            tokens_BLF, condition_B = (np.concatenate(each).astype(np.int64) for each in (tokens, conditions))
            yield TokenPart(number, index_B, torch.from_numpy(tokens_BLF), torch.from_numpy(condition_B))


@dataclass(frozen=True)
class Drawn:
    """A picture, and what is to be said of it."""

    png: bytes | None
    details: dict[str, Any]


class Pictures:
    """The same images each time: a row for each class. Only the first rank has one.

    Args:
        config: what to draw, and how.
        tokenizer: that makes images of the tokens.
        classes: names of the classes, by label; none for a generator that knows none.
        seed: of the numbers that choose tokens.
        clock: seconds.
    """

    def __init__(
        self,
        config: PicturesConfig,
        tokenizer: Tokenizer,
        classes: tuple[str, ...],
        seed: int,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._config, self._tokenizer, self._seed, self._clock = config, tokenizer, seed, clock
        self.labels = (config.classes or _spread(len(classes), config.most_classes)) if classes else ()
        self.names = [classes[label] if label < len(classes) else str(label) for label in self.labels]

    def draw(self, network: Generator) -> Drawn:
        """What the network draws. Nothing is taken from torch's own random numbers.

        Without room for it on a GPU there is no picture, and the reason is told: looking on ends no training.
        """
        began = self._clock()
        try:
            image_BCHW, missing = self._draw(network, began)
        except torch.OutOfMemoryError as error:
            return Drawn(None, {"pictures_failed": str(error).partition("\n")[0][:500]})
        png = sheet(image_BCHW, self._config.samples_per_class, self.names or [UNCONDITIONAL])
        details = {"pictures_seconds": round(self._clock() - began, 3)}
        return Drawn(png, details | ({"pictures_left_out": missing} if missing else {}))

    def _draw(self, network: Generator, began: float) -> tuple[Tensor, int]:
        """Images in [-1, 1], on the host, and how many of them are grey since the time was over."""
        labels = torch.tensor(self.labels or (network.null_class,)).repeat_interleave(self._config.samples_per_class)
        sampler, parts = Sampler(network, self._tokenizer, {}, self._config, self._seed), []
        for part_BCHW in sampler.draw(labels):
            parts.append(part_BCHW.float().cpu())
            if self._config.most_seconds is not None and self._clock() - began > self._config.most_seconds:
                break
        image_BCHW = torch.cat(parts)
        missing = len(labels) - len(image_BCHW)
        return torch.cat((image_BCHW, image_BCHW.new_zeros(missing, *image_BCHW.shape[1:]))), missing


def _spread(count: int, most: int) -> tuple[int, ...]:
    """At most so many of `count` labels, at even distances."""
    if not count:
        return ()
    return tuple(np.unique(np.linspace(0, count - 1, min(most, count)).round().astype(int)).tolist())


class GeneratorValidation:
    """Looks at a generator every so many steps.

    Args:
        config: how often, and at what.
        steps: of the training, whose last has a look.
        network: what is trained, before DeepSpeed has it.
        forcing: of the tokenizer, where the generator needs it.
        seed: of all that is random.
        held_out: samples that nothing is trained on; None for none.
        training: samples that it is trained on; None for none.
        pictures: on the first rank, where some are asked for.
        distance: on the first rank, where one is asked for.
    """

    def __init__(
        self,
        config: GeneratorValidationConfig,
        steps: int,
        network: Generator,
        forcing: TeacherForcing | None,
        seed: int,
        *,
        held_out: FixedTokens | None,
        training: FixedTokens | None,
        pictures: Pictures | None,
        distance: SampleDistance | None = None,
    ) -> None:
        self._config, self._steps, self._seed, self._forcing = config, steps, seed, forcing
        self._copy, self._layout = NetworkCopy(cast("nn.Module", network)), network.layout
        self._held_out, self._training, self._pictures = held_out, training, pictures
        self._distance = distance

    def is_due(self, step: int) -> bool:
        """Whether a look at tokens, pictures or a distance are due after so many steps."""
        return self._measures(step) or self._draws(step) or self._compares(step)

    def _measures(self, step: int) -> bool:
        return self._held_out is not None and self._is_turn(step, self._config.every)

    def _draws(self, step: int) -> bool:
        return self._config.pictures is not None and self._is_turn(step, self._config.pictures_every)

    def _compares(self, step: int) -> bool:
        return self._config.distance is not None and self._is_turn(step, self._config.distance_every)

    def _is_turn(self, step: int, every: int) -> bool:
        return step % every == 0 or step >= self._steps

    @torch.no_grad()
    def look(self, engine: DeepSpeedEngine, step: int) -> Validated:
        """Look at the network after so many steps (a collective)."""
        details: dict[str, Any] = {}
        numbers: dict[str, float | None] = {}
        pictures: dict[str, bytes] = {}
        with self._copy.averaged(engine) as module:
            network = cast("Generator", module)
            if self._measures(step):
                assert self._held_out is not None
                held_out = self._measure(network, self._held_out, engine.device)
                seen = self._training
                trained = None if seen is None else self._measure(network, seen, engine.device)
                numbers, details = self._numbers(held_out, trained), self._details(held_out, trained)
            if self._pictures is not None and self._draws(step):
                drawn = self._pictures.draw(network)
                details |= drawn.details
                pictures = {PICTURE: drawn.png} if drawn.png is not None else {}
            if self._compares(step):
                found = of_first(None if self._distance is None else self._distance.measure(network, step))
                numbers, details = numbers | found.numbers, details | {EVENT_KEY: found.details}
        return Validated(numbers, details, pictures)

    def _measure(self, network: Generator, tokens: FixedTokens, device: torch.device) -> dict[str, float]:
        """Means over the samples of all terms of training (a collective)."""
        parts = [(part.number, len(part.index_B), self._terms(network, part, device)) for part in tokens.mine()]
        names = _of_first(tuple(parts[0][2]) if parts else ())
        sums = torch.zeros(tokens.batches, len(names), dtype=torch.float64, device=device)
        for number, count, terms in parts:
            sums[number] = torch.stack([terms[name].double() for name in names]) * count
        dist.all_reduce(sums)  # each batch is one rank's, so nothing is rounded
        return dict(zip(names, (sums.sum(0) / tokens.count).tolist(), strict=True))

    def _terms(self, network: Generator, part: TokenPart, device: torch.device) -> Mapping[str, Tensor]:
        seed_B = torch.from_numpy(network_seeds(self._seed, part.index_B)).to(device)
        condition_B = part.condition_B.to(device)
        if not network.config.classes:
            condition_B = torch.full_like(condition_B, network.null_class)
        return network.training_terms(part.tokens_BLF.to(device), condition_B, seed_B, self._forcing)

    def _numbers(self, held_out: Mapping[str, float], trained: Mapping[str, float] | None) -> dict[str, float | None]:
        """What trackers and curves show: all terms of held-out samples, and the loss of training samples."""
        found: dict[str, float | None] = {f"validation_{name}": _finite(value) for name, value in held_out.items()}
        if trained:
            found["validation_training_loss"] = _finite(trained["loss"])
        return found

    def _details(self, held_out: Mapping[str, float], trained: Mapping[str, float] | None) -> dict[str, Any]:
        assert self._held_out is not None
        details: dict[str, Any] = {"samples": self._held_out.count, "tokens": self._held_out.fingerprint}
        details["tokens_per_sample"] = self._layout.positions * self._layout.folds
        details["held_out"] = {name: _finite(value) for name, value in held_out.items()}
        details["training"] = {name: _finite(value) for name, value in trained.items()} if trained else None
        return details


def _of_first(names: tuple[str, ...]) -> tuple[str, ...]:
    """Rank 0's names, on every rank: it always has the first batch, and another may have none."""
    if dist.get_world_size() == 1:
        return names
    found: list[tuple[str, ...] | None] = [names]
    dist.broadcast_object_list(found, src=0)
    assert found[0] is not None
    return found[0]


def _finite(value: float) -> float | None:
    """The same, with None for what JSON has no number for."""
    return value if math.isfinite(value) else None


def generator_validation(
    job: TrainJob, network: Generator, forcing: TeacherForcing | None, device: torch.device
) -> GeneratorValidation | None:
    """What a job asks for; None if it asks for none.

    Args:
        job: that trains a generator.
        network: what is trained, before DeepSpeed has it.
        forcing: of the tokenizer, where the generator needs it.
        device: of this rank.
    """
    section = job.section
    assert isinstance(section, GeneratorStageConfig)
    config = section.validation
    if config is None:
        return None
    pictures, distance = _drawn_by_first(job, config, device) if dist.get_rank() == 0 else (None, None)
    is_compared = config.samples and config.trained_on
    return GeneratorValidation(
        config,
        section.trainer.steps,
        network,
        forcing,
        job.seed,
        held_out=_fixed(job, HELD_OUT, config.samples, config.batch) if config.samples else None,
        training=_fixed(job, "tokens", config.trained_on, config.batch) if is_compared else None,
        pictures=pictures,
        distance=distance,
    )


def _drawn_by_first(
    job: TrainJob, config: GeneratorValidationConfig, device: torch.device
) -> tuple[Pictures | None, SampleDistance | None]:
    """What the first rank draws, with the tokenizer that makes images of the tokens."""
    if config.pictures is None and config.distance is None:
        return None, None
    tokenizer, card = load_tokenizer(job.inputs["tokenizer"], str(device))
    pictures = None if config.pictures is None else Pictures(config.pictures, tokenizer, job.classes, job.seed)
    if config.distance is None:
        return pictures, None
    return pictures, sample_distance(job, config.distance, tokenizer, card, device)


def _fixed(job: TrainJob, name: str, count: int, batch: int) -> FixedTokens:
    manifest = job.manifests.get(name)
    if not isinstance(manifest, TokenManifest):
        manifest = TokenManifest.read(job.inputs[name])
    return FixedTokens(TokenReader(job.inputs[name], manifest), count, batch)
