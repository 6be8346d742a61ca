"""What model FLOPs utilization (MFU) is measured by: operations of a step, and what a device could do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from data_pipeline.config import TokensConfig
from trainer.config import GeneratorStageConfig, TeacherConfig, TokenizerStageConfig
from trainer.job import TrainJob
from trainer.planning.devices import TERA, peak_flops
from trainer.planning.workload import StageConfigs, workload


@dataclass(frozen=True)
class ModelFlops:
    """Of a stage on its devices."""

    per_step: int | None
    """Operations of one optimizer step over all ranks, exact attention (trainer/planning/flops.py); None for stages
    that nobody counted."""
    peak: float | None
    """Operations per second of one rank's device; None if unknown."""
    device: str
    """Its name."""

    @property
    def left_out(self) -> str | None:
        """Why there is no MFU where there could be one; None otherwise."""
        if self.per_step is None or self.peak is not None:
            return None
        return f"MFU is left out: the peak of {self.device} is not known; cluster.peak_tflops gives it"


def model_flops(job: TrainJob, device: torch.device, world: int) -> ModelFlops:
    """Operations of a job's steps, and the peak of its device: `cluster.peak_tflops`, else the table's."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "a CPU"
    peak = peak_flops(name, job.section.trainer.precision) if device.type == "cuda" else None
    given = None if job.peak_tflops is None else job.peak_tflops * TERA
    return ModelFlops(step_flops(job, world), given or peak, name)


def step_flops(job: TrainJob, world: int) -> int | None:
    """Operations of one optimizer step on `world` ranks; None for classifiers, or if the run's config is not known."""
    if not isinstance(job.section, TokenizerStageConfig | GeneratorStageConfig):
        return None
    if not {"tokenizer", "generator"} <= job.config.keys():
        return None
    sections: dict[str, Any] = job.config | {job.stage: job.section.model_dump(mode="json")}
    teacher = sections.get("teacher")
    configs = StageConfigs(
        TokenizerStageConfig.model_validate(sections["tokenizer"]),
        GeneratorStageConfig.model_validate(sections["generator"]),
        None if teacher is None else TeacherConfig.model_validate(teacher),
        TokensConfig(),
        job.reading,
    )
    return workload(f"train-{job.stage}", configs, world).flops.exact * job.section.trainer.global_batch
