"""Processes that open and evict copies of one node cache, all at once: whether any open fails, or reads wrong bytes.

    python benchmarks/cache_race.py --processes 8 --opens 10000          copies made in place
    python benchmarks/cache_race.py --processes 8 --opens 10000 --s3     images of a data set on a local S3 server

The cache has room for a third of the copies, so most opens make one, and make room for it. Every error is counted by
its words; the exit code is 1 if there is any.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import random
import re
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from cluster.drills.s3_server import BUCKET, S3Server
from data_pipeline import storage
from data_pipeline.node.copy_seal import SEAL_BYTES, content_bytes
from data_pipeline.node.node_cache import NodeCache
from data_pipeline.shards.image_shards import ImageSample, ImageShards, finish_images, read_indexes, write_image_shard
from data_pipeline.shards.manifest import ImageManifest

COPIES = 24
SIZE = 40_000
_PER_SHARD = 4

Read = Callable[[int], bool]
"""Opens a copy by its number, and says whether it held what it should."""


def content_of(number: int) -> bytes:
    """What a copy, or an image, holds."""
    return random.Random(number).randbytes(SIZE)


def read_in_place(cache: NodeCache) -> Read:
    """Copies that are written from memory."""

    def read(number: int) -> bool:
        content = content_of(number)
        with cache.open(f"{number}.tar", SIZE, lambda draft: draft.write(content)) as file:
            return file.read(content_bytes(file)) == content

    return read


def write_data_set(uri: str) -> None:
    """An image data set of as many shards as there are copies. Its images are no pictures; nobody decodes them."""
    records = []
    for shard in range(COPIES):
        numbers = range(shard * _PER_SHARD, (shard + 1) * _PER_SHARD)
        samples = [ImageSample(f"image-{number}", 0, "jpg", content_of(number)) for number in numbers]
        records.append(write_image_shard(uri, f"images-{shard:05d}.tar", samples, "plan"))
    finish_images(uri, read_indexes(uri, records), classes=("a",), split="train")


def read_images(uri: str, cache: NodeCache) -> Read:
    """Images that are read through copies of their shards."""
    images = ImageShards(uri, cache=cache)
    return lambda number: images.read(number * _PER_SHARD) == content_of(number * _PER_SHARD)


def open_many(
    folder: str, uri: str | None, opens: int, seed: int, results: multiprocessing.Queue[Counter[str]]
) -> None:
    """One process: open that many copies drawn at random, and report what came of it."""
    numbers, outcome = random.Random(seed), Counter[str]()
    shard_bytes = SIZE if uri is None else ImageManifest.read(uri).shards[0].bytes
    cache = NodeCache(folder, limit=COPIES // 3 * (shard_bytes + SEAL_BYTES))
    read = read_in_place(cache) if uri is None else read_images(uri, cache)
    for _ in range(opens):
        try:
            outcome["right" if read(numbers.randrange(COPIES)) else "WRONG BYTES"] += 1
        except Exception as error:  # each is a finding
            words = re.sub(r"[0-9a-f]{8,}|\d+", "N", str(error))
            outcome[f"{type(error).__name__}: {words}"] += 1
    outcome["damaged"] += cache.damaged
    results.put(outcome)


def race(processes: int, opens: int, uri: str | None, folder: str) -> Counter[str]:
    """All processes at once; returns what came of all opens."""
    context = multiprocessing.get_context("spawn")
    results: multiprocessing.Queue[Counter[str]] = context.Queue()
    ranks = [
        context.Process(target=open_many, args=(folder, uri, opens // processes, seed, results))
        for seed in range(processes)
    ]
    for rank in ranks:
        rank.start()
    total: Counter[str] = Counter()
    for _ in ranks:
        total.update(results.get(timeout=3600))
    for rank in ranks:
        rank.join()
    return total


def main() -> int:
    """Run the race and print what came of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, default=8)
    parser.add_argument("--opens", type=int, default=10_000, help="by all processes together")
    parser.add_argument("--s3", action="store_true", help="copies of a data set on an S3 server")
    options = parser.parse_args()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="foldtrain-cache-race-")))
        uri = None
        if options.s3:
            server = stack.enter_context(S3Server(folder / "s3"))
            os.environ.update(server.environment())
            uri = storage.join(f"s3://{BUCKET}", "race")
            write_data_set(uri)
        began = time.perf_counter()
        outcome = race(options.processes, options.opens, uri, str(folder / "cache"))
        seconds = time.perf_counter() - began
    where = "S3" if options.s3 else "local"
    print(f"{where}: {options.processes} processes, {options.opens} opens, {COPIES} copies, room for {COPIES // 3}")
    for words, count in outcome.most_common():
        print(f"  {count:6d}  {words}")
    print(f"  {seconds:.0f} s")
    return int(outcome["right"] != options.opens // options.processes * options.processes or outcome["damaged"] > 0)


if __name__ == "__main__":
    sys.exit(main())
