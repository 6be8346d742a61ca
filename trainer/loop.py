"""The training loop that all stages share.

1. build the stage, wrap it in the engine, restore the newest complete checkpoint
2. step s: positions [s*B, (s+1)*B) give this rank's batch; nothing else does
3. every `log_every` steps a record, every `checkpoint_every` a checkpoint
4. at the end the network is put together from the last checkpoint and exported
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn

from data_pipeline import storage, weights
from data_pipeline.errors import FoldtrainError
from model.attention import flash_refusal
from trainer import checkpoint
from trainer.config import TrainerConfig
from trainer.engine import Batch, Engine, StepResult, Terms, prepare_deepspeed, split_batch
from trainer.job import TrainJob
from trainer.run_directory import RunDirectory, environment
from trainer.schedule import learning_rate


class Stage(Protocol):
    """What differs between the networks that are trained."""

    @property
    def network(self) -> nn.Module:
        """What is trained and exported. Anything frozen is kept outside of it."""
        ...

    @property
    def no_decay(self) -> set[str]:
        """Parameters of the network (by name) that weight decay leaves alone, besides all vectors."""
        ...

    def card(self) -> dict[str, Any]:
        """The config that rebuilds the network."""
        ...

    def batch(self, step: int) -> Batch:
        """This rank's samples of an optimizer step, on its device."""
        ...

    def terms(self, batch: Batch) -> Terms:
        """Scalars of a micro-batch, one of them "loss", which is minimized."""
        ...

    def after_step(self, step: int, engine: Engine) -> dict[str, Any]:
        """Anything to do between steps; what it returns goes into events.jsonl if there is any."""
        ...


class _Trainee(nn.Module):
    """The stage's network with the loss as its forward, so that DeepSpeed sees one module."""

    def __init__(self, stage: Stage, precision: str, device: torch.device) -> None:
        super().__init__()
        self.network = stage.network
        self._stage = (stage,)  # in a tuple, so that frozen networks of the stage are not taken for parameters
        self._autocast = torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")

    def forward(self, batch: Batch) -> Terms:
        with self._autocast:
            return self._stage[0].terms(batch)


@dataclass
class _Meter:
    """Means over the steps since the last record."""

    started: float = field(default_factory=time.perf_counter)
    steps: int = 0
    waited: float = 0.0
    terms: Terms = field(default_factory=dict)
    grad_norm: float = 0.0

    def add(self, result: StepResult, waited: float) -> None:
        self.steps += 1
        self.waited += waited
        self.grad_norm += result.grad_norm
        for name, value in result.terms.items():
            self.terms[name] = self.terms.get(name, 0) + value

    def record(self, step: int, config: TrainerConfig, skipped: int) -> dict[str, Any]:
        """The record of step `step`, averaged over ranks (a collective), and a fresh start."""
        names = sorted(self.terms)
        means = torch.stack([self.terms[name].float() / self.steps for name in names])
        dist.all_reduce(means)
        seconds = time.perf_counter() - self.started
        numbers = dict(zip(names, (means / dist.get_world_size()).tolist(), strict=True)) | {
            "learning_rate": learning_rate(config, step - 1),
            "grad_norm": self.grad_norm / self.steps,
            "samples_per_second": self.steps * config.global_batch / seconds,
            "step_seconds": seconds / self.steps,
            "data_wait_share": self.waited / seconds,
            "eta_seconds": (config.steps - step) * seconds / self.steps,
        }
        finite = {name: value if math.isfinite(value) else None for name, value in numbers.items()}
        self.__init__()  # type: ignore[misc] # a meter starts anew by being made anew
        head = {"time": time.time(), "step": step, "steps": config.steps, "samples": step * config.global_batch}
        return head | finite | {"skipped_steps": skipped}


class Loop:
    """One stage on one rank."""

    def __init__(self, job: TrainJob, stage: Stage, device: torch.device) -> None:
        prepare_deepspeed()
        self.job, self.stage, self.config = job, stage, job.section.trainer
        trainee = _Trainee(stage, self.config.precision, device)
        no_decay = {f"network.{name}" for name in stage.no_decay}
        self.engine = Engine(trainee, self.config, no_decay, device)
        self.step = self.skipped = self.skipped_in_a_row = 0
        self.records: RunDirectory | None = None

    def run(self) -> None:
        """Train from the newest complete checkpoint to the end, then export."""
        self._resume()
        if dist.get_rank() == 0:
            self._open_records()
        try:
            self._train()
        except Exception as error:
            if self.records:
                self.records.event("failure", self.step, error=f"{type(error).__name__}: {error}")
            raise
        finally:
            if self.records:
                self.records.close()
        dist.barrier()

    def _train(self) -> None:
        meter = _Meter()
        while self.step < self.config.steps:
            began = time.perf_counter()
            batch = self.stage.batch(self.step)
            waited = time.perf_counter() - began
            meter.add(self._train_step(batch), waited)
            last = self.step == self.config.steps
            if self.step % self.config.log_every == 0 or last:
                record = meter.record(self.step, self.config, self.skipped)
                if self.records:
                    self.records.metrics(record)
            if self.step % self.config.checkpoint_every == 0 or last:
                self._checkpoint()
        if self.records:
            self._export()
            self.records.event("finish", self.step)

    def _train_step(self, batch: Batch) -> StepResult:
        # Stochastic depth and dropout draw from torch's generator: a function of seed, step and rank.
        torch.manual_seed((self.job.seed * 1_000_003 + self.step) * 4099 + dist.get_rank())
        rate = learning_rate(self.config, self.step)
        result = self.engine.step(split_batch(batch, self.engine.accumulation), rate)
        self.step += 1
        self._count_skips(result)
        details = self.stage.after_step(self.step, self.engine)
        if details and self.records:
            self.records.event("restarted_codes", self.step, **details)
        return result

    def _count_skips(self, result: StepResult) -> None:
        if result.applied:
            self.skipped_in_a_row = 0
            return
        self.skipped += 1
        self.skipped_in_a_row += 1
        if self.records:
            self.records.event("skipped_step", self.step, in_a_row=self.skipped_in_a_row)
        if self.skipped_in_a_row > self.config.max_skipped_steps:
            raise FoldtrainError(
                f"{self.job.folder}: {self.skipped_in_a_row} optimizer steps in a row were skipped up to step "
                f"{self.step}, because gradients are not finite. Lower learning_rate, set gradient_clipping, or train "
                "in fp32."
            )

    def _resume(self) -> None:
        steps = checkpoint.complete_steps(self.job.checkpoints)
        if not steps:
            return
        state = checkpoint.load_checkpoint(self.job.checkpoints, steps[-1], self.engine.module, self.engine.owned)
        self.step, self.skipped = state["step"], state["skipped_steps"]
        self.skipped_in_a_row = state["skipped_in_a_row"]

    def _open_records(self) -> None:
        devices = {"device": str(self.engine.device), "workers": dist.get_world_size(), "backend": dist.get_backend()}
        details = {"deepspeed": self.engine.settings, "threads": torch.get_num_threads()} | devices
        refusal = flash_refusal(self.engine.device, self._dtype())
        details["attention"] = f"sdpa ({refusal})" if refusal else "flash_attn"
        storage.write_json(storage.join(self.job.folder, "environment.json"), environment(details))
        self.records = RunDirectory(self.job.folder, self.job.stage, self.job.config, self.step)

    def _dtype(self) -> torch.dtype:
        return torch.bfloat16 if self.config.precision == "bf16" else torch.float32

    def _checkpoint(self) -> None:
        state = {"step": self.step, "skipped_steps": self.skipped, "skipped_in_a_row": self.skipped_in_a_row}
        state |= {"world_size": dist.get_world_size(), "zero_stage": self.config.zero_stage}
        checkpoint.save_checkpoint(self.job.checkpoints, self.step, self.engine.module, self.engine.owned, state)
        if self.records:
            checkpoint.remove_old(self.job.checkpoints, self.config.keep_checkpoints)
            self.records.event("checkpoint", self.step)

    def _export(self) -> None:
        roles = {"model": "master"} | ({"ema": "ema"} if self.engine.owned.keeps_ema else {})
        files: dict[str, dict[str, Tensor]] = {}
        for name, role in roles.items():
            whole = checkpoint.assemble(self.job.checkpoints, self.step, role)
            files[name] = {key.removeprefix("network."): tensor for key, tensor in whole.items()}
        weights.write_weights(self.job.export, self.job.stage, self.stage.card(), files, self.job.lineage)
