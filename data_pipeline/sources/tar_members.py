"""The members of a tar, sorted out: each is a file or a link to one, a folder, left out and counted, or an error."""

from __future__ import annotations

import posixpath
import tarfile
from collections.abc import Callable, Iterator
from typing import NamedTuple

from data_pipeline.errors import UsageError
from data_pipeline.sources.skipped import Skipped
from data_pipeline.sources.tree import check_name
from data_pipeline.storage.local_listing import shown
from data_pipeline.storage.tar import Member

_KINDS = {tarfile.FIFOTYPE: "a FIFO", tarfile.CHRTYPE: "a device", tarfile.BLKTYPE: "a device"}
_WITHOUT_DATA = {tarfile.DIRTYPE, b"V", b"D"}
"""Folders, and what GNU tar notes of a whole archive: its name, and the listings of incremental backups."""


class _Entry(NamedTuple):
    """A member that counts as a file."""

    name: str
    place: Member | None
    """Where its data lies; None for a link that is still to be followed."""
    target: str
    """Of such a link: the name that it leads to."""
    data: bytes | None
    """Its contents, b"" if they are not wanted; None for any link."""


class Members:
    """Takes the members of a tar one after another, in its order.

    Args:
        where: what to call the tar in messages.
        identity: what tells it from other tars.
    """

    def __init__(self, where: str, identity: str) -> None:
        self.skipped = Skipped()
        self._where, self._identity = where, identity
        self._places: dict[str, Member] = {}
        self._links: dict[str, str] = {}
        self._entries: list[_Entry] = []

    def add(self, info: tarfile.TarInfo, read: Callable[[Member], bytes]) -> None:
        """Take a member.

        Args:
            info: its header.
            read: its contents, b"" if they are not wanted.

        Raises:
            tarfile.TarError: if its size is none.
            UsageError: if it cannot be read as a file.
        """
        if info.size < 0:
            raise tarfile.ReadError(f"{shown(info.name)} has {info.size} bytes")
        if info.type in _WITHOUT_DATA:
            return
        name = _plain(info.name)
        is_skipped = self.skipped.takes(name, self._identity)
        if not is_skipped:
            self._check(info)
        entry = self._entry(name, info)
        if is_skipped:
            return
        is_file = info.isreg() and entry.place is not None
        self._entries.append(entry._replace(data=read(entry.place) if is_file and entry.place else None))

    def files(self, read: Callable[[Member], bytes]) -> list[tuple[Member, bytes]]:
        """The files in the order of the tar, with their contents; a link counts as the file that it leads to.

        Raises:
            UsageError: if a link leads to no file of this tar.
        """
        return list(self._resolved(read))

    def _resolved(self, read: Callable[[Member], bytes]) -> Iterator[tuple[Member, bytes]]:
        for name, place, target, data in self._entries:
            at = place or self._follow(name, target)
            member = at if at.name == name else Member(name, at.offset, at.length)
            yield member, read(member) if data is None else data

    def _check(self, info: tarfile.TarInfo) -> None:
        check_name(self._where, info.name)
        if info.issparse():
            raise UsageError(f"{self._where} holds {info.name} as a sparse file: write the tar without --sparse")
        if not (info.isreg() or info.issym() or info.islnk()):
            kind = _KINDS.get(info.type, f"a member of the unknown type {info.type!r}")
            raise UsageError(f"{self._where} holds {info.name}, which is {kind}, not a file: write the tar without it")

    def _entry(self, name: str, info: tarfile.TarInfo) -> _Entry:
        """Note where a member's data is, also of one that is left out, because links may lead to it."""
        if info.issym():
            self._links[name] = _plain(posixpath.join(posixpath.dirname(name), info.linkname))
            return _Entry(info.name, None, self._links[name], None)
        if info.islnk():
            target = _plain(info.linkname)
            before = self._places.get(target)  # a hard link is another name of what lies before it
            if before is None:
                self._links[name] = target
                return _Entry(info.name, None, target, None)
            place = Member(info.name, before.offset, before.length)
        else:
            place = Member(info.name, info.offset_data, info.size)
        if not info.issparse():
            self._places[name] = place
        return _Entry(info.name, place, "", None)

    def _follow(self, name: str, target: str) -> Member:
        seen = {_plain(name)}
        while target in self._links and target not in seen:
            seen.add(target)
            target = self._links[target]
        if target not in self._places:
            reason = "and so in a circle" if target in seen else "which is no file of this tar"
            raise UsageError(
                f"{self._where} holds {shown(name)}, a link to {shown(target)}, {reason}: write the tar with "
                "--dereference and --hard-dereference"
            )
        return self._places[target]


def _plain(name: str) -> str:
    """A name without "." and "..", by which a link finds it."""
    return posixpath.normpath(name.lstrip("/"))
