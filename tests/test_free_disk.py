"""Without room on the disk no test begins, and the run says how much is needed and where."""

from __future__ import annotations

import shutil
from types import SimpleNamespace

import pytest

from tests.free_disk import refusal

pytest_plugins = ["pytester"]

GIB = 2**30


def disk(monkeypatch: pytest.MonkeyPatch, total: float, free: float) -> None:
    found = SimpleNamespace(total=int(total * GIB), free=int(free * GIB))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: found)


@pytest.mark.parametrize(
    ("total", "free", "enough"), [(500, 12, True), (500, 11.9, False), (50, 7, True), (50, 6.9, False)]
)
def test_what_a_nodes_cache_leaves_free_and_two_gib_are_needed(
    monkeypatch: pytest.MonkeyPatch, total: float, free: float, enough: bool
) -> None:
    """A tenth of the disk, at most 10 GiB."""
    disk(monkeypatch, total, free)
    assert (refusal("/tmp") is None) == enough


def test_a_run_without_room_ends_before_its_tests(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    pytester.makepyfile("def test_it(): ...")
    disk(monkeypatch, 100, 3.5)
    result = pytester.runpytest_inprocess("-p", "tests.free_disk")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*has 3.5 GiB free, and the tests need 12.0 GiB*set TMPDIR to a folder of another*"])
