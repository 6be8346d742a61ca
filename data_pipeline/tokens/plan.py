"""What is to be tokenized: a plan of a few kilobytes, whose shards are arithmetic. It can be sent to any process."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from itertools import accumulate
from typing import Any, overload

from data_pipeline.config import TokensConfig
from data_pipeline.errors import UsageError
from data_pipeline.images.transforms import Transform
from data_pipeline.images.views import check_fit
from data_pipeline.shards.conditions import CLASS
from data_pipeline.shards.manifest import ImageManifest, TokenizerRecord
from data_pipeline.shards.tokenizers import tokenizer_config
from data_pipeline.shards.weights import Card
from data_pipeline.text.names import SHARD_DIGITS
from model.config.titok import NO_TOKENS
from model.layout import TokenLayout

SOFTWARE = ("cykooz-resizer", "foldtrain", "numpy", "pillow", "simplejpeg", "torch")
"""Packages whose versions are recorded with the tokens."""

HELD_OUT = "held_out"
"""Folder, below the tokens, of those of the images that were held out of training."""

_NAME = re.compile(rf"tokens-({SHARD_DIGITS})\.tar")


@dataclass(frozen=True)
class PlannedShard:
    """One token shard before it is written: images `start` to `stop` of the image data set."""

    number: int
    start: int
    stop: int

    @property
    def name(self) -> str:
        """Of its tar."""
        return f"tokens-{self.number:05d}.tar"

    @property
    def samples(self) -> int:
        """Images in it."""
        return self.stop - self.start


@dataclass(frozen=True)
class PlannedShards(Sequence[PlannedShard]):
    """All shards of a plan. None of them is kept: shard n begins at image n × `size`."""

    samples: int
    """Images in all."""
    size: int
    """Images of a shard; the last one may have fewer."""

    def __len__(self) -> int:
        return -(-self.samples // self.size)

    @overload
    def __getitem__(self, number: int) -> PlannedShard: ...
    @overload
    def __getitem__(self, number: slice) -> tuple[PlannedShard, ...]: ...
    def __getitem__(self, number: int | slice) -> PlannedShard | tuple[PlannedShard, ...]:
        found = range(len(self))[number]
        if isinstance(found, range):
            return tuple(self[each] for each in found)
        start = found * self.size
        return PlannedShard(found, start, min(start + self.size, self.samples))

    def number_of(self, name: str) -> int | None:
        """The number of the shard that has this name; None if none has."""
        match = _NAME.fullmatch(name)
        number = int(match[1]) if match else len(self)
        return number if number < len(self) and self[number].name == name else None


@dataclass(frozen=True)
class TokenPlan:
    """All that is to be done. It is plain data, of the same size for any number of images."""

    images: str
    """URI of the image shards."""
    output: str
    """URI of the token shards."""
    classes: tuple[str, ...]
    source: str
    """Fingerprint of the image data set."""
    tokenizer: TokenizerRecord
    layout: TokenLayout
    views: tuple[str, ...]
    transform: Transform
    batch: int
    """Images per forward pass."""
    precision: str
    """Number format of the forward pass: fp32 or bf16."""
    software: dict[str, str]
    samples: int
    """Images in all."""
    shard_samples: int
    """Images of a shard."""

    @property
    def shards(self) -> PlannedShards:
        """What is to be made."""
        return PlannedShards(self.samples, self.shard_samples)

    def made_by(self) -> dict[str, Any]:
        """What every token follows from. It stands in each shard and each commit record, beside the software."""
        return {
            "tokenizer": self.tokenizer.model_dump(mode="json"),
            "layout": self.layout.to_json(),
            "condition": CLASS.model_dump(mode="json"),
            "views": list(self.views),
            "image_size": self.transform.size,
            "fit": self.transform.fit,
            "decode": self.transform.decode,
            "precision": self.precision,
            "batch": self.batch,
            "source": self.source,
            "shard_samples": self.shards[0].stop,
        }

    def manifest_fields(self) -> dict[str, Any]:
        """What the manifest of its tokens says, but for the software and the shards."""
        return {
            "samples": self.samples,
            "classes": self.classes,
            "layout": self.layout,
            "views": self.views,
            "image_size": self.transform.size,
            "fit": self.transform.fit,
            "tokenizer": self.tokenizer,
            "source": self.source,
            "decode": self.transform.decode,
            "precision": self.precision,
        }


@dataclass(frozen=True)
class PlannedSets:
    """Sets of tokens that are made together, their shards numbered one set after the other."""

    plans: tuple[TokenPlan, ...]

    @property
    def firsts(self) -> tuple[int, ...]:
        """The number of each set's first shard, and of all shards at the end."""
        return (0, *accumulate(len(plan.shards) for plan in self.plans))

    def place(self, number: int) -> tuple[int, int]:
        """The set of a shard, and the shard's number in it."""
        which = bisect_right(self.firsts, number) - 1
        return which, number - self.firsts[which]

    def shard(self, number: int) -> PlannedShard:
        """The shard of a number."""
        which, own = self.place(number)
        return self.plans[which].shards[own]

    def name(self, number: int) -> str:
        """Of a shard, below the output of the first set."""
        which, own = self.place(number)
        below = self.plans[which].output.removeprefix(self.plans[0].output).strip("/")
        name = self.plans[which].shards[own].name
        return f"{below}/{name}" if below else name


def plan_tokens(images: str, tokenizer: Card, config: TokensConfig, output: str, fit: str) -> TokenPlan:
    """Cut an image data set into token shards.

    Args:
        images: URI of the image shards.
        tokenizer: the tokenizer's card; its moving average is used if it has one.
        config: how tokens are cut and computed.
        output: URI of the token shards.
        fit: how images become squares (`data.fit`).

    Raises:
        UsageError: if the images are not complete, or cannot be seen as the views ask for.
    """
    manifest = ImageManifest.read(images)
    if not manifest.samples:
        raise UsageError(f"{images} holds no images: run foldtrain ingest on a source that has some")
    try:
        check_fit(fit, config.views)
    except ValueError as error:
        raise UsageError(f"tokens.views: {error}") from error
    model = tokenizer_config("the tokenizer", tokenizer)
    if not model.has_tokens:
        raise UsageError(f"nothing can be tokenized: {NO_TOKENS}")
    return TokenPlan(
        images=images,
        output=output,
        classes=manifest.classes,
        source=manifest.fingerprint,
        tokenizer=TokenizerRecord(encoder=tokenizer.encoder(), config=tokenizer.encoder_config()),
        layout=model.layout,
        views=config.views,
        transform=Transform(model.image_size, fit, config.decode),
        batch=config.batch,
        precision=config.precision,
        software={name: _version(name) for name in SOFTWARE},
        samples=manifest.samples,
        shard_samples=config.shard_samples,
    )


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
