"""What can be set of the data: where images come from, how they are cut, how they are tokenized."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, WithJsonSchema, field_validator, model_validator

from data_pipeline.images.crop_kinds import CENTER, CropSetting
from data_pipeline.images.views import RandomViews, expand_views, known_view, named_views
from data_pipeline.storage.places import DiskPlace, InputPlace, OutputPlace, PackagedPlace
from model.config import Section

MOST_WORKERS = 100_000
"""Of a stage."""


def _plain_extension(extension: str) -> str:
    """An extension in one spelling: "jpg" for ".jpg", "JPG" and "*.jpg".

    Raises:
        ValueError: if nothing is left of it.
    """
    plain = extension.strip().lower().removeprefix("*").removeprefix(".")
    if not plain or "/" in plain:
        raise ValueError(f"{extension!r} is no extension: write it as jpg")
    return plain


Extension = Annotated[str, AfterValidator(_plain_extension)]
"""How a file's name ends, with or without a dot, in any case."""


class IdxSource(Section):
    """A pair of idx files, as MNIST and its kin are distributed (plain or gzipped)."""

    kind: Literal["idx"] = "idx"
    """This kind of source."""
    images: PackagedPlace
    """The idx3 file. `embedded:` names a file that comes with foldtrain."""
    labels: PackagedPlace
    """The idx1 file."""
    classes: tuple[str, ...] | None = None
    """Names of the classes, by label; null uses the labels themselves."""


class FolderSource(Section):
    """A folder per class, with images below it at any depth. Classes are numbered in sorted order."""

    kind: Literal["folder"] = "folder"
    """This kind of source."""
    path: InputPlace
    """The folder that holds the class folders."""
    extensions: tuple[Extension, ...] | None = None
    """Take only files with these endings, for instance [jpg, png], with or without a dot, in any case; null takes every
    file to be an image. Others are counted."""
    allow_empty_classes: bool = False
    """Whether a folder without images is a class all the same, which keeps its label. If not, it is an error: labels
    follow from the sorted folders, so that one that was not filled, or should not be there, shifts them."""


class ILSVRCSource(Section):
    """ILSVRC2012_img_train.tar: a tar with one tar per class. Classes are numbered in sorted order of their wnid."""

    kind: Literal["ilsvrc"] = "ilsvrc"
    """This kind of source."""
    path: InputPlace
    """The tar of tars."""
    allow_empty_classes: bool = False
    """Whether a tar without images is a class all the same, which keeps its label. If not, it is an error."""


class ILSVRCValidationSource(Section):
    """ILSVRC2012_img_val.tar: a tar of images, whose classes are in a file of their own."""

    kind: Literal["ilsvrc_val"] = "ilsvrc_val"
    """This kind of source."""
    path: InputPlace
    """The tar of images."""
    labels: InputPlace
    """A text file: a wnid per line in the order of the file names; or lines that start with a file name (or its stem)
    and its wnid, separated by a comma or blanks (Kaggle's LOC_val_solution.csv); or ILSVRC ids from 1 on
    (ILSVRC2012_validation_ground_truth.txt), which need `synsets`."""
    synsets: InputPlace | None = None
    """A text file with a wnid per line, in the order of the ILSVRC ids (from the development kit's meta.mat)."""


class WebDatasetSource(Section):
    """WebDataset shards that exist already: tars whose members <key>.<extension> belong together by key."""

    kind: Literal["webdataset"] = "webdataset"
    """This kind of source."""
    path: InputPlace
    """A tar, a folder of tars, or a pattern with braces (shard-{000000..000146}.tar)."""
    images: tuple[Extension, ...] = ("jpg", "jpeg", "png", "webp", "avif", "jp2")
    """Extensions of the members that are images, the first that is there is taken."""
    label: str = "cls"
    """Extension of the member with the label in digits; or "json:FIELD" for a field of a .json member."""
    classes: tuple[str, ...] | None = None
    """Names of the classes, by label; null uses the labels themselves."""


class ParquetSource(Section):
    """Parquet files as on the Hugging Face hub: an image column with the files' bytes, and a label column."""

    kind: Literal["parquet"] = "parquet"
    """This kind of source."""
    path: InputPlace
    """A file, a folder of files, or a pattern with * in the file name (train-*.parquet)."""
    image: str = "image"
    """The column of images: bytes, or a struct with a field `bytes`."""
    label: str = "label"
    """The column of labels: whole numbers."""
    classes: tuple[str, ...] | None = None
    """Names of the classes, by label; null takes them from the files' Hugging Face metadata, or else the labels."""


Source = Annotated[
    IdxSource | FolderSource | ILSVRCSource | ILSVRCValidationSource | WebDatasetSource | ParquetSource,
    Field(discriminator="kind"),
]

Decode = Literal["exact", "fast"]
"""How JPEG files become pixels: as Pillow does, or scaled while they are decoded (docs/formats.md states the PSNR)."""


class ReadingConfig(Section):
    """How training reads images and tokens. The first three fields decide what is seen, the others how fast."""

    decode: Decode = "exact"
    """How JPEG files become pixels."""
    crop: CropSetting = CENTER
    """With `data.fit: crop`, which square of an image is seen: center or random (ADM's), resize-random-crop,
    resize-center-crop or random-resized-crop (torchvision's); what is random is drawn anew at each position. A name, or
    a section with `kind` and the settings of that crop (data_pipeline/images/crop_kinds.py)."""
    shuffle_window: int | None = Field(None, gt=0, le=1_000_000)
    """Shards that are shuffled together: each epoch shuffles the shards, then the samples of this many at a time, so
    that a bounded cache serves it. Null shuffles all samples."""
    tokens: Literal["auto", "copy", "windows"] = "auto"
    """How a node holds the tokens. copy: all of them, in one copy. windows: the shards of the shuffle window that is
    read and of the next one, which needs `shuffle_window`. auto: copy where the cache has room for it, else windows.
    The batches are the same."""
    cache_dir: DiskPlace | None = None
    """Where a node keeps copies of remote shards, one for all its processes, below a folder of mode 0700 for each user;
    null takes $XDG_CACHE_HOME/foldtrain or ~/.cache/foldtrain."""
    cache_bytes: int | None = Field(None, gt=0, le=2**60)
    """Most bytes of a user's copies on a node; the least recently used go first. Null leaves a tenth of the disk
    free, at most 10 GiB."""
    cache_images: bool = False
    """Copy remote image shards whole. If not, each image is one range read; tokens are always copied (`tokens`)."""
    threads: int = Field(4, ge=0, le=1_024)
    """Threads that decode images ahead of the step; 0 decodes within it. Tokens need none."""
    late_seconds: float = Field(120.0, gt=0, le=10**7)
    """A batch that takes longer makes the stacks of all threads, and the shards that are being waited for, be shown; so
    does a step or a start that takes five times as long."""


class DataConfig(Section):
    """From raw images to image shards."""

    source: Source | None = None
    """Where the raw images are. Null where the image shards, or tokens of them, come from elsewhere (`inputs`)."""
    images: OutputPlace | None = None
    """URI of the image shards; null puts them below the run, in images/."""
    validation_samples: int = Field(0, ge=0, le=10**12)
    """Images held out of training: those whose keys hash lowest. They become a data set of their own."""
    validation_source: Source | None = None
    """Where the validation images are, if they are a source of their own (ILSVRC2012_img_val.tar)."""
    shard_samples: int = Field(10_000, gt=0, le=10_000_000)
    """Most images in a shard."""
    shard_bytes: int = Field(100_000_000, gt=0, le=2**40)
    """Most bytes of images in a shard."""
    fit: Literal["crop", "pad"] = "crop"
    """How an image becomes a square: ADM's crop (resize the short side, cut), or padding alone."""
    max_bad_share: float = Field(0.01, ge=0, le=1)
    """Share of the images that may be damaged, empty or no images at all. They are left out and listed in
    quarantine.json; one more than that stops ingest."""
    min_workers: int = Field(1, gt=0, le=MOST_WORKERS)
    """Fewest actors that ingest."""
    max_workers: int = Field(2, gt=0, le=MOST_WORKERS)
    """Most actors that ingest. `foldtrain scale` changes it while ingest runs."""
    reading: ReadingConfig = ReadingConfig()
    """How training reads images and tokens."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.fit == "pad" and self.reading.crop != CENTER:
            kind = self.reading.crop.kind
            raise ValueError(f"reading.crop: {kind} cuts images, and fit: pad does not: set one of them otherwise")
        _check_pool(self.min_workers, self.max_workers)
        return self


_VIEWS_SCHEMA = {"type": "array", "items": {"anyOf": [{"type": "string"}, RandomViews.model_json_schema()]}}


class TokenizerGate(Section):
    """What a tokenizer has to reach on held-out images before tokens are made of it. What is null is not asked for."""

    use: float | None = Field(None, gt=0, le=1)
    """Least share of its codes, of those that so few tokens could use, that each branch uses at its last scale."""
    dead: float | None = Field(None, ge=0, lt=1)
    """Most of a branch's codes, as a share, that no scale uses."""
    mse: float | None = Field(None, gt=0)
    """Largest squared error; pixels in [-1, 1]."""
    psnr: float | None = Field(None, gt=0)
    """Least peak signal-to-noise ratio, in dB."""


class TokensConfig(Section):
    """From image shards to token shards."""

    output: OutputPlace | None = None
    """URI of the token shards; null puts them below the run, in tokens/."""
    reuse: tuple[InputPlace, ...] = ()
    """Folders of tokens of images that the images were appended of (`foldtrain data append`). They become part of the
    output where they lie, and only images of which there are no tokens are tokenized."""
    views: Annotated[
        tuple[Annotated[str, AfterValidator(known_view)], ...], WithJsonSchema(_VIEWS_SCHEMA, mode="validation")
    ] = ("center",)
    """Views of each image that are tokenized; training draws one of them per sample and epoch. `ten_crop` and
    `ten_crop_105` stand for ten each: four corners and the centre of ADM's crop at 1.1 (1.05) times the size, and
    their mirror images. `{random: N, seed: S, flip: false, crop: adm}` stands for N random crops, which follow from the
    image's key, `random_0` and so on by name."""
    require: TokenizerGate | None = None
    """What the tokenizer has to reach: `tokenize` refuses one that does not, unless it is told --anyway."""
    decode: Decode = "exact"
    """How JPEG files become pixels."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Number format of the tokenizer. In bf16 some images get other tokens (benchmarks/precision.py)."""
    shard_samples: int = Field(10_000, gt=0, le=10_000_000)
    """Images in a token shard. It is what an actor does at a time: more actors than shards have nothing to do."""
    batch: int = Field(64, gt=0, le=1_000_000)
    """Images per forward pass of the tokenizer."""
    min_workers: int = Field(1, gt=0, le=MOST_WORKERS)
    """Fewest actors that tokenize."""
    max_workers: int = Field(2, gt=0, le=MOST_WORKERS)
    """Most actors that tokenize. `foldtrain scale` changes it while tokenize runs."""
    max_attempts: int = Field(3, gt=0, le=1_000)
    """Times that a shard is tried, on different actors, before it is set aside with the reason."""
    patience_seconds: float = Field(300.0, gt=0, le=10**7)
    """A shard of which no batch was finished for so long counts as hung. A batch must not take longer."""

    @field_validator("views", mode="before")
    @classmethod
    def _name(cls, views: Any) -> Any:
        return [name for item in views for name in named_views(item)] if isinstance(views, list | tuple) else views

    @field_validator("views")
    @classmethod
    def _expand(cls, views: tuple[str, ...]) -> tuple[str, ...]:
        return expand_views(views)

    @model_validator(mode="after")
    def _check(self) -> Self:
        _check_pool(self.min_workers, self.max_workers)
        return self


def _check_pool(fewest: int, most: int) -> None:
    if fewest > most:
        raise ValueError(f"min_workers {fewest} is more than max_workers {most}")
