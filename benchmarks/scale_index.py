"""What a start of training costs a node of eight ranks before the first batch: to open a set of images.

    python benchmarks/scale_index.py SAMPLES

The set is synthetic (keys like ImageNet's, 950 images a shard, no tars) and lies on an S3 server of this machine
(SeaweedFS). The driver hands the manifest on; the ranks are processes, and open the set at once through one cache.

    seconds, requests             of the node, until all ranks have it open; requests of all ranks together
    peak_mib                      of the rank that needs the most: private memory and its share of mapped pages (PSS),
                                  at any time until it has read all labels and 10,000 keys, above an empty start
    cpu_seconds                   of all ranks
    read_microseconds             one of those keys, with label, place and length
    write_seconds, write_..._mib  what ingest does at its end: index.bin, shards.bin and manifest.json on a disk, from
                                  indexes of shards that are in memory; peak resident memory
    parse_cpu_seconds             what it takes to parse the JSON of the indexes before that: of some, times all
    manifest_bytes, ...           sizes of the files
"""

from __future__ import annotations

import json
import multiprocessing
import os
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from scale_probe import MIB, Figures, in_child, main, probe

from cluster.drills.s3_server import BUCKET, S3Server
from data_pipeline import storage
from data_pipeline.node.node_cache import NodeCache
from data_pipeline.shards.image_shards import ImageShards, ShardIndex, finish_images, parse_index, shard_record
from data_pipeline.shards.manifest import ImageManifest, ImageShardRecord

RANKS = 8
SHARD_SAMPLES = 950
DIFFERENT = 64
CLASSES = 1000
READS = 10_000
URI = f"s3://{BUCKET}/images"
FILES = ("manifest.json", "shards.bin", "index.bin")


def shard_index(first: int, stop: int) -> bytes:
    """The JSON index that a worker of ingest leaves for images of 110,000 bytes on average."""
    numbers = np.arange(first, stop)
    labels = numbers * 7919 % CLASSES
    lengths = 60_000 + numbers * 104_729 % 100_000
    blocks = 512 * (2 + -(-lengths // 512) + 1)
    offsets = 512 + np.concatenate([[0], np.cumsum(blocks)[:-1]])
    index = ShardIndex(
        plan="0" * 64,
        size=int(blocks.sum()) + 10_240,
        sha256=f"{first:064x}",
        key=[
            f"n{label + 1_440_764:08d}/n{label + 1_440_764:08d}_{number}"
            for number, label in zip(numbers, labels, strict=True)
        ],
        label=labels.tolist(),
        extension=["jpg"] * len(numbers),
        offset=offsets.tolist(),
        length=lengths.tolist(),
        crc32=(numbers * 2_654_435_761 % 2**32).tolist(),
    )
    return index.encode()


def shards(samples: int) -> Iterator[tuple[ImageShardRecord, ShardIndex]]:
    """What ingest's end reads, one shard at a time; of the samples of DIFFERENT shards, again and again."""
    made = [shard_index(SHARD_SAMPLES * number, SHARD_SAMPLES * (number + 1)) for number in range(DIFFERENT)]
    indexes = [parse_index("", data) for data in made]
    for number in range(samples // SHARD_SAMPLES):
        index = indexes[number % DIFFERENT]
        yield shard_record(f"images-{number:05d}.tar", index, made[number % DIFFERENT]), index
    if rest := samples % SHARD_SAMPLES:
        data = shard_index(0, rest)
        yield (
            shard_record(f"images-{samples // SHARD_SAMPLES:05d}.tar", parse_index("", data), data),
            parse_index("", data),
        )


def parse_seconds(samples: int) -> float:
    """CPU time of parsing all indexes, from that of DIFFERENT ones."""
    made = [shard_index(SHARD_SAMPLES * number, SHARD_SAMPLES * (number + 1)) for number in range(DIFFERENT)]
    began = time.process_time()
    for data in made:
        parse_index("", data)
    return (time.process_time() - began) / DIFFERENT * samples / SHARD_SAMPLES


def write_set(samples: int, folder: str, report: str) -> None:
    """On a disk, and what that took."""
    names = tuple(f"class {number}" for number in range(CLASSES))
    with probe() as found:
        finish_images(folder, shards(samples), classes=names, split="train")
    found["parse_cpu_seconds"] = parse_seconds(samples)
    Path(report).write_text(json.dumps(found))


def memory(line: str) -> int:
    """A sum over this process's maps, in bytes: Pss, Pss_Anon."""
    text = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return next(int(each.split()[1]) for each in text if each.startswith(f"{line}:")) * 1024


class PeakOfPss:
    """Looks at this process's share of memory twenty times a second."""

    def __init__(self) -> None:
        self.before = self.most = memory("Pss")
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()

    def _look(self) -> None:
        while not self._ended.wait(0.05):
            self.most = max(self.most, memory("Pss"))

    def end(self) -> float:
        """MiB at the highest, above the beginning."""
        self._ended.set()
        self._thread.join()
        return (max(self.most, memory("Pss")) - self.before) / MIB


def rank(manifest: ImageManifest, cache: str, gate: Any, ends: Any) -> None:
    """One rank: opens the set when all are there, then reads."""
    storage.exists(URI)  # opens the client
    gate.wait()
    peak, used, asked, began = PeakOfPss(), time.process_time(), storage.requests(), time.perf_counter()
    images = ImageShards(URI, manifest, index_cache=NodeCache(cache))
    found = {"seconds": time.perf_counter() - began, "cpu_seconds": time.process_time() - used}
    found["requests"] = (storage.requests() - asked).total()
    gate.wait()  # all have it open
    assert int(np.bincount(images.labels, minlength=CLASSES).sum()) == images.count
    chosen = np.random.default_rng(0).integers(0, images.count, READS).tolist()
    began = time.perf_counter()
    for index in chosen:
        images.key(index), images.where(index), images.labels[index], images._offsets[index], images._lengths[index]
    found["read_microseconds"] = (time.perf_counter() - began) / READS * 1e6
    gate.wait()  # nobody has let go of it
    found["peak_mib"] = peak.end()
    ends.send(found)


def start_ranks(manifest: ImageManifest, cache: str) -> list[Figures]:
    """Of eight processes that open the set at once."""
    context = multiprocessing.get_context("spawn")
    gate, ends, processes = context.Barrier(RANKS), [], []
    for _ in range(RANKS):
        here, there = context.Pipe()
        processes.append(context.Process(target=rank, args=(manifest, cache, gate, there)))
        ends.append(here)
        processes[-1].start()
    found = [end.recv() for end in ends]
    for process in processes:
        process.join()
    return found


def measure(samples: int) -> Figures:
    """Write the set, put it on the server, and open it."""
    with tempfile.TemporaryDirectory() as folder, S3Server(Path(folder) / "server") as server:
        os.environ.update(server.environment())
        local, report = Path(folder) / "images", Path(folder) / "report.json"
        in_child(write_set, samples, str(local), str(report))
        written = json.loads(report.read_text())
        for name in FILES:
            in_child(upload, str(local / name), f"{URI}/{name}")
        found = start_ranks(ImageManifest.read(URI), str(Path(folder) / "cache"))
        sizes = {f"{name.partition('.')[0]}_bytes": (local / name).stat().st_size for name in FILES}
    return {
        "seconds": max(each["seconds"] for each in found),
        "cpu_seconds": sum(each["cpu_seconds"] for each in found),
        "peak_mib": max(each["peak_mib"] for each in found),
        "requests": sum(each["requests"] for each in found),
        "read_microseconds": sum(each["read_microseconds"] for each in found) / RANKS,
        "write_seconds": written["seconds"],
        "write_cpu_seconds": written["cpu_seconds"],
        "write_peak_mib": written["peak_mib"],
        "parse_cpu_seconds": written["parse_cpu_seconds"],
        **sizes,
    }


def upload(path: str, uri: str) -> None:
    """As `storage.write_stream` does at the end of an ingest to a bucket."""
    storage.write_stream(uri, lambda draft: draft.write(Path(path).read_bytes()))


if __name__ == "__main__":
    main(measure)
