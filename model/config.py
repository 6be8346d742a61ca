"""What can be set of the networks. Imports no torch, so that the command line starts fast."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from model.layout import TokenLayout

MOST_CLASSES = 1_000_000
Sides = Annotated[tuple[Annotated[int, Field(gt=0, le=512)], ...], Field(min_length=1, max_length=64)]
Widths = Annotated[tuple[Annotated[int, Field(gt=0, le=65_536)], ...], Field(min_length=1, max_length=16)]


class Section(BaseModel):
    """A part of the config: every field is typed, bounded and documented, and an unknown key is an error."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True, protected_namespaces=()
    )


class ViTConfig(Section):
    """A vision transformer: either a timm model by name, or its sizes."""

    backbone: str | None = None
    """timm model that gives sizes and, if `pretrained`, weights (for instance vit_base_patch14_dinov2.lvd142m)."""
    pretrained: bool = False
    """Load the backbone's weights from timm's hub (needs network once)."""
    width: int = Field(64, gt=0, le=65_536)
    """Channels of each token, when no backbone is named."""
    depth: int = Field(3, gt=0, le=1_000)
    """Number of blocks, when no backbone is named."""
    heads: int = Field(4, gt=0, le=1_024)
    """Attention heads, when no backbone is named."""
    mlp_ratio: float = Field(4.0, gt=0, le=64)
    """Hidden width of the MLP over `width`, when no backbone is named."""
    layer_scale: float | None = 1e-5
    """Initial LayerScale of each residual branch; null for none. Used when no backbone is named."""
    drop_path: float = Field(0.0, ge=0, lt=1)
    """Stochastic depth of the last block; grows linearly from 0 at the first."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.backbone is None and self.width % self.heads:
            raise ValueError(f"width {self.width} is no multiple of heads {self.heads}")
        return self


class TokenizerConfig(Section):
    """What the configs of all tokenizers have. Which kinds there are says model/families.py."""

    kind: str
    """Family of the tokenizer."""
    compares: ClassVar[bool] = False
    """Whether a teacher's features can regularize it: whether its training gives something to compare with them."""
    untrained: ClassVar[dict[str, object]] = {}
    """Values of settings that only training has, with which a config is valid that was recorded without them."""
    image_size: int = Field(256, gt=0, le=8_192)
    """Side of the square input, in pixels."""

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


class ImageFolderConfig(TokenizerConfig):
    """ImageFolder's tokenizer (arXiv 2410.01756): a ViT with query tokens, one quantizer per branch, a ViT back."""

    compares: ClassVar[bool] = True
    untrained: ClassVar[dict[str, object]] = {"quantizer_dropout": 0}

    kind: Literal["imagefolder"] = "imagefolder"
    """Family of the tokenizer."""
    patch_size: int = Field(16, gt=0, le=8_192)
    """Side of a patch of the encoder and the decoder, in pixels."""
    encoder: ViTConfig = ViTConfig()
    """Image to latent."""
    decoder: ViTConfig = ViTConfig()
    """Latent to image."""
    branches: int = Field(2, gt=0, le=16)
    """Product-quantization groups. The first keeps detail, the last is the semantic one."""
    scales: Sides = (1, 1, 2, 3, 3, 4, 5, 6, 8, 11)
    """Side of the token grid at each residual step, coarse to fine. The last is the side of the latent grid."""
    codebook_size: int = Field(4096, gt=1, le=2**24)
    """Codes in each branch's codebook. Tokens are stored in 16 bits up to 65,536, in 32 above."""
    code_dim: int = Field(32, gt=0, le=65_536)
    """Channels of a code."""
    shared_residual_convs: int = Field(4, ge=0, le=1_000)
    """Number of 3x3 convolutions shared by the scales of a branch; 0 gives each scale its own."""
    residual_ratio: float = Field(0.5, ge=0, le=1)
    """Share of the convolution in h -> (1 - ratio) * h + ratio * conv(h)."""
    quantizer_dropout: float = Field(0.1, ge=0, le=1)
    """Share of training images of which only the first scales are kept."""
    dropout_min_scales: int = Field(3, gt=0, le=64)
    """Fewest scales that quantizer dropout keeps; the number is uniform from here to all."""
    commitment: float = Field(0.25, ge=0)
    """Weight of the commitment loss."""
    commitment_over_scales: bool = True
    """Divide the commitment loss by the number of scales, as in the paper; the published code at its head does not."""
    teacher_width: int | None = Field(None, gt=0, le=65_536)
    """Width of the semantic teacher's features. Null: the encoder's, and the two share one projection, as published."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.image_size % self.patch_size:
            raise ValueError(f"image_size {self.image_size} is no multiple of patch_size {self.patch_size}")
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
    def layout(self) -> TokenLayout:
        """Where this tokenizer's tokens stand in a sequence: a group per scale, row by row, and a fold per branch."""
        return TokenLayout(tuple(side * side for side in self.scales), (self.codebook_size,) * self.branches)

    @property
    def fold_names(self) -> tuple[str, ...]:
        """The branches: the first keeps detail, the last is regularized to be semantic."""
        between = tuple(f"branch {number}" for number in range(2, self.branches))
        return ("detail", *between, "semantic") if self.branches > 1 else ("semantic",)

    @property
    def forcing_width(self) -> int:
        """The branches' codes side by side."""
        return self.branches * self.code_dim

    def without_pretraining(self) -> Self:
        """The same architecture, to be filled with weights of its own: nothing is loaded from a hub."""
        parts = {"encoder": self.encoder, "decoder": self.decoder}
        return self.model_copy(update={k: vit.model_copy(update={"pretrained": False}) for k, vit in parts.items()})


class ClassCount(Section):
    """A network that tells classes apart, or is conditioned on them."""

    num_classes: int | None = Field(None, gt=0, le=MOST_CLASSES)
    """Classes. Null: as many as the data have, which is found when the stage begins, and recorded. More than these
    leave rows unused that are never drawn; fewer are refused."""

    @property
    def classes(self) -> int:
        """The number of classes, once it is known.

        Raises:
            ValueError: if it is still to be taken from the data.
        """
        if self.num_classes is None:
            raise ValueError("num_classes is null: it is taken from the data when a stage begins")
        return self.num_classes

    def with_classes(self, present: int) -> Self:
        """The same with the number of classes of the data, where none is given."""
        return self if self.num_classes is not None else self.model_copy(update={"num_classes": present})


class GeneratorConfig(ClassCount):
    """What the configs of all generators have. Which kinds there are says model/families.py."""

    kind: str
    """Family of the generator: the order in which it predicts tokens, and its network."""
    needs_forcing: ClassVar[bool] = False
    """Whether training needs the tokenizer that made the tokens (its multi-scale sums), and not their ids alone."""
    label_dropout: float = Field(0.1, ge=0, lt=1)
    """Share of training samples whose class is hidden, which makes guidance possible."""

    def check_layout(self, layout: TokenLayout, forcing_width: int | None) -> None:
        """Refuse tokens that such a generator cannot predict.

        Args:
            layout: of the tokens.
            forcing_width: channels of the multi-scale sums of their tokenizer; None if it gives none.

        Raises:
            ValueError: says why, and what to do.
        """
        raise NotImplementedError(f"{type(self).__name__} has to say which layouts it can predict")


class NextScaleConfig(GeneratorConfig):
    """The folded next-scale transformer (specs of VAR, arXiv 2404.02905, with F tokens per position).

    It has one more row than classes, for "no class".
    """

    needs_forcing: ClassVar[bool] = True

    kind: Literal["next-scale"] = "next-scale"
    """Family of the generator."""
    depth: int = Field(16, gt=0, le=1_000)
    """Number of blocks."""
    width: int = Field(1024, gt=0, le=65_536)
    """Channels of each position."""
    heads: int = Field(16, gt=0, le=1_024)
    """Attention heads."""
    mlp_ratio: float = Field(4.0, gt=0, le=64)
    """Hidden width of the MLP over `width`."""
    drop_path: float = Field(0.0, ge=0, lt=1)
    """Stochastic depth of the last block; grows linearly from 0 at the first."""
    shared_adaln: bool = False
    """One AdaLN projection for all blocks, with an offset per block."""
    qk_norm: bool = True
    """Normalise queries and keys to length one, with a learned temperature per head."""
    adaln_gamma_init: float = Field(1e-3, gt=0)
    """Factor on the initial weights of the AdaLN gates."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is no multiple of heads {self.heads}")
        return self

    def check_layout(self, layout: TokenLayout, forcing_width: int | None) -> None:
        """Needs several scales, sums of them, and folds of one vocabulary.

        Raises:
            ValueError: says what is missing.
        """
        if forcing_width is None:
            raise ValueError(
                "generator kind next-scale predicts a scale from the sum of the scales before it, and the tokenizer of "
                "these tokens gives none: take a generator kind that reads token ids, or a multi-scale tokenizer"
            )
        if len(layout.groups) == 1 and layout.positions > 1:
            raise ValueError(
                f"generator kind next-scale draws the positions of a scale in one step, and these tokens are one scale "
                f"of {layout.positions} positions: none could see another. Give the tokenizer several scales "
                "(tokenizer.model.scales), or take a generator kind that predicts positions one after another"
            )
        if len(set(layout.vocabularies)) > 1:
            raise ValueError(
                f"generator kind next-scale has one head for folds of one vocabulary, and these tokens have "
                f"{list(layout.vocabularies)}: take another generator kind, or codebooks of one size"
            )


class ClassifierConfig(ClassCount):
    """A small strided convolutional classifier: the quickstart's frozen teacher, and its independent judge."""

    image_size: int = Field(32, gt=0, le=8_192)
    """Side of the square input, in pixels."""
    widths: Widths = (32, 64, 128)
    """Channels of each stride-2 convolution. The last is the width of the features."""
    dropout: float = Field(0.1, ge=0, lt=1)
    """Dropout before the linear layer."""
