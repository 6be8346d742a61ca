"""What can be set of transformers and classifiers."""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

from model.config.section import MOST_CLASSES, Section, Widths


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
    initial_std: float = Field(0.02, gt=0, le=1)
    """Deviation of the initial weights of blocks, when no backbone is named. 0.02 suits a width of 768, a smaller width
    a larger one (docs/tokenizers.md): what a layer adds grows with the root of its width."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.backbone is None and self.width % self.heads:
            raise ValueError(f"width {self.width} is no multiple of heads {self.heads}")
        return self


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


class ClassifierConfig(ClassCount):
    """A small strided convolutional classifier: the quickstart's frozen teacher, and its independent judge."""

    image_size: int = Field(32, gt=0, le=8_192)
    """Side of the square input, in pixels."""
    widths: Widths = (32, 64, 128)
    """Channels of each stride-2 convolution. The last is the width of the features."""
    dropout: float = Field(0.1, ge=0, lt=1)
    """Dropout before the linear layer."""
