"""What can be set of convolutional tokenizers: VQ-GAN (taming, LlamaGen, VAR) and MaskGIT's."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from model.config.quantizers import AnyQuantizerConfig, VectorConfig
from model.config.section import Section, Sides, Widths
from model.config.tokenizers import GridTokenizerConfig

Counts = Annotated[tuple[Annotated[int, Field(ge=0, le=64)], ...], Field(min_length=1, max_length=16)]


class ConvolutionsConfig(Section):
    """Levels of residual blocks, between which the side is halved or doubled. The defaults are LlamaGen's."""

    widths: Widths = (128, 128, 256, 256, 512)
    """Channels of each level, from the pixels to the latent."""
    blocks: Counts = (2,)
    """Residual blocks of each level, in the same order; one number is for all levels."""
    middle_blocks: int = Field(2, ge=0, le=64)
    """Residual blocks beside the latent, after the levels of an encoder and before those of a decoder."""
    attention_levels: int = Field(1, ge=0, le=16)
    """Levels, counted from the latent, that have attention over the grid after each residual block."""
    middle_attention: bool = True
    """Attention after each middle block but the last."""
    norm_groups: int = Field(32, gt=0, le=65_536)
    """Groups of each normalization (GroupNorm)."""
    residual: Literal["3x3-3x3", "3x3-1x1"] = "3x3-3x3"
    """Convolutions of a residual block: each after a normalization and swish, as published; or a cheaper pair, of which
    the second follows swish alone."""
    shortcut: Literal["input", "branch"] = "input"
    """What a block that changes its width adds through a 1x1 convolution: its input; or, as MaskGIT's weights want it,
    what the block's own convolutions gave."""
    residual_bias: bool = True
    """Whether the convolutions of residual blocks, and an encoder's first one, have a bias."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        levels = len(self.widths)
        if len(self.blocks) not in {1, levels}:
            raise ValueError(
                f"blocks {list(self.blocks)}: give one number, or one for each of {len(self.widths)} levels"
            )
        odd = [width for width in self.widths if width % self.norm_groups]
        if odd:
            raise ValueError(f"widths {odd} are no multiples of norm_groups {self.norm_groups}")
        if self.attention_levels > levels:
            raise ValueError(f"attention_levels {self.attention_levels}: there are {levels} levels")
        return self

    def _check_levels(self, kind: str) -> Self:
        """Only strided convolutions between levels change the width; otherwise a level's first block does."""
        if kind not in {"strided", "transposed"} and not all(map(self.blocks_of, range(len(self.widths)))):
            raise ValueError(f"blocks {list(self.blocks)}: {kind} levels need one or more")
        return self

    def blocks_of(self, level: int) -> int:
        """Residual blocks of a level, which counts from the pixels."""
        return self.blocks[level if len(self.blocks) > 1 else 0]

    def attends(self, level: int) -> bool:
        """Whether a level has attention."""
        return level >= len(self.widths) - self.attention_levels

    @property
    def factor(self) -> int:
        """Pixels at the side of the image for each cell at the side of the latent grid."""
        raise NotImplementedError(f"{type(self).__name__} has to say what it makes of the image's side")


class ConvolutionalEncoderConfig(ConvolutionsConfig):
    """Pixels to latent."""

    downsampling: Literal["padded", "pooled", "strided"] = "padded"
    """How the side is halved. `padded`: 3x3, stride 2, after a row and a column of zeros at the bottom and at the right
    (between levels, as in VQ-GAN). `pooled`: means of 2x2 (between levels, as in MaskGIT). `strided`: 4x4, stride 2, to
    the next level's width, and from the pixels to the first level's: small networks never see the full side."""
    start_width: int | None = Field(None, gt=0, le=65_536)
    """Channels of the first convolution; null for the first level's. `strided` levels never differ from it."""
    end_kernel: Literal[1, 3] = 3
    """Side of the last convolution, after a normalization and swish."""

    @model_validator(mode="after")
    def _check_downsampling(self) -> Self:
        if self.start_width is not None and self.downsampling == "strided":
            raise ValueError(f"start_width {self.start_width}: strided levels begin with the first level's width")
        if self.first_width % self.norm_groups:
            raise ValueError(f"start_width {self.start_width} is no multiple of norm_groups {self.norm_groups}")
        return self._check_levels(self.downsampling)

    @property
    def first_width(self) -> int:
        """Channels of the first convolution."""
        return self.widths[0] if self.start_width is None else self.start_width

    @property
    def factor(self) -> int:
        """Pixels at the side of the image for each cell at the side of the latent grid."""
        return int(2 ** (len(self.widths) - (self.downsampling != "strided")))


class ConvolutionalDecoderConfig(ConvolutionsConfig):
    """Latent to pixels."""

    blocks: Counts = (3,)
    """Residual blocks of each level, in the same order; one number is for all levels."""
    upsampling: Literal["nearest", "transposed"] = "nearest"
    """How the side is doubled. `nearest`: each cell four times, then 3x3 (between levels, as published). `transposed`:
    4x4, transposed, stride 2, to the next level's width, and from the first level's to the pixels."""

    @model_validator(mode="after")
    def _check_upsampling(self) -> Self:
        return self._check_levels(self.upsampling)

    @property
    def factor(self) -> int:
        """Pixels at the side of the image for each cell at the side of the latent grid."""
        return int(2 ** (len(self.widths) - (self.upsampling != "transposed")))


class ConvolutionalConfig(GridTokenizerConfig):
    """What the configs of convolutional tokenizers have.

    An image whose side is no multiple of the encoder's factor is padded to one by its own edge, and cropped when
    decoded. `branches` share the encoder's channels: an option of ours, which nothing pulls apart but the losses.
    """

    untrained: ClassVar[dict[str, object]] = {"quantizer_dropout": 0}

    branches: int = Field(1, gt=0, le=16)
    """Product-quantization groups, which split the encoder's channels. The last is the semantic one."""
    scales: Sides = (16,)
    """Side of the token grid at each residual step, coarse to fine. The last is the side of the latent grid."""
    quantizer_dropout: float = Field(0, ge=0, le=1)
    """Share of training images of which only the first scales are kept."""
    dropout_min_scales: int = Field(1, gt=0, le=64)
    """Fewest scales that quantizer dropout keeps; the number is uniform from here to all."""
    encoder: ConvolutionalEncoderConfig = ConvolutionalEncoderConfig()
    """Image to latent."""
    decoder: ConvolutionalDecoderConfig = ConvolutionalDecoderConfig()
    """Latent to image."""
    latent_width: int = Field(256, gt=0, le=65_536)
    """Channels at the encoder's end and at the decoder's begin, where convolutions around the quantizer change them."""
    quantization_kernel: Literal[0, 1, 3] = 1
    """Side of the convolutions before and after the quantizer: 1 as in LlamaGen, 3 as in VAR, 0 for none, as in MaskGIT
    (the encoder then ends, and the decoder begins, with the codes' channels)."""
    teacher_width: int | None = Field(None, gt=0, le=65_536)
    """Width of the semantic teacher's features, for a projection of its own; null without a teacher."""

    @model_validator(mode="after")
    def _check_factors(self) -> Self:
        factor = self.encoder.factor
        if self.decoder.factor != factor:
            raise ValueError(f"the encoder makes {factor} pixels a cell, and the decoder {self.decoder.factor} of it")
        if self.padded_size != self.grid * factor:
            raise ValueError(
                f"scales {list(self.scales)}: images of {self.image_size} px at {factor} px a cell have a grid of "
                f"{self.padded_size // factor}, which is to be the last scale"
            )
        return self

    @property
    def padded_size(self) -> int:
        """Side of the image with its padding, in pixels."""
        return -(-self.image_size // self.encoder.factor) * self.encoder.factor


class VqganConfig(ConvolutionalConfig):
    """Convolutional VQ-GAN (arXiv 2012.09841): with its defaults LlamaGen's VQ-16, with scales also VAR's tokenizer."""

    kind: Literal["vqgan"] = "vqgan"
    """Family of the tokenizer."""
    quantizer: AnyQuantizerConfig = VectorConfig(codebook_size=16_384, code_dim=8, unit_codes=True)
    """Of each branch."""


class MaskgitVqganConfig(ConvolutionalConfig):
    """MaskGIT's VQ-GAN (arXiv 2202.04200), which is TiTok's teacher and pixel decoder and RAR's tokenizer."""

    kind: Literal["maskgit-vqgan"] = "maskgit-vqgan"
    """Family of the tokenizer."""
    quantizer: AnyQuantizerConfig = VectorConfig(
        codebook_size=1024, code_dim=256, lookup="euclidean", initialization="uniform"
    )
    """Of each branch."""
    encoder: ConvolutionalEncoderConfig = ConvolutionalEncoderConfig(
        attention_levels=0,
        middle_attention=False,
        shortcut="branch",
        residual_bias=False,
        downsampling="pooled",
        end_kernel=1,
    )
    """Image to latent."""
    decoder: ConvolutionalDecoderConfig = ConvolutionalDecoderConfig(
        blocks=(2,), attention_levels=0, middle_attention=False, shortcut="branch", residual_bias=False
    )
    """Latent to image."""
    quantization_kernel: Literal[0, 1, 3] = 0
    """Side of the convolutions before and after the quantizer; 0, as published, for none."""
