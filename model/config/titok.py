"""What can be set of TiTok's tokenizer (arXiv 2406.07550)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from model.config.convolutional import ConvolutionalDecoderConfig, Counts, MaskgitVqganConfig
from model.config.quantizers import QuantizerConfig, VectorConfig, quantizer_families
from model.config.registered import choice_of
from model.config.section import Section
from model.config.tokenizers import TokenizerConfig
from model.layout import TokenLayout

SIZES = {
    "small": {"width": 512, "depth": 8, "heads": 8},
    "base": {"width": 768, "depth": 12, "heads": 12},
    "large": {"width": 1024, "depth": 24, "heads": 16},
}
"""The sizes that have names. "small" is not timm's ViT-S, which is 384 wide and 12 blocks deep."""


NO_TOKENS = (
    "a tokenizer with a Gaussian bottleneck (quantizer.kind kl) has no tokens: it trains and reconstructs images; for "
    "tokens take a quantizer with codes, for instance tokenizer.model.quantizer.kind vq"
)


class TiTokViTConfig(Section):
    """TiTok's encoder or decoder: a size by name, or by its numbers."""

    size: Literal["small", "base", "large"] | None = None
    """Name of width, depth and heads: 512, 8, 8; 768, 12, 12; 1024, 24, 16. Null: as they are given."""
    width: int = Field(512, gt=0, le=65_536)
    """Channels of each token."""
    depth: int = Field(8, gt=0, le=1_000)
    """Number of blocks."""
    heads: int = Field(8, gt=0, le=1_024)
    """Attention heads."""
    mlp_ratio: float = Field(4.0, gt=0, le=64)
    """Hidden width of the MLP over `width`."""
    patch_size: int = Field(16, gt=0, le=8_192)
    """Side of a patch, in pixels. The decoder has a mask token for each."""

    @model_validator(mode="before")
    @classmethod
    def _name_sizes(cls, values: Any) -> Any:
        """Width, depth and heads are those of the name, where they are not given."""
        if isinstance(values, dict) and isinstance(values.get("size"), str):
            return SIZES.get(values["size"], {}) | values
        return values

    @model_validator(mode="after")
    def _check_sizes(self) -> Self:
        here = {"width": self.width, "depth": self.depth, "heads": self.heads}
        if self.size is not None and here != SIZES[self.size]:
            raise ValueError(f"size {self.size} is {SIZES[self.size]}, and {here} is given: set size to null")
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is no multiple of heads {self.heads}")
        return self


class GaussianConfig(Section):
    """A Gaussian bottleneck in place of a quantizer: latents without codes, for images alone."""

    kind: Literal["kl"] = "kl"
    """Kind of the bottleneck."""
    code_dim: int = Field(16, gt=0, le=65_536)
    """Channels of a latent."""
    divergence: float = Field(1e-6, ge=0)
    """Weight of the divergence from a normal distribution: a sum over an image's latents, a mean over images."""

    @property
    def width(self) -> int:
        """Channels of a latent."""
        return self.code_dim


class LatentDropoutConfig(Section):
    """Training images of which the decoder sees the first latents alone, so that they come to matter most."""

    share: float = Field(0.5, gt=0, le=1)
    """Share of the training images."""
    kept: Annotated[tuple[Annotated[int, Field(gt=0)], ...], Field(min_length=1)]
    """How many leading latents they keep, ascending; each number is as likely. Images can be decoded from these."""

    @model_validator(mode="after")
    def _check_kept(self) -> Self:
        if list(self.kept) != sorted(set(self.kept)):
            raise ValueError(f"kept {list(self.kept)}: give each number once, ascending")
        return self


class LinearDecoderConfig(Section):
    """A linear layer that paints a small image from the codes of all latents, beside the decoder, in training alone.

    Encoder and decoder can learn nothing from each other at first: the latents say nothing, and the decoder does not
    listen. What this layer gives the encoder to learn does not wait for the decoder.
    """

    weight: float = Field(1.0, gt=0)
    """Of its mean squared error."""
    image_size: int = Field(32, gt=0, le=1_024)
    """Side of the small image, whose pixels are means of the image's."""


class PixelDecoderConfig(ConvolutionalDecoderConfig):
    """The codebook and the decoder of a proxy that paint its codes. The defaults are MaskGIT-VQGAN's."""

    code_dim: int = Field(256, gt=0, le=65_536)
    """Channels of a code of the proxy."""
    blocks: Counts = (2,)
    """Residual blocks of each level, in the same order; one number is for all levels."""
    attention_levels: int = Field(0, ge=0, le=16)
    """Levels, counted from the latent, that have attention over the grid after each residual block."""
    middle_attention: bool = False
    """Attention after each middle block but the last."""
    shortcut: Literal["input", "branch"] = "branch"
    """What a block that changes its width adds through a 1x1 convolution (`ConvolutionsConfig`)."""
    residual_bias: bool = False
    """Whether the convolutions of residual blocks have a bias."""

    @classmethod
    def of(cls, proxy: MaskgitVqganConfig) -> Self:
        """The sizes of a proxy."""
        return cls(code_dim=proxy.quantizer.width, **proxy.decoder.model_dump())


if TYPE_CHECKING:
    AnyBottleneckConfig = QuantizerConfig | GaussianConfig
else:
    AnyBottleneckConfig = choice_of([*(family.config for family in quantizer_families().values()), GaussianConfig])


class TiTokConfig(TokenizerConfig):
    """TiTok's tokenizer: a ViT that reads an image into a row of latents, and one that paints it from their codes."""

    kind: Literal["titok"] = "titok"
    """Family of the tokenizer."""
    untrained: ClassVar[dict[str, object]] = {"decoder": {"patch_size": 1}}
    latents: int = Field(32, gt=0, le=65_536)
    """Latents of an image: its tokens, or its Gaussian vectors."""
    encoder: TiTokViTConfig = TiTokViTConfig()
    """Image to latents."""
    quantizer: AnyBottleneckConfig = VectorConfig(
        codebook_size=4096, code_dim=12, lookup="euclidean", unit_codes=True, initialization="uniform"
    )
    """Latents to codes: any quantizer; or `kl`, a Gaussian bottleneck, which has no tokens."""
    decoder: TiTokViTConfig = TiTokViTConfig()
    """Codes to a vector for each patch."""
    target: Literal["rgb", "codes", "pixels"] = "rgb"
    """What the decoder learns: `rgb`, the pixels themselves (single-stage); `codes`, those that a frozen proxy gives to
    the image, which `inputs.proxy` names (stage 1); `pixels`, to paint through the proxy's decoder, with the encoder
    frozen (stage 2, which begins from stage 1 by `init_from`)."""
    latent_layout: Literal["correct", "interleaved"] = "correct"
    """`interleaved` mixes channels of many latents in each code, as the published two-stage weights do by mistake."""
    latent_dropout: LatentDropoutConfig | None = None
    """Train some images on their first latents alone, so that images can be decoded from these (beyond the paper)."""
    linear_decoder: LinearDecoderConfig | None = None
    """A second, linear decoder, for a training that begins at once (beyond the paper). Not of `pixels`."""
    proxy_codes: int = Field(1024, gt=1, le=2**24)
    """Codes of the proxy, of which the decoder predicts one for each patch. Of `codes` and `pixels`."""
    pixel_decoder: PixelDecoderConfig | None = None
    """Sizes of the proxy, whose codebook and decoder paint codes. Needed by `pixels`; of `codes` it paints what is
    looked at while it trains, and what stage 2 begins with. Null: nothing is painted."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        for name, vit in (("encoder", self.encoder), ("decoder", self.decoder)):
            if self.image_size % vit.patch_size:
                raise ValueError(f"image_size {self.image_size} is no multiple of {name}.patch_size {vit.patch_size}")
        if self.target == "rgb" and self.pixel_decoder is not None:
            raise ValueError("target rgb paints without a pixel_decoder: set it to null, or target to codes or pixels")
        if self.target == "pixels" and self.pixel_decoder is None:
            raise ValueError("target pixels paints through a pixel_decoder: give its sizes, or set target to rgb")
        self._check_latents()
        self._check_linear_decoder()
        self._check_pixel_decoder()
        return self

    def _check_latents(self) -> None:
        dropout = self.latent_dropout
        if dropout is None:
            return
        if self.latent_layout == "interleaved":
            raise ValueError(
                "latent_dropout orders latents by importance, and in the layout interleaved each code is of many "
                "latents: set latent_layout to correct, or latent_dropout to null"
            )
        if dropout.kept[-1] >= self.latents:
            raise ValueError(
                f"latent_dropout.kept {list(dropout.kept)}: each has to be less than latents {self.latents}"
            )

    def _check_linear_decoder(self) -> None:
        if self.linear_decoder is None:
            return
        if self.target == "pixels":
            raise ValueError(
                "linear_decoder teaches the encoder, which is frozen with target pixels: set linear_decoder to null"
            )
        if self.image_size % self.linear_decoder.image_size:
            raise ValueError(
                f"image_size {self.image_size} is no multiple of linear_decoder.image_size "
                f"{self.linear_decoder.image_size}"
            )

    def _check_pixel_decoder(self) -> None:
        """What the decoder predicts is what the pixel decoder paints, at the size of the image."""
        paints = self.pixel_decoder
        if paints is None:
            return
        size, patch, factor = self.image_size, self.decoder.patch_size, paints.factor
        if patch != factor:
            grid = size // patch
            raise ValueError(
                f"decoder.patch_size {patch} gives {size}/{patch} = {grid} x {grid} codes, each of which the "
                f"pixel_decoder paints as {factor} x {factor} pixels: an image of {grid * factor} px, not of {size}. "
                f"Set decoder.patch_size to {factor} (encoder.patch_size may be another)"
            )

    def check_proxy(self, proxy: TokenizerConfig) -> None:
        """Refuse a tokenizer whose codes the decoder cannot learn, or that the pixel decoder is not one of.

        Raises:
            ValueError: says what differs, and what to do.
        """
        if proxy.image_size != self.image_size:
            raise ValueError(
                f"the proxy sees images of {proxy.image_size} px, and image_size is {self.image_size}: it has to see "
                "the same crop (MaskGIT-VQGAN's weights serve any size: import them with that `resolution` in --config)"
            )
        there, here = proxy.layout, self.proxy_positions
        if there.folds > 1 or there.positions != here or there.vocabulary() != self.proxy_codes:
            raise ValueError(
                f"the proxy gives an image {there}, and the decoder predicts {here} positions of one token of "
                f"{self.proxy_codes:,} codes: set proxy_codes to its codes, and decoder.patch_size such that there is "
                "a patch for each of its positions"
            )
        if self.pixel_decoder is None:
            return
        if not isinstance(proxy, MaskgitVqganConfig):
            raise ValueError(  # noqa: TRY004 - of a setting
                f"a pixel_decoder is of a proxy of kind maskgit-vqgan, and this one is {proxy.kind}: set it to null"
            )
        theirs, ours = (each.model_dump() for each in (PixelDecoderConfig.of(proxy), self.pixel_decoder))
        differ = [f"{name} {ours[name]} -> {theirs[name]}" for name in theirs if ours[name] != theirs[name]]
        if differ:
            raise ValueError(f"pixel_decoder has other sizes than the proxy (here -> there): {'; '.join(differ)}")

    @property
    def has_tokens(self) -> bool:
        """Whether there are codes between encoder and decoder."""
        return not isinstance(self.quantizer, GaussianConfig)

    @property
    def needs_proxy(self) -> bool:
        """Whether training compares with the codes of a frozen proxy."""
        return self.target == "codes"

    @property
    def paints(self) -> bool:
        """Whether training gives images."""
        return self.target != "codes"

    @property
    def decodes(self) -> bool:
        """Whether it makes images: there is something to paint a proxy's codes with."""
        return self.target == "rgb" or self.pixel_decoder is not None

    @property
    def proxy_positions(self) -> int:
        """Codes that the proxy has to give for an image."""
        return (self.image_size // self.decoder.patch_size) ** 2

    @property
    def layout(self) -> TokenLayout:
        """One group of all latents, and one fold.

        Raises:
            ValueError: if its bottleneck is Gaussian.
        """
        if isinstance(self.quantizer, GaussianConfig):
            raise ValueError(NO_TOKENS)  # noqa: TRY004 - of a setting
        return TokenLayout((self.latents,), (self.quantizer.vocabulary,))

    @property
    def fold_names(self) -> tuple[str, ...]:
        """What people call the one fold."""
        return ("latents",)
