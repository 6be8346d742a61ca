"""What model FLOPs utilization (MFU) is measured by: operations of a step, and what a device could do."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from data_pipeline.config import TokensConfig
from model.config import ImageFolderConfig, NextScaleConfig, TokenizerConfig
from trainer.config import GeneratorStageConfig, TeacherConfig, TokenizerStageConfig
from trainer.job import TrainJob
from trainer.planning.devices import TERA, peak_flops
from trainer.planning.workload import StageConfigs, teacher_at, tokenizer_at, workload


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
    tokenizer = _tokenizer(job)
    counted = isinstance(tokenizer, ImageFolderConfig) and not (
        isinstance(job.section, GeneratorStageConfig) and not isinstance(job.section.model, NextScaleConfig)
    )
    if job.stage not in job.config or not counted:
        return None
    configs = StageConfigs(
        job.section if isinstance(job.section, TokenizerStageConfig) else None,
        job.section if isinstance(job.section, GeneratorStageConfig) else None,
        _teacher(job),
        TokensConfig(),
        job.reading,
        tokenizer,
    )
    return workload(f"train-{job.stage}", configs, world).flops.exact * job.section.trainer.global_batch


def _tokenizer(job: TrainJob) -> TokenizerConfig | None:
    """The tokenizer that is trained, or whose tokens a generator learns; None if it is not known."""
    if isinstance(job.section, TokenizerStageConfig):
        return job.section.model
    if "tokenizer" in job.inputs:
        return tokenizer_at(job.inputs["tokenizer"])
    section = job.config.get("tokenizer")
    return None if section is None else TokenizerStageConfig.model_validate(section).model


def _teacher(job: TrainJob) -> TeacherConfig | None:
    if "teacher" in job.inputs and "teacher_timm" not in job.inputs:
        return teacher_at(job.inputs["teacher"])
    section = job.config.get("teacher")
    return None if section is None else TeacherConfig.model_validate(section)
