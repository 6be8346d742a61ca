"""`import foldtrain` costs nothing until something is asked of it, and finds its own modules or says why not."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import foldtrain

ROOT = Path(__file__).resolve().parents[1]


def run(code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=False)


def test_importing_it_loads_nothing_else(tmp_path: Path) -> None:
    ours, others = "'model', 'data_pipeline', 'trainer', 'cluster'", "'torch', 'numpy', 'pydantic'"
    code = f"import foldtrain, sys; print({{{ours}, {others}}} & set(sys.modules))"
    assert run(code, tmp_path).stdout == "set()\n"


@pytest.mark.parametrize("name", foldtrain.__all__)
def test_what_it_offers_is_there_and_listed(name: str) -> None:
    assert getattr(foldtrain, name).__name__ == name
    assert name in dir(foldtrain)


def test_what_it_does_not_offer_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="'foldtrain' has no attribute 'load_tokeniser'"):
        foldtrain.load_tokeniser  # noqa: B018


def test_modules_of_other_code_that_hide_its_own_are_named(tmp_path: Path) -> None:
    (tmp_path / "trainer.py").write_text("")
    done = run("from foldtrain import load_tokenizer", tmp_path)
    assert done.returncode == 1
    assert "ImportError: modules of other code stand before those of foldtrain on Python's path" in done.stderr
    assert f"trainer: {tmp_path / 'trainer.py'}" in done.stderr
    assert "A script's own folder and the working directory are on that path, too" in done.stderr
