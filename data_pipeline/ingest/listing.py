"""A source's listing, kept beside the output: a second start reads it in place of the source.

    <output>/listing/<stamp>/part-00000.parquet ...    the images, in the order of the source's files
    <output>/listing/<stamp>/listing.json              classes, what was left out, how many there are; written last

The stamp is a digest of the names, sizes, times and ETags of the source's files and of its config, so another source,
or one that has changed, has another listing. Without listing.json there is none, and it is made from the start.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from data_pipeline import storage
from data_pipeline.errors import CorruptShardError, UsageError
from data_pipeline.ingest.item_files import ItemWriter, read_rows, to_table
from data_pipeline.shards.manifest import first_problem
from data_pipeline.sources import Facts, RawItem, RawSource
from data_pipeline.text.names import ClassName, Count

if TYPE_CHECKING:
    import pyarrow as pa

FOLDER = "listing"
NAME = "listing.json"
STAMP_CHARACTERS = 32
"""Of a digest, in the names of folders."""
_ROWS_AT_ONCE = 32_768
"""Rows of a row group, about: what is held as Python objects at a time."""


class Listing(BaseModel):
    """A listing that is on storage as a whole."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    version: Literal[1] = 1
    stamp: str
    """Of the source."""
    classes: tuple[ClassName, ...]
    """Class names by label."""
    skipped: dict[str, Count]
    """What was left out, by kind."""
    identity: Any = None
    """As `Facts.identity`."""
    prefixes: bool
    """As `RawSource.prefixes`."""
    rows: Count
    """Images."""
    parts: Count
    """Files that hold them."""

    def folder(self, output: str) -> str:
        """Where it lies."""
        return listing_folder(output, self.stamp)

    def tables(self, output: str, columns: list[str] | None = None) -> Iterator[pa.Table]:
        """The images, some ten thousand at a time.

        Raises:
            CorruptShardError: if a file of it is missing or damaged.
        """
        yield from read_rows(self.folder(output), self.parts, columns)


def listing_folder(output: str, stamp: str) -> str:
    """Where the listing with a stamp lies."""
    return storage.join(output, FOLDER, stamp[:STAMP_CHARACTERS])


def keep_listing(
    source: RawSource, stamp: str, output: str, place: str, require: Callable[[], object]
) -> tuple[Listing, str]:
    """The listing of a source: the one that is kept, or else a new one, which is kept from now on.

    Args:
        source: is not asked for anything where its listing is kept.
        stamp: of the source.
        output: URI of the folder of the splits, where it may be kept.
        place: where a new one is written: there, too, or in another folder.
        require: called before each write; raises if this process may not write any more.

    Returns:
        It, and the one of the two folders that it lies in.

    Raises:
        UsageError: if the source is wrong.
        CorruptShardError: if the kept listing is damaged.
    """
    for base in dict.fromkeys((output, place)):
        kept = _read(storage.join(listing_folder(base, stamp), NAME), stamp)
        if kept is not None:
            return kept, base
    folder = listing_folder(place, stamp)
    writer = _Batches(ItemWriter(folder, require))
    facts = source.scan(writer.take)
    writer.close()
    if not writer.rows:
        raise UsageError(f"{source.name} holds no images")
    listing = _listing(source, stamp, facts, writer)
    require()
    storage.write_json(storage.join(folder, NAME), listing.model_dump(mode="json"))
    return listing, place


class _Batches:
    """Makes row groups of some ten thousand images of whatever a source gives at a time."""

    def __init__(self, writer: ItemWriter) -> None:
        self._writer = writer
        self._held: list[RawItem] = []

    def take(self, items: list[RawItem]) -> None:
        """Add images."""
        self._held += items
        if len(self._held) >= _ROWS_AT_ONCE:
            self._writer.add(to_table(self._held))
            self._held = []

    def close(self) -> None:
        """Write what is left."""
        if self._held:
            self._writer.add(to_table(self._held))
        self._writer.close()

    @property
    def rows(self) -> int:
        """Images so far."""
        return self._writer.rows

    @property
    def parts(self) -> int:
        """Files so far."""
        return self._writer.parts


def _listing(source: RawSource, stamp: str, facts: Facts, writer: _Batches) -> Listing:
    return Listing(
        stamp=stamp,
        classes=facts.classes,
        skipped=dict(facts.skipped),
        identity=facts.identity,
        prefixes=source.prefixes,
        rows=writer.rows,
        parts=writer.parts,
    )


def _read(path: str, stamp: str) -> Listing | None:
    try:
        record = storage.read_json(path)
    except FileNotFoundError:
        return None
    try:
        listing = Listing.model_validate(record)
    except ValidationError as error:
        reason = first_problem(error)
    else:
        if listing.stamp == stamp:
            return listing
        reason = "it is of another source"
    raise CorruptShardError(f"{path} is no listing of this source ({reason}): delete it and run foldtrain ingest again")
