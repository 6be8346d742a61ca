"""Takes lines back from the end of a file of records, without reading what lies before them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from data_pipeline.text import json_records
from data_pipeline.text.json_records import MOST_LINE_BYTES

IsRecord = Callable[[dict[str, Any]], bool]
"""Says whether an object is a record of a file."""


class Cut(NamedTuple):
    """What is left of a file."""

    stop: int
    """Where what stays as it is ends."""
    kept: list[bytes]
    """Lines that follow them, each with its end."""
    is_changed: bool
    """Whether anything was taken out, or the last line had no end."""
    left_out: int
    """Lines that were taken out since they were no records."""


Block = tuple[int, int, bytes]
"""Where it begins, where it ends, and its lines."""


def cut_back(blocks: Iterable[Block], is_record: IsRecord, unwanted: IsRecord) -> Cut:
    """Take out unwanted records and what is no record, from the end back to the first block that holds neither.

    Steps rise along a file, so what is taken back stands at its end. A line far before that which is no record stays;
    whoever reads the file leaves it out.

    Args:
        blocks: whole lines, the last ones first; the last line may be cut.
        is_record: whether an object is a record of the file.
        unwanted: whether a record is taken out.
    """
    stop, kept, left_out, is_changed = 0, list[bytes](), 0, False
    for start, end, text in blocks:
        *lines, unfinished = text.split(b"\n")
        found = [(line, _record(line, is_record)) for line in lines if line.strip()]
        stays = [line + b"\n" for line, record in found if record is not None and not unwanted(record)]
        left_out += sum(record is None for _, record in found)
        if len(stays) == len(found) and not unfinished:
            stop = end
            break
        last = _record(unfinished, is_record)
        if last is not None and not unwanted(last):
            stays.append(unfinished + b"\n")
        kept, is_changed, stop = stays + kept, True, start
    return Cut(stop, kept, is_changed, left_out)


def _record(line: bytes, is_record: IsRecord) -> dict[str, Any] | None:
    try:
        record = json_records.parse(line) if line and len(line) <= MOST_LINE_BYTES else None
    except ValueError:
        return None
    return record if isinstance(record, dict) and is_record(record) else None


def blocks_of_file(read: Callable[[int, int], bytes], size: int, block: int = 256 * 2**10) -> Iterable[Block]:
    """Whole lines of a file from its end to its beginning, in blocks.

    Args:
        read: the bytes from one offset to another.
        size: of the file.
        block: bytes of a block at least, unless it is the first of the file.
    """
    stop, reach = size, block
    while stop > 0:
        start = max(0, stop - reach)
        text = read(start, stop)
        head = text.find(b"\n") + 1 if start else 0
        if start and (head == 0 or head == len(text)):
            reach *= 2  # one line fills it
            continue
        yield start + head, stop, text[head:]
        stop, reach = start + head, block
