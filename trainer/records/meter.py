"""Measurements of the steps since the last record of metrics.jsonl.

    window_steps, window_seconds    steps of this record, and the time from the last record to this one
    step_seconds                    window_seconds without validation by step; _p50, _p95 and _max are of the steps
                                    alone, on rank 0
    validation_seconds              of window_seconds, looking at held-out images; only where there was a look
    data_wait_share                 of window_seconds, waited for batches, mean over ranks
    checkpoint_seconds              of window_seconds, blocked by checkpoints, on the rank that waited longest
    samples_per_second, tokens_per_second    over all ranks; tokens where a batch has any
    mfu                             floating-point operations of the model's steps, as a share of the devices' peak
    grad_norm                       mean over the steps; grad_norm_NAME of a trainable besides the exported one
    loss_scale                      of the last step, in fp16; loss_scale_NAME as above
    memory_bytes                    resident memory of the process; cuda_*_bytes largest since the last record; both
                                    of the rank that has most
    skipped_steps                   updates that were not applied, since the run began, of all trainables
    passed_over_steps               steps that rollbacks skipped, since the run began

Losses and norms stay on the device until a record is due, when two small collectives average them.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from trainer.config import TrainerConfig
from trainer.engine.engine import StepResult
from trainer.engine.scalars import Scalars
from trainer.engine.schedule import learning_rate, weight_decay


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest of the values that at least this share of them does not exceed (nearest rank)."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


class Meter:
    """Measures the steps of one rank.

    Args:
        config: of the trainer.
        flops_per_step: floating-point operations of one optimizer step, over all ranks; None as long as unknown.
        peak_flops: floating-point operations per second that one rank's device can do; None if unknown.
        exported: the trainable whose norm and loss scale have no name of their own.
    """

    def __init__(
        self,
        config: TrainerConfig,
        flops_per_step: Callable[[], float | None] = lambda: None,
        peak_flops: float | None = None,
        exported: str = "",
    ) -> None:
        self._config, self._exported = config, exported
        self._flops, self._peak = flops_per_step, peak_flops
        self.start()

    def start(self) -> None:
        """Begin a window: nothing is measured yet."""
        self._began = time.perf_counter()
        self._steps: list[float] = []
        self._waited = self._blocked = self._looked = 0.0
        self._tokens = 0
        self._norms: dict[str, Tensor] = {}
        self._updates: dict[str, int] = {}
        self._loss_scales: dict[str, float] = {}
        self._terms: dict[tuple[str, ...], Scalars] = {}
        self._counts: dict[tuple[str, ...], int] = {}

    def add(self, result: StepResult, waited: float, seconds: float, tokens: int = 0) -> None:
        """Account for a step.

        Args:
            result: of the step.
            waited: seconds that it waited for its batch.
            seconds: that it took in all.
            tokens: of this rank's batch.
        """
        self._steps.append(seconds)
        self._waited += waited
        self._tokens += tokens
        for name, update in result.updates.items():
            self._norms[name] = self._norms.get(name, 0) + update.grad_norm
            self._updates[name] = self._updates.get(name, 0) + 1
            self._loss_scales[name] = update.loss_scale
        names = result.terms.names
        self._terms[names] = result.terms + self._terms[names] if names in self._terms else result.terms
        self._counts[names] = self._counts.get(names, 0) + 1

    def block(self, seconds: float) -> None:
        """Account for time that a checkpoint took from training."""
        self._blocked += seconds

    def look(self, seconds: float) -> None:
        """Account for time in which the network was looked at, and not trained."""
        self._looked += seconds

    def record(self, step: int, skipped: int, passed_over: int = 0) -> dict[str, Any]:
        """The record of the steps up to `step` (a collective), and a new window.

        Args:
            step: steps that were done or passed over.
            skipped: optimizer steps that were not applied.
            passed_over: steps that rollbacks skipped.
        """
        seconds, count = time.perf_counter() - self._began, len(self._steps)
        means, most = self._over_ranks(seconds)
        trained = max(seconds - self._looked, 1e-9)
        numbers = means | {
            "learning_rate": learning_rate(self._config, step - 1),
            "samples_per_second": count * self._config.global_batch / trained,
            "step_seconds": trained / count,
            "step_seconds_p50": percentile(self._steps, 0.5),
            "step_seconds_p95": percentile(self._steps, 0.95),
            "step_seconds_max": max(self._steps),
            "window_steps": count,
            "window_seconds": seconds,
            "eta_seconds": (self._config.steps - step) * trained / count,
        }
        if self._config.final_weight_decay is not None:
            numbers["weight_decay"] = weight_decay(self._config, step - 1)
        if self._looked:
            numbers["validation_seconds"] = self._looked
        norms = {name: float(norm) / self._updates[name] for name, norm in self._norms.items()}
        numbers |= self._by_trainable("grad_norm", norms)
        if self._config.precision == "fp16":
            numbers |= self._by_trainable("loss_scale", self._loss_scales)
        if self._tokens:
            numbers["tokens_per_second"] = self._tokens * dist.get_world_size() / trained
        flops = self._flops()
        if flops and self._peak:
            numbers["mfu"] = flops * count / (trained * self._peak * dist.get_world_size())
        finite = {name: value if math.isfinite(value) else None for name, value in (numbers | most).items()}
        self.start()
        samples = (step - passed_over) * self._config.global_batch
        head = {"time": time.time(), "step": step, "steps": self._config.steps, "samples": samples}
        return head | finite | {"skipped_steps": skipped, "passed_over_steps": passed_over}

    def _over_ranks(self, seconds: float) -> tuple[dict[str, float], dict[str, float]]:
        """Means of the terms and of the wait over all ranks; the largest memory and time blocked."""
        terms = self._means()
        device = terms.values_N.device
        sums = torch.cat([terms.values_N, terms.values_N.new_full((1,), self._waited / seconds)])
        dist.all_reduce(sums)
        found = zip([*terms.names, "data_wait_share"], (sums / dist.get_world_size()).tolist(), strict=True)
        means = dict(sorted(found))
        most = memory(device) | {"checkpoint_seconds": self._blocked}
        largest = torch.tensor(list(most.values()), dtype=torch.float64, device=device)
        dist.all_reduce(largest, op=dist.ReduceOp.MAX)
        worst = dict(zip(most, largest.tolist(), strict=True))
        return means, {name: int(value) if name.endswith("_bytes") else value for name, value in worst.items()}

    def _means(self) -> Scalars:
        """Of each term, over the steps that had it: a stage may have more from some step on."""
        names = tuple(dict.fromkeys(name for each in self._terms for name in each))
        counts = {name: sum(self._counts[each] for each in self._terms if name in each) for name in names}
        sums = [torch.stack([each[name] for each in self._terms.values() if name in each]).sum() for name in names]
        return Scalars(names, torch.stack([value / counts[name] for name, value in zip(names, sums, strict=True)]))

    def _by_trainable(self, number: str, values: dict[str, float]) -> dict[str, float]:
        return {number if name == self._exported else f"{number}_{name}": value for name, value in values.items()}


def memory(device: torch.device) -> dict[str, float]:
    """Bytes that this process holds; on CUDA also the most that tensors took since the last call, and torch kept."""
    import psutil

    found = {"memory_bytes": float(psutil.Process().memory_info().rss)}
    if device.type == "cuda":
        found["cuda_allocated_bytes"] = float(torch.cuda.max_memory_allocated(device))
        found["cuda_reserved_bytes"] = float(torch.cuda.max_memory_reserved(device))
        torch.cuda.reset_peak_memory_stats(device)
    return found
