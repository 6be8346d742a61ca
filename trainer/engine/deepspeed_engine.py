"""DeepSpeed ZeRO as an engine (trainer.engine.engine) of one trainable."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Mapping

import torch
import torch.distributed as dist
from torch import Tensor, nn

from data_pipeline.errors import UsageError
from trainer.config import TrainerConfig
from trainer.engine.engine import Engine, Found, Update
from trainer.engine.finite import decide_on_device, was_applied
from trainer.engine.fragments import OwnedState, open_state
from trainer.engine.loss_scale import LossScale
from trainer.engine.optimizer import CheckedAdamW, build_optimizer
from trainer.engine.schedule import weight_decay
from trainer.engine.settings import check_settings, deepspeed_config
from trainer.engine.trainable import Trainable

NUMBER_FORMATS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
"""By the names that `precision` has."""


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


class DeepSpeedEngine(Engine):
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

        super().__init__(trainable, device)
        self.config = config = trainable.trainer or config
        try:
            self.settings = deepspeed_config(
                config, dist.get_world_size(), trainable.elements, overlap=device.type == "cuda"
            )
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
        self._decay = config.weight_decay
        self._before_update = before_update
        self._accumulated, self._scale, self._factor = 0, 1.0, 1.0

    def begin(self, step: int) -> None:
        """Take what follows from the number of a step (from 0) but the learning rate: its weight decay."""
        self._decay = weight_decay(self.config, step)

    @property
    def accumulation(self) -> int:
        """As `Engine.accumulation`."""
        return int(self.settings["gradient_accumulation_steps"])

    def forward(self, work: Callable[[], Found]) -> Found:
        """As `Engine.forward` (a collective)."""
        found: Found = self._engine(work)
        return found

    @torch.no_grad()
    def preview(self, work: Callable[[], Found]) -> Found:
        """As `Engine.preview` (a collective).

        ZeRO 3 gathers weights as it goes, by hooks of the module. They fetch ahead as long as the modules come in the
        order of the last forward pass, and a pass may end early: so this is to be the begin of an ordinary pass.
        """
        found: Found = self._engine.module(work)
        return found

    def probe(self, parameter: str, work: Callable[[], Found]) -> Found:
        """As `Engine.probe` (a collective); as `preview` it is to be the begin of an ordinary pass."""
        with self._without_gradients(but=parameter):
            found: Found = self._engine.module(work)
        return found

    def through(self, work: Callable[[], Found]) -> Found:
        """As `Engine.through` (a collective)."""
        self._check_frozen()
        found: Found = self._engine.module(work)
        return found

    def accumulate(self, loss: Tensor) -> None:
        """As `Engine.accumulate` (a collective: ZeRO 2 and 3 reduce gradients here)."""
        if self._accumulated == 0:
            self._scale, self._factor = self._begin_scaled()
        elif self._accumulated < self.accumulation:
            self._engine.step()  # counts the micro-batch before, and moves nothing
        self._accumulated += 1
        assert self._accumulated <= self.accumulation, "an update is due"
        self._engine.backward(loss * self._factor if self._factor != 1 else loss)

    def update(self, rate: float) -> Update:
        """As `Engine.update` (a collective)."""
        assert self._accumulated == self.accumulation, (self._accumulated, self.accumulation)
        self._accumulated = 0
        for group in self._engine.optimizer.param_groups:
            group["lr"] = rate
            group["weight_decay"] = self._decay if group["decays"] else 0.0
        self._before_update()
        self._engine.step()
        optimizer = self._engine.optimizer
        applied = was_applied(optimizer if isinstance(optimizer, CheckedAdamW) else optimizer.optimizer)
        if self.owned.keeps_ema:
            self.owned.update_ema(applied * (1 - self._ema_decay()))
        if self.loss_scale:
            self.loss_scale.update(bool(applied))  # the next backward begins with it, so fp16 has to wait
        self._update = Update(applied, self._engine.get_global_grad_norm(), self._scale)
        return self._update

    def _ema_decay(self) -> float | Tensor:
        """Of the moving average at this update, which is counted already: a skipped one is not."""
        if not self.config.ema_warmup:
            return self.config.ema_decay
        number = self.owned.steps_taken()
        return torch.where(number < 2, 0.0, number / (9 + number)).clamp(max=self.config.ema_decay)

    def take_update(self) -> Update | None:
        """As `Engine.take_update`."""
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


DeepSpeedEngines = Mapping[str, DeepSpeedEngine]
"""Of a stage's trainables, by their names."""
