"""What the tests of the command line share: a small config file, and the command itself as a process."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

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


@pytest.fixture
def small_config(tmp_path: Path) -> Path:
    """A config that loads; its run and its pictures are relative to the working directory."""
    path = tmp_path / "small.yaml"
    path.write_text(SMALL)
    return path


@pytest.fixture
def foldtrain(tmp_path: Path) -> Foldtrain:
    """Runs `foldtrain ARGUMENTS...` in a folder of its own."""

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "foldtrain", *arguments]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)

    return run
