"""A run of the tests begins only where the disk has room for it: what fails later for want of room says less."""

from __future__ import annotations

import shutil
import tempfile

import pytest

from data_pipeline.node.node_cache import _KEPT_FREE, _MOST_KEPT_FREE

WRITTEN = 2 * 2**30
"""Bytes that all tests have on the disk at once, at most; with the S3 server it was 0.6 GiB."""


def refusal(folder: str) -> str | None:
    """Why tests cannot have their temporary files in a folder; None if they can."""
    disk = shutil.disk_usage(folder)
    needed = min(int(disk.total * _KEPT_FREE), _MOST_KEPT_FREE) + WRITTEN
    if disk.free >= needed:
        return None
    found, wanted = (f"{size / 2**30:.1f} GiB" for size in (disk.free, needed))
    return (
        f"the disk of {folder} has {found} free, and the tests need {wanted}: what they write, beside what a node's "
        "cache leaves free. Free space there, or set TMPDIR to a folder of another disk"
    )


def pytest_sessionstart(session: pytest.Session) -> None:
    """Refuse to begin, once: not on each process of xdist."""
    if not hasattr(session.config, "workerinput"):
        reason = refusal(tempfile.gettempdir())
        if reason is not None:
            raise pytest.UsageError(reason)
