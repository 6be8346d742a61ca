"""The list of segments that stands above the newest lines of a file of records in object storage."""

from __future__ import annotations

import json
import re
from dataclasses import astuple, dataclass

from data_pipeline.errors import UsageError
from data_pipeline.text import json_records

SEAL_BYTES = 32 * 2**10
"""The newest lines become a segment when they have so many bytes: about what each flush puts, twice over."""
MIDDLE_BYTES = 512 * 2**10
LARGEST_BYTES = 8 * 2**20
_MOST_SEGMENT_BYTES = 2**30
_MOST_SEGMENTS = 100_000
_BEGIN = b'{"segments":'
_NAME = re.compile(r"[0-9a-f]{16}")


@dataclass(frozen=True)
class Segment:
    """Lines that are stored once and never changed."""

    name: str
    """In the folder of segments: 16 hex digits."""
    rows: int
    bytes: int
    crc: int
    """CRC-32 of its bytes."""
    column_bytes: int = 0
    """Of its numbers in columns, beside it (`NAME.columns`); 0 if there are none."""


def segments_folder(uri: str) -> str:
    """Where the segments of a file are."""
    return uri.removesuffix(".jsonl") + ".segments"


def columns_folder(uri: str) -> str:
    """Where the numbers of a file on a disk are kept in columns, too."""
    return uri.removesuffix(".jsonl") + ".columns"


def encode(segments: list[Segment], lines: bytes) -> bytes:
    """The object that names these segments and holds the lines after them; never empty."""
    if not segments:
        return lines or b"\n"
    entries = [list(astuple(segment)) for segment in segments]
    return _BEGIN + json.dumps(entries, separators=(",", ":")).encode() + b"}\n" + lines


def decode(uri: str, data: bytes) -> tuple[tuple[Segment, ...], bytes]:
    """The segments that an object names, and the lines after them; all of it is lines if it names none.

    Raises:
        UsageError: if its list of segments is damaged; it names the file.
    """
    if not data.startswith(_BEGIN):
        return (), data
    head, _, lines = data.partition(b"\n")
    try:
        segments = _segments(json_records.parse(head)["segments"])
    except (ValueError, TypeError, KeyError) as error:
        raise UsageError(
            f"{uri}: its first line is no list of segments ({error}); it was cut or edited, and the older records "
            f"cannot be found without it: restore it, or delete it and {segments_folder(uri)} to begin anew"
        ) from error
    return segments, lines


def _segments(entries: object) -> tuple[Segment, ...]:
    if not isinstance(entries, list) or len(entries) > _MOST_SEGMENTS:
        raise ValueError(f"it names more than {_MOST_SEGMENTS:,} segments, or is no list")
    return tuple(_segment(entry) for entry in entries)


def _segment(entry: object) -> Segment:
    if not isinstance(entry, list) or len(entry) != 5:
        raise ValueError("a segment has a name and four numbers")
    name, *numbers = entry
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ValueError("a segment is called by 16 hex digits")
    if not all(type(number) is int and 0 <= number <= _MOST_SEGMENT_BYTES * 4 for number in numbers):
        raise ValueError(f"the numbers of segment {name} are out of bounds")
    if numbers[1] > _MOST_SEGMENT_BYTES or numbers[0] > numbers[1]:
        raise ValueError(f"segment {name} is too large, or has more rows than bytes")
    return Segment(name, *numbers)
