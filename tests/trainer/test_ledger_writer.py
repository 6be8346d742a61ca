"""A stage goes on in the order in which it was begun, or not at all."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist

from data_pipeline.errors import UsageError
from data_pipeline.order.ledger import DataOrder, audit, read_history
from trainer.loop.ledger_writer import Ledger

KEYS = np.array([f"image{number}" for number in range(20)], "S")
ORDER = DataOrder(data="a", kind="tokens", fingerprint="f", seed=3, window=None, global_batch=8, check=0)


@pytest.fixture
def alone() -> Iterator[None]:
    """A process group of this process alone."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def train(folder: Path, order: DataOrder, first: int, stop: int) -> None:
    ledger = Ledger(str(folder), order, KEYS, first, torch.device("cpu"))
    for step in range(first, stop):
        ledger.add(step, order.samples((20,)).indices(np.arange(step * 8, step * 8 + 8)))
    ledger.commit(stop)
    ledger.close()


def records(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "ledger.jsonl").read_text().splitlines()]


@pytest.mark.usefixtures("alone")
def test_a_stage_that_goes_on_in_its_order_is_audited_as_one(tmp_path: Path) -> None:
    train(tmp_path, ORDER, 0, 4)
    train(tmp_path, ORDER.model_copy(update={"data": "moved"}), 4, 7)
    assert [record["event"] for record in records(tmp_path)] == ["order", "start", "segment", "start", "segment"]
    assert audit(read_history("ledger.jsonl", records(tmp_path)), KEYS, (20,)).problems == ()


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize(
    ("begun", "said"),
    [
        ({"seed": 4}, r"in another order of its samples \(seed: 4 -> 3\)"),
        ({"global_batch": 4}, "global_batch: 4 -> 8"),
        ({"check": 1}, "check: 1 -> 0"),
        ({"version": 1}, "an order of its samples of version 1, but version 2 is needed"),
        ({"version": None}, "an order of its samples of version 1, but version 2 is needed"),
    ],
)
def test_a_stage_that_was_begun_in_another_order_is_refused_and_left_as_it_is(
    tmp_path: Path, begun: dict[str, Any], said: str
) -> None:
    order = {
        name: value for name, value in (ORDER.model_dump() | begun).items() if value is not None or name == "window"
    }
    started = [{"event": "order"} | order, {"event": "start", "step": 0, "world": 1}]
    before = "".join(json.dumps(record) + "\n" for record in started) + "cut"
    (tmp_path / "ledger.jsonl").write_text(before)
    with pytest.raises(UsageError, match=rf"{tmp_path}/ledger\.jsonl: .*{said}"):
        Ledger(str(tmp_path), ORDER, KEYS, 0, torch.device("cpu"))
    assert (tmp_path / "ledger.jsonl").read_text() == before
