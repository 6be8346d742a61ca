"""What can be set of discriminators, and which there are: the one place where a discriminator's `kind` is looked up.

One of somebody else's joins by an entry point of the group "foldtrain.discriminators", whose object is a
`DiscriminatorFamily`, in a module that imports nothing of foldtrain but this one (docs/extending.md).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, ClassVar, Literal, Self

from pydantic import Field, model_validator

from model.config.registered import choice_of, joined, kind_of
from model.config.section import Section, WeightsFile

GROUP = "foldtrain.discriminators"
"""Of the entry points by which installed packages add discriminators."""


class DiscriminatorConfig(Section):
    """What the configs of all discriminators have."""

    kind: str
    """Kind of the discriminator."""
    penalizes: ClassVar[bool] = True
    """Whether the gradient of its logits to pixels can be minimized in turn (`AdversarialConfig.penalty`)."""

    @property
    def needs_teacher(self) -> bool:
        """Whether it judges by the features of the run's teacher."""
        return False


class BatchNormConfig(DiscriminatorConfig):
    """Discriminators with batch normalization, whose statistics are those of groups of images in a micro-batch."""

    group: int = Field(8, gt=0, le=65_536)
    """Images whose statistics are taken together. A micro-batch that is no multiple is cut into equal groups of at
    most as many; so with `group` dividing `trainer.micro_batch` the result is the same at any number of workers."""


class PatchConfig(BatchNormConfig):
    """PatchGAN (arXiv 1611.07004), as in LlamaGen: strided 4x4 convolutions, a logit per overlapping patch."""

    kind: Literal["patch"] = "patch"
    """Kind of the discriminator."""
    width: int = Field(64, gt=0, le=4_096)
    """Channels of the first convolution; they double up to eight times as many."""
    layers: int = Field(3, gt=0, le=8)
    """Convolutions of stride 2: with 3 a logit sees 70 x 70 pixels."""


class BlurConfig(DiscriminatorConfig):
    """TiTok's: convolutions with blurred downsampling and group normalization, a logit per cell of a fixed grid."""

    kind: Literal["blur"] = "blur"
    """Kind of the discriminator."""
    width: int = Field(128, gt=0, le=4_096)
    """Channels at full size and after the first stage; each further stage doubles them. A multiple of
    `norm_groups`."""
    stages: int = Field(3, gt=0, le=8)
    """Times that the image is halved."""
    grid: int = Field(16, gt=0, le=512)
    """Side of the grid of logits, to which maps are max-pooled."""
    norm_groups: int = Field(32, gt=0, le=512)
    """Groups of channels that are normalized together."""

    @model_validator(mode="after")
    def _check_groups(self) -> Self:
        if self.width % self.norm_groups:
            raise ValueError(f"width {self.width} is no multiple of norm_groups {self.norm_groups}")
        return self


class StyleGanConfig(DiscriminatorConfig):
    """StyleGAN's (arXiv 1912.04958), as in MaskGIT: blurred residual blocks down to 4 x 4, one logit an image."""

    kind: Literal["stylegan"] = "stylegan"
    """Kind of the discriminator."""
    width: int = Field(512, gt=0, le=4_096)
    """Channels of maps of 32 x 32 and smaller; larger ones have fewer: half at 64 x 64, a quarter at 128 x 128, ..."""
    deviation_group: int = Field(4, ge=0, le=4_096)
    """Images whose standard deviation is a further channel of the last map; groups are cut as `group` of `patch`. 0
    leaves it out, as MaskGIT and LlamaGen do."""


class DinoConfig(BatchNormConfig):
    """ImageFolder's: small heads over the features of a frozen network, DINO's as published, at several depths."""

    kind: Literal["dino"] = "dino"
    """Kind of the discriminator."""
    penalizes: ClassVar[bool] = False  # fused attention has no second derivative
    TEACHER: ClassVar[str] = "teacher"
    network: str = TEACHER
    """The frozen network: `teacher` for the run's own teacher; or a timm vision transformer, with sizes that are not
    its own as in a URL (vit_small_patch16_224.dino, as published; vit_small_patch14_dinov2.lvd142m?img_size=224)."""
    file: WeightsFile | None = None
    """Its weights, on a local path or file: URI that every worker reads. Null: from timm's hub (needs network once)."""
    taps: int = Field(5, gt=0, le=64)
    """Depths at which features are taken: before the first block and after evenly spaced ones, the last among them."""
    kernel: int = Field(9, gt=0, le=511)
    """Width of the heads' convolution over positions; odd."""
    norm: Literal["batch", "group"] = "batch"
    """`batch`: over groups of images (`group`), as published; `group`: over groups of channels of one image."""
    random_crop: float = Field(0.5, ge=0, le=1)
    """Share of the images that are larger than the network's of which a crop is judged, and not the whole made
    smaller."""

    @property
    def needs_teacher(self) -> bool:
        """Whether it judges by the features of the run's teacher."""
        return self.network == self.TEACHER

    @model_validator(mode="after")
    def _check_kernel(self) -> Self:
        if self.kernel % 2 == 0:
            raise ValueError(f"kernel {self.kernel} is even: it has no middle")
        if self.needs_teacher and self.file is not None:
            raise ValueError("file is for a network of timm's: the teacher's weights are the teacher's")
        return self


@dataclass(frozen=True)
class DiscriminatorFamily:
    """Discriminators of one kind."""

    config: type[DiscriminatorConfig]
    """What can be set of them. The default of its `kind` is the family's name."""
    network: str
    """"module:class" of the `Discriminator`, made from a config, the side of the images in pixels, and the teacher."""


_OWN = (
    DiscriminatorFamily(PatchConfig, network="model.discriminators.patch:PatchDiscriminator"),
    DiscriminatorFamily(BlurConfig, network="model.discriminators.blur:BlurDiscriminator"),
    DiscriminatorFamily(StyleGanConfig, network="model.discriminators.stylegan:StyleGanDiscriminator"),
    DiscriminatorFamily(DinoConfig, network="model.discriminators.dino:DinoDiscriminator"),
)
"""The first is what a config without a kind means."""


@cache
def discriminator_families() -> dict[str, DiscriminatorFamily]:
    """Discriminators by kind: foldtrain's own, then those of installed packages.

    Raises:
        ValueError: as `joined`.
    """
    return {kind_of(family): family for family in joined(_OWN, GROUP, (DiscriminatorFamily,))}


if TYPE_CHECKING:
    AnyDiscriminatorConfig = DiscriminatorConfig
else:
    AnyDiscriminatorConfig = choice_of(family.config for family in discriminator_families().values())
