"""One peer of benchmarks/loader.py: `loader_peers.py webdataset|litdata|streaming FOLDER TOKENS.npy write|read`.

`write` writes the samples in the peer's own format, unless they are there. `read` reads shuffled epochs in this process
as loader_rounds.py says: in batches of the peer's own loader as its documentation advises, and sample by sample. It
prints {"batched": figures, "unbatched": figures}.
"""

from __future__ import annotations

import functools
import io
import json
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import loader_rounds
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


def read_webdataset(folder: Path, batch: int) -> loader_rounds.Epoch:
    """Shards shuffled, then samples within a buffer; each iteration shuffles anew."""
    import webdataset

    urls = sorted(str(path) for path in folder.glob("*.tar"))
    data = webdataset.WebDataset(urls, shardshuffle=len(urls)).shuffle(SHUFFLE_BUFFER).decode()
    data = data.to_tuple("tokens.npy", "cls")
    reader = webdataset.WebLoader(data.batched(batch), batch_size=None, num_workers=0) if batch else data
    return lambda _: reader


def _sample(path: str, index: int) -> dict[str, Any]:
    return {"tokens": np.load(path, mmap_mode="r")[index], "label": index % 1000}


def write_litdata(folder: Path, tokens: np.memmap) -> None:
    """`optimize`, with chunks of 64 MB."""
    import litdata

    sample = functools.partial(_sample, str(tokens.filename))
    inputs = list(range(len(tokens)))
    litdata.optimize(fn=sample, inputs=inputs, output_dir=str(folder), chunk_bytes="64MB", num_workers=1)


def read_litdata(folder: Path, batch: int) -> loader_rounds.Epoch:
    """Its dataset, shuffled by another seed in each epoch, in its loader."""
    import litdata

    def epoch(number: int) -> Iterable[Any]:
        data = litdata.StreamingDataset(str(folder), shuffle=True, seed=number)
        return litdata.StreamingDataLoader(data, batch_size=batch, num_workers=0) if batch else data

    return epoch


def write_streaming(folder: Path, tokens: np.memmap) -> None:
    """MDS shards of the default size, with a fixed-shape array column."""
    import streaming

    columns = {"tokens": f"ndarray:uint16:{tokens.shape[1]},{tokens.shape[2]}", "label": "int"}
    with streaming.MDSWriter(out=str(folder), columns=columns) as writer:
        for index, sample in enumerate(tokens):
            writer.write({"tokens": sample, "label": index % 1000})


def read_streaming(folder: Path, batch: int) -> loader_rounds.Epoch:
    """Its dataset, shuffled with its default algorithm, anew in each iteration, in its loader."""
    import streaming

    data = streaming.StreamingDataset(local=str(folder), shuffle=True, batch_size=batch or BATCH)
    reader = streaming.StreamingDataLoader(data, batch_size=batch, num_workers=0) if batch else data
    return lambda _: reader


PEERS: dict[str, tuple[Callable[[Path, np.memmap], None], Callable[[Path, int], loader_rounds.Epoch]]] = {
    "webdataset": (write_webdataset, read_webdataset),
    "litdata": (write_litdata, read_litdata),
    "streaming": (write_streaming, read_streaming),
}


def main() -> None:
    name, folder, source, action = sys.argv[1], Path(sys.argv[2]), sys.argv[3], sys.argv[4]
    write, read = PEERS[name]
    tokens, written = np.load(source, mmap_mode="r"), folder / ".written"
    figures: dict[str, Any] = {}
    if action == "read":
        figures["batched"] = loader_rounds.measure(read(folder, BATCH), len(tokens), BATCH)
        figures["unbatched"] = loader_rounds.measure(read(folder, 0), len(tokens))
    elif not written.exists():
        folder.mkdir(parents=True, exist_ok=True)
        write(folder, tokens)
        written.touch()
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
