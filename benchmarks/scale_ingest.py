"""Ingest's plan of a synthetic source: keys, labels and sizes of so many images, in tars of 10,000, and no pixels.

    python benchmarks/scale_ingest.py SAMPLES

    seconds, peak_mib, requests   a first start: the source is listed, the listing and the plan are written
    again_seconds, ...            a second start with every shard committed: the plan is found, the shards are looked at
    listing_mib, plan_mib         what lies on storage

Everything is written to a local S3 server, so that requests are real ones; peak memory is that of the larger of the two
starts. The shards are stand-ins of 512 bytes with indexes whose last fields are right: no others are read.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pyarrow.parquet  # noqa: F401 - not what is measured
from scale_probe import MIB, Figures, in_child, main, probe

from cluster.drills.s3_server import BUCKET, S3Server
from data_pipeline import storage
from data_pipeline.config import DataConfig, FolderSource
from data_pipeline.ingest import finding
from data_pipeline.ingest.ingesting import find_plan, look, plan_ingest
from data_pipeline.shards.image_shards import index_name
from data_pipeline.sources import Facts, RawItem
from data_pipeline.sources.source import Take

CLASSES, PER_TAR = 1_000, 10_000
CONFIG = DataConfig(source=FolderSource(path="/synthetic"), validation_samples=50_000)


class SyntheticSource:
    """A source that makes its listing up."""

    name = "synthetic"
    prefixes = True
    reader = None

    def __init__(self, samples: int) -> None:
        self._samples = samples

    def stamp(self) -> str:
        """Of the number of images."""
        return storage.fingerprint(self._samples)

    def scan(self, take: Take) -> Facts:
        """One tar after another."""
        for tar in range(-(-self._samples // PER_TAR)):
            part = f"imagenet-{tar:06d}.tar"
            numbers = range(tar * PER_TAR, min(self._samples, (tar + 1) * PER_TAR))
            take([_item(number, part) for number in numbers])
        return Facts(tuple(f"n{label:08d}" for label in range(CLASSES)), {})


def _item(number: int, part: str) -> RawItem:
    label, size = number % CLASSES, 60_000 + number * 7919 % 100_000
    name = f"n{label:08d}_{number:08d}"
    return RawItem(name, label, size, f"{part}/{name}.jpg", 1024 * (number % PER_TAR), part)


@contextmanager
def synthetic(samples: int) -> Iterator[None]:
    """Inside, every source is the synthetic one."""
    found = finding.find_source
    finding.find_source = lambda _config: SyntheticSource(samples)  # type: ignore[assignment,return-value]
    try:
        yield
    finally:
        finding.find_source = found


def commit_all(samples: int, output: str) -> None:
    """Stand-ins of all shards."""
    with synthetic(samples):
        plan = find_plan(CONFIG, output, 0)
    assert plan is not None

    def commit(number: int) -> None:
        shard = plan.shards[number]
        index = {"key": [], "plan": shard.plan, "sha256": "0" * 64, "size": 512}
        folder = storage.join(output, shard.split)
        storage.write_bytes(storage.join(folder, shard.name), bytes(512))
        data = (json.dumps(index, sort_keys=True) + "\n").encode()
        storage.write_bytes(storage.join(folder, index_name(shard.name)), data)

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(commit, range(len(plan.shards))))


def start(samples: int, output: str) -> float:
    """A start of ingest, up to what is left. Returns the number of shards."""
    with synthetic(samples):
        plan = find_plan(CONFIG, output, 0) or plan_ingest(CONFIG, output, 0)
        look(plan)
    return float(len(plan.shards))


def measure(samples: int) -> Figures:
    """Both starts, on a server of their own."""
    with tempfile.TemporaryDirectory(prefix="scale-ingest-") as folder:
        server = S3Server(Path(folder)).start()
        os.environ.update(server.environment())
        try:
            return _measure(samples, f"s3://{BUCKET}/{samples}")
        finally:
            server.kill()


def _measure(samples: int, output: str) -> Figures:
    storage.exists(output)  # opens the connection
    with probe() as first:
        shards = start(samples, output)
    sizes = storage.walk(output)
    in_child(commit_all, samples, output)
    with probe() as again:
        start(samples, output)
    peaks = {"peak_mib": max(first["peak_mib"], again.pop("peak_mib"))}
    stored = {name: sum(sizes[file] for file in sizes if file.startswith(name)) for name in ("listing", "plan")}
    return (
        {**first, **peaks}
        | {f"again_{name}": value for name, value in again.items()}
        | {f"{name}_mib": size / MIB for name, size in stored.items()}
        | {"shards": shards}
    )


if __name__ == "__main__":
    main(measure)
