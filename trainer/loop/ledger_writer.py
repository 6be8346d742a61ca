"""Records which samples a stage consumes; data_pipeline/order/ledger.py says what is recorded and audits it."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist

from data_pipeline import storage
from data_pipeline.errors import UsageError
from data_pipeline.order.ledger import FILE, DataOrder, chain, is_ledger_record, read_history
from data_pipeline.shards.manifest import differences
from data_pipeline.shards.token_windows import KeyColumn
from trainer.records.jsonl import Continued, JsonlWriter, read_records

_FLUSH_SECONDS = 5.0
"""Storage that does not take the record in this time gets it later; what is lost with the process, the audit names."""


class Ledger:
    """One rank's account of the samples that it consumed since the last checkpoint.

    Args:
        folder: of the stage.
        order: what the order of its data follows from.
        keys: of the data set [N].
        step: steps that were done before this start.
        device: of this rank, for the collective at each checkpoint.
        guard: as for `JsonlWriter`.
    """

    def __init__(
        self,
        folder: str,
        order: DataOrder,
        keys: KeyColumn,
        step: int,
        device: torch.device,
        guard: Callable[[], object] = lambda: None,
    ) -> None:
        self._keys, self._device = keys, device
        self._file: JsonlWriter | None = None
        if dist.get_rank() == 0:
            path = storage.join(folder, FILE)
            earlier = read_records(path, is_ledger_record)
            if earlier:
                _check_order(path, read_history(path, earlier).order, order)
            self._file = JsonlWriter(path, keep=Continued(is_ledger_record), guard=guard)
            if not earlier:
                self._write({"event": "order"} | order.model_dump())
        self.restart(step)

    def restart(self, step: int) -> None:
        """Go on after `step`; what was consumed beyond it does not count."""
        self._first = self._next = step
        self._crc, self._skipped = 0, list[tuple[int, int]]()
        if self._file:
            self._write({"event": "start", "step": step, "world": dist.get_world_size()})

    def add(self, step: int, index_B: npt.NDArray[np.int64]) -> None:
        """Account for a step (from 0): its samples by number, as they came out of the loader."""
        self._pass_to(step)
        self._crc = chain(self._crc, self._keys[index_B])
        self._next = step + 1

    def commit(self, step: int) -> None:
        """Put on record what was consumed before `step`, ahead of the checkpoint of that step (a collective)."""
        self._pass_to(step)
        if self._next == self._first:
            return
        mine = torch.tensor([self._crc], dtype=torch.int64, device=self._device)
        all_ranks = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
        dist.all_gather(all_ranks, mine)
        if self._file:
            crc = [int(one.item()) for one in all_ranks]
            segment = {"first": self._first, "stop": self._next, "world": len(crc), "crc": crc}
            self._write({"event": "segment"} | segment | ({"skipped": self._skipped} if self._skipped else {}))
            self._file.flush(_FLUSH_SECONDS)
        self._first, self._crc, self._skipped = self._next, 0, []

    def _pass_to(self, step: int) -> None:
        """Steps up to `step` that were not consumed were passed over."""
        if step > self._next:
            self._skipped.append((self._next, step))
            self._next = step

    def close(self) -> None:
        """Finish the file."""
        if self._file:
            self._file.close()

    def _write(self, record: dict[str, Any]) -> None:
        assert self._file is not None
        self._file.write({"time": time.time()} | record)


def _check_order(path: str, begun: DataOrder, now: DataOrder) -> None:
    """Refuse to go on in another order: samples would come twice in an epoch, or never.

    Raises:
        UsageError: if the order is not the one that the stage was begun with; it says what differs.
    """
    found = differences(begun.model_dump(exclude={"data"}), now.model_dump(exclude={"data"}))
    if found:
        raise UsageError(
            f"{path}: the stage was begun in another order of its samples ({'; '.join(found)}). If only `check` "
            "differs, the order is computed otherwise here: go on with the foldtrain and the numpy in environment.json"
        )
