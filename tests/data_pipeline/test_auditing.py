"""What an audit needs of a data set: all keys in their order, in a file and not in memory."""

from __future__ import annotations

import mmap
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from data_pipeline.errors import UsageError
from data_pipeline.order.ledger import DataOrder
from data_pipeline.shards.manifest import TokenManifest
from data_pipeline.shards.token_archive import read_columns
from data_pipeline.tools.auditing import READS, read_samples
from model.layout import TokenLayout
from tests.data_pipeline.small_data import write_tokens


def order_of(uri: str) -> DataOrder:
    fingerprint = TokenManifest.read(uri).fingerprint
    fields = {"kind": "tokens", "data": uri, "fingerprint": fingerprint, "seed": 0, "global_batch": 2}
    fields |= {"window": None, "check": 0}
    return DataOrder.model_validate(fields)


def test_keys_of_all_shards_are_there_in_order_whatever_their_widths(tmp_path: Path) -> None:
    uri = write_tokens(tmp_path / "tokens", (5, 1, 3, 7))
    found = read_samples(order_of(uri))
    shards = TokenManifest.read(uri).shards
    parts = [read_columns(uri, shard).key for shard in shards]
    assert len({part.dtype for part in parts}) > 1
    assert found.keys.tolist() == [key for part in parts for key in part.tolist()]
    assert found.shards == (5, 1, 3, 7)


def test_keys_are_mapped_and_not_held(tmp_path: Path) -> None:
    shards = 6 * READS  # of which as many as are read at once are held, with their labels and checksums
    uri = write_tokens(tmp_path / "tokens", [2000] * shards, layout=TokenLayout((1,), (4,)))
    order = order_of(uri)
    read_samples(order)
    tracemalloc.start()
    found = read_samples(order)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    base = found.keys
    while isinstance(base, np.ndarray):
        base = base.base
    assert isinstance(base, mmap.mmap)
    assert peak < found.keys.nbytes


def test_another_data_set_than_the_one_of_the_ledger_is_refused(tmp_path: Path) -> None:
    order = order_of(write_tokens(tmp_path / "tokens", (5,)))
    with pytest.raises(UsageError, match="now holds the data set"):
        read_samples(order.model_copy(update={"fingerprint": "0" * 64}))
