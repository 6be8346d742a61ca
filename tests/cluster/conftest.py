"""What the tests of the command line share: a small config file, and the command itself as a process."""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

import pytest

from foldtrain import main

SMALL = """\
run: runs/small
data:
  source: {kind: folder, path: pictures}
tokenizer:
  model: {image_size: 32, patch_size: 8, scales: [1, 2, 4], dropout_min_scales: 1, quantizer: {codebook_size: 64}}
  loss: {perceptual: [], semantic: null}
  trainer: {steps: 10, global_batch: 8}
generator:
  model: {num_classes: 2, depth: 1, width: 32, heads: 2}
  trainer: {steps: 10, global_batch: 8}
"""

Foldtrain = Callable[..., "subprocess.CompletedProcess[str]"]
PAGE = Path(__file__).parents[2] / "docs/extending.md"
BLOCK = re.compile(r"```\w+\n# (here[\w.]+)\n(.*?)```", re.DOTALL)
POINT = re.compile(r'```toml\n(\[project.entry-points."foldtrain.targets"\]\n.*?)```', re.DOTALL)


@pytest.fixture
def small_config(tmp_path: Path) -> Path:
    """A config that loads; its run and its pictures are relative to the working directory."""
    path = tmp_path / "small.yaml"
    path.write_text(SMALL)
    return path


@pytest.fixture
def here_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The package of docs/extending.md with a target of its own, installed as far as Python can tell."""
    text = PAGE.read_text()
    files, [point] = dict(BLOCK.findall(text)), POINT.findall(text)
    assert set(files) == {"here_target.py", "here.yaml"}
    info = tmp_path / "package" / "here-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: here\nVersion: 1.0\n")
    entry = point.replace('[project.entry-points."foldtrain.targets"]', "[foldtrain.targets]").replace('"', "")
    (info / "entry_points.txt").write_text(entry)
    for name, content in files.items():
        (info.parent / name).write_text(content)
    monkeypatch.syspath_prepend(str(info.parent))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # what lies there is what a test put there
    monkeypatch.setenv("FOLDTRAIN_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    yield info.parent
    sys.modules.pop("here_target", None)


@pytest.fixture
def foldtrain(tmp_path: Path) -> Foldtrain:
    """Runs `foldtrain ARGUMENTS...` in a folder of its own, as a process."""

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "foldtrain", *arguments]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)

    return run


@pytest.fixture
def foldtrain_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Foldtrain:
    """The same in this process, from the same `main` to its exit code, without a second for imports."""

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        out, err = (io.TextIOWrapper(io.BytesIO(), "utf-8", write_through=True) for _ in range(2))
        with monkeypatch.context() as changed, mock.patch.dict(os.environ):
            changed.chdir(tmp_path)
            changed.setattr(sys, "argv", ["foldtrain", *arguments])
            changed.setattr(sys, "stdout", out)
            changed.setattr(sys, "stderr", err)
            changed.setattr(sys, "path", [*sys.path])
            with pytest.raises(SystemExit) as ended:
                main()
        printed, said = (stream.buffer.getvalue().decode() for stream in (out, err))  # type: ignore[attr-defined]
        return subprocess.CompletedProcess(arguments, int(ended.value.code or 0), printed, said)

    return run
