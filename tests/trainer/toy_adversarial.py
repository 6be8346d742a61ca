"""A stage with two trainables that learn from each other, as small as they can be; and the same in plain torch."""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from data_pipeline.config import ReadingConfig
from trainer.config import ClassifierStageConfig, TrackingConfig, TrainerConfig
from trainer.engine.batches import Batch
from trainer.engine.deepspeed_engine import DeepSpeedEngines
from trainer.engine.engine import Engines
from trainer.engine.scalars import Scalars, Terms
from trainer.engine.schedule import learning_rate
from trainer.engine.trainable import Trainable, Trainables
from trainer.job import TrainJob
from trainer.loop.compose import build_loop
from trainer.loop.training_loop import Loop

BATCH, WIDTH, STEPS, SAVED, KILLED = 8, 6, 6, 3, 4
CRITIC_RATE, CRITIC_BETAS = 0.5, (0.5, 0.99)
EVERYTHING_PARTITIONED = {"zero_optimization": {"stage3_param_persistence_threshold": 0}}


class Maker(nn.Module):
    """Noise in, samples out; its first layer is not trained."""

    def __init__(self) -> None:
        super().__init__()
        self.fixed = nn.Linear(WIDTH, 5).requires_grad_(False)
        self.layers = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, WIDTH))

    def forward(self, noise_BC: Tensor) -> Tensor:
        made_BC: Tensor = self.layers(torch.tanh(self.fixed(noise_BC)))
        return made_BC


class Critic(nn.Module):
    """Samples in, how real each looks; it counts the batches that it was trained on."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(WIDTH, 7), nn.Tanh(), nn.Linear(7, 1))
        self.register_buffer("seen", torch.zeros(1))

    def forward(self, sample_BC: Tensor) -> Tensor:
        score_B: Tensor = self.layers(sample_BC).squeeze(1)
        return score_B


@dataclass(frozen=True, kw_only=True)
class Pairs(Batch):
    """Noise, and real samples."""

    noise_BC: Tensor
    real_BC: Tensor


def whole_batch(step: int) -> Pairs:
    """The global batch of a step."""
    drawn_2BC = torch.randn(2, BATCH, WIDTH, generator=torch.Generator().manual_seed(step))
    return Pairs(noise_BC=drawn_2BC[0], real_BC=drawn_2BC[1].cumsum(1))


def maker_loss(made_BC: Tensor, score_B: Tensor, real_BC: Tensor) -> Tensor:
    return F.mse_loss(made_BC, real_BC) - score_B.mean()


def critic_loss(real_B: Tensor, made_B: Tensor) -> Tensor:
    return F.relu(1 - real_B).mean() + F.relu(1 + made_B).mean()


def networks() -> tuple[Maker, Critic]:
    torch.manual_seed(0)
    return Maker(), Critic()


class AdversarialStage:
    """The maker learns through the frozen critic, and is updated; then the critic, from what was made before that."""

    exported = "maker"
    validation = None

    def __init__(self, trainer: TrainerConfig, kill_at: int | None = None) -> None:
        self.maker, self.critic = networks()
        self.samples, self.done, self.kill_at = None, 0, kill_at
        self.loop: Loop | None = None
        self.trainables: Trainables = {
            "maker": Trainable(self.maker, no_decay={"layers.2.weight"}),
            "critic": Trainable(self.critic, trainer=trainer.model_copy(update={"betas": CRITIC_BETAS}), ema=False),
        }

    def card(self) -> dict[str, Any]:
        return {}

    def batch(self, step: int) -> Pairs:
        return whole_batch(step).split(dist.get_world_size())[dist.get_rank()]

    def step(self, micro_batches: Sequence[Pairs], engines: Engines, rate: float) -> Scalars:
        if self.loop is not None and self.kill_at == self.done:
            self.loop.writer.finish()  # the checkpoint before, however slow the machine is
        maker, critic = engines["maker"], engines["critic"]
        made, terms = list[Tensor](), list[Scalars]()
        with critic.frozen():
            for batch in micro_batches:
                found, made_BC = maker.forward(partial(self._make, batch, engines))
                maker.accumulate(found["loss"])
                made.append(made_BC.detach())
                terms.append(Scalars.of(found, len(micro_batches)))
        maker.update(rate)
        self._die_if_it_is_time()
        for number, (batch, made_BC) in enumerate(zip(micro_batches, made, strict=True)):
            judged = critic.forward(partial(self._judge, batch, made_BC))
            critic.accumulate(judged["critic"])
            terms[number] |= Scalars.of(judged, len(micro_batches))
        critic.update(rate * CRITIC_RATE)
        self.critic.get_buffer("seen").add_(1)
        self.done += 1
        return sum(terms[1:], terms[0])

    def _make(self, batch: Pairs, engines: Engines) -> tuple[Terms, Tensor]:
        made_BC = self.maker(batch.noise_BC)
        score_B = engines["critic"].through(partial(self.critic, made_BC))
        return {"loss": maker_loss(made_BC, score_B, batch.real_BC)}, made_BC

    def _judge(self, batch: Pairs, made_BC: Tensor) -> Terms:
        return {"critic": critic_loss(self.critic(batch.real_BC), self.critic(made_BC))}

    def _die_if_it_is_time(self) -> None:
        if self.kill_at == self.done:
            os.kill(os.getpid(), signal.SIGKILL)

    def after_step(self, step: int, engines: DeepSpeedEngines) -> dict[str, dict[str, Any]]:
        return {}

    def state(self) -> dict[str, Tensor]:
        return {}

    def load_state(self, state: dict[str, Tensor]) -> None:
        pass


def job(folder: Path | str, **changes: Any) -> TrainJob:
    """Two micro-batches a step at one and at two workers; everything on: average, decay, clipping, a schedule."""
    world = dist.get_world_size() if dist.is_initialized() else 1
    values = {"steps": STEPS, "global_batch": BATCH, "micro_batch": BATCH // world // 2, "learning_rate": 0.05}
    values |= {"ema_decay": 0.9, "weight_decay": 0.1, "gradient_clipping": 0.5, "warmup_steps": 2}
    values |= {"checkpoint_every": SAVED, "keep_checkpoints": 100, "log_every": 1, "initial_loss_scale": 1024}
    extra = {"extra": EVERYTHING_PARTITIONED} if changes.get("zero_stage") == 3 else {}
    trainer = TrainerConfig(**(values | extra | changes))
    section = ClassifierStageConfig(trainer=trainer)
    return TrainJob(
        "teacher",
        str(folder),
        section,
        0,
        "squash",
        ReadingConfig(),
        {},
        {"images": "a"},
        {},
        TrackingConfig(wandb="off"),
    )


def run(each: TrainJob, kill_at: int | None = None) -> bool:
    """Train on this rank. Returns whether the end was reached."""
    stage = AdversarialStage(each.section.trainer, kill_at)
    stage.loop = build_loop(each, stage, torch.device("cpu"))
    return stage.loop.run()


def plain(steps: int) -> Mapping[str, Mapping[str, Tensor]]:
    """Weights of both networks, and the maker's average, after some steps of a loop in nothing but torch."""
    config = job("").section.trainer
    maker, critic = networks()
    no_decay = {"layers.2.weight"}
    optimizers = [
        _adamw(maker, config.weight_decay, no_decay, config.betas),
        _adamw(critic, config.weight_decay, set(), CRITIC_BETAS),
    ]
    average = {name: p.detach().clone() for name, p in maker.named_parameters()}
    for step in range(steps):
        batch, rate = whole_batch(step), learning_rate(config, step)
        made_BC = maker(batch.noise_BC)
        losses = [maker_loss(made_BC, critic(made_BC), batch.real_BC)]
        losses.append(critic_loss(critic(batch.real_BC), critic(made_BC.detach())))
        gradients = [
            torch.autograd.grad(loss, [p for p in network.parameters() if p.requires_grad])
            for loss, network in zip(losses, (maker, critic), strict=True)
        ]
        for network, optimizer, found, factor in zip(
            (maker, critic), optimizers, gradients, (1.0, CRITIC_RATE), strict=True
        ):
            learning = [p for p in network.parameters() if p.requires_grad]
            for parameter, gradient in zip(learning, found, strict=True):
                parameter.grad = gradient
            nn.utils.clip_grad_norm_(learning, config.gradient_clipping)
            for group in optimizer.param_groups:
                group["lr"] = rate * factor
            optimizer.step()
        for name, parameter in maker.named_parameters():
            average[name] += (1 - config.ema_decay) * (parameter.detach() - average[name])
    return {"maker": maker.state_dict(), "critic": critic.state_dict(), "average": average}


def _adamw(network: nn.Module, decay: float, no_decay: set[str], betas: tuple[float, float]) -> torch.optim.AdamW:
    learning = {name: p for name, p in network.named_parameters() if p.requires_grad}
    matrices = [p for name, p in learning.items() if p.ndim > 1 and name not in no_decay]
    rest = [p for name, p in learning.items() if p.ndim < 2 or name in no_decay]
    groups = [{"params": matrices, "weight_decay": decay}, {"params": rest, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, betas=betas)
