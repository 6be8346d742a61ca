"""The seal at the end of a copy: by it a copy that was cut, overwritten or swapped is told from a whole one.

content, then 64 bytes: magic, sha256 of the copy's name, bytes of the content, CRC-32 of the content, zeros
"""

from __future__ import annotations

import hashlib
import os
import struct
import zlib
from typing import BinaryIO

_SEAL = struct.Struct("<8s32sQI12x")
_MAGIC = b"foldcopy"
SEAL_BYTES = _SEAL.size
_PIECE_BYTES = 2**20
"""Read at once. What a process has used of its heap it keeps, so pieces of 16 MiB would stay with every rank."""


def content_bytes(copy: BinaryIO) -> int:
    """Bytes of a sealed copy before its seal."""
    return os.fstat(copy.fileno()).st_size - SEAL_BYTES


def seal(copy: BinaryIO, name: str) -> None:
    """Append the seal to what a file holds."""
    copy.flush()
    size = os.fstat(copy.fileno()).st_size
    copy.seek(size)
    copy.write(_encode(name, size, _crc32(copy, size)))
    copy.flush()


def find_damage(copy: BinaryIO, name: str, *, every_byte: bool) -> str | None:
    """What is wrong with a sealed copy, in words; None if nothing is.

    Args:
        copy: open for reading.
        name: that it should have.
        every_byte: whether to read it all, and not only to compare its length.
    """
    size = content_bytes(copy)
    if size < 0:
        return f"it is cut to {size + SEAL_BYTES} bytes"
    try:
        found = os.pread(copy.fileno(), SEAL_BYTES, size)
        crc32 = struct.unpack_from("<I", found, 48)[0]
        if found != _encode(name, size, crc32):
            return "it does not end with its seal: it was cut, overwritten or renamed"
        if every_byte and _crc32(copy, size) != crc32:
            return "its CRC-32 differs"
    except OSError as error:
        return f"it cannot be read: {error.strerror}"
    return None


def _encode(name: str, size: int, crc32: int) -> bytes:
    return _SEAL.pack(_MAGIC, hashlib.sha256(name.encode()).digest(), size, crc32)


def _crc32(copy: BinaryIO, size: int) -> int:
    crc32 = 0
    for start in range(0, size, _PIECE_BYTES):
        crc32 = zlib.crc32(os.pread(copy.fileno(), min(_PIECE_BYTES, size - start), start), crc32)
    return crc32
