"""The whole config of a run, section by section."""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

from data_pipeline import storage
from data_pipeline.config import DataConfig, TokensConfig
from data_pipeline.views import check_fit
from model.config import Section
from trainer.config import (
    EvaluationConfig,
    GeneratorStageConfig,
    SamplingConfig,
    TeacherConfig,
    TokenizerStageConfig,
    TrackingConfig,
)


class ClusterConfig(Section):
    """Where and how widely stages run. Only this and the precision differ between a laptop and a cluster."""

    address: str | None = None
    """Address of a Ray cluster; null uses the one in RAY_ADDRESS, or starts one on this machine for the command."""
    workers: int = Field(1, gt=0)
    """Training workers (processes)."""
    cpus_per_worker: float = Field(1, gt=0)
    """CPUs that each worker reserves; each uses as many threads."""
    gpus_per_worker: float = Field(0, ge=0)
    """GPUs that each worker reserves."""
    peak_tflops: float | None = Field(None, gt=0)
    """TFLOP/s that one device could do in the precision of training, for MFU; null takes a known device's from a table.
    Without either, MFU is left out."""
    max_failures: int = Field(3, ge=-1)
    """Times that Ray restarts a stage whose worker died; -1 for no limit."""


class RunConfig(Section):
    """A run: from raw images to generated ones."""

    run: str
    """Folder of the run, at any URI. Each stage has its own folder below it."""
    seed: int = 0
    """Of everything that is random."""
    data: DataConfig
    """From raw images to image shards."""
    teacher: TeacherConfig | None = None
    """The frozen teacher."""
    tokenizer: TokenizerStageConfig
    """The image tokenizer."""
    tokens: TokensConfig = TokensConfig()
    """From image shards to token shards."""
    generator: GeneratorStageConfig
    """The generator."""
    sampling: SamplingConfig = SamplingConfig()
    """How images are drawn."""
    evaluation: EvaluationConfig = EvaluationConfig()
    """How the result is judged."""
    tracking: TrackingConfig = TrackingConfig()
    """Who is shown its metrics."""
    cluster: ClusterConfig = ClusterConfig()
    """Where it runs."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        loss = self.tokenizer.loss
        if self.teacher is None and (loss.semantic > 0 or loss.feature > 0):
            raise ValueError("tokenizer.loss.semantic and .feature need a teacher: add that section, or set both to 0")
        check_fit(self.data.fit, self.tokens.views)
        return self

    def folder(self, name: str) -> str:
        """URI of a folder of this run: images, teacher, judge, tokenizer, tokens, generator, samples."""
        given = {"images": self.data.images, "tokens": self.tokens.output}.get(name)
        return given or storage.join(self.run, name)
