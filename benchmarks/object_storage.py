"""What a request to S3 costs this process: processor time of each kind of request, by s3fs alone and with obstore.

    python benchmarks/object_storage.py [--requests 2000] [--json FILE]

Both go through the same functions of `data_pipeline.storage`, with its retries, pacing and checks; for `s3fs` obstore
is left out, as it is where it cannot be used. The server is SeaweedFS in a process of its own: its time is not counted.
Requests are sent one after the other by the main thread, 1,000 bytes each; `ranges` are 100 of one object, too far
apart to be read together, in one call; a page of a listing has 1,000 objects. Of ten rounds the one that took the least
processor time is told: another program on the machine only adds to it.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

from rich.console import Console
from rich.table import Table

from cluster.drills.s3_server import BUCKET, S3Server
from data_pipeline import storage
from data_pipeline.storage import object_buckets

BYTES, RANGES, PAGE, ROUNDS = 1000, 100, 1000, 10
APART = 2**17
CLIENTS = ("s3fs", "obstore")


def no_bucket(*_: object) -> None:
    """In place of what finds obstore's client of a bucket."""


def measure(deed: Callable[[int], object], times: int, kind: str) -> dict[str, float]:
    """Milliseconds of processor and of clock per request, in the best of some rounds, and requests in all."""
    deed(-1)
    total, best = 0, (float("inf"), float("inf"))
    for turn in range(ROUNDS):
        processor, clock = time.process_time(), time.perf_counter()
        with storage.counted() as sent:
            for number in range(turn, times, ROUNDS):
                deed(number)
        spent = time.process_time() - processor, time.perf_counter() - clock
        total += sent[kind]
        best = min(best, (1e3 * spent[0] / sent[kind], 1e3 * spent[1] / sent[kind]))
    return {"requests": total, "cpu_ms": round(best[0], 4), "wall_ms": round(best[1], 4)}


def run(folder: str, requests: int) -> dict[str, dict[str, float]]:
    """All kinds of request below a folder."""
    data = bytes(range(250)) * (BYTES // 250)
    storage.write_bytes(f"{folder}/one", data)
    storage.write_bytes(f"{folder}/long", bytes((RANGES + 1) * APART))
    ranges = [(number * APART, BYTES) for number in range(RANGES)]
    kinds: dict[str, tuple[Callable[[int], object], str, int]] = {
        "range": (lambda n: storage.read_range(f"{folder}/one", n % 7, BYTES // 2), "get", requests),
        "ranges": (lambda _: storage.read_ranges(f"{folder}/long", ranges), "get", requests // RANGES),
        "whole": (lambda _: storage.read_bytes(f"{folder}/one"), "get", requests),
        "head": (lambda _: storage.size(f"{folder}/one"), "head", requests),
        "put": (lambda n: storage.write_bytes(f"{folder}/put/{n % 50}", data), "put", requests),
        "create": (lambda n: storage.create_bytes(f"{folder}/new/{n}", data), "put", requests),
        "delete": (lambda n: storage.remove_file(f"{folder}/new/{n}"), "delete", requests),
    }
    found = {name: measure(deed, times, kind) for name, (deed, kind, times) in kinds.items()}
    for number in range(PAGE):
        storage.write_bytes(f"{folder}/list/images-{number:05}.tar", b"")
    found["page"] = measure(lambda _: storage.walk(f"{folder}/list"), max(ROUNDS, requests // 100), "list")
    return found


def show(results: dict[str, dict[str, dict[str, float]]]) -> None:
    """A table of both clients."""
    table = Table("request", "requests", *(f"{client} {what}" for client in CLIENTS for what in ("CPU ms", "ms")))
    for kind, first in results[CLIENTS[0]].items():
        cells = [f"{results[client][kind][what]:.3f}" for client in CLIENTS for what in ("cpu_ms", "wall_ms")]
        table.add_row(kind, f"{first['requests']:,}", *cells)
    Console().print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=2000, help="of each kind")
    parser.add_argument("--json", type=Path, help="where to write the results")
    chosen = parser.parse_args()
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        server = S3Server(Path(folder)).start()
        try:
            os.environ.update(server.environment())
            for client in CLIENTS:
                with contextlib.ExitStack() as inside:
                    if client == "s3fs":
                        inside.enter_context(mock.patch.object(object_buckets, "_bucket_of", no_bucket))
                    results[client] = run(f"s3://{BUCKET}/{client}", chosen.requests)
        finally:
            server.kill()
    show(results)
    if chosen.json:
        chosen.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
