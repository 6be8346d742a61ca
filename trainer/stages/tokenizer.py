"""Train a tokenizer of any kind, by itself or against a discriminator.

An optimizer step:

1. a batch: images, and what the tokenizer draws for them
2. a look at each micro-batch, where something is a function of the whole global batch and there are several
3. the tokenizer's pass over each micro-batch (tokenizer_pass.py)
4. the tokenizer's update
5. from its start on, the discriminator's passes on what was made in 3, and its update (adversary.py)

So a step is a function of the global batch, however that is cut into micro-batches and over workers.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any, Self, cast

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist
from torch import Tensor, nn

from data_pipeline.loading.loader import ImageBatches
from data_pipeline.order.permutations import keyed_bits, keyed_uniform, network_seeds, step_positions
from model.discriminators.augmentation import KINDS
from model.families import build_tokenizer
from model.losses.perturbation import chances_of, perturbation_at
from model.protocols import ProxyTaught, Tokenizer
from model.tokenizers.grid import CHANCES, PERTURBED
from trainer.config import TokenizerStageConfig
from trainer.engine.deepspeed_engine import DeepSpeedEngines
from trainer.engine.engine import Engine, Engines
from trainer.engine.scalars import Scalars, Terms
from trainer.engine.trainable import Trainable, Trainables
from trainer.evaluation.networks.teacher import load_teacher
from trainer.job import TrainJob
from trainer.stages import adversary
from trainer.stages.adversary import PURPOSES, Adversary
from trainer.stages.dead_codes import CodeRestarts
from trainer.stages.guides import Guides, load_guides
from trainer.stages.image_losses import ImageLosses
from trainer.stages.inputs import open_images
from trainer.stages.judges import Judges, build_judges
from trainer.stages.proxy import PROXY_CODES, load_proxy
from trainer.stages.stage import Validation
from trainer.stages.tokenizer_pass import Ahead, TokenizerImages, TokenizerPass, judged_of
from trainer.stages.validation import teacher_distance, validation_of


class TokenizerStage:
    """Images in, the tokenizer's loss out."""

    exported = "tokenizer"

    def __init__(self, job: TrainJob, device: torch.device) -> None:
        section = job.section
        assert isinstance(section, TokenizerStageConfig)
        network, teacher = build_tokenizer(section.model), None
        if section.loss.needs_teacher:
            teacher = load_teacher(job.inputs.get("teacher_timm"), job.inputs["teacher"], device)
        proxy = None
        if section.model.needs_proxy:
            proxy = load_proxy(job, device)
            cast("ProxyTaught", network).adopt(proxy)
        self._compose(section, network, load_guides(section.loss, teacher, device), device, job.seed, proxy)
        images = open_images(job)
        distance = self._distance or teacher_distance(teacher)
        self.validation: Validation | None = validation_of(job, network, images, distance, device)
        self.samples: ImageBatches | None = ImageBatches(
            images,
            image_size=section.model.image_size,
            fit=job.fit,
            reading=job.reading,
            seed=job.seed,
            global_batch=section.trainer.global_batch,
            horizontal_flip=section.horizontal_flip,
        )

    @classmethod
    def without_data(
        cls,
        config: TokenizerStageConfig,
        network: Tokenizer,
        guides: Guides,
        device: torch.device,
        proxy: Tokenizer | None = None,
        judges: Judges | None = None,
    ) -> Self:
        """The stage around given networks, which can do all but make batches: to trace or time its steps."""
        stage = cls.__new__(cls)
        stage._compose(config, network, guides, device, proxy=proxy, judges=judges)
        stage.samples = stage.validation = None
        return stage

    def _compose(
        self,
        config: TokenizerStageConfig,
        network: Tokenizer,
        guides: Guides,
        device: torch.device,
        seed: int = 0,
        proxy: Tokenizer | None = None,
        judges: Judges | None = None,
    ) -> None:
        self._config, self._seed, self._device = config, seed, device
        self.network, self._proxy = network, proxy
        module = cast("nn.Module", network).to(device)
        judges = judges or build_judges(config, guides.teacher, device)
        images = ImageLosses(config.loss, judges.distances, guides.teacher)
        self._adversary: Adversary | None = None
        asked = config.loss.adversarial
        if asked is not None and judges.discriminator is not None:
            self._adversary = Adversary(asked, judges.discriminator, config.trainer, device)
        self.frozen: tuple[nn.Module, ...] = (*guides.networks, *judges.frozen(guides.networks))
        self._distance = images.distance
        self._pass = TokenizerPass(config, network, guides, images, self._adversary, proxy)
        self.trainables: Trainables = {self.exported: Trainable(module, network.no_decay_parameters())}
        if self._adversary is not None:
            self.trainables = self.trainables | {adversary.NAME: self._adversary.trainable}
        self._codes = CodeRestarts(network.codebooks, config, seed, device)

    def card(self) -> dict[str, Any]:
        """The config that rebuilds the network."""
        return self._config.model.without_pretraining().model_dump(mode="json")

    # ------------------------------------------------------------------------------------------------------- batches

    def batch(self, step: int) -> TokenizerImages:
        """Images and seeds of this rank, and what the tokenizer draws for them."""
        assert self.samples is not None
        batch = self.samples.batch(step, dist.get_rank(), dist.get_world_size())
        everyone = step_positions(step, self._config.trainer.global_batch)
        draws = self.network.draw(partial(keyed_uniform, self._seed), batch.position_B, everyone)
        return TokenizerImages(
            index_B=batch.index_B,
            seed_B=torch.from_numpy(network_seeds(self._seed, batch.position_B)),
            judge_seed_B=torch.from_numpy(keyed_bits(self._seed, adversary.NAME, batch.position_B).view(np.int64)),
            fires_33=self._fires(step),
            pixels_BCHW=torch.from_numpy(batch.pixels_BCHW),
            step=step,
            drawn_B=_tensors(draws.of_sample | self._perturbed(batch.position_B)),
            drawn=_tensors(draws.of_step | self._chances(step)),
        )

    def _perturbed(self, positions_B: npt.NDArray[np.int64]) -> dict[str, npt.NDArray[Any]]:
        """Which samples have codes perturbed: the same at any number of workers."""
        asked = self._config.loss.perturbation
        return {} if asked is None else {PERTURBED: keyed_uniform(self._seed, PERTURBED, positions_B) < asked.images}

    def _chances(self, step: int) -> dict[str, npt.NDArray[Any]]:
        """How strongly they are perturbed at a step."""
        asked = self._config.loss.perturbation
        if asked is None:
            return {}
        most = min(asked.neighbours, self._config.model.layout.vocabulary())
        strength = perturbation_at(step / self._config.trainer.steps, asked)
        return {CHANCES: chances_of(strength._replace(neighbours=min(strength.neighbours, most)), most)}

    def blank_batch(self, size: int) -> TokenizerImages:
        """A batch of the last step, when all is on, of the right shapes and with zeros in it."""
        side, device, positions = self._config.model.image_size, self._device, np.arange(size)
        draws = self.network.draw(lambda _, places: np.zeros(len(places)), positions, positions)
        blank = TokenizerImages(
            seed_B=torch.zeros(size, dtype=torch.int64),
            judge_seed_B=torch.zeros(size, dtype=torch.int64),
            fires_33=torch.ones(PURPOSES, len(KINDS), dtype=torch.bool),
            pixels_BCHW=torch.zeros(size, 3, side, side, dtype=torch.uint8),
            step=self._config.trainer.steps - 1,
            drawn_B=_tensors(draws.of_sample | self._perturbed(positions)) | self._blank_codes(size),
            drawn=_tensors(draws.of_step | self._chances(self._config.trainer.steps - 1)),
        )
        return blank.to(device)

    def _fires(self, step: int) -> Tensor:
        """Which kinds of augmentation are used in a step, for each purpose for which the discriminator looks."""
        asked = self._adversary.config.augment if self._adversary is not None else None
        share = 0.0 if asked is None else asked.probability
        numbers = np.arange(PURPOSES * len(KINDS), dtype=np.int64) + step * PURPOSES * len(KINDS)
        fires = keyed_uniform(self._seed, "augmentation", numbers) < share
        return torch.from_numpy(fires.reshape(PURPOSES, len(KINDS)))

    def _blank_codes(self, size: int) -> dict[str, Tensor]:
        """In place of those of a proxy that is not there."""
        if self._proxy is not None or not self._config.model.needs_proxy:
            return {}
        return {PROXY_CODES: torch.zeros((size, self._config.model.proxy_positions), dtype=torch.int64)}

    # -------------------------------------------------------------------------------------------------------- a step

    def step(self, micro_batches: Sequence[TokenizerImages], engines: Engines, rate: float) -> Scalars:
        """Steps 2 to 5; see above."""
        step, tokenizer, critic = micro_batches[0].step, engines[self.exported], None
        if self._adversary is not None and self._adversary.is_on(step):
            critic = engines[adversary.NAME]
        with nullcontext() if critic is None else critic.frozen():
            ahead = self._look_ahead(micro_batches, tokenizer, critic)
            terms, made = self._train_tokenizer(micro_batches, ahead, tokenizer, critic)
        tokenizer.update(rate)
        if self._adversary is None or critic is None:
            return terms
        judged = [judged_of(each, made_BCHW) for each, made_BCHW in zip(micro_batches, made, strict=True)]
        return terms | self._adversary.train(judged, critic, step)

    def _look_ahead(
        self, micro_batches: Sequence[TokenizerImages], tokenizer: Engine, critic: Engine | None
    ) -> Sequence[Ahead | None]:
        """What each micro-batch has to know of all of them; None where nothing is to be known, or its pass finds out.

        An adaptive weight takes a pass with the decoder; all else needs the encoder alone.
        """
        if len(micro_batches) > 1 and critic is not None and self._adversary and self._adversary.config.adaptive:
            last = self.network.last_layer
            looks = [partial(self._pass.look_at_images, each, critic) for each in micro_batches]
            seen = [tokenizer.probe(last, look) for look in looks]
        elif len(micro_batches) > 1 and self._pass.has_to_look:
            seen = [tokenizer.preview(partial(self._pass.look, each)) for each in micro_batches]
        else:
            return [None] * len(micro_batches)
        return self._pass.share(seen, micro_batches[0].step, against=critic is not None)

    def _train_tokenizer(
        self,
        micro_batches: Sequence[TokenizerImages],
        ahead: Sequence[Ahead | None],
        tokenizer: Engine,
        critic: Engine | None,
    ) -> tuple[Scalars, list[Tensor]]:
        """The means of the terms, and what was made of each micro-batch, if the discriminator is to see it."""
        total: Scalars | None = None
        made: list[Tensor] = []
        for batch, known in zip(micro_batches, ahead, strict=True):
            terms, made_BCHW = tokenizer.forward(partial(self._terms, batch, known, critic))
            if critic is not None:
                made.append(made_BCHW.detach().float())
            tokenizer.accumulate(terms["loss"])
            found = Scalars.of(terms, tokenizer.accumulation)
            total = found if total is None else total + found
        assert total is not None
        return total, made

    def _terms(self, batch: TokenizerImages, ahead: Ahead | None, critic: Engine | None) -> tuple[Terms, Tensor]:
        terms, output = self._pass.terms(batch, ahead, critic)
        self._codes.note(output)
        return terms, output.reconstruction_BCHW.detach()

    # ------------------------------------------------------------------------------------------------- between steps

    def after_step(self, step: int, engines: DeepSpeedEngines) -> dict[str, dict[str, Any]]:
        """Restart dead codes every `dead_code_steps`, and tell of the discriminator's start."""
        restarted = self._codes.after_step(step, engines[self.exported])
        found = {"restarted_codes": {"codes": restarted}} if any(restarted) else {}
        start = self._adversary.take_start() if self._adversary is not None else None
        return found if start is None else found | {"discriminator_start": start}

    def state(self) -> dict[str, Tensor]:
        """How often codes were chosen, summed over ranks."""
        return self._codes.state()

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Count on from there."""
        self._codes.load_state(state)


def _tensors(drawn: dict[str, npt.NDArray[Any]]) -> dict[str, Tensor]:
    return {name: torch.from_numpy(values) for name, values in drawn.items()}
