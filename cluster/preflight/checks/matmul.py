"""How fast each node multiplies matrices, against the median of the nodes that are like it."""

from __future__ import annotations

import platform
import time
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import median

from cluster.preflight.checks.check import Check, or_all_well
from cluster.preflight.findings import Finding
from cluster.preflight.nodes import Nodes, ask_all
from cluster.preflight.wanted import Wanted
from data_pipeline.text.counted import counted

NAME = "matmul"
SLOW = 0.7
"""Of the median: a node below it is slow, and a training waits for its slowest worker at every step."""
_CPU_SIZE, _GPU_SIZE = 768, 8192
_CPU_SECONDS, _GPU_SECONDS = 0.3, 0.5
_FEWEST, _MOST = 3, 200
"""Products of each device; the best of them counts, so that what else runs for a moment does not."""
_SECONDS = 60.0
"""For importing torch, most of it."""


@dataclass(frozen=True)
class Speed:
    """Of one device."""

    device: str
    """Its kind: only devices of one kind are compared."""
    number: int
    """Of the GPU on its node; -1 for its CPUs."""
    tflops: float


def look(threads: int, gpus: bool) -> list[Speed]:
    """The speed of each GPU here that nobody uses, or of the CPUs.

    Args:
        threads: to compute with, on CPUs.
        gpus: whether GPUs are looked at.
    """
    import torch

    if gpus and torch.cuda.is_available():
        return [_gpu(number) for number in range(torch.cuda.device_count()) if _is_idle(number)]
    return [_cpu(threads)]


def _is_idle(number: int) -> bool:
    """Whether a GPU has nearly all of its memory free: another user's work is not disturbed, nor measured."""
    import torch

    free, whole = torch.cuda.mem_get_info(number)
    return free > 0.8 * whole


def _gpu(number: int) -> Speed:
    import torch

    device = torch.device("cuda", number)
    left = torch.randn(_GPU_SIZE, _GPU_SIZE, device=device, dtype=torch.bfloat16)
    best, began = float("inf"), time.perf_counter()
    for done in range(_MOST):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        with torch.cuda.device(device):
            start.record()
            left @ left
            end.record()
            end.synchronize()
        best = min(best, start.elapsed_time(end) / 1e3)
        if done >= _FEWEST and time.perf_counter() - began > _GPU_SECONDS:
            break
    return Speed(torch.cuda.get_device_name(device), number, 2 * _GPU_SIZE**3 / best / 1e12)


def _cpu(threads: int) -> Speed:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        left = torch.randn(_CPU_SIZE, _CPU_SIZE)
        best, began = float("inf"), time.perf_counter()
        for done in range(_MOST):
            start = time.perf_counter()
            left @ left
            best = min(best, time.perf_counter() - start)
            if done >= _FEWEST and time.perf_counter() - began > _CPU_SECONDS:
                break
    finally:
        torch.set_num_threads(before)
    return Speed(f"{counted(threads, 'thread')} of {_cpu_model()}", -1, 2 * _CPU_SIZE**3 / best / 1e12)


def _cpu_model() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:  # noqa: PTH123 - a file of the kernel, read line by line
            return next(line.partition(":")[2].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.machine()


def _measure(nodes: Nodes, wanted: Wanted) -> Mapping[str, list[Speed]]:
    return ask_all(nodes, look, wanted.threads, wanted.gpus_per_worker > 0, seconds=_SECONDS)


def judge(facts: Mapping[str, list[Speed]], _: Wanted) -> list[Finding]:
    """Devices that are slower than the median of their kind, over all nodes."""
    kinds: dict[str, list[float]] = defaultdict(list)
    for speeds in facts.values():
        for speed in speeds:
            kinds[speed.device].append(speed.tflops)
    middle = {device: max(found) if len(found) < 3 else median(found) for device, found in kinds.items()}
    findings = []
    for node, speeds in facts.items():
        for speed in speeds:
            share = speed.tflops / middle[speed.device]
            if share < SLOW:
                which = f"GPU {speed.number}" if speed.number >= 0 else "its CPUs"
                found = f"{which}: {_rate(speed.tflops)}, {share:.0%} of the others' {_rate(middle[speed.device])}"
                findings.append(Finding(node, NAME, "warning", f"{found} ({speed.device})", _REMEDY))
    text = "; ".join(f"{_rate(rate)} on each of {len(kinds[device])} ({device})" for device, rate in middle.items())
    return or_all_well(findings, NAME, text or "no device is free")


def _rate(tflops: float) -> str:
    return f"{tflops:.0f} TFLOP/s" if tflops >= 10 else f"{tflops * 1e3:.0f} GFLOP/s"


_REMEDY = (
    "see what else runs there, its temperature, power limit and clocks (nvidia-smi -q -d PERFORMANCE,CLOCK; for CPUs "
    "top and cpupower frequency-info), or take the node out"
)
CHECK = Check(
    NAME, _measure, judge, remedy="see that torch can be imported there: python -c 'import torch'", again=True
)
