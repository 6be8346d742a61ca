"""What verify and export cost as a data set grows: time, memory above an empty start, requests. Sizes only, no pixels.

    python benchmarks/scale_tools.py SAMPLES [--commands "verify,verify --quick"]

Token shards of SAMPLES samples (two tokens each) are written whole. Of their images there are the manifest, index.bin
and shards.bin. Each command runs in a process of its own. Prints JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import root_on_path  # noqa: F401 - before what follows

from data_pipeline import storage
from data_pipeline.shards.image_shards import ShardIndex, finish_images, shard_record
from data_pipeline.shards.manifest import ImageManifest, ImageShardRecord, TokenizerRecord, TokenManifest
from data_pipeline.shards.token_shards import TokenBlock, write_token_shard
from model.layout import TokenLayout

CLASSES = tuple(f"n{number:08d}" for number in range(1000))
IMAGE_SHARD, TOKEN_SHARD = 900, 10_000
"""Samples of a shard: 100 MB of images, and what `tokens.shard_samples` is by default."""
BYTES = 110_000
"""Of an image."""


def keys_and_labels(first: int, stop: int) -> tuple[list[str], np.ndarray]:
    """As ImageNet's: class/class_number."""
    labels = np.arange(first, stop) % len(CLASSES)
    return [f"{CLASSES[label]}/{CLASSES[label]}_{first + row}" for row, label in enumerate(labels)], labels


def write_images(uri: str, samples: int) -> ImageManifest:
    """The manifest and the indexes of images that nobody has."""

    def shards() -> Iterator[tuple[ImageShardRecord, ShardIndex]]:
        for number, first in enumerate(range(0, samples, IMAGE_SHARD)):
            keys, labels = keys_and_labels(first, min(first + IMAGE_SHARD, samples))
            name, stride = f"images-{number:05d}.tar", BYTES + 1536
            index = ShardIndex(
                plan="synthetic",
                size=len(keys) * stride + 1024,
                sha256=storage.sha256(name.encode()),
                key=keys,
                label=labels.tolist(),
                extension=["jpg"] * len(keys),
                offset=[512 + row * stride for row in range(len(keys))],
                length=[BYTES] * len(keys),
                crc32=[0] * len(keys),
            )
            yield shard_record(name, index, b""), index

    return finish_images(uri, shards(), classes=CLASSES, split="train")


def write_tokens(uri: str, samples: int, source: str) -> None:
    """Two tokens for each sample."""
    layout = TokenLayout.from_json({"groups": [2], "vocabularies": [4096]})
    fields: dict[str, Any] = {
        "classes": CLASSES,
        "layout": layout,
        "views": ("center",),
        "image_size": 16,
        "fit": "crop",
        "tokenizer": TokenizerRecord(encoder="0" * 64, config={"imported": "nobody"}),
        "source": source,
        "software": {},
    }
    meta = TokenManifest.build(samples=0, shards=(), **fields).content()
    meta = {
        name: meta[name] for name in meta if name not in {"version", "kind", "samples", "classes", "shards", "software"}
    }
    shards = []
    random = np.random.default_rng(0)
    for number, first in enumerate(range(0, samples, TOKEN_SHARD)):
        keys, labels = keys_and_labels(first, min(first + TOKEN_SHARD, samples))
        tokens = random.integers(0, 4096, (len(keys), 1, 2, 1)).astype(np.uint16)
        block = TokenBlock(tokens, labels.astype(np.int32), np.array([key.encode() for key in keys], "S"))
        shards.append(write_token_shard(uri, f"tokens-{number:05d}.tar", block, meta))
    TokenManifest.build(samples=samples, shards=tuple(shards), **fields).write(uri)


def run_verify(uri: str, against: str | None, quick: bool) -> None:
    from data_pipeline.tools.verifying import verify

    report = verify(uri, against, quick=quick)
    wrong = [check for check in report.checks if not check.passed]
    assert not wrong, wrong[0].problems[:3]


def run_export(uri: str, to: str, export_format: str) -> None:
    from data_pipeline.tokens.exporting import export_tokens

    export_tokens(uri, to, export_format)


COMMANDS: dict[str, Callable[[str], None]] = {
    "nothing": lambda _: None,
    "verify": lambda root: run_verify(f"{root}/tokens", None, False),
    "verify against images": lambda root: run_verify(f"{root}/tokens", f"{root}/images", False),
    "verify --quick": lambda root: run_verify(f"{root}/tokens", f"{root}/images", True),
    "export npz": lambda root: run_export(f"{root}/tokens", f"{root}/out", "npz"),
    "export npz again": lambda root: run_export(f"{root}/tokens", f"{root}/out", "npz"),
}


def peak_mib() -> float:
    """Most memory that this process has had."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


def count_requests() -> Counter[str]:
    """What the calls from now on would ask of S3: a GET for a range, a HEAD and a GET for a file, a LIST for 1,000."""
    found: Counter[str] = Counter()

    def counting(name: str, count: Callable[[Any], dict[str, int]]) -> None:
        call = getattr(storage, name)

        def counted(*given: Any, **named: Any) -> Any:
            result = call(*given, **named)
            found.update(count(result))
            return result

        setattr(storage, name, counted)

    counting("read_range", lambda _: {"get": 1})
    for name in ("read_bytes", "read_json"):
        counting(name, lambda _: {"head": 1, "get": 1})
    counting("walk", lambda listed: {"list": -(-len(listed) // 1000)})
    return found


def measured(root: str, command: str) -> dict[str, Any]:
    """One command, in this process."""
    import data_pipeline.tokens.exporting
    import data_pipeline.tools.verifying  # noqa: F401

    requests = count_requests()
    start, began, cpu = peak_mib(), time.perf_counter(), time.process_time()
    COMMANDS[command](root)
    found: dict[str, float] = {"seconds": time.perf_counter() - began, "cpu_seconds": time.process_time() - cpu}
    rounded = {name: round(value, 2) for name, value in found.items()}
    return rounded | {"peak_mib_above_start": round(peak_mib() - start, 1), "requests": dict(requests)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("samples", type=int)
    parser.add_argument("--commands", default=",".join(COMMANDS))
    parser.add_argument("--root")
    parser.add_argument("--one")
    given = parser.parse_args()
    if given.one:
        print(json.dumps(measured(given.root, given.one)))
        return
    with tempfile.TemporaryDirectory(prefix="scale-tools-") as folder:
        root = given.root or folder
        if not Path(root, "tokens", "manifest.json").exists():
            images = write_images(f"{root}/images", given.samples)
            write_tokens(f"{root}/tokens", given.samples, images.fingerprint)
        found = {}
        for command in given.commands.split(","):
            arguments = [sys.executable, __file__, str(given.samples), "--root", root, "--one", command]
            done = subprocess.run(arguments, check=True, capture_output=True, text=True, env=os.environ)
            found[command] = json.loads(done.stdout)
            print(command, found[command], file=sys.stderr)
        print(json.dumps({"samples": given.samples, "commands": found}, indent=1))


if __name__ == "__main__":
    main()
