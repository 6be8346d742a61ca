"""What can be set of the data: where images come from, how they are cut, how they are tokenized."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from model.config import Section


class IdxSource(Section):
    """A pair of idx files, as MNIST and its kin are distributed (plain or gzipped)."""

    kind: Literal["idx"] = "idx"
    """This kind of source."""
    images: str
    """The idx3 file. `embedded:` names a file that comes with foldtrain."""
    labels: str
    """The idx1 file."""
    classes: tuple[str, ...] | None = None
    """Names of the classes, by label; null uses the labels themselves."""


class FolderSource(Section):
    """A folder per class, with images below it at any depth. Classes are numbered in sorted order."""

    kind: Literal["folder"] = "folder"
    """This kind of source."""
    path: str
    """The folder that holds the class folders."""
    extensions: tuple[str, ...] | None = None
    """Take only files with these endings, for instance [jpg, png]; null takes every file to be an image."""


class ILSVRCSource(Section):
    """ILSVRC2012_img_train.tar: a tar with one tar per class. Classes are numbered in sorted order of their wnid."""

    kind: Literal["ilsvrc"] = "ilsvrc"
    """This kind of source."""
    path: str
    """The tar of tars."""


Source = Annotated[IdxSource | FolderSource | ILSVRCSource, Field(discriminator="kind")]


class DataConfig(Section):
    """From raw images to image shards."""

    source: Source
    """Where the raw images are."""
    images: str | None = None
    """URI of the image shards; null puts them below the run, in images/."""
    validation_samples: int = Field(0, ge=0)
    """Images held out of training: those whose keys hash lowest. They become a data set of their own."""
    shard_samples: int = Field(10_000, gt=0)
    """Most images in a shard."""
    shard_bytes: int = Field(100_000_000, gt=0)
    """Most bytes of images in a shard."""
    fit: Literal["crop", "pad"] = "crop"
    """How an image becomes a square: ADM's centre crop (resize the short side, cut the centre), or padding alone."""


class TokensConfig(Section):
    """From image shards to token shards."""

    output: str | None = None
    """URI of the token shards; null puts them below the run, in tokens/."""
    views: tuple[Literal["center", "center_flip"], ...] = ("center",)
    """Views of each image that are tokenized; training draws one of them per sample and epoch."""
    shard_samples: int = Field(50_000, gt=0)
    """Images in a token shard."""
    batch: int = Field(64, gt=0)
    """Images per forward pass of the tokenizer."""
    min_workers: int = Field(1, gt=0)
    """Fewest actors that tokenize."""
    max_workers: int = Field(2, gt=0)
    """Most actors that tokenize. `foldtrain scale` changes it while tokenize runs."""
