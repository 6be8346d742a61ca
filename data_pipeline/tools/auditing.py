"""Audits of stages: their ledgers, held against the data sets that they were trained from."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from data_pipeline import storage
from data_pipeline.errors import UsageError
from data_pipeline.order.ledger import FILE, Audit, DataOrder, History, Keys, audit, read_history, step_indices
from data_pipeline.record_files.reading import whole_lines
from data_pipeline.shards.image_shards import ImageShards
from data_pipeline.shards.manifest import TokenManifest
from data_pipeline.shards.token_reader import TokenReader
from data_pipeline.storage.local_disk import disk_errors
from data_pipeline.tools.in_order import in_order

READS = 8
"""Shards whose keys are read at a time."""


class Samples(NamedTuple):
    """What an audit needs to know of a data set."""

    keys: Keys
    """Of every sample, in the order of the data set [N]."""
    shards: tuple[int, ...]
    """Samples of each shard."""


def find_stages(run: str) -> list[str]:
    """Folders of stages that have a ledger: the given one, or those directly below it.

    Raises:
        UsageError: if there is none.
    """
    if storage.exists(storage.join(run, FILE)):
        return [run]
    below = [storage.join(run, name) for name in storage.list_names(run)]
    found = [folder for folder in below if storage.exists(storage.join(folder, FILE))]
    if not found:
        raise UsageError(f"{run} holds no {FILE}, nor does a folder in it: give the folder of a run or of a stage")
    return found


def stage_history(folder: str) -> History:
    """What a stage's ledger tells.

    Raises:
        UsageError: if there is none, or it is no ledger.
    """
    path = storage.join(folder, FILE)
    return read_history(path, _records(path))


def _records(path: str) -> list[dict[str, Any]]:
    try:
        lines = whole_lines(path)
    except FileNotFoundError:
        raise UsageError(f"{path} is missing: give the folder of a stage that has begun") from None
    if lines.left_out:
        raise UsageError(
            f"{path} is no ledger: line {lines.left_out[0]} is no record. Training that is started again leaves the "
            "line out, and then the audit names the steps that are missing"
        )
    return lines.records


def read_samples(order: DataOrder) -> Samples:
    """The samples of the data set that an order is of.

    Raises:
        UsageError: if it is not there, or is another one than the stage was trained from.
    """
    if order.kind == "images":
        images = ImageShards(order.data)
        _check_fingerprint(order, images.manifest.fingerprint)
        return Samples(images.keys, images.shard_sizes)
    manifest = TokenManifest.read(order.data)
    _check_fingerprint(order, manifest.fingerprint)
    reader = TokenReader(order.data, manifest)
    columns = in_order(reader.columns, range(len(manifest.shards)), READS)
    return Samples(
        _mapped((each.key for each in columns), manifest.samples), tuple(np.diff(manifest.shards.starts).tolist())
    )


def _mapped(parts: Iterable[Keys], samples: int) -> Keys:
    """The keys of all shards as one array, in a file of this machine ($TMPDIR) that goes with it."""
    if not samples:
        return np.array([], "S1")
    with disk_errors(Path(tempfile.gettempdir())), tempfile.TemporaryFile() as spool, tempfile.TemporaryFile() as file:
        held = []
        for part in parts:
            spool.write(part.tobytes())
            held.append((len(part), part.dtype.itemsize))
        width = max(width for _, width in held)
        file.truncate(samples * width)
        keys: Keys = np.memmap(file, f"S{width}", "r+", 0, (samples,))
        spool.seek(0)
        start = 0
        for count, own in held:
            keys[start : start + count] = np.frombuffer(spool.read(count * own), f"S{own}")
            start += count
    return keys


def _check_fingerprint(order: DataOrder, found: str) -> None:
    if found != order.fingerprint:
        raise UsageError(
            f"{order.data} now holds the data set {found[:16]}, but the stage was trained from {order.fingerprint[:16]}"
        )


def audit_stage(folder: str) -> Audit:
    """Whether a stage has consumed each sample once per epoch.

    Raises:
        UsageError: if its ledger or its data set cannot be read.
    """
    history = stage_history(folder)
    return audit(history, *read_samples(history.order))


def step_keys(folder: str, step: int) -> list[str]:
    """The keys of the samples of an optimizer step (from 0), in their order over all ranks.

    Raises:
        UsageError: as `audit_stage`, or if there is no such step.
    """
    if step < 0:
        raise UsageError(f"step {step}: steps are counted from 0")
    order = stage_history(folder).order
    samples = read_samples(order)
    indices = step_indices(order, samples.shards, step)
    return [bytes(key).decode(errors="replace") for key in samples.keys[indices]]
