"""What model FLOPs utilization (MFU) is measured by: operations of a step, and what a device could do.

Operations are those of the traced networks (trainer/planning/step_trace.py), with exact attention and once what is
computed twice. Tracing takes seconds, so a process of its own does it while training has begun, and only where the
peak of the device is known; records have an MFU from then on. It needs a process group of one rank, too, which the
process that trains cannot have beside its own.

    python -P -m trainer.planning.model_flops < {"stage": ..., "section": ..., "tokenizer": ..., "teacher": ...}
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, TypeAdapter

from data_pipeline.config import ReadingConfig, TokensConfig
from model.config import TokenizerConfig
from model.families import AnyTokenizerConfig
from trainer.config import ClassifierStageConfig, GeneratorStageConfig, TeacherConfig, TokenizerStageConfig
from trainer.job import PROXY, TrainJob
from trainer.planning.blank_stages import StageConfigs, teacher_at, tokenizer_at
from trainer.planning.devices import TERA, peak_flops

_LEAST_URGENT = 19
_FEW = 4
"""Samples that are traced; operations are linear in them."""


class ModelFlops:
    """Of a stage on its devices.

    Args:
        device: its name.
        peak: operations per second of one rank's device; None if unknown.
        counting: the process that counts; None if nobody does.
        samples: of a step.
        counted: whether this stage's operations can be counted.
    """

    def __init__(
        self,
        device: str,
        peak: float | None,
        counting: subprocess.Popen[bytes] | None,
        samples: int,
        *,
        countable: bool = True,
    ) -> None:
        self.device, self.peak, self._counting, self._samples = device, peak, counting, samples
        self._countable = countable
        self._per_step: int | None = None

    def per_step(self) -> int | None:
        """Operations of one optimizer step over all ranks, exact attention; None before they are counted."""
        if self._counting is not None and self._counting.poll() is not None:
            assert self._counting.stdout is not None
            said = self._counting.stdout.read().strip()
            self._counting.stdout.close()
            self._per_step = round(float(said) * self._samples) if self._counting.returncode == 0 else None
            self._counting = None
        return self._per_step

    def wait(self) -> None:
        """Until the count is there."""
        if self._counting is not None:
            self._counting.wait()

    def close(self) -> None:
        """Let nobody count on."""
        if self._counting is not None:
            self._counting.kill()
            self._counting.wait()
            self.per_step()

    @property
    def left_out(self) -> str | None:
        """Why there is no MFU where there could be one; None otherwise."""
        if not self._countable or self.peak is not None:
            return None
        return f"MFU is left out: the peak of {self.device} is not known; cluster.peak_tflops gives it"


def model_flops(job: TrainJob, device: Any, *, count: bool = True) -> ModelFlops:
    """Operations of a job's steps, and the peak of its device: `cluster.peak_tflops`, else the table's.

    Args:
        job: what is trained.
        device: of this rank, a torch.device.
        count: whether to count operations; one rank of a run is enough.
    """
    import torch

    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "a CPU"
    peak = peak_flops(name, job.section.trainer.precision) if device.type == "cuda" else None
    peak = peak if job.peak_tflops is None else job.peak_tflops * TERA
    countable = job.stage in job.config or job.stage == "judge"
    counting = _start_count(job) if count and countable and peak is not None else None
    return ModelFlops(name, peak, counting, job.section.trainer.global_batch, countable=countable)


def _start_count(job: TrainJob) -> subprocess.Popen[bytes]:
    """This module as a program, in a process that gets in nobody's way."""
    packages = str(Path(__file__).resolve().parents[2])
    paths = [packages, os.environ.get("PYTHONPATH", "")]
    changes = {"PYTHONPATH": os.pathsep.join(filter(None, paths)), "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "trainer.planning.model_flops"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=os.environ | changes,
    )
    assert process.stdin is not None
    process.stdin.write(json.dumps(asked_of(job)).encode())
    process.stdin.close()
    return process


def asked_of(job: TrainJob) -> dict[str, Any]:
    """What `sample_flops` is asked of a job, as JSON."""
    tokenizer, teacher = _tokenizer(job), _teacher(job)
    proxy = tokenizer_at(job.inputs[PROXY]) if PROXY in job.inputs else None
    return {
        "stage": job.stage,
        "section": job.section.model_dump(mode="json"),
        "tokenizer": None if tokenizer is None else tokenizer.model_dump(mode="json"),
        "teacher": None if teacher is None else teacher.model_dump(mode="json"),
        "proxy": None if proxy is None else proxy.model_dump(mode="json"),
    }


def _tokenizer(job: TrainJob) -> TokenizerConfig | None:
    """Whose tokens a generator learns; None if it is not known."""
    if isinstance(job.section, GeneratorStageConfig) and "tokenizer" in job.inputs:
        return tokenizer_at(job.inputs["tokenizer"])
    section = job.config.get("tokenizer")
    return None if section is None else TokenizerStageConfig.model_validate(section).model


def _teacher(job: TrainJob) -> TeacherConfig | None:
    if "teacher" in job.inputs and "teacher_timm" not in job.inputs:
        return teacher_at(job.inputs["teacher"])
    section = job.config.get("teacher")
    return None if section is None else TeacherConfig.model_validate(section)


Read = TypeVar("Read", bound=BaseModel)


def _read(kind: type[Read], section: dict[str, Any] | None) -> Read | None:
    return None if section is None else kind.model_validate(section)


def sample_flops(
    stage: str,
    section: dict[str, Any],
    tokenizer: dict[str, Any] | None,
    teacher: dict[str, Any] | None,
    proxy: dict[str, Any] | None = None,
) -> float:
    """Operations of one sample in training, exact attention.

    Args:
        stage: by its folder.
        section: of the stage.
        tokenizer: model of the tokenizer whose tokens are learned.
        teacher: section of the teacher that the tokenizer is trained by.
        proxy: model of the tokenizer whose codes it learns.
    """
    from trainer.planning.step_trace import trace_micro_batch

    own = {stage: section}
    configs = StageConfigs(
        _read(TokenizerStageConfig, own.get("tokenizer")),
        _read(GeneratorStageConfig, own.get("generator")),
        _read(TeacherConfig, own.get("teacher", teacher)),
        TokensConfig(),
        ReadingConfig(),
        None if tokenizer is None else TypeAdapter(AnyTokenizerConfig).validate_python(tokenizer),
        _read(ClassifierStageConfig, own.get("judge")),
        None if proxy is None else TypeAdapter(AnyTokenizerConfig).validate_python(proxy),
    )
    trace = trace_micro_batch(f"train-{stage}", configs, _FEW, "cuda", checkpointing=False, warm=True, short=True)
    return trace.exact_flops / _FEW


if __name__ == "__main__":
    os.nice(_LEAST_URGENT)
    sys.stdout.write(str(sample_flops(**json.load(sys.stdin))))
