"""Tar files whose bytes follow from their content alone: no times, no owners, no compression.

The headers are plain ustar, which every reader knows. A member's data starts at a multiple of 512 bytes because tar is
made of 512-byte blocks, and the header of an .npy file is padded to 64 bytes, so the array of an .npy member is aligned
for any dtype and can be memory-mapped where it lies.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterable
from dataclasses import dataclass

BLOCK = 512
END_OF_ARCHIVE = bytes(2 * BLOCK)
MAX_NAME_BYTES = 100


@dataclass(frozen=True)
class Member:
    """Where a file's data lies within its tar, in bytes."""

    name: str
    offset: int
    length: int


def encode_member(name: str, data: bytes) -> bytes:
    """One member: its header, its data, and zeros up to the next block.

    Raises:
        ValueError: if the name takes more than 100 bytes, which is all that a plain header holds.
    """
    if len(name.encode()) > MAX_NAME_BYTES:
        raise ValueError(f"tar member name of more than {MAX_NAME_BYTES} bytes: {name}")
    info = tarfile.TarInfo(name)  # mtime, uid and gid are 0, the mode is 0644
    info.size = len(data)
    return info.tobuf(tarfile.USTAR_FORMAT, encoding="utf-8") + data + bytes(-len(data) % BLOCK)


def write_tar(files: Iterable[tuple[str, bytes]]) -> tuple[bytes, list[Member]]:
    """A whole tar of the given (name, data) in the given order, and where each file's data lies in it."""
    archive = bytearray()
    members = []
    for name, data in files:
        members.append(Member(name, len(archive) + BLOCK, len(data)))
        archive += encode_member(name, data)
    archive += END_OF_ARCHIVE
    return bytes(archive), members


def read_members(path: str) -> list[Member]:
    """The members of a local tar, from its headers alone.

    Raises:
        tarfile.TarError: if it is no tar.
    """
    with tarfile.open(path, "r:") as archive:
        return [Member(info.name, info.offset_data, info.size) for info in archive.getmembers() if info.isfile()]
