"""Where the session files of a Ray of our own lie."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cluster.session import ray_folder as module
from cluster.session.ray_folder import LONGEST_BASE, ray_folder
from data_pipeline.errors import FoldtrainError


@pytest.fixture
def usual(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The one usual place, whose path is short enough by decree."""
    place = tmp_path / "usual"
    place.mkdir()
    monkeypatch.setattr(module, "_USUAL", (str(place),))
    monkeypatch.setattr(module, "LONGEST_BASE", len(str(place)))
    return place


def test_only_this_user_can_look_into_it_and_it_goes_in_the_end(usual: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TMPDIR", raising=False)
    with ray_folder() as folder:
        assert folder.parent.parent == usual
        assert folder.parent.stat().st_mode & 0o777 == 0o700
    assert list(usual.iterdir()) == []


def test_it_is_in_tmpdir_where_that_is_short_enough(usual: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = usual.with_name("own")
    chosen.mkdir()
    monkeypatch.setenv("TMPDIR", str(chosen))
    with ray_folder() as folder:
        assert folder.parent.parent == chosen


@pytest.mark.parametrize("name", ["n" * 45, "missing"])
def test_a_tmpdir_that_is_too_long_or_missing_gives_way(
    name: str, usual: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    chosen = usual.with_name(name)
    if name != "missing":
        chosen.mkdir()
    monkeypatch.setenv("TMPDIR", str(chosen))
    with ray_folder() as folder, ray_folder():
        assert folder.parent.parent == usual
    assert capsys.readouterr().err.count(f"{chosen}") == 1


def test_without_any_place_all_that_were_tried_are_named(usual: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", f"{usual}{'n' * 45}")
    usual.rmdir()
    with (
        pytest.raises(FoldtrainError, match=r"set TMPDIR to one[^~]*is too long[^~]*usual: No such file"),
        ray_folder(),
    ):
        pass


def test_what_killed_commands_left_is_removed_and_what_others_use_is_kept(
    usual: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TMPDIR", raising=False)
    left, foreign = usual / "ft-left", usual / "ft-without-lock"
    for folder in (left, foreign):
        folder.mkdir()
    (left / "lock").touch()
    with ray_folder() as used, ray_folder() as other:
        assert {path.name for path in usual.iterdir()} == {used.parent.name, other.parent.name, foreign.name}


def test_rays_sockets_fit_below_the_longest_place() -> None:
    session = f"session_2026-01-01_00-00-00_000000_{2**22}"
    path = f"{'b' * LONGEST_BASE}/ft-12345678/r/{session}/sockets/plasma_store"
    assert len(os.fsencode(path)) <= 107
