"""A generator as it stands at a step of its training, put together from a checkpoint, without an export.

Its fingerprint is that of an export of the same weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
from safetensors.torch import save
from torch import Tensor, nn

from data_pipeline import storage
from data_pipeline.errors import UsageError
from data_pipeline.shards import weights
from data_pipeline.shards.manifest import TokenManifest
from data_pipeline.shards.tokenizers import tokenizer_config
from data_pipeline.shards.weights import Card
from model.families import build_forcing, build_generator
from model.protocols import Generator, TeacherForcing
from trainer.checkpoints import catalog
from trainer.checkpoints.exporting import whole_network
from trainer.checkpoints.reader import CheckpointReader
from trainer.checkpoints.retention import recorded_rule
from trainer.config import GeneratorStageConfig
from trainer.job import TrainJob
from trainer.networks import GeneratorCard
from trainer.networks import load_generator as load_export
from trainer.stages.generator import GeneratorStage


@dataclass(frozen=True)
class GeneratorSource:
    """Where the weights of a generator are. Plain data, which any process can load from."""

    uri: str
    """Of an export; or of the checkpoints of a stage."""
    step: int | None = None
    """Of a checkpoint; None of an export."""
    config: dict[str, Any] | None = None
    """Of a checkpoint: what its card would say."""
    lineage: dict[str, Any] | None = None
    """Of a checkpoint: fingerprints of what it is trained from."""
    classes: tuple[str, ...] = ()
    """Of a checkpoint: names of the classes, by label."""

    def card(self) -> Card:
        """What it is; of a checkpoint without the hashes of weights, which only loading them shows."""
        if self.step is None:
            return weights.read_card(self.uri, "generator")
        return Card("generator", self.config or {}, {}, self.lineage or {}, self.classes, self.step)

    def load(self, ema: bool, device: torch.device) -> tuple[Generator, Card]:
        """The generator, frozen, and its card.

        Args:
            ema: the moving average of its weights, where one was kept.
            device: that it is to be on.

        Raises:
            UsageError: if it is not there.
            CorruptShardError: if it is damaged.
        """
        if self.step is None:
            return load_export(self.uri, ema, device)
        name = "ema" if ema and has_average(self) else "model"
        state = whole_network(self.uri, self.step, {"ema": "ema", "model": "master"}[name])
        card = self.card()
        card.files[name] = _digest(state)
        config = weights.read_config(self.uri, card, GeneratorCard)
        made = (config.generator, config.layout, config.forcing_width)
        network = weights.restore(self.uri, state, lambda: cast("nn.Module", build_generator(*made)))
        return cast("Generator", network.to(device).eval().requires_grad_(False)), card


def _digest(state: dict[str, Tensor]) -> str:
    """As an export would have it."""
    return storage.sha256(save({key: tensor.detach().cpu().contiguous() for key, tensor in sorted(state.items())}))


def has_average(source: GeneratorSource) -> bool:
    """Whether a moving average of its weights was kept."""
    if source.step is None:
        return "ema" in source.card().files
    return bool(CheckpointReader(catalog.step_folder(source.uri, source.step)).index.by_tensor("ema"))


def at_checkpoint(job: TrainJob, asked: str) -> GeneratorSource:
    """The generator of a stage that trains, or has trained, at one of its checkpoints.

    Args:
        job: of the stage.
        asked: a step, "last" or "best".

    Raises:
        UsageError: if there is no such checkpoint; it says which there are.
    """
    step = _step(job.folder, job.checkpoints, asked)
    return GeneratorSource(job.checkpoints, step, _card_config(job), dict(job.lineage), job.classes)


def _step(folder: str, checkpoints: str, asked: str) -> int:
    steps = catalog.valid_steps(checkpoints, catalog.decisions_on_record(folder))
    if not steps:
        raise UsageError(f"--checkpoint {asked}: {checkpoints} has no complete checkpoint")
    if asked == "last":
        return steps[-1]
    if asked == "best":
        return _best(folder, checkpoints, steps)
    if int(asked) not in steps:
        raise UsageError(f"--checkpoint {asked}: {checkpoints} has those of steps {', '.join(map(str, steps))}")
    return int(asked)


def _best(folder: str, checkpoints: str, steps: list[int]) -> int:
    rule = recorded_rule(folder)
    if rule is None or rule.metric is None:
        raise UsageError(
            f"--checkpoint best: {folder} does not say by which number: set generator.trainer.keep_best, or give last "
            f"or a step ({', '.join(map(str, steps))})"
        )
    numbers = {step: catalog.read_state(checkpoints, step).get("metrics", {}).get(rule.metric) for step in steps}
    found = {step: number for step, number in numbers.items() if isinstance(number, int | float)}
    if not found:
        raise UsageError(
            f"--checkpoint best: no checkpoint of {folder} has the number {rule.metric}: give a step, or last"
        )
    return (min if rule.mode == "min" else max)(found, key=lambda step: (found[step], -step))


def _card_config(job: TrainJob) -> dict[str, Any]:
    """What the card of an export of the stage would have as config."""
    section = job.section
    assert isinstance(section, GeneratorStageConfig)
    layout = TokenManifest.read(job.inputs["tokens"]).layout
    with torch.device("meta"):
        forcing = _forcing(job.inputs.get("tokenizer"))
        network = build_generator(section.network, layout, None if forcing is None else forcing.width)
    return GeneratorStage.without_data(section, network, forcing, torch.device("meta")).card()


def _forcing(tokenizer: str | None) -> TeacherForcing | None:
    if tokenizer is None:
        return None
    return build_forcing(tokenizer_config(tokenizer, weights.read_card(tokenizer, "tokenizer")))
