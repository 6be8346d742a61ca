"""DeepSpeed, reduced to what a stage needs: `accumulate` the gradients of micro-batches, then `update` the weights.

One optimizer step of a trainable on this rank:

    for micro_batch in micro_batches:                        # as many as `accumulation`
        terms = engine.forward(lambda: stage.terms(micro_batch))
        engine.accumulate(terms["loss"])
    engine.update(rate)                                      # skipped, on all ranks, if a gradient is not finite

A stage with one network says that in one line (`train`). A stage with a generator and a critic has an engine of each;
while one learns through the other, that one is `frozen`.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from data_pipeline.errors import UsageError
from trainer.config import TrainerConfig
from trainer.engine.finite import decide_on_device, was_applied
from trainer.engine.fragments import OwnedState, open_state
from trainer.engine.loss_scale import LossScale
from trainer.engine.optimizer import CheckedAdamW, build_optimizer
from trainer.engine.scalars import Scalars, Terms
from trainer.engine.settings import check_settings, deepspeed_config
from trainer.engine.trainable import Trainable

Found = TypeVar("Found")
NUMBER_FORMATS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
"""By the names that `precision` has."""


@dataclass(frozen=True)
class Update:
    """What became of an optimizer update. What is a tensor is on the device: reading it waits for the device."""

    applied: Tensor
    """Whether the weights moved, a bool."""
    grad_norm: Tensor
    """Norm of the gradient before clipping."""
    loss_scale: float = 1.0


@dataclass(frozen=True)
class StepResult:
    """What one optimizer step of a stage did on this rank."""

    terms: Scalars
    """Means over this rank's micro-batches, one of them "loss"."""
    updates: Mapping[str, Update]
    """By trainable."""


def prepare_deepspeed(device: torch.device) -> None:
    """Settings that DeepSpeed reads at import and at its first collective; torch.distributed must be initialized.

    Args:
        device: of this process. Left alone, DeepSpeed takes a GPU wherever it sees one.
    """
    os.environ["DS_ACCELERATOR"] = device.type
    # torch 2.14 renamed collectives that DeepSpeed 0.19 calls by their old names, and says so at each call.
    warnings.filterwarnings("ignore", category=FutureWarning, message=r".*(all_gather|reduce_scatter).*is deprecated")
    import deepspeed

    chosen = deepspeed.get_accelerator().device_name()
    assert chosen == device.type, f"DeepSpeed was imported before, for {chosen}"
    # DeepSpeed would compile a shared-memory all-reduce at first use. It needs a compiler on every node, and its peers
    # wait for a killed rank without end, where gloo raises.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(dist_backend=dist.get_backend(), auto_mpi_discovery=False, verbose=False)


class _Root(nn.Module):
    """The module that DeepSpeed sees: its forward is any work that uses the network.

    So ZeRO 3, which fetches sharded weights by hooks of modules, knows where a pass begins whatever the stage calls.
    """

    def __init__(self, network: nn.Module, autocast: torch.autocast) -> None:
        super().__init__()
        self.network = network
        self._autocast = autocast

    def forward(self, work: Callable[[], Found]) -> Found:
        with self._autocast:
            return work()


class Engine:
    """One trainable under DeepSpeed ZeRO, on one rank.

    Args:
        trainable: the network.
        config: of the trainer.
        device: of this rank.
        before_update: called before each update of the weights.

    Raises:
        UsageError: if DeepSpeed refuses the settings.
    """

    def __init__(
        self,
        trainable: Trainable,
        config: TrainerConfig,
        device: torch.device,
        before_update: Callable[[], None] = lambda: None,
    ) -> None:
        import deepspeed

        self.config, self.device, self.module = config, device, trainable.module
        try:
            self.settings = deepspeed_config(config, dist.get_world_size(), overlap=device.type == "cuda")
        except ValueError as error:
            raise UsageError(str(error)) from None
        check_settings(self.settings)
        dtype = NUMBER_FORMATS[config.precision]
        root = _Root(self.module, torch.autocast(device.type, dtype, enabled=dtype != torch.float32))
        optimizer = build_optimizer(trainable, config, device)
        self._engine, wrapped, _, _ = deepspeed.initialize(model=root, optimizer=optimizer, config=self.settings)
        if config.zero_stage:
            decide_on_device(
                wrapped, config.zero_stage, torch.device("cpu") if config.offload == "optimizer" else device
            )
        self.loss_scale: LossScale | None = None
        """Of fp16; None in other formats, which need none."""
        if config.precision == "fp16":
            self.loss_scale = LossScale(config.initial_loss_scale, config.loss_scale_window)
        ema = trainable.ema and config.ema_decay > 0
        self.owned: OwnedState = open_state(self.module, wrapped, config.zero_stage, ema=ema)
        self._update: Update | None = None
        self._before_update, self._rate_factor = before_update, trainable.learning_rate_factor
        self._learning = [p for p in self.module.parameters() if p.requires_grad]
        self._accumulated, self._scale, self._factor = 0, 1.0, 1.0

    @property
    def accumulation(self) -> int:
        """Micro-batches per update."""
        return int(self.settings["gradient_accumulation_steps"])

    def forward(self, work: Callable[[], Found]) -> Found:
        """Do work that uses the network, as the begin of one pass, in the trainer's precision (a collective).

        Args:
            work: takes nothing and gives a tensor, or a tuple, list or dict of them.
        """
        found: Found = self._engine(work)
        return found

    @torch.no_grad()
    def preview(self, work: Callable[[], Found]) -> Found:
        """The same without gradients, before the pass that it belongs to (a collective).

        ZeRO 3 gathers weights as it goes, by hooks of the module. They fetch ahead as long as the modules come in the
        order of the last forward pass, and a pass may end early: so this is to be the begin of an ordinary pass.
        """
        found: Found = self._engine.module(work)
        return found

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """While others learn through this network, from their forward to their `accumulate`, it gets no gradients."""
        for parameter in self._learning:
            parameter.requires_grad_(False)
        try:
            yield
        finally:
            for parameter in self._learning:
                parameter.requires_grad_(True)

    def through(self, work: Callable[[], Found]) -> Found:
        """Work that uses the frozen network inside of another engine's forward (a collective).

        Gradients flow through it to what it was given.
        """
        assert not any(p.requires_grad for p in self._learning), "only inside of `frozen`"
        found: Found = self._engine.module(work)
        return found

    def accumulate(self, loss: Tensor) -> None:
        """Backward of one micro-batch, whose loss is a mean over its samples; gradients add up to the step's mean.

        A collective, as ZeRO 2 and 3 reduce gradients here.
        """
        if self._accumulated == 0:
            self._scale, self._factor = self._begin_scaled()
        elif self._accumulated < self.accumulation:
            self._engine.step()  # counts the micro-batch before, and moves nothing
        self._accumulated += 1
        assert self._accumulated <= self.accumulation, "an update is due"
        self._engine.backward(loss * self._factor if self._factor != 1 else loss)

    def update(self, rate: float) -> Update:
        """Move the weights by the accumulated gradients (a collective); not if one of these is not finite.

        Args:
            rate: the schedule's learning rate.
        """
        assert self._accumulated == self.accumulation, (self._accumulated, self.accumulation)
        self._accumulated = 0
        for group in self._engine.optimizer.param_groups:
            group["lr"] = rate * self._rate_factor
        self._before_update()
        self._engine.step()
        optimizer = self._engine.optimizer
        applied = was_applied(optimizer if isinstance(optimizer, CheckedAdamW) else optimizer.optimizer)
        if self.owned.keeps_ema:
            self.owned.update_ema(applied * (1 - self.config.ema_decay))
        if self.loss_scale:
            self.loss_scale.update(bool(applied))  # the next backward begins with it, so fp16 has to wait
        self._update = Update(applied, self._engine.get_global_grad_norm(), self._scale)
        return self._update

    def take_update(self) -> Update | None:
        """What the last `update` came to; None if there was none since the last call."""
        update, self._update = self._update, None
        return update

    def _begin_scaled(self) -> tuple[float, float]:
        """Have the optimizer expect the loss scale. Returns it, and the part of it that DeepSpeed leaves to us."""
        if self.loss_scale is None:
            return 1.0, 1.0
        scale, optimizer = self.loss_scale.value, self._engine.optimizer
        if isinstance(optimizer, CheckedAdamW):
            optimizer.loss_scale = scale
            return scale, scale
        optimizer.override_loss_scale(scale)  # ZeRO 1 to 3 then multiply the loss by it
        return scale, 1.0

    def whole(self, name: str) -> Tensor:
        """A copy of a parameter's weights, which ZeRO 3 gathers from all ranks (a collective)."""
        return self.owned.whole(name)

    def overwrite_rows(self, name: str, rows: Tensor, values: Tensor) -> None:
        """Replace rows of a matrix (a collective): weights, master and average become `values`, moments zero.

        Args:
            name: of the parameter [N, C].
            rows: int64 [R].
            values: fp32 [R, C], equal on all ranks.
        """
        for fragment in self.owned.held():
            if fragment.name != name:
                continue
            width = fragment.shape[1]
            elements = (rows[:, None] * width + torch.arange(width, device=rows.device)).flatten()
            inside = (elements >= fragment.start) & (elements < fragment.stop)
            places, fresh = elements[inside] - fragment.start, values.flatten()[inside]
            for role, tensor in fragment.roles.items():
                new = fresh.to(tensor) if role in {"master", "ema"} else torch.zeros_like(fresh).to(tensor)
                tensor[places.to(tensor.device)] = new
        self.owned.publish()


Engines = Mapping[str, Engine]
"""Of a stage's trainables, by their names."""


def train(engine: Engine, works: Iterable[Callable[[], Terms]], rate: float) -> Scalars:
    """A whole step of one network: forward and backward of each micro-batch, then the update (a collective).

    Args:
        engine: of the network.
        works: for each micro-batch, what gives its terms; "loss" among them is minimized.
        rate: the schedule's learning rate.

    Returns:
        The terms, each the mean over this rank's micro-batches.
    """
    total: Scalars | None = None
    for work in works:
        terms = engine.forward(work)
        engine.accumulate(terms["loss"])
        found = Scalars.of(terms, engine.accumulation)
        total = found if total is None else total + found
    engine.update(rate)
    assert total is not None
    return total
