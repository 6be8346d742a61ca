"""What the order of a data set costs: time of a batch and memory, at a number of samples.

    python benchmarks/scale_order.py SAMPLES [--batch 1024] [--shard-samples 10000] [--window 16]

Prints one JSON object, for all samples shuffled and for windows of shards: `first_ms` is a worker's first batch, with
all that the order sets up; `batch_ms` the median of batches at places all over five epochs, the processor's time of one
thread; `peak_bytes` the most that numpy and Python allocated meanwhile, batch included.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
import tracemalloc
from typing import Any

import numpy as np

from data_pipeline.order.permutations import SampleOrder, step_positions

_BATCHES = 200
_EPOCHS = 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("samples", type=int)
    parser.add_argument("--batch", type=int, default=1024)
    parser.add_argument("--shard-samples", type=int, default=10_000)
    parser.add_argument("--window", type=int, default=16, help="shards that are shuffled together")
    options = parser.parse_args()
    print(json.dumps(measure(options.samples, options.batch, options.shard_samples, options.window)))


def measure(samples: int, batch: int = 1024, shard_samples: int = 10_000, window: int = 16) -> dict[str, Any]:
    """Time and memory of the order of `samples` samples in shards of `shard_samples`, without and with a window."""
    sizes = np.full(-(-samples // shard_samples), shard_samples, np.int64)
    sizes[-1] = samples - shard_samples * (len(sizes) - 1)
    return {
        "samples": samples,
        "batch": batch,
        "shards": len(sizes),
        "all": _measure(sizes, None, batch),
        "window": {"shards_together": window} | _measure(sizes, window, batch),
    }


def _measure(sizes: np.ndarray, window: int | None, batch: int) -> dict[str, Any]:
    last = max(1, _EPOCHS * int(sizes.sum()) // batch - 1)
    steps = [number * last // _BATCHES for number in range(_BATCHES)]
    started = time.thread_time()
    order = SampleOrder(0, sizes, window)
    order.indices(step_positions(0, batch))
    first, times = time.thread_time() - started, []
    for step in steps:
        started = time.thread_time()
        order.indices(step_positions(step, batch))
        times.append(time.thread_time() - started)
    tracemalloc.start()
    order = SampleOrder(0, sizes, window)
    for step in steps[:: _BATCHES // 10]:
        order.indices(step_positions(step, batch))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return {"first_ms": 1e3 * first, "batch_ms": 1e3 * statistics.median(times), "peak_bytes": peak}


if __name__ == "__main__":
    main()
