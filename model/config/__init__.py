"""What can be set of the networks. Imports no torch, so that the command line starts fast."""

from model.config.convolutional import (
    ConvolutionalDecoderConfig,
    ConvolutionalEncoderConfig,
    MaskgitVqganConfig,
    VqganConfig,
)
from model.config.discriminators import (
    BlurConfig,
    DinoConfig,
    DiscriminatorConfig,
    PatchConfig,
    StyleGanConfig,
)
from model.config.generators import GeneratorConfig, NextScaleConfig, NextTokenConfig
from model.config.losses import (
    AdversarialConfig,
    AugmentConfig,
    ConvNextConfig,
    LecamConfig,
    LpipsConfig,
    PerceptualConfig,
    PerturbationConfig,
    SemanticConfig,
    ShiftTolerantConfig,
    TeacherDistanceConfig,
)
from model.config.networks import ClassCount, ClassifierConfig, ViTConfig
from model.config.quantizers import (
    BinaryConfig,
    FiniteScalarConfig,
    LookupFreeConfig,
    QuantizerConfig,
    SphericalConfig,
    VectorConfig,
)
from model.config.sampling import GuidanceSchedule, OrderOptions, guidance_of
from model.config.section import MOST_CLASSES, Section, Sides, Widths
from model.config.tokenizers import GridTokenizerConfig, ImageFolderConfig, TokenizerConfig

__all__ = [
    "MOST_CLASSES",
    "AdversarialConfig",
    "AugmentConfig",
    "BinaryConfig",
    "BlurConfig",
    "ClassCount",
    "ClassifierConfig",
    "ConvNextConfig",
    "ConvolutionalDecoderConfig",
    "ConvolutionalEncoderConfig",
    "DinoConfig",
    "DiscriminatorConfig",
    "FiniteScalarConfig",
    "GeneratorConfig",
    "GridTokenizerConfig",
    "GuidanceSchedule",
    "ImageFolderConfig",
    "LecamConfig",
    "LookupFreeConfig",
    "LpipsConfig",
    "MaskgitVqganConfig",
    "NextScaleConfig",
    "NextTokenConfig",
    "OrderOptions",
    "PatchConfig",
    "PerceptualConfig",
    "PerturbationConfig",
    "QuantizerConfig",
    "Section",
    "SemanticConfig",
    "ShiftTolerantConfig",
    "Sides",
    "SphericalConfig",
    "StyleGanConfig",
    "TeacherDistanceConfig",
    "TokenizerConfig",
    "VectorConfig",
    "ViTConfig",
    "VqganConfig",
    "Widths",
    "guidance_of",
]
