"""Shuffled samples per second of the token loader, against webdataset, litdata, mosaicml-streaming and a plain gather.

    python benchmarks/loader.py [--json FILE] [--folder FOLDER] [--samples 200000]

The same samples x 286 positions x 2 folds for all, on local disk, in one process, warm page cache. The plain gather is
numpy's own on a memory map of one array, in the faster of its two spellings; ours draws the order, the views and the
labels, too. Peers deliver batches of 256 as ours does, through the loaders that they advise; the last column says what
they reach sample by sample, without making batches. Memory is the growth of the proportional set size of eight ranks
that have read an epoch, over the bytes of the tokens.
"""

from __future__ import annotations

import argparse
import multiprocessing
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import peers
from report import write_report

from data_pipeline.loading.loader import TokenBatches
from data_pipeline.node.node_cache import NodeCache
from data_pipeline.shards.manifest import TokenizerRecord, TokenManifest
from data_pipeline.shards.token_dataset import TokenShards
from data_pipeline.shards.token_shards import TokenBlock, write_token_shard
from model.layout import TokenLayout

LAYOUT = TokenLayout((1, 1, 4, 9, 9, 16, 25, 36, 64, 121), (4096, 4096))
BATCH = 256
SHARD_SAMPLES = 50_000
RANKS = 8
ROUNDS = 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--folder", type=Path, help="keep the data sets here, for another run")
    parser.add_argument("--samples", type=int, default=200_000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        measure(options.folder or Path(temporary), options.samples, options.json)


def measure(folder: Path, samples: int, output: Path | None) -> None:
    """All figures, printed, and written to `output`."""
    source, ours = folder / "tokens.npy", folder / "foldtrain"
    write_source(source, samples)
    write_ours(ours, np.load(source, mmap_mode="r"))
    rates = gather_rates(source, ours, folder / "cache")
    unbatched: dict[str, float] = {}
    for name in ("webdataset", "litdata", "streaming"):
        read = peers.run("loader_peers.py", name, str(folder / name), str(source))
        rates[name], unbatched[name] = samples / read["seconds"], samples / read["unbatched_seconds"]
    ratio = {name: rates["foldtrain"] / rates[name] for name in ("webdataset", "litdata", "streaming", "gather")}
    memory = memory_of_ranks(ours, folder / "cache", samples * LAYOUT.positions * LAYOUT.folds * 2)
    rows = [
        [
            name,
            f"{rate:,.0f}",
            f"{rates['foldtrain'] / rate:.2f}",
            f"{unbatched[name]:,.0f}" if name in unbatched else "",
        ]
        for name, rate in rates.items()
    ]
    rows.append([f"memory of {RANKS} ranks / one copy", f"{memory:.3f}", "", ""])
    figures = {"samples_per_second": rates, "ratio": ratio, "memory_of_ranks": memory, "samples": samples}
    figures["samples_per_second_unbatched"] = unbatched
    write_report("loader", ["", "samples/s", "foldtrain is times as fast", "unbatched"], rows, figures, output)


def write_source(path: Path, samples: int) -> None:
    """Random tokens as one array, uint16 [samples, positions, folds]."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        shape = (samples, LAYOUT.positions, LAYOUT.folds)
        np.save(path, np.random.default_rng(0).integers(0, LAYOUT.vocabulary(), shape, dtype=np.uint16))


def write_ours(folder: Path, tokens: np.ndarray) -> None:
    """The same tokens as a data set of token shards."""
    if (folder / "manifest.json").exists():
        return
    records = []
    for number, start in enumerate(range(0, len(tokens), SHARD_SAMPLES)):
        part = np.asarray(tokens[start : start + SHARD_SAMPLES])
        indices = np.arange(start, start + len(part))
        keys = np.char.zfill(indices.astype("S8"), 8)
        block = TokenBlock(part[:, None], (indices % 1000).astype(np.int32), keys)
        records.append(write_token_shard(str(folder), f"tokens-{number:05d}.tar", block, {}))
    TokenManifest.build(
        samples=len(tokens),
        classes=tuple(str(label) for label in range(1000)),
        layout=LAYOUT,
        views=("center",),
        image_size=256,
        fit="crop",
        tokenizer=TokenizerRecord(encoder="0" * 64, config={}),
        source="0" * 64,
        software={},
        shards=tuple(records),
    ).write(str(folder))


def gather_rates(source: Path, ours: Path, cache: Path) -> dict[str, float]:
    """Samples per second of our loader and of the plain gather: the best of some rounds, taken in turns."""
    tokens = np.load(source, mmap_mode="r")
    order = np.random.default_rng(1).permutation(len(tokens))
    starts = range(0, len(tokens) - BATCH + 1, BATCH)
    flat = np.asarray(tokens).reshape(len(tokens), -1)
    shards = TokenShards(str(ours), NodeCache(str(cache)))

    def fancy() -> Iterator[np.ndarray]:
        return (tokens[order[start : start + BATCH]] for start in starts)

    def take() -> Iterator[np.ndarray]:
        return (flat.take(order[start : start + BATCH], axis=0) for start in starts)

    def loader() -> Iterator[Any]:
        batches = TokenBatches(shards, 0, BATCH)
        return (batches.batch(step) for step in range(len(starts)))

    ways: dict[str, Callable[[], Iterator[Any]]] = {"foldtrain": loader, "gather": take, "fancy": fancy}
    best = dict.fromkeys(ways, 0.0)
    for _ in range(ROUNDS + 1):  # the first brings both files into memory
        for name, batches in ways.items():
            started = time.perf_counter()
            count = sum(1 for _ in batches())
            best[name] = max(best[name], count * BATCH / (time.perf_counter() - started))
    best["gather"] = max(best["gather"], best.pop("fancy"))
    return best


def memory_of_ranks(ours: Path, cache: Path, copy: int) -> float:
    """Memory that eight ranks of a node take together for the data set, over the bytes of one copy of its tokens."""
    context = multiprocessing.get_context("spawn")
    barrier, queue = context.Barrier(RANKS), context.Queue()
    ranks = [context.Process(target=_rank, args=(str(ours), str(cache), rank, barrier, queue)) for rank in range(RANKS)]
    for rank in ranks:
        rank.start()
    total = sum(queue.get() for _ in ranks)
    for rank in ranks:
        rank.join()
    return float(total / copy)


def _rank(ours: str, cache: str, rank: int, barrier: Any, queue: Any) -> None:
    # What Python imports at first use is not the data's: read the manifest once, let go of it, then measure.
    TokenManifest.read(ours)
    barrier.wait()
    before = _proportional_set_size()
    barrier.wait()
    shards = TokenShards(ours, NodeCache(cache))
    batches = TokenBatches(shards, 0, RANKS * BATCH)
    touched = sum(int(batches.batch(step, rank, RANKS).tokens_BLF[0, 0, 0]) for step in range(shards.count // BATCH))
    assert touched >= 0
    for start in range(0, shards.count, BATCH):  # every rank has read all of it, as after some epochs
        shards.rows(np.arange(start, min(start + BATCH, shards.count)))
    barrier.wait()
    after = _proportional_set_size()
    barrier.wait()
    queue.put(after - before)


def _proportional_set_size() -> int:
    """Bytes of this process's memory, with what is shared divided among those who share it."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    (line,) = [line for line in lines if line.startswith("Pss:")]
    return int(line.split()[1]) * 1024


if __name__ == "__main__":
    main()
