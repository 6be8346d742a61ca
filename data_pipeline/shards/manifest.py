"""What a data set is: manifest.json, written last, so that its presence means that the data set is complete.

It has a few KB whatever the data set holds: the shards are a table of their own (shard_table.py), the samples of images
another (sample_index.py), and the manifest states their digests.
"""

from __future__ import annotations

import functools
from typing import Annotated, Any, ClassVar, Literal, Self, TypeVar

import numpy as np
from pydantic import (
    AfterValidator,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    PlainValidator,
    ValidationError,
    ValidationInfo,
    model_validator,
)

from data_pipeline import storage
from data_pipeline.errors import UsageError
from data_pipeline.node.node_cache import NodeCache
from data_pipeline.shards.conditions import CLASS, Condition
from data_pipeline.shards.edits import Edit
from data_pipeline.shards.shard_table import (
    ImageShardRecord,
    Record,
    ShardRecord,
    ShardTable,
    TableStatement,
    shard_uri,
)
from data_pipeline.shards.versions import check_version
from data_pipeline.storage.tar import BLOCK
from data_pipeline.text.json_records import first_problem
from data_pipeline.text.names import ClassName, Count, Sha256, StoredName
from model.layout import TokenLayout

__all__ = [
    "MANIFEST_NAME",
    "FileStatement",
    "ImageManifest",
    "ImageShardRecord",
    "ShardRecord",
    "ShardTable",
    "TokenCommit",
    "TokenManifest",
    "TokenizerRecord",
    "differences",
    "first_problem",
    "read_manifest",
    "shard_uri",
]

R = TypeVar("R", bound=ShardRecord)
MANIFEST_NAME = "manifest.json"
MANIFEST_VERSION: Literal[3] = 3
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


StoredLayout = Annotated[
    TokenLayout,
    BeforeValidator(_parse_layout),
    AfterValidator(_bounded_layout),
    PlainSerializer(TokenLayout.to_json, return_type=dict[str, Any]),
]
"""A layout of a manifest or a card, which anybody may have written: groups and vocabularies within bounds, no more."""


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


def _parsed_table(record: type[R], kind: str, value: Any, info: ValidationInfo) -> ShardTable[R]:
    """From what a manifest states, or from the records of a data set that is about to be written."""
    if info.mode == "json":
        return ShardTable(record, TableStatement.model_validate(value))
    return value if isinstance(value, ShardTable) else ShardTable.of(record, kind, value)


_AS_STATED = PlainSerializer(lambda table: table.statement.model_dump(mode="json"))
ImageTable = Annotated[
    ShardTable[ImageShardRecord],
    PlainValidator(functools.partial(_parsed_table, ImageShardRecord, "images")),
    _AS_STATED,
]
TokenTable = Annotated[
    ShardTable[ShardRecord], PlainValidator(functools.partial(_parsed_table, ShardRecord, "tokens")), _AS_STATED
]


class _Manifest(Record):
    remedy: ClassVar[str]
    """The command that makes such a data set."""
    anew: ClassVar[str]
    """How one of another version is made anew."""

    model_config = ConfigDict(arbitrary_types_allowed=True)

    version: Literal[3] = MANIFEST_VERSION
    """Version of this format."""
    kind: str
    """What the samples are."""
    fingerprint: str
    """sha256 of everything else here: it names exactly this data set."""
    samples: Count
    """Images in all."""
    classes: tuple[ClassName, ...]
    """Class names by label."""
    edit: Edit | None = Field(None, exclude_if=lambda edit: edit is None)
    """How it was made of other data sets; their shards are its own."""
    shards: ShardTable[Any]
    """The shards; sample i is the i-th in their order. Of a manifest that was read, they are read when asked for."""

    @model_validator(mode="after")
    def _check_shards(self) -> Self:
        self.shards.check(self.kind, self.samples, self.least_sample_bytes())
        return self

    @property
    def epoch_samples(self) -> int:
        """Samples of an epoch: all, but for a mix, which states how many."""
        return sum(self.edit.draws) if self.edit is not None and self.edit.draws else self.samples

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
        """Complete the data set at `uri`: put the table of its shards, then the manifest."""
        self.shards.write(uri, self.kind)
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
        return manifest._stored(uri)

    def through(self, cache: NodeCache) -> Self:
        """The same manifest, whose table of shards is read through this node's copy where it is remote."""
        return self.model_copy(update={"shards": self.shards.through(cache)})

    def _stored(self, uri: str) -> Self:
        least, remedy = self.least_sample_bytes(), f"{self.remedy} again"
        table = self.shards.stored(uri, self.kind, self.samples, least, remedy, self.fingerprint)
        return self.model_copy(update={"shards": table})


class FileStatement(Record):
    """What a manifest states of a file beside it."""

    bytes: Count
    """Of the file."""
    sha256: Sha256
    """Digest of the file."""


class ImageManifest(_Manifest):
    """A set of image shards, which `finish_images` completes."""

    remedy = "run foldtrain ingest"
    anew = "run foldtrain ingest again (the shards stay as they are, and the manifest is written anew)"

    kind: Literal["images"] = "images"
    split: str
    """Which part of the source this is: train or validation."""
    quarantined: Count = 0
    """Images of the source that are left out because they cannot be decoded; quarantine.json lists them."""
    shards: ImageTable
    """The shards; sample i is the i-th in their order."""
    index: FileStatement | None = None
    """index.bin (sample_index.py); a set without samples may have none."""

    @model_validator(mode="after")
    def _check_index(self) -> Self:
        if self.index is None and self.samples:
            raise ValueError("index: it states no index of its samples")
        return self

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
    shards: TokenTable
    """The shards; sample i is the i-th in their order."""

    def least_sample_bytes(self) -> int:
        """Its tokens, condition and CRC-32."""
        layout = self.layout
        joined = self.edit is not None and self.edit.operation == "views"  # in the tars of several sets
        return (1 if joined else len(self.views)) * layout.positions * layout.folds * np.dtype(
            layout.dtype
        ).itemsize + 8

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


def differences(one: Any, other: Any, path: str = "") -> list[str]:
    """Where two JSON records differ, each as "dotted.path: this -> that"."""
    if isinstance(one, dict) and isinstance(other, dict):
        found = []
        for key in sorted(one.keys() | other.keys()):
            found += differences(one.get(key), other.get(key), f"{path}.{key}" if path else str(key))
        return found
    return [] if one == other else [f"{path}: {one} -> {other}"]
