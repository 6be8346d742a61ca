"""One peer of benchmarks/loader.py: `loader_peers.py webdataset|litdata|streaming FOLDER TOKENS.npy`.

Writes the samples in the peer's own format, reads one shuffled epoch in this process, in batches of the peer's own
loader as its documentation advises, and prints {"samples": N, "seconds": S, "unbatched_seconds": U}: U without batches.
"""

from __future__ import annotations

import functools
import io
import json
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

BATCH = 256
SHARD_SAMPLES = 10_000
SHUFFLE_BUFFER = 5_000


def write_webdataset(folder: Path, tokens: np.memmap) -> None:
    """A member per sample and field, as its documentation shows."""
    import webdataset

    with webdataset.ShardWriter(str(folder / "%05d.tar"), maxcount=SHARD_SAMPLES, verbose=0) as writer:
        for index, sample in enumerate(tokens):
            buffer = io.BytesIO()
            np.save(buffer, sample)
            writer.write({"__key__": f"{index:08d}", "tokens.npy": buffer.getvalue(), "cls": index % 1000})


def read_webdataset(folder: Path, batch: int) -> Iterable[Any]:
    """Shards shuffled, then samples within a buffer."""
    import webdataset

    urls = sorted(str(path) for path in folder.glob("*.tar"))
    data = webdataset.WebDataset(urls, shardshuffle=len(urls)).shuffle(SHUFFLE_BUFFER).decode()
    data = data.to_tuple("tokens.npy", "cls")
    return webdataset.WebLoader(data.batched(batch), batch_size=None, num_workers=0) if batch else data


def _sample(path: str, index: int) -> dict[str, Any]:
    return {"tokens": np.load(path, mmap_mode="r")[index], "label": index % 1000}


def write_litdata(folder: Path, tokens: np.memmap) -> None:
    """`optimize`, with chunks of 64 MB."""
    import litdata

    sample = functools.partial(_sample, str(tokens.filename))
    inputs = list(range(len(tokens)))
    litdata.optimize(fn=sample, inputs=inputs, output_dir=str(folder), chunk_bytes="64MB", num_workers=1)


def read_litdata(folder: Path, batch: int) -> Iterable[Any]:
    """Its dataset, shuffled, in its loader."""
    import litdata

    data = litdata.StreamingDataset(str(folder), shuffle=True, seed=0)
    return litdata.StreamingDataLoader(data, batch_size=batch, num_workers=0) if batch else data


def write_streaming(folder: Path, tokens: np.memmap) -> None:
    """MDS shards of the default size, with a fixed-shape array column."""
    import streaming

    columns = {"tokens": f"ndarray:uint16:{tokens.shape[1]},{tokens.shape[2]}", "label": "int"}
    with streaming.MDSWriter(out=str(folder), columns=columns) as writer:
        for index, sample in enumerate(tokens):
            writer.write({"tokens": sample, "label": index % 1000})


def read_streaming(folder: Path, batch: int) -> Iterable[Any]:
    """Its dataset, shuffled with its default algorithm, in its loader."""
    import streaming

    data = streaming.StreamingDataset(local=str(folder), shuffle=True, batch_size=batch or BATCH)
    return streaming.StreamingDataLoader(data, batch_size=batch, num_workers=0) if batch else data


PEERS: dict[str, tuple[Callable[[Path, np.memmap], None], Callable[[Path, int], Iterable[Any]]]] = {
    "webdataset": (write_webdataset, read_webdataset),
    "litdata": (write_litdata, read_litdata),
    "streaming": (write_streaming, read_streaming),
}


def main() -> None:
    name, folder, source = sys.argv[1], Path(sys.argv[2]), sys.argv[3]
    write, read = PEERS[name]
    tokens = np.load(source, mmap_mode="r")
    if not folder.exists():
        folder.mkdir(parents=True)
        write(folder, tokens)
    started = time.perf_counter()
    samples = sum(len(_labels(batch)) for batch in read(folder, BATCH))
    batched = time.perf_counter()
    count = sum(1 for _ in read(folder, 0))
    unbatched = time.perf_counter() - batched
    assert samples == count == len(tokens), (name, samples, count)
    print(json.dumps({"samples": samples, "seconds": batched - started, "unbatched_seconds": unbatched}))


def _labels(batch: Any) -> Any:
    return batch["label"] if isinstance(batch, dict) else batch[1]


if __name__ == "__main__":
    main()
