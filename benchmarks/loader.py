"""Shuffled samples per second of the token loader, against webdataset, litdata, mosaicml-streaming and a plain gather.

    python benchmarks/loader.py [--json FILE] [--folder FOLDER] [--samples 200000 1280000] [--offline]

The same samples x 286 positions x 2 folds for all, on local disk, in one process, warm page cache; the same rounds and
warm-up, each of another epoch with another order (loader_rounds.py). Batched: 256 samples at a time, of peers through
the loaders that they advise. Unbatched: sample by sample, as the peers' data sets give them, ours by
`TokenBatches.samples`. The plain gather is the ceiling: numpy's `take` of 256 rows by a permutation that was drawn
before, on the memory map that our loader reads; its rows one by one are the ceiling of what is unbatched. It makes no
order, no labels, no views. Memory is the growth of the proportional set size of eight ranks that have read an epoch of
the smallest set, over the bytes of the tokens. A peer that cannot be run is named with the reason.
The data sets take 14 GB of the disk of FOLDER, or of the temporary folder.
"""

from __future__ import annotations

import argparse
import itertools
import multiprocessing
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import loader_rounds
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
PEERS = ("webdataset", "litdata", "streaming")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--folder", type=Path, help="keep the data sets here, for another run")
    parser.add_argument("--samples", type=int, nargs="+", default=[200_000, 1_280_000])
    parser.add_argument("--offline", action="store_true", help="install nothing: peers that are not there are left out")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        measure(options.folder or Path(temporary), sorted(options.samples), options.json, install=not options.offline)


def measure(folder: Path, sizes: list[int], output: Path | None, *, install: bool) -> None:
    """All figures, printed, and written to `output`."""
    missing: dict[str, str] = {}
    rows = [row for samples in sizes for row in contend(folder / str(samples), samples, missing, install=install)]
    first = folder / str(sizes[0])
    memory = memory_of_ranks(first / "foldtrain", first / "cache", sizes[0] * LAYOUT.positions * LAYOUT.folds * 2)
    figures = {"rows": rows, "not_measured": missing, "memory_of_ranks": memory}
    figures |= {"rounds": loader_rounds.ROUNDS, "warm_ups": 1, "warm_up_seconds": loader_rounds.SECONDS, "batch": BATCH}
    table = [
        [
            f"{row['samples']:,}",
            row["mode"],
            row["name"],
            f"{row['samples_per_second']:,.0f}",
            f"{row['median']:,.0f}",
            f"{row['cpu_ns']:,.0f}",
            f"{row['foldtrain_is_times_as_fast']:.2f}",
            f"{row['batches_of_foldtrain_are_times_as_fast']:.2f}",
        ]
        for row in rows
    ]
    table.append(["", "", f"memory of {RANKS} ranks / one copy", f"{memory:.3f}", "", "", "", ""])
    columns = ["samples", "mode", "", "samples/s", "median", "CPU ns", "foldtrain", "foldtrain's batches"]
    write_report("loader", columns, table, figures, output)
    for why in missing.values():
        print(f"Not measured: {why}.")


def contend(folder: Path, samples: int, missing: dict[str, str], *, install: bool) -> list[dict[str, Any]]:
    """The figures of every contender at one size, in both modes."""
    source, ours = folder / "tokens.npy", folder / "foldtrain"
    write_source(source, samples)
    write_ours(ours, np.load(source, mmap_mode="r"))
    found = {"batched": rates(ours, folder / "cache", BATCH), "unbatched": rates(ours, folder / "cache", 1)}
    peers.prepare(install=install)

    def run(name: str, action: str) -> dict[str, Any]:
        try:
            return (
                {} if name in missing else peers.run("loader_peers.py", name, str(folder / name), str(source), action)
            )
        except peers.PeerError as error:
            missing[name] = str(error)
            return {}

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda name: run(name, "write"), PEERS))
    for name in PEERS:
        for mode, figures in run(name, "read").items():
            found[mode][name] = figures
    best = {mode: contenders["foldtrain"]["samples_per_second"] for mode, contenders in found.items()}
    return [
        {"samples": samples, "mode": mode, "name": name}
        | figures
        | {"foldtrain_is_times_as_fast": best[mode] / figures["samples_per_second"]}
        | {"batches_of_foldtrain_are_times_as_fast": best["batched"] / figures["samples_per_second"]}
        for mode, contenders in found.items()
        for name, figures in contenders.items()
    ]


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


def rates(ours: Path, cache: Path, size: int) -> dict[str, dict[str, Any]]:
    """Figures of our loader and of the plain gather, in batches or sample by sample, taken in turns."""
    shards = TokenShards(str(ours), NodeCache(str(cache)))
    rows, count = shards._rows_RT, shards.count  # the same map
    starts = range(0, count - BATCH + 1, BATCH)
    orders = [np.random.default_rng(number).permutation(count) for number in range(loader_rounds.ROUNDS + 1)]

    def gather(number: int) -> Iterator[np.ndarray]:
        order = orders[number]
        return (rows.take(order[start : start + BATCH], axis=0, mode="clip") for start in starts)

    def loader(number: int) -> Iterator[Any]:
        batches = TokenBatches(shards, number, BATCH)
        return (batches.batch(step) for step in range(len(starts)))

    def gather_samples(number: int) -> Iterator[np.ndarray]:
        return itertools.chain.from_iterable(gather(number))

    def samples(number: int) -> Iterator[Any]:
        return TokenBatches(shards, number, BATCH).samples()

    epochs = {"foldtrain": loader, "gather": gather} if size > 1 else {"foldtrain": samples, "gather": gather_samples}
    return loader_rounds.measure_in_turns(epochs, count // BATCH * BATCH, size)


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
