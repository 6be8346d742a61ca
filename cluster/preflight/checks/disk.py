"""Room on a node's disks: copies of shards, Ray's files, temporary files, shared memory. Each is written to."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from cluster.preflight.checks.check import Check, or_all_well
from cluster.preflight.findings import Finding
from cluster.preflight.nodes import Nodes, ask_all
from cluster.preflight.wanted import Wanted
from data_pipeline.node.node_cache import default_folder
from data_pipeline.storage import local_path

NAME = "disk"
CACHE, RAY, TEMPORARY, MEMORY, RUN = "copies of shards", "Ray's files", "TMPDIR", "shared memory", "the run"
GIB = 2**30
LEAST, AMPLE = GIB // 4, 2 * GIB
"""Free bytes of each: without so many work fails; with less than the others it soon does."""
LEAST_MEMORY, AMPLE_MEMORY = 48 * 2**20, GIB
"""The same of shared memory: a container has 64 MB by default, and NCCL and Ray ask for more."""
FULL_FOR_RAY = 0.95
"""Share of a disk above which Ray puts no objects there, by its own setting (local_fs_capacity_threshold)."""
_WRITTEN = 2**20
"""Bytes that are written to each."""
_SECONDS = 10.0


@dataclass(frozen=True)
class Room:
    """What there is of one folder."""

    what: str
    path: str
    free: int
    """Bytes that this user may still write."""
    whole: int
    error: str = ""
    """Why it cannot be written to; empty if it can."""


def look(cache: str | None, run: str | None) -> list[Room]:
    """The folders here.

    Args:
        cache: of copies; None for the usual one.
        run: of the run, if it is on a disk.
    """
    folders = {CACHE: cache or str(default_folder()), RAY: _ray_folder(), TEMPORARY: tempfile.gettempdir()}
    folders |= {MEMORY: "/dev/shm", RUN: run or ""}  # noqa: S108 - it is looked at, under a random name
    there = {what: Path(path) for what, path in folders.items() if path}
    return [_room(what, path) for what, path in there.items() if what != MEMORY or path.is_dir()]


def _ray_folder() -> str:
    """Where this node's Ray has its files; empty without Ray."""
    import sys

    if "ray" not in sys.modules:
        return ""
    node = getattr(sys.modules["ray"]._private.worker, "_global_node", None)
    return str(node.get_session_dir_path()) if node else ""


def _room(what: str, path: Path) -> Room:
    existing = next(folder for folder in (path, *path.parents) if folder.exists())
    usage = shutil.disk_usage(existing)
    status = os.statvfs(existing)
    error = "no more files can be made there (inodes)" if status.f_files and not status.f_favail else ""
    return Room(what, str(path), usage.free, usage.total, error or _write(existing))


def _write(folder: Path) -> str:
    """Why it cannot be written to."""
    with contextlib.ExitStack() as files:
        try:
            file = files.enter_context(tempfile.TemporaryFile(prefix=".foldtrain-", dir=folder, buffering=0))
            written = 0
            while written < _WRITTEN:
                written += file.write(bytes(_WRITTEN - written))
            os.fsync(file.fileno())
        except OSError as error:
            return error.strerror or str(error)
    return ""


def _measure(nodes: Nodes, wanted: Wanted) -> Mapping[str, list[Room]]:
    from data_pipeline.storage import is_remote

    run = str(local_path(wanted.run)) if wanted.run and not is_remote(wanted.run) else None
    return ask_all(nodes, look, wanted.cache_folder, run, seconds=_SECONDS)


def judge(facts: Mapping[str, list[Room]], wanted: Wanted) -> list[Finding]:
    """Folders that are full, soon will be, or cannot be written to."""
    findings = [found for node, rooms in facts.items() for room in rooms for found in _judge(node, room, wanted)]
    least = min((room.free for rooms in facts.values() for room in rooms), default=0)
    return or_all_well(findings, NAME, f"{_size(least)} free or more in every folder on {len(facts)}")


def _judge(node: str, room: Room, wanted: Wanted) -> list[Finding]:
    least, ample = (LEAST_MEMORY, AMPLE_MEMORY) if room.what == MEMORY else (LEAST, AMPLE)
    if room.what == CACHE and wanted.cache_bytes:
        ample = min(ample, wanted.cache_bytes)
        least = min(least, wanted.cache_bytes)
    there = f"{room.what}: {room.path} has {_size(room.free)} free of {_size(room.whole)}"
    if room.error:
        return [Finding(node, NAME, "error", f"{there}, and cannot be written: {room.error}", _remedy(room))]
    if room.free < least:
        return [Finding(node, NAME, "error", there, _remedy(room))]
    used = 1 - room.free / room.whole if room.whole else 0.0
    if room.what == RAY and used >= FULL_FOR_RAY:
        return [Finding(node, NAME, "warning", f"{there}; Ray puts no objects on a disk that full", _remedy(room))]
    return [Finding(node, NAME, "warning", there, _remedy(room))] if room.free < ample else []


def _remedy(room: Room) -> str:
    other = {
        CACHE: "or set data.reading.cache_dir to a folder on a larger disk, or data.reading.cache_bytes",
        RAY: "or start Ray there with --temp-dir on a larger disk",
        TEMPORARY: "or set TMPDIR on the node to a folder on a larger disk",
        MEMORY: "or give the container more: docker --shm-size=8g, an emptyDir with medium: Memory on Kubernetes",
        RUN: "or put the run elsewhere (run: s3://…)",
    }
    return f"free some space there, {other[room.what]}"


def _size(count: float) -> str:
    for unit, factor in (("TiB", 2**40), ("GiB", 2**30), ("MiB", 2**20)):
        if count >= factor:
            return f"{count / factor:.1f} {unit}"
    return f"{count / 2**10:.0f} KiB"


CHECK = Check(NAME, _measure, judge, remedy="a disk of the node hangs: look at its mounts (df, dmesg)")
