"""The device of a process: decided once, by what the process was given, and passed down from there.

Whoever starts a process knows what it may use: Ray reserves `cluster.gpus_per_worker` GPUs for it, torchrun numbers it
(LOCAL_RANK). What torch sees is another matter: a process that was given no GPU sees all of the machine's. So nothing
outside of this file asks torch for GPUs.
"""

from __future__ import annotations

import os

import torch

from data_pipeline.errors import UsageError
from data_pipeline.node.compiled_code import keep_compiled_code_private


def given_device(gpus: int, index: int | None = None) -> torch.device:
    """The device that this process was given; a GPU becomes torch's current one, and without one all are hidden.

    Libraries ask for themselves: torch's own AdamW makes a context of hundreds of megabytes on a GPU that it sees, for
    parameters on the CPU. Hiding works until something in this process has asked CUDA for the first time.

    Args:
        gpus: GPUs that were reserved for this process, 0 or 1.
        index: of its GPU among those that it sees. None takes the only one; if it sees several, the one with the number
            LOCAL_RANK, which torchrun sets, or the first.

    Raises:
        UsageError: if a GPU was reserved, and is not to be seen.
    """
    keep_compiled_code_private()
    state_float32()
    if not gpus:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
        return torch.device("cpu")
    seen = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if index is None:
        index = 0 if seen == 1 else int(os.environ.get("LOCAL_RANK", "0"))
    if index >= seen:
        raise UsageError(_not_there(index, seen))
    device = torch.device("cuda", index)
    torch.cuda.set_device(device)
    return device


def state_float32() -> None:
    """Float32 is float32 in this process: no TF32 in products or convolutions, whatever was set or is torch's default.

    torch takes TF32 for convolutions unless told otherwise, and the quantizer's are float32 so that tokens do not
    depend on the device. What may be narrower says so: it runs under autocast.
    """
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False


def driver_device(gpus: int) -> tuple[torch.device, str | None]:
    """The device of a command that draws or evaluates by itself, where nothing was reserved for it.

    It may be far from the GPUs of its cluster, so it is no error if there is none here.

    Args:
        gpus: what a worker of its run reserves.

    Returns:
        The first GPU if workers use GPUs and one is to be seen here, else the CPU; and what there is to say of it.
    """
    if not gpus:
        return given_device(0), None
    try:
        return given_device(1, 0), None
    except UsageError:
        return torch.device(
            "cpu"
        ), "no GPU is visible to this command (cluster.gpus_per_worker is 1), so it uses the CPU"


def _not_there(index: int, seen: int) -> str:
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    mask = "is not set" if visible is None else f"is {visible!r}"
    built = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "built without CUDA"
    wanted = f"GPU {index} was given to this process, which sees {seen}" if seen else "this process sees no GPU"
    state = f"CUDA_VISIBLE_DEVICES {mask}; torch {torch.__version__} is {built}"
    return (
        f"cluster.gpus_per_worker is 1, but {wanted} ({state}): "
        "set cluster.gpus_per_worker=0 to use CPUs, or look at the driver with nvidia-smi on this node"
    )
