"""The discriminator of a tokenizer: what the tokenizer minimizes through it, and its own passes and update.

Its step, on the images that the tokenizer made in the same step before its update:

1. where LeCam needs the means of all logits and a step has several micro-batches: a preview of them
2. its pass over each micro-batch, real images and made ones
3. its update, at a learning rate of its own

Before `start` none of it is called. Means, and with them LeCam's averages, are over the global batch.

Shapes: B samples, C channels, H = W side in pixels, N logits of an image, W elements of the tokenizer's last layer.
"""

from __future__ import annotations

import resource
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from model.config.losses import AdversarialConfig, LecamConfig
from model.discriminators.augmentation import augment, blur_strength
from model.layers.random_numbers import split_seed
from model.losses.adversarial import adaptive_weight, discriminator_loss, generator_loss, gradient_penalty
from model.losses.lecam import averages_of_step, lecam_loss
from model.protocols import Discriminator
from trainer.config import TrainerConfig
from trainer.engine.engine import Engine
from trainer.engine.scalars import Scalars, Terms
from trainer.engine.schedule import learning_rate
from trainer.engine.trainable import Trainable
from trainer.stages.global_means import OfMeans, carry_means, global_means, of_means
from trainer.stages.image_losses import Side, leaf, side_of

NAME = "discriminator"
"""Of the trainable."""
PURPOSES = 3
"""For which a sample has a seed each: seen as a real image, as a made one, and where the tokenizer learns."""
_REAL, _MADE, _AGAINST = range(PURPOSES)
_LOGITS = "logits"


@dataclass(frozen=True)
class Judged:
    """A micro-batch that the discriminator learns from."""

    real_BCHW: Tensor
    """In [-1, 1]."""
    made_BCHW: Tensor
    """Without gradients."""
    seed_3B: Tensor
    """By purpose."""
    fires_33: Tensor
    """Which kinds of augmentation are used, by purpose."""


@dataclass(frozen=True)
class _Ahead:
    """What each micro-batch has to know of the logits of all."""

    averages_2: Tensor
    """LeCam's, as they are used in this step."""
    of_means: OfMeans | None
    """LeCam's loss, where it is one of the means."""


class Critic(nn.Module):
    """The trainable: the network, and what moves with it."""

    averages_2: Tensor

    def __init__(self, network: Discriminator, device: torch.device) -> None:
        super().__init__()
        self.network = cast("nn.Module", network)
        self.register_buffer(
            "averages_2", torch.zeros(2, device=device)
        )  # LeCam's: of real images' mean logits and made ones'

    def forward(self, image_BCHW: Tensor, seed_B: Tensor) -> Tensor:
        """Images in [-1, 1] -> logits [B, N], float32."""
        logits_BN: Tensor = self.network(image_BCHW, seed_B)
        return logits_BN.float()


class Adversary:
    """A discriminator, how the tokenizer learns against it, and how it learns itself.

    Args:
        config: of both.
        network: the discriminator, new and on its device.
        trainer: of the tokenizer, which says what `config` leaves open.
        device: of this rank.
    """

    def __init__(
        self, config: AdversarialConfig, network: Discriminator, trainer: TrainerConfig, device: torch.device
    ) -> None:
        self.config, self.trainer = config, own_trainer(config, trainer)
        self.critic = Critic(network, device)
        self.trainable = Trainable(self.critic, trainer=self.trainer, ema=False)
        self._device, self._start = device, dict[str, Any]()

    def is_on(self, step: int) -> bool:
        """Whether the term counts, and the discriminator learns, at a step."""
        return step >= self.config.start

    def rate(self, step: int) -> float:
        """Its learning rate: its schedule begins where it does."""
        return learning_rate(self.trainer, step - self.config.start)

    # ------------------------------------------------------------------------------------ what the tokenizer minimizes

    @torch.enable_grad()
    def verdict(self, batch: Judged, step: int, engine: Engine) -> Side:
        """What the discriminator has reconstructions cost; while it is frozen, inside of the tokenizer's pass."""
        made_BCHW = leaf(batch.made_BCHW)
        logits_BN = engine.through(partial(self._logits_of, made_BCHW, batch, _AGAINST, step))
        loss = generator_loss(logits_BN, self.config.loss)
        return side_of({"adversarial": loss}, loss, made_BCHW)

    def weigh(self, gradients: Sequence[Tensor]) -> Tensor:
        """The weight of the adversarial term, a scalar (a collective where it is adaptive).

        Args:
            gradients: at the tokenizer's last layer, of each micro-batch of this rank: those of similarity and
                verdict, [2, W].
        """
        if not self.config.adaptive:
            return torch.full((), self.config.weight, device=self.critic.averages_2.device)
        mean_2W = torch.stack(list(gradients)).mean(0)
        dist.all_reduce(mean_2W)
        reference, adversarial = (mean_2W / dist.get_world_size()).norm(dim=1).unbind()
        return self.config.weight * adaptive_weight(reference, adversarial, self.config.most)

    # ----------------------------------------------------------------------------------------- what it minimizes itself

    def train(self, micro_batches: Sequence[Judged], engine: Engine, step: int) -> Scalars:
        """Its step (a collective)."""
        if step == self.config.start:
            self._start = {"memory_bytes_before": held_bytes(self._device)}
        ahead: _Ahead | None = None
        if self.config.lecam is not None and len(micro_batches) > 1:
            means = [engine.preview(partial(self._mean_logits, each, step)) for each in micro_batches]
            ahead = self._look_ahead(means, self.config.lecam)
        total: Scalars | None = None
        for each in micro_batches:
            terms = engine.forward(partial(self._judge, each, ahead, step))
            engine.accumulate(terms.pop("loss"))
            found = Scalars.of(terms, engine.accumulation)
            total = found if total is None else total + found
        engine.update(self.rate(step))
        assert total is not None
        if step == self.config.start:
            self._start["loss"] = total["discriminator"]
        return total

    def take_start(self) -> dict[str, Any] | None:
        """What its first step came to, once: its loss, and the most memory that this process has had, in bytes.

        It waits for the device.
        """
        found, self._start = self._start, {}
        if not found:
            return None
        return found | {"loss": float(found["loss"]), "memory_bytes": held_bytes(self._device)}

    def _logits_of(self, image_BCHW: Tensor, batch: Judged, purpose: int, step: int) -> Tensor:
        """What it says of images, which it may see augmented."""
        seed_B, asked = batch.seed_3B[purpose], self.config.augment
        if asked is not None:
            blur = blur_strength(step - self.config.start, asked.blur_steps)
            image_BCHW = augment(image_BCHW, _other(seed_B), batch.fires_33[purpose], asked, blur)
        logits_BN: Tensor = self.critic(image_BCHW, seed_B)
        return logits_BN

    def _logits(self, batch: Judged, step: int) -> tuple[Tensor, Tensor]:
        real_BN = self._logits_of(batch.real_BCHW, batch, _REAL, step)
        return real_BN, self._logits_of(batch.made_BCHW, batch, _MADE, step)

    def _mean_logits(self, batch: Judged, step: int) -> Tensor:
        return torch.stack([logits_BN.mean() for logits_BN in self._logits(batch, step)])

    def _judge(self, batch: Judged, ahead: _Ahead | None, step: int) -> Terms:
        """All terms of its loss, and the loss."""
        if self.config.penalty:
            batch.real_BCHW.requires_grad_()
        real_BN, made_BN = self._logits(batch, step)
        loss = discriminator_loss(real_BN, made_BN, self.config.loss)
        terms = {"discriminator": loss, "logits_real": real_BN.mean(), "logits_made": made_BN.mean()}
        if self.config.penalty:
            terms["penalty"] = gradient_penalty(real_BN, batch.real_BCHW)
            loss = loss + self.config.penalty * terms["penalty"]
        if self.config.lecam is not None:
            terms["lecam"] = self._regularize(real_BN, made_BN, ahead, self.config.lecam)
            loss = loss + self.config.lecam.weight * terms["lecam"]
        return terms | {"loss": loss}

    # --------------------------------------------------------------------------------------------------------- LeCam

    def _regularize(self, real_BN: Tensor, made_BN: Tensor, ahead: _Ahead | None, config: LecamConfig) -> Tensor:
        """LeCam's loss (arXiv 2104.03310), with gradients to this micro-batch's logits."""
        mean_2 = torch.stack([real_BN.mean(), made_BN.mean()])
        if ahead is None:  # the only micro-batch of this rank's step
            ahead = self._look_ahead([mean_2.detach()], config)
        if ahead.of_means is not None:
            return carry_means({_LOGITS: mean_2}, ahead.of_means)
        return lecam_loss(real_BN, made_BN, ahead.averages_2)

    def _look_ahead(self, means: Sequence[Tensor], config: LecamConfig) -> _Ahead:
        """Move the averages, and say how this step uses them (a collective)."""
        mean_2 = global_means([{_LOGITS: each_2} for each_2 in means])[_LOGITS]
        used_2, moved_2 = averages_of_step(self.critic.averages_2.clone(), mean_2, config.decay, config.update)
        self.critic.averages_2.copy_(moved_2)
        found: OfMeans | None = None
        if config.of == "means":

            def terms_of(of_all: Terms) -> Terms:
                real, made = of_all[_LOGITS].unbind()
                return {"lecam": lecam_loss(real, made, used_2)}

            found = of_means([{_LOGITS: each_2} for each_2 in means], terms_of)
        return _Ahead(used_2, found)


def held_bytes(device: torch.device) -> int:
    """The most that tensors on a GPU took so far; on a CPU the most that was resident of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _other(seed_B: Tensor) -> Tensor:
    """Seeds for what is random before the network, whose own follow from the same numbers."""
    return split_seed(seed_B, 1)[0]


def own_trainer(config: AdversarialConfig, trainer: TrainerConfig) -> TrainerConfig:
    """How the discriminator is optimized: as the tokenizer, unless its config says otherwise."""
    asked = {
        "learning_rate": config.learning_rate,
        "betas": config.betas,
        "weight_decay": config.weight_decay,
        "gradient_clipping": config.gradient_clipping,
    }
    given = {name: value for name, value in asked.items() if value is not None}
    schedule = {
        "steps": trainer.steps - config.start,
        "schedule": config.schedule,
        "stair_steps": config.stair_steps,
        "warmup_rate": config.warmup_rate,
        "final_learning_rate": config.final_learning_rate,
        "warmup_steps": config.warmup_steps,
        "final_weight_decay": None,
    }
    return trainer.model_copy(update=given | schedule)
