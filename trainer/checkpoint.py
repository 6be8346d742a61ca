"""Checkpoints that any number of ranks can write and any other number can read. DESIGN section 4.

checkpoints/step_00001000/
    rank_0000.safetensors   the fragments that this rank owns, keyed role/parameter/start
    index.json              (role, parameter, flat range) -> (file, key), and each parameter's shape
    state.json              step, optimizer step, skipped steps, fingerprint of what is trained
    COMPLETE                written last; without it the folder is ignored

No rank gathers anything: each writes what it owns, and on resume reads the ranges that it owns then.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import load, save
from torch import Tensor, nn

from data_pipeline import storage
from data_pipeline.errors import CorruptShardError
from trainer.fragments import MOMENTS, OwnedState

_NAME = re.compile(r"step_(\d{8})")
_BUFFER = "buffer"


def _folder(checkpoints: str, step: int) -> str:
    return storage.join(checkpoints, f"step_{step:08d}")


def complete_steps(checkpoints: str) -> list[int]:
    """Steps of all complete checkpoints, ascending."""
    found = [match for name in storage.list_names(checkpoints) if (match := _NAME.fullmatch(name))]
    return [int(m[1]) for m in found if storage.exists(storage.join(checkpoints, m[0], "COMPLETE"))]


def save_checkpoint(checkpoints: str, step: int, module: nn.Module, owned: OwnedState, state: dict[str, Any]) -> None:
    """Write a checkpoint (a collective). The folder counts only once all ranks have written."""
    rank, folder = dist.get_rank(), _folder(checkpoints, step)
    tensors: dict[str, Tensor] = {}
    entries: list[dict[str, Any]] = []

    def add(role: str, name: str, shape: tuple[int, ...], start: int, flat: Tensor) -> None:
        key = f"{role}/{name}/{start}"
        tensors[key] = flat.detach().cpu().clone()
        entry = {"role": role, "parameter": name, "shape": list(shape), "start": start, "stop": start + flat.numel()}
        entries.append(entry | {"file": f"rank_{rank:04d}.safetensors", "key": key})

    for fragment in owned:
        for role, flat in fragment.roles.items():
            add(role, fragment.name, fragment.shape, fragment.start, flat)
    if rank == 0:
        for name, buffer in module.named_buffers():
            add(_BUFFER, name, tuple(buffer.shape), 0, buffer.flatten())

    data = save(tensors)
    storage.write_bytes(storage.join(folder, f"rank_{rank:04d}.safetensors"), data)
    digest = (f"rank_{rank:04d}.safetensors", storage.sha256(data))
    gathered: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(gathered, (entries, digest))
    if rank == 0:
        index = {"entries": [e for part, _ in gathered for e in part], "sha256": dict(d for _, d in gathered)}
        storage.write_json(storage.join(folder, "index.json"), index)
        storage.write_json(storage.join(folder, "state.json"), state | {"optimizer_step": owned.optimizer_step})
        storage.write_bytes(storage.join(folder, "COMPLETE"), b"")
    dist.barrier()


@dataclass
class _Reader:
    """Ranges of a checkpoint's tensors, whatever files they lie in."""

    folder: str

    def __post_init__(self) -> None:
        self.index = storage.read_json(storage.join(self.folder, "index.json"))
        self._files: dict[str, dict[str, Tensor]] = {}

    def _file(self, name: str) -> dict[str, Tensor]:
        if name not in self._files:
            path = storage.join(self.folder, name)
            data = storage.read_bytes(path)
            if storage.sha256(data) != self.index["sha256"][name]:
                raise CorruptShardError(f"{path} does not have the sha256 of its index.json: delete that checkpoint")
            self._files[name] = dict(load(data))
        return self._files[name]

    def entries(self, role: str) -> dict[str, list[dict[str, Any]]]:
        """Entries of a role by parameter."""
        found: dict[str, list[dict[str, Any]]] = {}
        for entry in self.index["entries"]:
            if entry["role"] == role:
                found.setdefault(entry["parameter"], []).append(entry)
        return found

    def fill(self, target: Tensor, entries: list[dict[str, Any]], start: int) -> None:
        """Fill a flat tensor with the elements from `start` on."""
        stop, filled = start + target.numel(), 0
        for entry in entries:
            first, last = max(start, entry["start"]), min(stop, entry["stop"])
            if first < last:
                piece = self._file(entry["file"])[entry["key"]][first - entry["start"] : last - entry["start"]]
                target[first - start : last - start] = piece.to(target)
                filled += last - first
        if filled != target.numel():
            raise CorruptShardError(f"{self.folder}/index.json covers {filled} of {target.numel()} elements needed")


def load_checkpoint(checkpoints: str, step: int, module: nn.Module, owned: OwnedState) -> dict[str, Any]:
    """Restore what this rank owns, and all weights (a collective).

    Returns:
        The state that was saved with it.

    Raises:
        CorruptShardError: if bytes differ from what was committed, or a parameter is missing.
    """
    reader = _Reader(_folder(checkpoints, step))
    state: dict[str, Any] = storage.read_json(storage.join(reader.folder, "state.json"))
    by_role = {role: reader.entries(role) for role in ("master", *MOMENTS, "ema", _BUFFER)}
    for fragment in owned:
        for role, flat in fragment.roles.items():
            reader.fill(flat, by_role[role].get(fragment.name, []), fragment.start)
    for name, buffer in module.named_buffers():
        flat = torch.empty(buffer.numel(), dtype=buffer.dtype)
        reader.fill(flat, by_role[_BUFFER].get(name, []), 0)
        buffer.copy_(flat.view(buffer.shape))
    owned.optimizer_step = int(state["optimizer_step"])
    owned.publish()
    return state


def assemble(checkpoints: str, step: int, role: str) -> dict[str, Tensor]:
    """Whole tensors of a role ("master" or "ema") by parameter name, with the buffers, put together from fragments."""
    reader = _Reader(_folder(checkpoints, step))
    tensors = {}
    for name, entries in (reader.entries(role) | reader.entries(_BUFFER)).items():
        shape = entries[0]["shape"]
        dtype = reader._file(entries[0]["file"])[entries[0]["key"]].dtype
        flat = torch.empty(math.prod(shape), dtype=dtype)
        reader.fill(flat, entries, 0)
        tensors[name] = flat.view(shape)
    return tensors


def remove_old(checkpoints: str, keep: int) -> None:
    """Delete all complete checkpoints but the newest `keep`, and unfinished ones older than those."""
    kept = complete_steps(checkpoints)[-keep:]
    for name in storage.list_names(checkpoints):
        match = _NAME.fullmatch(name)
        if match and kept and int(match[1]) < kept[0]:
            storage.remove_tree(storage.join(checkpoints, name))
