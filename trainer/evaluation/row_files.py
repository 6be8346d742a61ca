"""Rows of images as files, made part by part: what numbers are computed from, so that they resume and merge.

    FOLDER/plan.json                    what the rows follow from; written first
    FOLDER/parts/00000.safetensors      arrays with a row for each image of a part; its header names plan, part, and the
                                        sha256 of the bytes of the images
    FOLDER/rows.json                    written last: its presence means that all parts are there

A part is a function of the plan, and is written at once or not at all, so it does no harm to make one twice.
Imports no torch. Shapes: B images of a part, N of the plan.
"""

from __future__ import annotations

import functools
import hashlib
import json
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from data_pipeline import storage
from data_pipeline.errors import CorruptShardError, UsageError
from data_pipeline.images.transforms import Pixels
from data_pipeline.shards.manifest import differences
from data_pipeline.text.json_records import first_problem
from data_pipeline.text.names import Count, Sha256
from trainer.evaluation.measures import Rows

VERSION = 1
PLAN, FINISHED, PARTS = "plan.json", "rows.json", "parts"
PART_IMAGES = 512
"""Images of a part, about: what is measured again where a worker dies."""
_MOST_HEADER = 65_536
_AT_ONCE = 16
_REMEDY = "delete it and run the same command again"


@dataclass(frozen=True)
class RowPlan:
    """What is to be measured. Plain data, of the same size for any number of images."""

    folder: str
    """URI."""
    images: dict[str, Any]
    """What the images are, as JSON."""
    measure: dict[str, Any]
    """What is measured of them, as JSON."""
    count: int
    """Images."""
    batch: int
    """Images that a network sees at once: the last bits of a row may depend on it."""
    device: str = "cpu"
    """cpu or cuda, on which the last bits depend, too."""

    @property
    def part_images(self) -> int:
        """Images of a part: whole batches."""
        return self.batch * max(1, round(PART_IMAGES / self.batch))

    @property
    def parts(self) -> int:
        """Number of parts."""
        return -(-self.count // self.part_images)

    def span(self, part: int) -> tuple[int, int]:
        """The first image of a part, and the first after it."""
        start = part * self.part_images
        return start, min(start + self.part_images, self.count)

    def size(self, part: int) -> int:
        """Images of a part."""
        start, stop = self.span(part)
        return stop - start

    @property
    def fingerprint(self) -> str:
        """Of all that decides the rows."""
        return storage.fingerprint(self.to_json())

    def to_json(self) -> dict[str, Any]:
        """For records."""
        names = ("images", "measure", "count", "batch", "device")
        return {"version": VERSION} | {name: getattr(self, name) for name in names}

    def uri(self, part: int) -> str:
        """Of a part."""
        return storage.join(self.folder, PARTS, f"{part:05d}.safetensors")


class PartFacts(BaseModel):
    """What the header of a part says."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    plan: Sha256
    part: Count
    images: Count
    pixels: Sha256
    """Of the bytes of all images of the part."""
    software: dict[str, str] = Field(max_length=20)


# --------------------------------------------------------------------------------------------------------- one part


def write_part(plan: RowPlan, part: int, rows: Rows, pixels: str, software: dict[str, str]) -> PartFacts:
    """Commit the rows of a part."""
    from safetensors.numpy import save

    facts = PartFacts(
        plan=plan.fingerprint, part=part, images=plan.size(part), pixels=pixels, software=dict(sorted(software.items()))
    )
    arrays = {name: np.ascontiguousarray(rows[name]) for name in sorted(rows)}
    storage.write_bytes(plan.uri(part), save(arrays, metadata={"facts": facts.model_dump_json()}))
    return facts


def digest_pixels(pixels_BHWC: Pixels) -> str:
    """sha256 of the shape and the bytes of images."""
    found = hashlib.sha256(repr(pixels_BHWC.shape).encode())
    found.update(np.ascontiguousarray(pixels_BHWC).data)
    return found.hexdigest()


def _parse_facts(plan: RowPlan, part: int, header: bytes) -> PartFacts:
    """The facts in a header of safetensors.

    Raises:
        ValueError: if it is none, or of other rows.
    """
    try:
        facts = PartFacts.model_validate_json(json.loads(header)["__metadata__"]["facts"])
    except (KeyError, TypeError, ValidationError):
        raise ValueError("is no part of rows") from None
    if facts.plan != plan.fingerprint or facts.part != part or facts.images != plan.size(part):
        raise ValueError("is of other rows")
    return facts


def _header(data: bytes) -> bytes:
    length = int.from_bytes(data[:8], "little")
    if not 0 < length <= len(data) - 8:
        raise ValueError("is no safetensors file")
    return data[8 : 8 + length]


def _start(uri: str) -> bytes:
    return storage.read_range(uri, 0, min(storage.size(uri), _MOST_HEADER))


def read_facts(plan: RowPlan, part: int) -> PartFacts:
    """What a part says of itself, by one small read.

    Raises:
        CorruptShardError: if it is none, or of other rows.
    """
    uri = plan.uri(part)
    try:
        return _parse_facts(plan, part, _header(_start(uri)))
    except ValueError as error:
        raise CorruptShardError(f"{uri} {error}: {_REMEDY}") from None


def read_part(plan: RowPlan, part: int, names: tuple[str, ...] = ()) -> Rows:
    """The rows of a part, those of these names, or all.

    Raises:
        CorruptShardError: if the file is none, is of other rows, or lacks a name.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load

    uri = plan.uri(part)
    try:
        data = storage.read_bytes(uri)
        _parse_facts(plan, part, _header(data))
        rows: Rows = load(data)
        wrong = [name for name in names or rows if len(rows[name]) != plan.size(part)]
    except (ValueError, SafetensorError) as error:
        raise CorruptShardError(f"{uri} {error}: {_REMEDY}") from None
    except KeyError as error:
        raise CorruptShardError(f"{uri} has no rows {error}: {_REMEDY}") from None
    except FileNotFoundError:
        raise CorruptShardError(f"{uri} is missing: run the same command again") from None
    if wrong:
        raise CorruptShardError(f"{uri} has another number of rows of {wrong[0]} than its plan: {_REMEDY}")
    return {name: rows[name] for name in names} if names else rows


# -------------------------------------------------------------------------------------------------------- all parts


def begin(plan: RowPlan) -> None:
    """Put on record what is about to be measured.

    Raises:
        UsageError: if the folder holds rows of something else; it says what differs.
    """
    uri = storage.join(plan.folder, PLAN)
    try:
        found = storage.read_json(uri)
    except FileNotFoundError:
        storage.write_json(uri, plan.to_json())
        return
    if not isinstance(found, dict) or (differing := differences(found, plan.to_json())):
        shown = "\n  ".join(differing[:20]) if isinstance(found, dict) else "it is no plan"
        raise UsageError(f"{uri} is of other rows (there -> now):\n  {shown}\nDelete the folder, or choose another")


class Parts:
    """Which parts of a plan are there."""

    def __init__(self, plan: RowPlan) -> None:
        self.plan = plan
        self._pixels = np.zeros((plan.parts, 32), np.uint8)
        self._is_there = np.zeros(plan.parts, np.bool_)
        self._software: dict[str, set[str]] = {}

    @property
    def missing(self) -> npt.NDArray[np.int64]:
        """Numbers of the parts that are still to be made, ascending."""
        return np.flatnonzero(~self._is_there)

    def add(self, facts: PartFacts) -> None:
        """A part is there."""
        self._pixels[facts.part] = np.frombuffer(bytes.fromhex(facts.pixels), np.uint8)
        self._is_there[facts.part] = True
        for name, version in facts.software.items():
            self._software.setdefault(name, set()).add(version)

    def look(self) -> None:
        """See what storage has.

        Raises:
            CorruptShardError: if a part is none, or of other rows.
        """
        names = set(storage.list_names(storage.join(self.plan.folder, PARTS)))
        numbers = [part for part in range(self.plan.parts) if f"{part:05d}.safetensors" in names]
        with ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="rows") as pool:
            for facts in pool.map(lambda part: read_facts(self.plan, part), numbers):
                self.add(facts)

    def finish(self) -> FinishedRows:
        """With all parts there: the last record."""
        assert not len(self.missing), "all parts are there"
        finished = FinishedRows(
            version=VERSION,
            plan=self.plan.fingerprint,
            pixels=hashlib.sha256(self._pixels.tobytes()).hexdigest(),
            software={name: tuple(sorted(found)) for name, found in sorted(self._software.items())},
        )
        storage.write_json(storage.join(self.plan.folder, FINISHED), finished.model_dump(mode="json"))
        return finished


class FinishedRows(BaseModel):
    """What rows.json says."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    version: int
    plan: Sha256
    pixels: Sha256
    """Over the bytes of all images: two sets of the same images, cut into the same parts, have the same."""
    software: dict[str, tuple[str, ...]]


def read_finished(plan: RowPlan) -> FinishedRows | None:
    """The last record, if all is there.

    Raises:
        UsageError: if it is of other rows.
    """
    uri = storage.join(plan.folder, FINISHED)
    try:
        finished = FinishedRows.model_validate(storage.read_json(uri))
    except FileNotFoundError:
        return None
    except ValidationError as error:
        raise UsageError(f"{uri} is no record of rows ({first_problem(error)}): delete its folder") from None
    if finished.version != VERSION or finished.plan != plan.fingerprint:
        raise UsageError(f"{uri} is of other rows: delete its folder, or choose another")
    return finished


class StoredRows:
    """The rows of a plan whose parts are all there (measures.py, `MeasuredRows`).

    Args:
        plan: of the rows.
        finished: its last record.
        most: images that are read, the first ones; None for all.
    """

    def __init__(self, plan: RowPlan, finished: FinishedRows, most: int | None = None) -> None:
        self.plan, self.finished = plan, finished
        self.count = plan.count if most is None else min(most, plan.count)

    @functools.cached_property
    def names(self) -> frozenset[str]:
        """Of its arrays."""
        header: dict[str, Any] = json.loads(_header(_start(self.plan.uri(0))))
        return frozenset(header) - {"__metadata__"}

    def first(self, most: int) -> StoredRows:
        """The first images alone."""
        return StoredRows(self.plan, self.finished, most)

    def parts(self, *names: str) -> Iterator[Rows]:
        """The arrays of these names, or all, part by part, in the order of the images."""
        for part in range(self.plan.parts):
            start, stop = self.plan.span(part)
            if start >= self.count:
                return
            rows = read_part(self.plan, part, names)
            yield rows if stop <= self.count else {name: rows[name][: self.count - start] for name in rows}

    def column(self, name: str) -> npt.NDArray[Any]:
        """One array of all images, as a memory map of a file on this machine's disk that goes with it."""
        mapped: npt.NDArray[Any] | None = None
        start = 0
        for rows in self.parts(name):
            found = rows[name]
            if mapped is None:
                with tempfile.TemporaryFile() as file:
                    mapped = np.memmap(file, found.dtype, "w+", shape=(self.count, *found.shape[1:]))
            mapped[start : start + len(found)] = found
            start += len(found)
        assert mapped is not None, "a plan has images"
        return mapped
