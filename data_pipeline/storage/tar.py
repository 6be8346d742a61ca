"""Tar files whose bytes follow from their content alone: no times, no owners, no compression.

The headers are plain ustar, which every reader knows. A member's data starts at a multiple of 512 bytes because tar is
made of 512-byte blocks, and the header of an .npy file is padded to 64 bytes, so the array of an .npy member is aligned
for any dtype and can be memory-mapped where it lies.
"""

from __future__ import annotations

import tarfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from data_pipeline.text.names import check_name

BLOCK = 512
END_OF_ARCHIVE = bytes(2 * BLOCK)
MAX_NAME_BYTES = 100


@dataclass(frozen=True, slots=True)
class Member:
    """Where a file's data lies within its tar, in bytes."""

    name: str
    offset: int
    length: int


def encode_member(name: str, data: bytes) -> bytes:
    """One member: its header, its data, and zeros up to the next block.

    Raises:
        ValueError: if the name takes more than 100 bytes, which is all that a plain header holds, or would lead whoever
            unpacks the tar out of his folder.
    """
    return encode_header(name, len(data)) + data + bytes(-len(data) % BLOCK)


def encode_header(name: str, length: int) -> bytes:
    """The header of a member of so many bytes; raises as `encode_member`."""
    if len(name.encode()) > MAX_NAME_BYTES:
        raise ValueError(f"tar member name of more than {MAX_NAME_BYTES} bytes: {name}")
    info = tarfile.TarInfo(check_name(name))  # mtime, uid and gid are 0, the mode is 0644
    info.size = length
    return info.tobuf(tarfile.USTAR_FORMAT, encoding="utf-8")


def write_tar(files: Iterable[tuple[str, bytes]]) -> tuple[bytes, list[Member]]:
    """A whole tar of the given (name, data) in the given order, and where each file's data lies in it."""
    archive = bytearray()
    members = []
    for name, data in files:
        members.append(Member(name, len(archive) + BLOCK, len(data)))
        archive += encode_member(name, data)
    archive += END_OF_ARCHIVE
    return bytes(archive), members


def walk_headers(read: Callable[[int, int], bytes], size: int) -> Iterator[Member]:
    """The members of a tar as `write_tar` makes it, from its headers alone; each step goes forward by a block or more.

    Args:
        read: gives the bytes at an offset, so many of them.
        size: bytes of the tar.

    Raises:
        tarfile.TarError: if it is no such tar, or was cut: a member that is no regular file, or reaches beyond the end.
        ValueError: if a member's name is no name below a folder.
    """
    offset = 0
    while True:
        header = read(offset, BLOCK)
        if header == bytes(BLOCK):
            return
        info = tarfile.TarInfo.frombuf(header, "utf-8", "strict")
        end = offset + BLOCK + -(-info.size // BLOCK) * BLOCK
        if info.type not in {tarfile.REGTYPE, tarfile.AREGTYPE}:
            raise tarfile.ReadError(f"{check_name(info.name)} is no regular file")
        if info.size < 0 or end > size:
            raise tarfile.ReadError(
                f"{check_name(info.name)} should have {info.size} bytes, which the tar does not hold"
            )
        yield Member(check_name(info.name), offset + BLOCK, info.size)
        offset = end


def list_members(archive: bytes) -> list[Member]:
    """The members of a tar in memory; raises as `walk_headers`."""
    return list(walk_headers(lambda offset, length: archive[offset : offset + length], len(archive)))


def read_members(path: str) -> list[Member]:
    """The members of a local tar; raises as `walk_headers`."""
    return list_members(Path(path).read_bytes())
