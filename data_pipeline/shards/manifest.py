"""What a data set is: manifest.json, written last, so that its presence means that the data set is complete."""

from __future__ import annotations

from itertools import accumulate
from typing import Annotated, Any, ClassVar, Literal, Self

import numpy as np
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from data_pipeline import storage
from data_pipeline.errors import UsageError
from data_pipeline.shards.conditions import CLASS, Condition
from data_pipeline.shards.versions import check_version
from data_pipeline.storage.tar import BLOCK
from data_pipeline.text.names import ClassName, Count, Sha256, ShardName, StoredName
from model.layout import TokenLayout

MANIFEST_NAME = "manifest.json"
MANIFEST_VERSION: Literal[2] = 2
COMMIT_VERSION: Literal[2] = 2
MOST_GROUPS, MOST_POSITIONS, MOST_FOLDS = 65_536, 2**24, 1024
"""Bounds of a layout, so that no product of its numbers is beyond 64 bits."""


def _parse_layout(record: Any) -> Any:
    return TokenLayout.from_json(record) if isinstance(record, dict) else record


def _bounded_layout(layout: TokenLayout) -> TokenLayout:
    if len(layout.groups) > MOST_GROUPS or max(layout.groups) > MOST_POSITIONS or layout.folds > MOST_FOLDS:
        raise ValueError(
            f"a layout has at most {MOST_GROUPS} groups, of at most {MOST_POSITIONS} positions, and at most "
            f"{MOST_FOLDS} folds"
        )
    return layout


StoredLayout = Annotated[TokenLayout, BeforeValidator(_parse_layout), AfterValidator(_bounded_layout)]
"""A layout of a manifest or a card, which anybody may have written: groups and vocabularies within bounds, no more."""


class Record(BaseModel):
    """A part of a manifest. Nothing in it depends on when or where it was made."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class ShardRecord(Record):
    """One shard of a data set."""

    name: ShardName
    """File name of its tar."""
    samples: Count
    """Images in it."""
    bytes: Count
    """Size of its tar."""
    sha256: Sha256
    """Digest of its tar."""


class TokenCommit(Record):
    """Says that a token shard is complete, before the whole data set is."""

    version: Literal[2] = COMMIT_VERSION
    """Version of this format; the first had none in it."""
    shard: ShardRecord
    """The shard."""
    made_by: dict[str, Any]
    """What its tokens follow from. A shard that follows from anything else is not part of the same data set."""
    software: dict[str, str]
    """Versions of what computed the tokens. An interrupted run may be continued with newer ones."""


class ImageShardRecord(ShardRecord):
    """One shard of images."""

    index_sha256: Sha256
    """Digest of its sidecar index."""


class _Manifest(Record):
    remedy: ClassVar[str]
    """The command that makes such a data set."""
    anew: ClassVar[str]
    """How one of another version is made anew."""

    version: Literal[2] = MANIFEST_VERSION
    """Version of this format."""
    kind: str
    """What the samples are."""
    fingerprint: str
    """sha256 of everything else here: it names exactly this data set."""
    samples: Count
    """Images in all."""
    classes: tuple[ClassName, ...]
    """Class names by label."""
    shards: tuple[ShardRecord, ...]
    """The shards; sample i is the i-th in their order."""

    @model_validator(mode="after")
    def _check_shards(self) -> Self:
        names = [shard.name for shard in self.shards]
        if len(set(names)) != len(names):
            raise ValueError("it names a shard twice")
        other = next((name for name in names if not name.startswith(f"{self.kind}-")), None)
        if other is not None:
            raise ValueError(f"a shard of {self.kind} is not called {other}")
        total = sum(shard.samples for shard in self.shards)
        if total != self.samples:
            raise ValueError(f"its shards have {total} samples, it states {self.samples}")
        wide = next((shard for shard in self.shards if shard.samples * self.least_sample_bytes() > shard.bytes), None)
        if wide is not None:
            raise ValueError(f"{wide.name} has no room for {wide.samples} samples in {wide.bytes} bytes")
        return self

    def least_sample_bytes(self) -> int:
        """Bytes that a sample takes of its shard at least."""
        return 0

    @classmethod
    def build(cls, **fields: Any) -> Self:
        """A manifest whose fingerprint follows from its fields."""
        draft = cls(fingerprint="", **fields)
        return draft.model_copy(update={"fingerprint": storage.fingerprint(draft.content())})

    def content(self) -> dict[str, Any]:
        """All fields but the fingerprint, as JSON."""
        return self.model_dump(mode="json", exclude={"fingerprint"})

    def write(self, uri: str) -> None:
        """Complete the data set at `uri`."""
        storage.write_json(storage.join(uri, MANIFEST_NAME), {**self.content(), "fingerprint": self.fingerprint})

    @classmethod
    def read(cls, uri: str) -> Self:
        """The manifest of the data set at `uri`.

        Raises:
            UsageError: if there is none, or it is of another kind or version, or was changed by hand.
        """
        path = storage.join(uri, MANIFEST_NAME)
        try:
            record = storage.read_json(path)
        except (FileNotFoundError, NotADirectoryError):
            raise UsageError(
                f"no complete data set at {uri} ({MANIFEST_NAME} is missing): {cls.remedy} first"
            ) from None
        kind, needed = (record.get("kind") if isinstance(record, dict) else None), cls.model_fields["kind"].default
        if kind != needed:
            found = kind if isinstance(kind, str) else "nothing"
            raise UsageError(f"{path} describes {found[:64]}, but {needed} are needed here: {cls.remedy}")
        check_version(path, f"a manifest of {needed}", record.get("version"), MANIFEST_VERSION, cls.anew)
        try:
            manifest = cls.model_validate_json(storage.canonical_json(record))
        except ValidationError as error:
            raise UsageError(f"{path} is no valid manifest ({first_problem(error)}): {cls.remedy} again") from None
        if storage.fingerprint(manifest.content()) != manifest.fingerprint:
            raise UsageError(
                f"{path} does not have the fingerprint that it states, so it was changed: {cls.remedy} again"
            )
        return manifest


class ImageManifest(_Manifest):
    """A set of image shards."""

    remedy = "run foldtrain ingest"
    anew = "run foldtrain ingest again (the shards stay as they are, and the manifest is written anew)"

    kind: Literal["images"] = "images"
    split: str
    """Which part of the source this is: train or validation."""
    quarantined: Count = 0
    """Images of the source that are left out because they cannot be decoded; quarantine.json lists them."""
    shards: tuple[ImageShardRecord, ...]
    """The shards; sample i is the i-th in their order."""

    def least_sample_bytes(self) -> int:
        """The headers of its two files."""
        return 2 * BLOCK

    def content(self) -> dict[str, Any]:
        """All fields but the fingerprint, as JSON; without the quarantine where it is empty."""
        fields = super().content()
        return fields if self.quarantined else {name: fields[name] for name in fields if name != "quarantined"}


class TokenizerRecord(Record):
    """Which tokenizer made tokens: its encoding half alone, so that one with another decoder has the same record."""

    encoder: str
    """Fingerprint of what encodes (`Card.encoder`)."""
    config: dict[str, Any]
    """The settings that the tokens follow from (`Card.encoder_config`); of imported tokens, what the caller said."""

    @property
    def imported_from(self) -> str | None:
        """The program whose tokens were imported; None for tokens that a tokenizer of ours has made."""
        program = self.config.get("imported")
        return program if isinstance(program, str) else None

    def __str__(self) -> str:
        """For messages."""
        if self.imported_from is None:
            return f"tokenizer {self.encoder[:16]}"
        return f"the tokenizer {self.config.get('name', 'unknown')!r} of {self.imported_from}"


class TokenManifest(_Manifest):
    """A set of token shards."""

    remedy = "run foldtrain tokenize"
    anew = (
        "make the tokens anew in another folder, by foldtrain tokenize (tokens.output) or foldtrain import (--output), "
        "or delete this one first"
    )

    kind: Literal["tokens"] = "tokens"
    layout: StoredLayout
    """What the positions and folds of a sample are."""
    condition: Condition = CLASS
    """What a generator is told about a sample."""
    views: tuple[StoredName, ...] = Field(min_length=1)
    """How each image was seen, in the order of the tokens' views."""
    image_size: Count
    """Side of the square that was tokenized, in pixels."""
    fit: str
    """How images became squares."""
    decode: str = "exact"
    """How JPEG files became pixels."""
    precision: str = "fp32"
    """Number format of the tokenizer."""
    tokenizer: TokenizerRecord
    """What made the tokens."""
    source: str
    """Fingerprint of the image data set."""
    software: dict[str, list[str]]
    """Versions of what computed the tokens; more than one if the run was continued with others."""
    shards: tuple[ShardRecord, ...]
    """The shards; sample i is the i-th in their order."""

    def least_sample_bytes(self) -> int:
        """Its tokens, condition and CRC-32."""
        layout = self.layout
        return len(self.views) * layout.positions * layout.folds * np.dtype(layout.dtype).itemsize + 8

    def content(self) -> dict[str, Any]:
        """All fields but the fingerprint, as JSON; without the decoder and the number format where they are usual."""
        usual = {"decode": "exact", "precision": "fp32"}
        return {name: value for name, value in super().content().items() if value != usual.get(name, ...)}


def read_manifest(uri: str) -> ImageManifest | TokenManifest:
    """The manifest of the data set at `uri`, whatever its kind.

    Raises:
        UsageError: if there is none, it is of no kind that is known, or it was changed by hand.
    """
    path = storage.join(uri, MANIFEST_NAME)
    try:
        record = storage.read_json(path)
    except (FileNotFoundError, NotADirectoryError):
        raise UsageError(f"{uri} holds no complete data set ({MANIFEST_NAME} is missing)") from None
    kinds: dict[Any, type[ImageManifest] | type[TokenManifest]] = {"images": ImageManifest, "tokens": TokenManifest}
    kind = record.get("kind") if isinstance(record, dict) else None
    if not isinstance(kind, str) or kind not in kinds:
        raise UsageError(f"{uri} holds no complete data set of foldtrain's ({path} is of another kind: {kind})")
    return kinds[kind].read(uri)


def first_problem(error: ValidationError) -> str:
    """Where the first thing is that is wrong, and what."""
    first = error.errors(include_url=False)[0]
    where = ".".join(map(str, first["loc"]))
    what = first["msg"].removeprefix("Value error, ")
    return f"{where}: {what}" if where else what


def shard_starts(shards: tuple[ShardRecord, ...] | tuple[ImageShardRecord, ...]) -> list[int]:
    """Index of the first sample of each shard, and the number of samples at the end."""
    return list(accumulate((shard.samples for shard in shards), initial=0))


def differences(one: Any, other: Any, path: str = "") -> list[str]:
    """Where two JSON records differ, each as "dotted.path: this -> that"."""
    if isinstance(one, dict) and isinstance(other, dict):
        found = []
        for key in sorted(one.keys() | other.keys()):
            found += differences(one.get(key), other.get(key), f"{path}.{key}" if path else str(key))
        return found
    return [] if one == other else [f"{path}: {one} -> {other}"]
