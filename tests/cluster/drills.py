"""A run that is small enough to be killed many times, and the means to kill its processes."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from typing import Any

import psutil
import yaml

IMAGES, HEADS = 400, {"t10k-images-idx3-ubyte.gz": (16, 784), "t10k-labels-idx1-ubyte.gz": (8, 1)}
STEPS, CHECKPOINT_EVERY = 60, 10
PATIENCE = 240.0


def write_source(folder: Path) -> dict[str, Any]:
    """The first images of the embedded data set as idx files of their own; the source section that names them."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, (head, width) in HEADS.items():
        packed = resources.files("data_pipeline").joinpath("embedded/fashion_mnist", name).read_bytes()
        data = bytearray(gzip.decompress(packed)[: head + IMAGES * width])
        data[4:8] = IMAGES.to_bytes(4, "big")
        (folder / name.removesuffix(".gz")).write_bytes(data)
    images, labels = (str(folder / name.removesuffix(".gz")) for name in HEADS)
    return {"kind": "idx", "images": images, "labels": labels}


def write_config(folder: Path) -> Path:
    """The quickstart at a size that takes seconds."""

    def trainer(**changes: Any) -> dict[str, Any]:
        small = {"steps": STEPS, "global_batch": 8, "warmup_steps": 2, "checkpoint_every": CHECKPOINT_EVERY}
        return small | {"log_every": 1} | changes

    vit = {"width": 16, "depth": 1, "heads": 2}
    model = {"image_size": 28, "patch_size": 14, "encoder": vit, "decoder": vit, "codebook_size": 32, "code_dim": 8}
    config = {
        "extends": str(resources.files("configs") / "quickstart.yaml"),
        "run": str(folder / "run"),
        "data": {"source": write_source(folder / "source"), "validation_samples": 100, "shard_samples": 100},
        "teacher": {"model": {"widths": [8, 16]}, "trainer": trainer()},
        "tokenizer": {
            "model": model | {"scales": [1, 2], "dropout_min_scales": 1, "teacher_width": 16},
            "dead_code_steps": 5,
            "trainer": trainer(micro_batch=2),
        },
        "tokens": {"shard_samples": 5},
        "generator": {"model": {"depth": 1, "width": 16, "heads": 2}, "trainer": trainer(precision="bf16")},
        "sampling": {"samples_per_class": 2, "top_k": 0},
        "evaluation": {"samples": 40, "judge": {"model": {"widths": [8]}, "trainer": trainer(steps=10)}},
    }
    path = folder / "small.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


@contextmanager
def started(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    """`foldtrain ARGUMENTS...` as a process group of its own; whatever is left of it in the end is killed."""
    command = [sys.executable, "-m", "cluster.cli", *arguments]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    family = psutil.Process(process.pid)
    members: set[psutil.Process] = {family}
    try:
        yield process
    finally:
        if family.is_running():
            members |= set(family.children(recursive=True))
        for member in members:
            kill(member)
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def run(*arguments: str) -> str:
    """The output of a command that has to succeed."""
    command = [sys.executable, "-m", "cluster.cli", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def kill(process: psutil.Process) -> None:
    """kill -9, if it is still there."""
    try:
        os.kill(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def wait_for(what: str, condition: Callable[[], Any], process: subprocess.Popen[str]) -> Any:
    """The first true answer of a condition, asked again and again while the process runs."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        answer = condition()
        if answer:
            return answer
        try:
            process.wait(timeout=0.02)
        except subprocess.TimeoutExpired:
            continue
        assert process.stdout is not None
        raise AssertionError(f"the command ended before {what}:\n{process.stdout.read()}")
    raise AssertionError(f"no {what} in {PATIENCE} seconds")


def workers(process: subprocess.Popen[str], title: str) -> list[psutil.Process]:
    """Processes that Ray started for a command, by a part of their title."""
    found = []
    for child in psutil.Process(process.pid).children(recursive=True):
        try:
            if title in " ".join(child.cmdline()):
                found.append(child)
        except psutil.Error:
            continue
    return found


def lines(path: Path) -> list[dict[str, Any]]:
    """Whole records of a JSONL file."""
    text = path.read_text() if path.exists() else ""
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def digests(folder: Path, *patterns: str) -> dict[str, str]:
    """sha256 of the files of a folder, by name."""
    files = [path for pattern in patterns for path in folder.rglob(pattern)]
    assert files, folder
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
