"""A checkpoint as whole tensors: one safetensors file, or the files that DeepSpeed's own tools read."""

from __future__ import annotations

import io
import math
from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor

from data_pipeline import storage
from data_pipeline.errors import CorruptShardError, UsageError
from data_pipeline.shards.safetensors_writer import stream_safetensors
from trainer.checkpoints.catalog import step_folder
from trainer.checkpoints.commits import DamagedCheckpointError
from trainer.checkpoints.index import Entry
from trainer.checkpoints.reader import CheckpointReader, Wanted
from trainer.checkpoints.snapshot import BUFFER, DTYPES, STAGE, tensor_name
from trainer.engine.fragments import FROZEN, MOMENTS


def load_stage_state(reader: CheckpointReader) -> dict[str, Tensor]:
    """The tensors that the stage itself had saved."""
    return _assemble(reader, STAGE)


def assemble(checkpoints: str, step: int, role: str, trainable: str | None = None) -> dict[str, Tensor]:
    """Whole tensors of a role (master, exp_avg, exp_avg_sq, ema), with weights that are not trained and buffers.

    Args:
        checkpoints: their folder.
        step: of the checkpoint.
        role: of the tensors.
        trainable: of which trainable they are, by the names that its network has for them; None for all of them, by
            the names that checkpoints have.

    Raises:
        UsageError: if there is no complete checkpoint at the step, or it has no such role.
        CorruptShardError: if bytes are damaged.
    """
    reader = CheckpointReader(step_folder(checkpoints, step))
    tensors = _assemble(reader, role, trainable)
    if not tensors:
        raise UsageError(f"{reader.folder} has no {role}: set trainer.ema_decay above 0 to train with one")
    return tensors | _assemble(reader, FROZEN, trainable) | _assemble(reader, BUFFER, trainable)


def _check_room(reader: CheckpointReader, role: str, found: dict[str, list[Entry]]) -> None:
    """Whole tensors take the memory that their shapes ask for, so ask first whether the files hold so many elements."""
    for name, entries in found.items():
        held, wanted = sum(entry.stop - entry.start for entry in entries), math.prod(entries[0].tensor.shape)
        if held != wanted:
            raise CorruptShardError(
                f"{reader.folder}/index.json covers {held} of the {wanted} elements of {role}/{name}"
            )
    sizes = storage.walk(reader.folder)
    for file in sorted({entry.file for entries in found.values() for entry in entries}):
        if sizes.get(file) != reader.index.files[file]:
            state = f"it ends at byte {sizes[file]} of {reader.index.files[file]}" if file in sizes else "it is missing"
            raise DamagedCheckpointError(storage.join(reader.folder, file), state)


def _assemble(reader: CheckpointReader, role: str, trainable: str | None = None) -> dict[str, Tensor]:
    prefix = "" if trainable is None else tensor_name(trainable, "")
    found = {name: each for name, each in reader.index.by_tensor(role).items() if name.startswith(prefix)}
    infos = {name: entries[0].tensor for name, entries in found.items()}
    _check_room(reader, role, found)
    flat = {name: torch.empty(math.prod(info.shape), dtype=DTYPES[info.dtype]) for name, info in infos.items()}
    reader.fill([Wanted(role, name, 0, tensor) for name, tensor in flat.items()])
    return {name.removeprefix(prefix): tensor.view(infos[name].shape) for name, tensor in flat.items()}


def whole_network(checkpoints: str, step: int, role: str, trainable: str | None = None) -> dict[str, Tensor]:
    """Parameters of a role, weights that are not trained and buffers, by the network's own names.

    Args:
        checkpoints: their folder.
        step: of the checkpoint.
        role: master, ema, or a moment.
        trainable: whose they are; None for the stage's result.
    """
    name = trainable or CheckpointReader(step_folder(checkpoints, step)).exported
    return assemble(checkpoints, step, role, name)


def export_safetensors(checkpoints: str, step: int, output: str, *, ema: bool) -> str:
    """Write model.safetensors to a folder at any URI.

    Returns:
        Where it is.

    Raises:
        UsageError: if there is no such checkpoint, or it has no moving average.
        CorruptShardError: if bytes are damaged.
    """
    tensors = whole_network(checkpoints, step, "ema" if ema else "master")
    path = storage.join(output, "model.safetensors")
    stream_safetensors(path, tensors)
    return path


def export_deepspeed(checkpoints: str, step: int, output: str, *, ema: bool) -> str:
    """Write a folder that DeepSpeed's `zero_to_fp32` reads, and that an engine with `load_universal` goes on from.

    To the first it is the checkpoint of a ZeRO 2 run on one worker. For the second, zero/NAME/ has fp32.pt, exp_avg.pt,
    exp_avg_sq.pt and step.pt of each parameter, and zero/optimizer_state.pt the rest. That names no hyperparameters:
    they stay those of the engine that loads, at ZeRO 1 to 3 and in any parameter groups. There is no lr_scheduler in
    it. These files are pickles, because DeepSpeed reads nothing else; foldtrain itself never reads one.

    Returns:
        The folder.

    Raises:
        UsageError: if there is no such checkpoint, or it has no moving average.
        CorruptShardError: if bytes are damaged.
    """
    reader = CheckpointReader(step_folder(checkpoints, step))
    roles = {"fp32": "ema" if ema else "master"} | {moment: moment for moment in MOMENTS}
    whole = {name: whole_network(checkpoints, step, role) for name, role in roles.items()}
    prefix = tensor_name(reader.exported, "")
    buffers, frozen = (
        {name.removeprefix(prefix) for name in reader.index.by_tensor(role) if name.startswith(prefix)}
        for role in (BUFFER, FROZEN)
    )
    names = [name for name in whole["fp32"] if name not in buffers | frozen]
    folder = storage.join(output, f"global_step{step}")
    described = _model_states(whole["fp32"], names, (buffers, frozen), reader)
    _write_pickle(storage.join(folder, "mp_rank_00_model_states.pt"), described)
    # Where a ZeRO 3 engine looks for the counts. What has no tensors in it, `zero_to_fp32` leaves aside.
    counts = described | {"module": OrderedDict(), "buffer_names": [], "frozen_param_shapes": None}
    _write_pickle(storage.join(folder, "zero_pp_rank_0_mp_rank_00_model_states.pt"), counts)
    flat = torch.cat([whole["fp32"][name].flatten() for name in names])
    _write_pickle(storage.join(folder, "zero_pp_rank_0_mp_rank_00_optim_states.pt"), _optimizer_states(flat))
    taken = torch.tensor(float(reader.trainable(reader.exported).optimizer_step))
    for name in names:
        for file, tensors in whole.items():
            _write_pickle(storage.join(folder, "zero", name, f"{file}.pt"), {"param": tensors[name]})
        _write_pickle(storage.join(folder, "zero", name, "step.pt"), taken)
    _write_pickle(storage.join(folder, "zero", "optimizer_state.pt"), _universal_state(taken, len(names)))
    for marker in ("latest", "latest_universal"):
        storage.write_bytes(storage.join(output, marker), f"global_step{step}".encode())
    return output


def _model_states(
    network: dict[str, Tensor], names: list[str], others: tuple[set[str], set[str]], reader: CheckpointReader
) -> dict[str, Any]:
    """Of the network whose trained parameters are `names`; the others are its buffers and its frozen parameters."""
    from importlib.metadata import version

    buffers, frozen = (sorted(each) for each in others)
    return {
        "module": OrderedDict(network),
        "buffer_names": buffers,
        "param_shapes": [OrderedDict((name, network[name].shape) for name in names)],
        "frozen_param_shapes": OrderedDict((name, network[name].shape) for name in frozen) if frozen else None,
        "frozen_param_fragments": {name: network[name] for name in frozen} if frozen else None,
        "shared_params": {},
        "ds_version": version("deepspeed"),
        "global_steps": reader.count("step"),
        "skipped_steps": reader.count("skipped_steps"),
        "dp_world_size": 1,
        "mp_world_size": 1,
    }


def _universal_state(taken: Tensor, parameters: int) -> dict[str, Any]:
    """What a universal checkpoint has of the optimizer besides tensors.

    ZeRO 1 and 2 load as many of their parameter groups as it lists, so it lists as many as there could be; ZeRO 3 looks
    for the number of steps in the first state. An empty group changes nothing of the one that it is loaded into.
    """
    from importlib.metadata import version

    return {
        "ds_version": version("deepspeed"),
        "param_groups": [{} for _ in range(parameters)],
        "optimizer_state_dict": {"state": {0: {"step": taken}}, "param_groups": [{}]},
    }


def _optimizer_states(flat: Tensor) -> dict[str, Any]:
    """One partition; padded, as the reader expects groups to be aligned to twice the number of workers."""
    padded = torch.nn.functional.pad(flat, (0, flat.numel() % 2))
    states = {"zero_stage": 2, "partition_count": 1, "single_partition_of_fp32_groups": [padded]}
    return {"optimizer_state_dict": states}


def _write_pickle(path: str, thing: Any) -> None:
    memory = io.BytesIO()
    torch.save(thing, memory)
    storage.write_bytes(path, memory.getvalue())
