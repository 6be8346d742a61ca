"""What can be set of training, sampling and evaluation. Imports no torch, so that the command line starts fast."""

from trainer.config.distances import DistanceConfig, ReconstructionDistanceConfig, SampleDistanceConfig
from trainer.config.evaluation import EvaluationConfig
from trainer.config.stages import (
    ChosenClasses,
    ClassifierStageConfig,
    GeneratorStageConfig,
    GeneratorValidationConfig,
    PicturesConfig,
    SamplingConfig,
    TeacherConfig,
)
from trainer.config.tokenizer import GuideConfig, TokenizerLossConfig, TokenizerStageConfig, ValidationConfig
from trainer.config.training import (
    LONGEST_WAIT,
    MOST_SAMPLES_A_STEP,
    MOST_STEPS,
    KeepBest,
    SpikeConfig,
    TrackingConfig,
    TrainerConfig,
)

__all__ = [
    "LONGEST_WAIT",
    "MOST_SAMPLES_A_STEP",
    "MOST_STEPS",
    "ChosenClasses",
    "ClassifierStageConfig",
    "DistanceConfig",
    "EvaluationConfig",
    "GeneratorStageConfig",
    "GeneratorValidationConfig",
    "GuideConfig",
    "KeepBest",
    "PicturesConfig",
    "ReconstructionDistanceConfig",
    "SampleDistanceConfig",
    "SamplingConfig",
    "SpikeConfig",
    "TeacherConfig",
    "TokenizerLossConfig",
    "TokenizerStageConfig",
    "TrackingConfig",
    "TrainerConfig",
    "ValidationConfig",
]
