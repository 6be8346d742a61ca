"""`foldtrain gc` lists by default, and removes when asked to."""

from __future__ import annotations

from pathlib import Path

from tests.cluster.conftest import Foldtrain


def leave_a_file(folder: Path) -> Path:
    path = folder / "run" / ".tmp-0-images-00000.tar"
    path.parent.mkdir()
    path.write_bytes(bytes(2000))
    return path


def test_it_lists_what_is_left_and_how_to_remove_it(foldtrain: Foldtrain, tmp_path: Path) -> None:
    path = leave_a_file(tmp_path)
    done = foldtrain("gc", "run", "--older-than", "0")
    assert done.returncode == 0, done.stderr
    assert "unfinished file" in done.stdout
    assert "2.0 kB" in done.stdout
    assert "foldtrain gc run --delete --older-than 0" in done.stdout
    assert path.exists()


def test_it_removes_with_delete_and_then_finds_nothing(foldtrain: Foldtrain, tmp_path: Path) -> None:
    path = leave_a_file(tmp_path)
    assert "removed 1 leftovers" in foldtrain("gc", "run", "--older-than", "0", "--delete").stdout
    assert not path.exists()
    assert "nothing is left over" in foldtrain("gc", "run", "--older-than", "0").stdout


def test_what_is_young_is_left_alone(foldtrain: Foldtrain, tmp_path: Path) -> None:
    path = leave_a_file(tmp_path)
    assert "nothing is left over" in foldtrain("gc", "run", "--delete").stdout
    assert path.exists()
