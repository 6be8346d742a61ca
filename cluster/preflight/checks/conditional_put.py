"""Whether the run's storage creates an object once: of many writers that race for one key, exactly one may win.

Leases and commits rely on it. Some servers ignore If-None-Match; some look first and write then, so that it holds for
one writer after another and not for several at once. So several race, on several nodes, for several keys.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

from cluster.preflight.checks.check import Check
from cluster.preflight.checks.storage import PATIENCE_SECONDS, has_run, trial_folder
from cluster.preflight.findings import EVERY, Finding
from cluster.preflight.nodes import Failure, Nodes
from cluster.preflight.wanted import Wanted
from data_pipeline import storage
from data_pipeline.storage.retries import patience

NAME = "conditional write"
_KEYS, _WRITERS, _NODES = 5, 4, 2
"""That are raced for, writers on each node, and nodes."""
_SECONDS = 15.0

Wins = list[int]
"""How many writers were told that they created each key."""


def race(uris: Sequence[str], node: int) -> Wins:
    """Several writers create each object at the same moment. Returns how many of them were told that they did."""
    start = threading.Barrier(_WRITERS)

    def write(writer: int) -> list[bool]:
        won = []
        with patience(PATIENCE_SECONDS):
            for uri in uris:
                start.wait(_SECONDS)
                won.append(storage.create_bytes(uri, f"node {node}, writer {writer}".encode()))
        return won

    def guarded(writer: int) -> list[bool]:
        try:
            return write(writer)
        except BaseException:
            start.abort()  # the others would wait for this one
            raise

    with ThreadPoolExecutor(_WRITERS) as pool:
        rows = list(pool.map(guarded, range(_WRITERS)))
    return [sum(column) for column in zip(*rows, strict=True)]


def _measure(nodes: Nodes, wanted: Wanted) -> Mapping[str, Wins | Failure]:
    assert wanted.run is not None
    names = list(nodes.addresses)[:_NODES]
    with trial_folder(nodes, wanted.run) as folder:
        uris = [storage.join(folder, f"key-{number}") for number in range(_KEYS)]
        return nodes.each(race, {node: (uris, number) for number, node in enumerate(names)}, _SECONDS)


def judge(facts: Mapping[str, Wins], wanted: Wanted) -> list[Finding]:
    """Keys that were created by several, or by nobody."""
    if not facts:
        return []
    totals = [sum(column) for column in zip(*facts.values(), strict=True)]
    wrong = [total for total in totals if total > 1]
    writers = _WRITERS * len(facts)
    if wrong:
        found = (
            f"{wanted.run}: {len(wrong)} of {len(totals)} keys were created by up to {max(wrong)} of {writers} writers"
        )
        return [Finding(EVERY, NAME, "error", f"{found} that raced for them; one may", _REMEDY)]
    if 0 in totals:
        found = f"{wanted.run}: {totals.count(0)} of {len(totals)} keys were created by none of {writers} writers"
        return [Finding(EVERY, NAME, "error", found, _REMEDY)]
    return [Finding(EVERY, NAME, "ok", f"one of {writers} writers creates a key, {len(totals)} times of {len(totals)}")]


_REMEDY = (
    "two drivers of one run might both begin there: put the run on storage whose conditional put is atomic "
    "(If-None-Match: AWS S3, MinIO, Ceph, SeaweedFS; or have the gateway that drops the header pass it on). To run "
    "there all the same, start one driver of a run at a time, and set cluster.preflight=never"
)
CHECK = Check(
    NAME,
    _measure,
    judge,
    remedy="several writers at once are refused there: mend what the check `storage` says of it first",
    after=("storage",),
    applies=has_run,
)
