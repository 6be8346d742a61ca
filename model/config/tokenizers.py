"""What can be set of tokenizers."""

from __future__ import annotations

from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from model.config.networks import ViTConfig
from model.config.quantizers import AnyQuantizerConfig, VectorConfig
from model.config.section import Section, Sides
from model.layout import TokenLayout


class TokenizerConfig(Section):
    """What the configs of all tokenizers have. Which kinds there are says model/families.py."""

    kind: str
    """Family of the tokenizer."""
    compares: ClassVar[bool] = False
    """Whether a teacher's features can regularize it: whether its training gives something to compare with them."""
    perturbs: ClassVar[bool] = False
    """Whether codes can be perturbed in training before they are decoded."""
    untrained: ClassVar[dict[str, object]] = {}
    """Values of settings that only training has, with which a config is valid that was recorded without them."""
    image_size: int = Field(256, gt=0, le=8_192)
    """Side of the square input, in pixels."""

    @property
    def has_tokens(self) -> bool:
        """Whether it makes tokens; one that does not (a Gaussian bottleneck) trains and reconstructs images alone."""
        return True

    @property
    def paints(self) -> bool:
        """Whether its training gives images, which losses of pixels look at."""
        return True

    @property
    def decodes(self) -> bool:
        """Whether it makes images at all: one that predicts a proxy's codes needs the proxy's decoder to."""
        return True

    @property
    def needs_proxy(self) -> bool:
        """Whether its training compares with the codes that a frozen tokenizer, `inputs.proxy`, gives to an image."""
        return False

    @property
    def proxy_positions(self) -> int:
        """Codes that a proxy has to give for an image; 0 without one."""
        return 0

    def check_proxy(self, proxy: TokenizerConfig) -> None:
        """Refuse a tokenizer that is no proxy for this one.

        Raises:
            ValueError: says why, and what to do.
        """
        raise ValueError(f"a tokenizer of kind {self.kind} learns from no proxy (not from {proxy.kind} either)")

    @property
    def layout(self) -> TokenLayout:
        """Where this tokenizer's tokens stand in a sequence."""
        raise NotImplementedError(f"{type(self).__name__} has to say its layout")

    @property
    def fold_names(self) -> tuple[str, ...]:
        """What people call each fold."""
        return tuple(f"fold {number + 1}" for number in range(self.layout.folds))

    @property
    def forcing_width(self) -> int | None:
        """Channels of the multi-scale sums that it gives to generators (`TeacherForcing`); None if it has none."""
        return None

    def without_pretraining(self) -> Self:
        """The same architecture, to be filled with weights of its own: nothing is loaded from a hub."""
        return self


class GridTokenizerConfig(TokenizerConfig):
    """Tokenizers whose latents are square grids, one of each branch, quantized in one scale or several."""

    compares: ClassVar[bool] = True
    perturbs: ClassVar[bool] = True
    untrained: ClassVar[dict[str, object]] = {"quantizer_dropout": 0}

    branches: int = Field(2, gt=0, le=16)
    """Product-quantization groups. The first keeps detail, the last is the semantic one."""
    scales: Sides = (1, 1, 2, 3, 3, 4, 5, 6, 8, 11)
    """Side of the token grid at each residual step, coarse to fine. The last is the side of the latent grid."""
    quantizer: AnyQuantizerConfig = VectorConfig()
    """Of each branch."""
    shared_residual_convs: int = Field(4, ge=0, le=1_000)
    """Number of 3x3 convolutions shared by the scales of a branch; 0 gives each scale its own. One scale has none."""
    residual_ratio: float = Field(0.5, ge=0, le=1)
    """Share of the convolution in h -> (1 - ratio) * h + ratio * conv(h); 0 leaves the convolutions out."""
    scale_decay: float = Field(1.0, gt=0, le=1)
    """Length of each scale's codes over that of the scale before, for codes of fixed lengths (LFQ, BSQ, FSQ)."""
    quantizer_dropout: float = Field(0.1, ge=0, le=1)
    """Share of training images of which only the first scales are kept."""
    dropout_min_scales: int = Field(3, gt=0, le=64)
    """Fewest scales that quantizer dropout keeps; the number is uniform from here to all."""
    quantizer_dropout_images: Literal["spread", "first"] = "spread"
    """Which images quantizer dropout takes: each by its own chance, at any number of workers; or, as published, the
    first of each worker's batch, a whole number of them, which the semantic losses then leave out."""
    commitment_over_scales: bool = True
    """Divide the commitment loss by the number of scales, as in the paper; the published code at its head does not."""

    @model_validator(mode="after")
    def _check_scales(self) -> Self:
        if self.dropout_min_scales > len(self.scales) and self.quantizer_dropout > 0:
            raise ValueError(f"dropout_min_scales {self.dropout_min_scales} is more than the {len(self.scales)} scales")
        if max(self.scales) != self.grid:
            raise ValueError(f"scales {list(self.scales)}: the last is the latent grid, so none may be larger")
        return self

    @property
    def grid(self) -> int:
        """Side of the latent grid."""
        return self.scales[-1]

    @property
    def residual_convs(self) -> int:
        """Convolutions of a branch."""
        if len(self.scales) == 1 or not self.residual_ratio:
            return 0
        return self.shared_residual_convs or len(self.scales)

    @property
    def layout(self) -> TokenLayout:
        """Where this tokenizer's tokens stand in a sequence: a group per scale, row by row, and a fold per branch."""
        return TokenLayout(tuple(side * side for side in self.scales), (self.quantizer.vocabulary,) * self.branches)

    @property
    def fold_names(self) -> tuple[str, ...]:
        """The branches: the first keeps detail, the last is regularized to be semantic."""
        between = tuple(f"branch {number}" for number in range(2, self.branches))
        return ("detail", *between, "semantic") if self.branches > 1 else ("semantic",)

    @property
    def forcing_width(self) -> int:
        """The branches' codes side by side."""
        return self.branches * self.quantizer.width


class ImageFolderConfig(GridTokenizerConfig):
    """ImageFolder's tokenizer (arXiv 2410.01756): a ViT with query tokens, one quantizer per branch, a ViT back."""

    kind: Literal["imagefolder"] = "imagefolder"
    """Family of the tokenizer."""
    patch_size: int = Field(16, gt=0, le=8_192)
    """Side of a patch of the encoder and the decoder, in pixels."""
    encoder: ViTConfig = ViTConfig()
    """Image to latent."""
    decoder: ViTConfig = ViTConfig()
    """Latent to image."""
    teacher_width: int | None = Field(None, gt=0, le=65_536)
    """Width of the semantic teacher's features. Null: the encoder's, and the two share one projection, as published."""

    @model_validator(mode="after")
    def _check_patches(self) -> Self:
        if self.image_size % self.patch_size:
            raise ValueError(f"image_size {self.image_size} is no multiple of patch_size {self.patch_size}")
        return self

    def without_pretraining(self) -> Self:
        """The same architecture, to be filled with weights of its own: nothing is loaded from a hub."""
        parts = {"encoder": self.encoder, "decoder": self.decoder}
        return self.model_copy(update={k: vit.model_copy(update={"pretrained": False}) for k, vit in parts.items()})
