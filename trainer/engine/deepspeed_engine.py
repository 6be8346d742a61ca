"""DeepSpeed, reduced to what a stage needs: an optimizer step over micro-batches, and the state that this rank owns."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn

from data_pipeline.errors import UsageError
from trainer.config import TrainerConfig
from trainer.engine.fragments import OwnedState, open_state
from trainer.engine.loss_scale import LossScale
from trainer.engine.optimizer import CheckedAdamW, build_optimizer
from trainer.engine.settings import check_settings, deepspeed_config

Batch = dict[str, Tensor]
Terms = dict[str, Tensor]
INDEX = "index"
"""Entry of a batch, int64 [B]: the numbers of its samples. The loop takes it for the ledger."""
SEED = "seed"
"""Entry of a batch, int64 [B]: what the network draws for each of its samples follows from these."""


@dataclass(frozen=True)
class StepResult:
    """What one optimizer step did: mean terms over this rank's micro-batches, and whether the weights moved."""

    terms: Terms
    applied: bool
    grad_norm: float
    loss_scale: float = 1.0


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


class Engine:
    """A module under DeepSpeed ZeRO whose forward maps a batch to named scalar terms, one of them "loss"."""

    def __init__(self, module: nn.Module, config: TrainerConfig, no_decay: set[str], device: torch.device) -> None:
        import deepspeed

        self.config = config
        self.device = device
        try:
            self.settings = deepspeed_config(config, dist.get_world_size())
        except ValueError as error:
            raise UsageError(str(error)) from None
        check_settings(self.settings)
        optimizer = build_optimizer(module, config, no_decay, device)
        self._engine, wrapped, _, _ = deepspeed.initialize(model=module, optimizer=optimizer, config=self.settings)
        self.module = module
        self.loss_scale: LossScale | None = None
        """Of fp16; None in other formats, which need none."""
        if config.precision == "fp16":
            self.loss_scale = LossScale(config.initial_loss_scale, config.loss_scale_window)
        self.before_update: Callable[[], None] = lambda: None
        self.owned: OwnedState = open_state(module, wrapped, config.zero_stage, ema=config.ema_decay > 0)

    @property
    def accumulation(self) -> int:
        """Micro-batches per optimizer step."""
        return int(self.settings["gradient_accumulation_steps"])

    def step(self, micro_batches: Iterable[Batch], learning_rate: float) -> StepResult:
        """Forward and backward over all micro-batches, then one optimizer step, skipped if a gradient is not finite."""
        for group in self._engine.optimizer.param_groups:
            group["lr"] = learning_rate
        scale, factor = self._begin_scaled()
        totals: Terms = {}
        for number, batch in enumerate(micro_batches, start=1):
            terms = self._engine(batch)
            self._engine.backward(terms["loss"] * factor if factor != 1 else terms["loss"])
            if number == self.accumulation:
                self.before_update()
            self._engine.step()
            for name, value in terms.items():
                totals[name] = totals.get(name, 0) + value.detach() / self.accumulation
        applied = bool(self._engine.was_step_applied())
        if applied and self.owned.keeps_ema:
            self.owned.update_ema(self.config.ema_decay)
        if self.loss_scale:
            self.loss_scale.update(applied)
        return StepResult(totals, applied, float(self._engine.get_global_grad_norm()), scale)

    @torch.no_grad()
    def look(self, batch: Batch) -> Terms:
        """The module's forward on a micro-batch, without gradients, before the step that it belongs to.

        A collective: ZeRO 3 gathers weights as it goes, by hooks of the module. They fetch ahead as long as the modules
        come in the order of the last forward pass, and a pass may end early: so a look is to be the begin of a step's.
        """
        terms: Terms = self.module(batch)
        return terms

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


def split_batch(batch: Batch, parts: int) -> Sequence[Batch]:
    """Cut a batch into equal micro-batches along the first axis."""
    if parts == 1:
        return [batch]
    pieces = {name: tensor.chunk(parts) for name, tensor in batch.items()}
    return [{name: chunks[i] for name, chunks in pieces.items()} for i in range(parts)]
