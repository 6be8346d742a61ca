"""What every source of raw images offers, and how keys are spelled."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple, Protocol

from data_pipeline.errors import UsageError
from data_pipeline.storage import sha256

MAX_KEY_BYTES = 90
"""With an extension it still fits the name field of a plain tar header."""


class RawItem(NamedTuple):
    """One image of a source, before its bytes are read."""

    key: str
    """Its name from now on: unique, without dots."""
    label: int
    """Its class."""
    size: int
    """Its bytes in the source; of a parquet file, an even share of its row group."""
    name: str
    """What the source calls it, for messages."""
    offset: int = 0
    """Where it lies in the source's file (bytes), or in its block (rows)."""
    part: str = ""
    """The source's file that holds it, where there are several."""
    block: int = -1
    """Of images that are read together: which block of its part holds it. -1: it can be read alone."""


class ItemReader(Protocol):
    """Reads images without the source's listing. It can be pickled, and has no state but what it keeps to be fast."""

    def read(self, item: RawItem) -> bytes:
        """An image's file, as it is in the source; fast if the images of a block are asked for together."""


@dataclass(frozen=True)
class Facts:
    """What a listing comes to, beside the images."""

    classes: tuple[str, ...]
    """Class names by label."""
    skipped: Mapping[str, int]
    """What lies among the images and was left out, by kind."""
    identity: Any = None
    """What tells this source's content from another's, beyond the names and sizes of its images, as far as it can be
    had without reading it all; JSON."""


Take = Callable[[list[RawItem]], object]
"""Is given the images of one part of a source after another."""


class RawSource(Protocol):
    """A set of raw images that is there, and may not be listed yet."""

    name: str
    """Where it is, for messages."""
    reader: ItemReader
    """Reads its images, in any process."""
    prefixes: bool
    """Whether all keys begin with the names of their parts if two parts share one (`prefixed`)."""

    def stamp(self) -> str:
        """Hex digest of the names, sizes, times and ETags of its files: as long as it is the same, so is a listing."""

    def scan(self, take: Take) -> Facts:
        """List it, part by part, in an order that depends on nothing but names.

        Raises:
            UsageError: if it is empty, damaged or not of its kind.
        """


@dataclass(frozen=True)
class ImageSource:
    """A source whose listing is held in memory; for small ones."""

    name: str
    """Where it is, for messages."""
    classes: tuple[str, ...]
    """Class names by label."""
    items: Sequence[RawItem]
    """The images, by key."""
    reader: ItemReader
    """Reads them, in any process."""
    skipped: Mapping[str, int]
    """What lies among them and was left out, by kind."""
    content: Any
    """As `Facts.identity`."""

    @classmethod
    def of(cls, source: RawSource) -> ImageSource:
        """List a source.

        Raises:
            UsageError: if it is wrong.
        """
        items: list[RawItem] = []
        facts = source.scan(items.extend)
        if source.prefixes and _share_keys(items):
            items = [prefixed(item) for item in items]
        return cls(
            source.name, facts.classes, unique_items(source.name, items), source.reader, facts.skipped, facts.identity
        )

    def identity(self) -> Any:
        """What tells this source's content from another's, beyond its items."""
        return self.content


def _share_keys(items: Iterable[RawItem]) -> bool:
    """Whether a key occurs in two parts. One that a part holds twice is an error, which comes later."""
    owners: dict[str, str] = {}
    return any(owners.setdefault(item.key, item.part) != item.part for item in items)


def prefixed(item: RawItem) -> RawItem:
    """An image of a tar whose key begins with the name of the tar."""
    inner, _ = split_member(item.name.removeprefix(f"{item.part}/"))
    return item._replace(key=safe_key(f"{item.part.removesuffix('.tar')}/{inner}"))


def split_member(name: str) -> tuple[str, str]:
    """Key and extension of a member: "a/b.seg.png" is sample "a/b", extension "seg.png"."""
    folder, slash, file = name.removeprefix("./").rpartition("/")
    stem, _, extension = file.partition(".")
    return (f"{folder}{slash}{stem}", extension.lower()) if stem else (name, "")


def safe_key(name: str) -> str:
    """A key for a file's relative name without its extension: no dots or blanks, and short enough for a tar header.

    Letters, digits and marks of all scripts stay: without its vowel signs an Indic or Thai word is another one.
    """
    plain = "/".join(part for part in name.split("/") if part not in {"", "."})
    key = re.sub(r"[^\w/-]", _mark_or_underscore, plain) or "_"
    if len(key.encode()) > MAX_KEY_BYTES:
        start = key.encode()[: MAX_KEY_BYTES - 17].decode(errors="ignore")
        key = f"{start}_{sha256(name.encode())[:16]}"
    return key


def _mark_or_underscore(match: re.Match[str]) -> str:
    character = match.group()
    return character if unicodedata.category(character).startswith("M") else "_"


def check_length(where: str, item: RawItem, data: bytes) -> bytes:
    """An image's file, once it is known to have the length that it had in the listing.

    Raises:
        UsageError: if not.
    """
    if len(data) != item.size:
        change = "longer" if len(data) > item.size else "shorter"
        raise UsageError(
            f"{where}: {item.name} (key {item.key}) had {item.size} bytes when the source was listed, and is {change} "
            "now. Run foldtrain ingest again with a source that does not change"
        )
    return data


def name_some(names: Iterable[str], most: int = 5) -> str:
    """The first few names, and how many more there are."""
    listed = list(names)
    more = f" and {len(listed) - most} more" if len(listed) > most else ""
    return ", ".join(listed[:most]) + more


def check_class_names(where: str, names: Iterable[str]) -> None:
    """See that the names of classes cannot be mistaken for each other.

    Raises:
        UsageError: if two differ in case, in blanks around them, or in how Unicode spells them alone.
    """
    seen: dict[str, str] = {}
    for name in names:
        alike = unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold()).strip()
        other = seen.setdefault(alike, name)
        if other != name:
            raise UsageError(
                f"{where} holds the classes {other!a} and {name!a}, which differ in case, blanks or the spelling of "
                "accents alone: many systems take them for one. Rename one, or put their images together"
            )


def unique_items(source: str, items: Iterable[RawItem]) -> list[RawItem]:
    """The items, sorted by key.

    Raises:
        UsageError: if there are none, or two have the same key.
    """
    ordered = sorted(items)
    if not ordered:
        raise UsageError(f"{source} holds no images")
    for one, other in pairwise(ordered):
        if one.key == other.key:
            raise UsageError(f"{source}: {one.name} and {other.name} would both have the key {one.key}: rename one")
    return ordered
