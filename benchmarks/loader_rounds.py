"""How every contender of benchmarks/loader.py is timed: the same rounds, the same warm-up, the same rule.

A round reads one epoch, shuffled anew, sample by sample or batch by batch, and throws away what it reads. The warm-up
reads for `SECONDS` or to the end of the epoch; each round then reads as many samples. The clock starts when the first
sample is there: what a loader does before it (plan an epoch, fill a buffer) is told as `first_seconds`.
"""

from __future__ import annotations

import collections
import itertools
import statistics
import time
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

ROUNDS = 5
SECONDS = 1.5

Epoch = Callable[[int], Iterable[Any]]
"""What comes in an epoch by its number: batches, or samples."""


class _Round(NamedTuple):
    rate: float
    """Samples per second."""
    cpu_ns: float
    """Per sample."""
    first_seconds: float


def measure(epoch: Epoch, samples: int, size: int = 1) -> dict[str, Any]:
    """Samples per second of one contender: the best of the rounds, their median, and each.

    Args:
        epoch: its epochs.
        samples: samples of an epoch.
        size: samples of an item. A last batch that is smaller is left out.
    """
    return measure_in_turns({"": epoch}, samples, size)[""]


def measure_in_turns(epochs: dict[str, Epoch], samples: int, size: int = 1) -> dict[str, dict[str, Any]]:
    """`measure` of several, which take turns in each round."""
    counts = {name: min(_warm_up(epoch), samples // size) for name, epoch in epochs.items()}
    found: dict[str, list[_Round]] = {name: [] for name in epochs}
    for number in range(1, ROUNDS + 1):
        for name, epoch in epochs.items():
            found[name].append(_read(epoch(number), counts[name], size))
    return {name: _figures(rounds, counts[name] * size) for name, rounds in found.items()}


def _warm_up(epoch: Epoch) -> int:
    """How many items come in `SECONDS`, from the first on."""
    items = iter(epoch(0))
    next(items)
    count, stop = 1, time.perf_counter() + SECONDS
    for _ in items:
        count += 1
        if time.perf_counter() > stop:
            break
    return count


def _read(items: Iterable[Any], count: int, size: int) -> _Round:
    begun = time.perf_counter()
    iterator = iter(items)
    next(iterator)
    started, cpu = time.perf_counter(), time.process_time()
    collections.deque(itertools.islice(iterator, count - 1), maxlen=0)
    seconds, samples = time.perf_counter() - started, (count - 1) * size
    return _Round(samples / seconds, 1e9 * (time.process_time() - cpu) / samples, started - begun)


def _figures(rounds: list[_Round], samples: int) -> dict[str, Any]:
    rates = [one.rate for one in rounds]
    return {
        "samples_per_second": max(rates),
        "median": statistics.median(rates),
        "cpu_ns": min(one.cpu_ns for one in rounds),
        "rounds": rates,
        "samples_a_round": samples,
        "first_seconds": statistics.median(one.first_seconds for one in rounds),
    }
