"""A checkpoint as whole tensors: one safetensors file, or the files that DeepSpeed's own tools read."""

from __future__ import annotations

import io
from collections import OrderedDict
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from data_pipeline import storage
from trainer.checkpoints.folder import step_folder
from trainer.checkpoints.reader import CheckpointReader
from trainer.checkpoints.restore import assemble
from trainer.checkpoints.snapshot import BUFFER
from trainer.engine.fragments import MOMENTS

_PREFIX = "network."  # the trainee holds the network under this name


def whole_network(checkpoints: str, step: int, role: str) -> dict[str, Tensor]:
    """Parameters of a role, with the buffers, by the network's own names."""
    return {name.removeprefix(_PREFIX): tensor for name, tensor in assemble(checkpoints, step, role).items()}


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
    storage.write_bytes(path, save(dict(sorted(tensors.items()))))
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
    buffers = {name.removeprefix(_PREFIX) for name in reader.index.by_tensor(BUFFER)}
    names = [name for name in whole["fp32"] if name not in buffers]
    folder = storage.join(output, f"global_step{step}")
    described = _model_states(whole["fp32"], names, buffers, reader)
    _write_pickle(storage.join(folder, "mp_rank_00_model_states.pt"), described)
    # Where a ZeRO 3 engine looks for the counts. What has no tensors in it, `zero_to_fp32` leaves aside.
    counts = described | {"module": OrderedDict(), "buffer_names": []}
    _write_pickle(storage.join(folder, "zero_pp_rank_0_mp_rank_00_model_states.pt"), counts)
    flat = torch.cat([whole["fp32"][name].flatten() for name in names])
    _write_pickle(storage.join(folder, "zero_pp_rank_0_mp_rank_00_optim_states.pt"), _optimizer_states(flat))
    taken = torch.tensor(float(reader.count("optimizer_step")))
    for name in names:
        for file, tensors in whole.items():
            _write_pickle(storage.join(folder, "zero", name, f"{file}.pt"), {"param": tensors[name]})
        _write_pickle(storage.join(folder, "zero", name, "step.pt"), taken)
    _write_pickle(storage.join(folder, "zero", "optimizer_state.pt"), _universal_state(taken, len(names)))
    for marker in ("latest", "latest_universal"):
        storage.write_bytes(storage.join(output, marker), f"global_step{step}".encode())
    return output


def _model_states(
    network: dict[str, Tensor], names: list[str], buffers: set[str], reader: CheckpointReader
) -> dict[str, Any]:
    from importlib.metadata import version

    return {
        "module": OrderedDict(network),
        "buffer_names": sorted(buffers),
        "param_shapes": [OrderedDict((name, network[name].shape) for name in names)],
        "frozen_param_shapes": None,
        "frozen_param_fragments": None,
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
