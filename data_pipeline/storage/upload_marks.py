"""Which unfinished uploads are ours: each has a mark in storage from its beginning to its end.

    <folder of the object>/.foldtrain-uploads/<32 hex digits>.json    {"key": name of the object, "upload": its id}

S3 lists unfinished uploads by their key alone, and one of another program may have any key, also in a folder of ours.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any, NamedTuple

FOLDER = ".foldtrain-uploads"


class Mark(NamedTuple):
    """What a mark says."""

    uri: str
    """Of the object that was to be."""
    upload_id: str


def place(uri: str, upload_id: str) -> str:
    """Where the mark of an upload lies."""
    return f"{uri.rpartition('/')[0]}/{FOLDER}/{hashlib.sha256(upload_id.encode()).hexdigest()[:32]}.json"


def encode(uri: str, upload_id: str) -> bytes:
    """The content of a mark."""
    return json.dumps({"key": uri.rpartition("/")[2], "upload": upload_id}).encode()


def parse(path: str, record: Any) -> Mark | None:
    """The mark at a place; None if the record there is none."""
    if not isinstance(record, dict) or not {"key", "upload"} <= record.keys():
        return None
    mark = Mark(f"{path.rpartition(f'/{FOLDER}/')[0]}/{record['key']}", str(record["upload"]))
    return mark if place(*mark) == path else None
