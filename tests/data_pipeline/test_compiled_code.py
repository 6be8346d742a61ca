"""Code that torch compiled, and will run, is where no other user can put any."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from data_pipeline.node.compiled_code import keep_compiled_code_private


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "")
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "foldtrain" / "compiled"


def kept() -> Path:
    keep_compiled_code_private()
    return Path(os.environ["TORCHINDUCTOR_CACHE_DIR"])


def test_it_is_in_the_users_cache(cache: Path) -> None:
    assert kept() == cache
    assert cache.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("trap", ["open", "link", "file", "foreign"])
def test_a_folder_that_others_may_write_is_not_used(cache: Path, tmp_path: Path, trap: str) -> None:
    cache.parent.mkdir()
    if trap == "link":
        cache.symlink_to(tmp_path)
    elif trap == "file":
        cache.touch()
    else:
        cache.mkdir()
        cache.chmod(0o777 if trap == "open" else 0o755)
    if trap == "foreign":
        if os.geteuid() != 0:
            pytest.skip("only root gives folders away")
        os.chown(cache, 54_321, -1)
    assert kept() != cache
    assert kept().stat().st_mode & 0o777 == 0o700


def test_a_folder_that_the_user_named_is_kept(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "/mine")
    assert kept() == Path("/mine")


@pytest.mark.slow
def test_a_file_under_torchs_name_in_the_folder_of_all_ends_no_import(cache: Path, tmp_path: Path) -> None:
    (tmp_path / "tmp").mkdir()
    (tmp_path / "tmp" / "torchinductor_taken").touch()
    variables = os.environ | {"TMPDIR": str(tmp_path / "tmp"), "LOGNAME": "taken"}
    code = "from trainer.engine.device import given_device; given_device(0); import timm"
    subprocess.run([sys.executable, "-c", code], env=variables, check=True)
    assert [path.name for path in (tmp_path / "tmp").iterdir()] == ["torchinductor_taken"]
