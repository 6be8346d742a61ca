"""Which class each image of a set has: plain data of the size of what was asked, and not of the images.

A plan is a row of segments. Within one its classes take turns: image i of a segment has class i modulo their number. So
more images of the same classes leave the first ones as they were.

    --class lion,3,7-9 --n 16      one segment, of five classes, 16 images
    50 per class                   one line of a plan's file: 50 images of each class that the generator knows
    16 of lion,3,7-9               another: 16 images of each of these; lines are segments, one after the other
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from data_pipeline.errors import UsageError

MOST_IMAGES = 100_000_000
MOST_PLAN_BYTES = 1 << 20
NO_CLASS = -1
"""The label of an image of no class."""
_NONE = "none"
_RANGE = re.compile(r"(\d{1,9})-(\d{1,9})")
_LINE = re.compile(r"(\d{1,9})\s+(?:per\s+class|of\s+(\S.*))")


@dataclass(frozen=True)
class Segment:
    """Images whose classes take turns."""

    labels: tuple[int, ...]
    images: int


@dataclass(frozen=True)
class LabelPlan:
    """The classes of all images, by their numbers."""

    segments: tuple[Segment, ...]

    @property
    def images(self) -> int:
        """In all."""
        return sum(segment.images for segment in self.segments)

    @property
    def labels(self) -> tuple[int, ...]:
        """Those that occur, ascending."""
        return tuple(sorted({label for segment in self.segments for label in segment.labels[: segment.images]}))

    def between(self, start: int, stop: int) -> npt.NDArray[np.int64]:
        """Labels of images `start` to `stop`."""
        parts = [np.empty(0, np.int64)]
        first = 0
        for segment in self.segments:
            own = np.arange(max(start, first), max(start, min(stop, first + segment.images))) - first
            parts.append(np.array(segment.labels, np.int64)[own % len(segment.labels)])
            first += segment.images
        return np.concatenate(parts)

    def to_json(self) -> list[dict[str, Any]]:
        """For records."""
        return [{"labels": list(each.labels), "images": each.images} for each in self.segments]

    @classmethod
    def of_json(cls, record: Any) -> LabelPlan:
        """The inverse.

        Raises:
            KeyError, TypeError, ValueError: if it is none.
        """
        return cls(tuple(Segment(tuple(map(int, each["labels"])), int(each["images"])) for each in record))


def plan_of(labels: Sequence[int], images: int) -> LabelPlan:
    """Some classes in turns.

    Raises:
        UsageError: if there are too many images.
    """
    return _checked(LabelPlan((Segment(tuple(labels), images),)))


def parse_plan(text: str, names: Sequence[str], where: str) -> LabelPlan:
    """The plan that a file holds: lines "N per class" and "N of CLASSES"; "#" begins a comment.

    Args:
        text: of the file.
        names: of the generator's classes, by label.
        where: the file, for errors.

    Raises:
        UsageError: if a line is none, or names no class; it names the line.
    """
    segments = []
    for number, line in enumerate(text.splitlines(), 1):
        words = line.partition("#")[0].strip()
        if not words:
            continue
        found, at = _LINE.fullmatch(words), f"{where}, line {number}"
        if not found or not int(found[1]):
            raise UsageError(f'{at}: {words[:80]!r} is no line of a plan: write "50 per class" or "16 of lion,3,7-9"')
        labels = parse_classes([found[2]], names, at) if found[2] else tuple(range(len(names)))
        segments.append(Segment(labels, int(found[1]) * len(labels)))
    if not segments:
        raise UsageError(f'{where} plans no image: write a line such as "50 per class"')
    return _checked(LabelPlan(tuple(segments)))


def _checked(plan: LabelPlan) -> LabelPlan:
    if not 0 < plan.images <= MOST_IMAGES:
        raise UsageError(f"{plan.images:,} images: from 1 to {MOST_IMAGES:,} are possible")
    return plan


def parse_classes(given: Sequence[str], names: Sequence[str], where: str = "--class") -> tuple[int, ...]:
    """Labels of classes as they are typed: a name, a number, a range, "none", or several of these with commas between.

    A name goes before a number, and a text that is a name as a whole is that class, whatever commas it has.

    Args:
        given: texts.
        names: of the classes, by label.
        where: they stand, for errors.

    Raises:
        UsageError: if one is no class; it says which is near.
    """
    found: list[int] = []
    for text in given:
        whole = text.strip()
        for part in [whole] if whole in names else whole.split(","):
            found += _labels(part.strip(), names, where)
    return tuple(found)


def _labels(part: str, names: Sequence[str], where: str) -> Iterator[int]:
    span = _RANGE.fullmatch(part)
    if part in names:
        yield names.index(part)
    elif part == _NONE:
        yield NO_CLASS
    elif part.isascii() and part.isdigit() and len(part) < 10:
        yield _known(int(part), names, where)
    elif span:
        first, last = (_known(int(each), names, where) for each in span.groups())
        if first > last:
            raise UsageError(f"{where}: {part} is no range: the first class is after the last")
        yield from range(first, last + 1)
    else:
        near = difflib.get_close_matches(part, names, n=1, cutoff=0.6)
        some = ", ".join(names[:5])
        hint = f"did you mean {near[0]}?" if near else f"the first of its {len(names)} are {some}"
        raise UsageError(f"{where}: the generator has no class {part[:80]!r}: {hint}")


def _known(label: int, names: Sequence[str], where: str) -> int:
    if label >= len(names):
        raise UsageError(f"{where}: the generator has no class {label}: they are 0 to {len(names) - 1}")
    return label
