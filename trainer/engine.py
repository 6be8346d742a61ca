"""DeepSpeed, reduced to what a stage needs: an optimizer step over micro-batches, and the state that this rank owns."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from trainer.config import TrainerConfig
from trainer.fragments import OwnedState

Batch = dict[str, Tensor]
Terms = dict[str, Tensor]


@dataclass(frozen=True)
class StepResult:
    """What one optimizer step did: mean terms over this rank's micro-batches, and whether the weights moved."""

    terms: Terms
    applied: bool
    grad_norm: float


def prepare_deepspeed() -> None:
    """Settings that DeepSpeed reads at import and at its first collective; torch.distributed must be initialized."""
    if not torch.cuda.is_available():
        os.environ["DS_ACCELERATOR"] = "cpu"
    # torch 2.14 renamed collectives that DeepSpeed 0.19 calls by their old names, and says so at each call.
    warnings.filterwarnings("ignore", category=FutureWarning, message=r".*all_gather.*is deprecated")
    import deepspeed

    # DeepSpeed would compile a shared-memory all-reduce at first use. It needs a compiler on every node, and its peers
    # wait for a killed rank without end, where gloo raises.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(dist_backend=dist.get_backend(), auto_mpi_discovery=False, verbose=False)


def deepspeed_config(config: TrainerConfig, world: int) -> dict[str, Any]:
    """The DeepSpeed JSON that follows from the trainer's config.

    Raises:
        ValueError: if the global batch cannot be cut into equal micro-batches over the workers.
    """
    micro, accumulation = config.split_over(world)
    return {
        "train_batch_size": config.global_batch,
        "train_micro_batch_size_per_gpu": micro,
        "gradient_accumulation_steps": accumulation,
        "gradient_clipping": config.gradient_clipping,
        "zero_optimization": {"stage": config.zero_stage, "overlap_comm": False},
        "zero_allow_untested_optimizer": True,
    }


def _parameter_groups(module: nn.Module, weight_decay: float, no_decay: set[str]) -> list[dict[str, Any]]:
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            (plain if parameter.ndim < 2 or name in no_decay else decayed).append(parameter)
    groups: list[dict[str, Any]] = [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": plain, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


class Engine:
    """A module under DeepSpeed ZeRO whose forward maps a batch to named scalar terms, one of them "loss"."""

    def __init__(self, module: nn.Module, config: TrainerConfig, no_decay: set[str], device: torch.device) -> None:
        import deepspeed

        self.config = config
        self.device = device
        self.settings = deepspeed_config(config, dist.get_world_size())
        optimizer = torch.optim.AdamW(
            _parameter_groups(module, config.weight_decay, no_decay),
            lr=config.learning_rate,
            betas=config.betas,
            fused=True,
        )
        self._engine, zero, _, _ = deepspeed.initialize(model=module, optimizer=optimizer, config=self.settings)
        self.module = module
        self.owned = OwnedState(module, zero, ema=config.ema_decay > 0)

    @property
    def accumulation(self) -> int:
        """Micro-batches per optimizer step."""
        return int(self.settings["gradient_accumulation_steps"])

    def step(self, micro_batches: Iterable[Batch], learning_rate: float) -> StepResult:
        """Forward and backward over all micro-batches, then one optimizer step, skipped if a gradient is not finite."""
        for group in self._engine.optimizer.param_groups:
            group["lr"] = learning_rate
        totals: Terms = {}
        for batch in micro_batches:
            terms = self._engine(batch)
            self._engine.backward(terms["loss"])
            self._engine.step()
            for name, value in terms.items():
                totals[name] = totals.get(name, 0) + value.detach() / self.accumulation
        applied = bool(self._engine.was_step_applied())
        if applied and self.owned.keeps_ema:
            self.owned.update_ema(self.config.ema_decay)
        return StepResult(totals, applied, float(self._engine.get_global_grad_norm()))

    def overwrite_rows(self, name: str, rows: Tensor, values: Tensor) -> None:
        """Replace rows of a matrix, on all ranks alike: weights, master and average become `values`, moments zero.

        Args:
            name: of the parameter [N, C].
            rows: int64 [R].
            values: fp32 [R, C], equal on all ranks.
        """
        parameter = self.module.get_parameter(name)
        with torch.no_grad():
            parameter[rows] = values.to(parameter.dtype)
        replaced = torch.zeros(parameter.shape, dtype=torch.bool, device=parameter.device)
        replaced[rows] = True
        for fragment in self.owned:
            if fragment.name == name:
                mask = replaced.flatten()[fragment.start : fragment.stop]
                fresh = parameter.detach().flatten()[fragment.start : fragment.stop][mask].float()
                for role, tensor in fragment.roles.items():
                    tensor[mask] = fresh if role in {"master", "ema"} else 0.0


def split_batch(batch: Batch, parts: int) -> Sequence[Batch]:
    """Cut a batch into equal micro-batches along the first axis."""
    if parts == 1:
        return [batch]
    pieces = {name: tensor.chunk(parts) for name, tensor in batch.items()}
    return [{name: chunks[i] for name, chunks in pieces.items()} for i in range(parts)]
