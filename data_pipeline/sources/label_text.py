"""Labels and names of classes as text that people and other programs wrote."""

from __future__ import annotations

import codecs

from data_pipeline import storage
from data_pipeline.errors import UsageError
from data_pipeline.storage.local_listing import check_file

MOST_BYTES = 256 * 2**20
"""A larger file is no list of labels."""
_MOST_DIGITS = 18

_MARKS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
"""Byte-order marks, as Windows' programs write them, and what text is spelled in behind each; UTF-32's is longer."""


def read_text(uri: str) -> str:
    """A text file, without its byte-order mark.

    Raises:
        FileNotFoundError: if there is none.
        UsageError: if it is no text, or too large.
    """
    if not storage.is_remote(uri):
        check_file(storage.local_path(uri))
    size = storage.size(uri)
    if size > MOST_BYTES:
        raise UsageError(f"{uri} has {size} bytes: it is no list of labels or names")
    data = storage.read_bytes(uri)
    encoding = next((name for mark, name in _MARKS.items() if data.startswith(mark)), "utf-8")
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        raise UsageError(f"{uri} is no text file ({error}): write it as UTF-8") from error


def is_number(text: str | bytes) -> bool:
    """Whether a text is a whole number from 0 on, in the digits 0 to 9; not ² or ٣, which `str.isdigit` takes, too."""
    text = text.strip()
    return text.isascii() and text.isdigit() and len(text) <= _MOST_DIGITS
