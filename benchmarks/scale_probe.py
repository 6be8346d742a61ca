"""What the parts of `python benchmarks/scale.py` share: time, peak memory and requests of a piece of work.

A part is a module benchmarks/scale_X.py with a function `measure(samples) -> dict[str, float]`, which ends with

    if __name__ == "__main__":
        main(measure)

so that `python benchmarks/scale_X.py SAMPLES` prints its figures as JSON. Keys that scale.py knows: seconds,
cpu_seconds, peak_mib, requests; others are shown as they are. What is measured runs inside `probe()`:

    def measure(samples):
        in_child(write_synthetic_set, samples, folder)   # its memory is not of what is measured
        with probe() as found:
            plan_ingest(...)
        return found

Peak memory is that of this process above what it had when the block began: import at the top of the module what the
work imports, and make what it reads in another process, since memory that was freed before is used again unseen.
"""

from __future__ import annotations

import json
import multiprocessing
import resource
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import root_on_path  # noqa: F401 - the packages are found through it

from data_pipeline import storage

MIB = 2**20
Figures = dict[str, float]


@contextmanager
def probe() -> Iterator[Figures]:
    """Figures of what runs inside, filled in at its end: seconds, cpu_seconds, peak_mib and requests."""
    found: Figures = {}
    before = resident("VmRSS")
    with suppress(OSError):  # without it the peak is that of the whole process so far
        Path("/proc/self/clear_refs").write_text("5")
    asked, began, used = storage.requests(), time.perf_counter(), time.process_time()
    yield found
    found["seconds"] = time.perf_counter() - began
    found["cpu_seconds"] = time.process_time() - used
    found["peak_mib"] = max(0.0, resident("VmHWM") - before) / MIB
    found["requests"] = (storage.requests() - asked).total()


def resident(line: str) -> int:
    """Bytes of this process's memory: VmRSS now, VmHWM at its highest."""
    status = Path("/proc/self/status").read_text().splitlines()
    found = next((text for text in status if text.startswith(f"{line}:")), None)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 if found is None else int(found.split()[1]) * 1024


def in_child(function: Callable[..., None], *arguments: Any) -> None:
    """Call a function of a module in a process of its own, so that its memory is not counted here."""
    process = multiprocessing.get_context("spawn").Process(target=function, args=arguments)
    process.start()
    process.join()
    if process.exitcode:
        raise RuntimeError(f"{function.__name__} failed in its process (exit code {process.exitcode})")


def main(measure: Callable[[int], Figures]) -> None:
    """The command of a part: SAMPLES, and its figures as a line of JSON."""
    if len(sys.argv) != 2 or not sys.argv[1].isdigit():
        raise SystemExit(f"usage: python {sys.argv[0]} SAMPLES")
    print(json.dumps(measure(int(sys.argv[1]))))
