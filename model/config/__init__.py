"""What can be set of the networks. Imports no torch, so that the command line starts fast."""

from model.config.generators import GeneratorConfig, NextScaleConfig
from model.config.networks import ClassCount, ClassifierConfig, ViTConfig
from model.config.quantizers import QuantizerConfig, VectorConfig
from model.config.section import MOST_CLASSES, Section, Sides, Widths
from model.config.tokenizers import GridTokenizerConfig, ImageFolderConfig, TokenizerConfig

__all__ = [
    "MOST_CLASSES",
    "ClassCount",
    "ClassifierConfig",
    "GeneratorConfig",
    "GridTokenizerConfig",
    "ImageFolderConfig",
    "NextScaleConfig",
    "QuantizerConfig",
    "Section",
    "Sides",
    "TokenizerConfig",
    "VectorConfig",
    "ViTConfig",
    "Widths",
]
