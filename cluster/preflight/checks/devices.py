"""GPUs, as the driver sees them (NVML): how many, which driver, errors of their memory, clocks that are held down."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from cluster.preflight.checks.check import Check, or_all_well, usual
from cluster.preflight.findings import EVERY, Finding, Level
from cluster.preflight.nodes import Nodes, ask_all
from cluster.preflight.wanted import Wanted
from data_pipeline.text.counted import counted

NAME = "GPUs"
_SECONDS = 10.0
_CONTROLS = ("/dev/nvidiactl", "/dev/dxg")
"""One of them is there where there is a driver, on Linux and below Windows."""
_LIBRARIES = ("pynvml", "ray._private.thirdparty.pynvml")
"""NVIDIA's, if it is installed, or the copy that Ray brings."""
_HELD_DOWN = {
    0x08: "the hardware (temperature or power)",
    0x20: "its temperature (software)",
    0x40: "its temperature (hardware)",
    0x80: "the power supply",
}
"""Reasons for lower clocks, by NVML's bits. Idle, an application's setting and the power limit are no faults."""


@dataclass(frozen=True)
class Gpu:
    """One GPU."""

    model: str
    memory: int
    """Bytes."""
    ecc: bool | None = None
    """Whether its memory corrects errors; None where it cannot."""
    uncorrected: int = 0
    """Errors since the driver was loaded that could not be corrected."""
    most_clock: int = 0
    """MHz."""
    held_down: int = 0
    """NVML's bits of what lowers its clocks now."""


@dataclass(frozen=True)
class Devices:
    """Of a node."""

    gpus: Sequence[Gpu] = ()
    driver: str = ""
    """Version; empty if there is none."""
    error: str = ""
    """Why the driver does not answer; empty if it does, or there is none."""


def look() -> Devices:
    """The GPUs here."""
    library = _library() if any(Path(each).exists() for each in _CONTROLS) else None
    if library is None:
        return Devices()
    try:
        library.nvmlInit()
    except library.NVMLError as error:
        absent = getattr(error, "value", None) in {library.NVML_ERROR_LIBRARY_NOT_FOUND, _DRIVER_NOT_LOADED}
        return Devices() if absent else Devices(error=str(error))
    try:
        driver, count = _text(library.nvmlSystemGetDriverVersion()), library.nvmlDeviceGetCount()
        return Devices([_gpu(library, number) for number in range(count)], driver)
    except library.NVMLError as error:
        return Devices(error=str(error))
    finally:
        library.nvmlShutdown()


_DRIVER_NOT_LOADED = 9


def _library() -> Any:
    for name in _LIBRARIES:
        with contextlib.suppress(ImportError):
            return import_module(name)
    return None


def _text(value: bytes | str) -> str:
    return value.decode() if isinstance(value, bytes) else value


def _gpu(library: Any, number: int) -> Gpu:
    handle = library.nvmlDeviceGetHandleByIndex(number)

    def ask(name: str, *arguments: Any) -> Any:
        """None where this GPU, or this driver, does not know it."""
        with contextlib.suppress(library.NVMLError, AttributeError):
            return getattr(library, name)(handle, *arguments)
        return None

    ecc = ask("nvmlDeviceGetEccMode")
    uncorrected = ask(
        "nvmlDeviceGetTotalEccErrors", library.NVML_MEMORY_ERROR_TYPE_UNCORRECTED, library.NVML_VOLATILE_ECC
    )
    return Gpu(
        model=_text(library.nvmlDeviceGetName(handle)),
        memory=int(library.nvmlDeviceGetMemoryInfo(handle).total),
        ecc=bool(ecc[0]) if ecc else None,
        uncorrected=int(uncorrected or 0),
        most_clock=int(ask("nvmlDeviceGetMaxClockInfo", library.NVML_CLOCK_SM) or 0),
        held_down=int(ask("nvmlDeviceGetCurrentClocksThrottleReasons") or 0),
    )


def _measure(nodes: Nodes, _: Wanted) -> Mapping[str, Devices]:
    return ask_all(nodes, look, seconds=_SECONDS)


def judge(facts: Mapping[str, Devices], wanted: Wanted) -> list[Finding]:
    """GPUs that are broken or missing, and nodes that differ from most of those that have any."""
    having = {node: found for node, found in facts.items() if found.gpus}
    findings = [
        Finding(node, NAME, "error", f"the driver does not answer: {found.error}", _DRIVER)
        for node, found in facts.items()
        if found.error
    ]
    if wanted.gpus_per_worker and not having and not findings:
        return [Finding(EVERY, NAME, "error", "cluster.gpus_per_worker is 1, and no node has a GPU", _NONE)]
    if having:
        findings += _differences(having, facts, wanted)
    for node, found in having.items():
        for number, gpu in enumerate(found.gpus):
            findings += _broken(node, number, gpu)
    gpus = [gpu for found in having.values() for gpu in found.gpus]
    models = ", ".join(f"{model}" for model in dict.fromkeys(gpu.model for gpu in gpus))
    driver = next((found.driver for found in having.values()), "")
    return or_all_well(findings, NAME, f"{len(gpus)} x {models}, driver {driver}" if gpus else "none")


def _differences(having: Mapping[str, Devices], facts: Mapping[str, Devices], wanted: Wanted) -> list[Finding]:
    """What nodes have otherwise than most of them."""
    most = usual([len(found.gpus) for found in having.values()])
    driver = usual([found.driver for found in having.values()])
    model = usual([gpu.model for found in having.values() for gpu in found.gpus])
    ecc = usual([gpu.ecc for found in having.values() for gpu in found.gpus])
    findings = []
    for node, found in facts.items():
        if len(found.gpus) < most and not found.error and (found.gpus or wanted.gpus_per_worker):
            level: Level = "error" if found.gpus else "warning"
            findings.append(Finding(node, NAME, level, f"{counted(len(found.gpus), 'GPU')}, others have {most}", _LOST))
        if found.gpus and found.driver != driver:
            text = f"driver {found.driver}, elsewhere {driver}"
            findings.append(Finding(node, NAME, "warning", text, f"install the driver {driver} there"))
        others = {gpu.model for gpu in found.gpus} - {model}
        if others:
            findings.append(Finding(node, NAME, "warning", f"{', '.join(others)}, elsewhere {model}", _OTHER))
        if any(gpu.ecc != ecc for gpu in found.gpus):
            state = {True: "on", False: "off", None: "not there"}
            switch = f"switch it alike everywhere: nvidia-smi -e {int(bool(ecc))}, and restart the node"
            findings.append(Finding(node, NAME, "warning", f"ECC is not {state[ecc]} on all, as elsewhere", switch))
    return findings


def _broken(node: str, number: int, gpu: Gpu) -> list[Finding]:
    findings = []
    if gpu.uncorrected:
        errors = counted(gpu.uncorrected, "error")
        found = f"GPU {number} ({gpu.model}): {errors} of its memory that ECC could not correct"
        findings.append(Finding(node, NAME, "error", found, _RESET))
    reasons = [text for bit, text in _HELD_DOWN.items() if gpu.held_down & bit]
    if reasons:
        found = f"GPU {number} ({gpu.model}): its clocks are held down by {' and '.join(reasons)}"
        findings.append(Finding(node, NAME, "warning", found, _COOL))
    return findings


_DRIVER = "nvidia-smi there says more; load the driver that belongs to its kernel, or take the node out"
_NONE = "set cluster.gpus_per_worker=0 for CPUs, or join nodes that have GPUs"
_LOST = "a GPU may have fallen off its bus: dmesg (Xid 79), nvidia-smi -L; restart the node, or take it out"
_OTHER = "a training is as fast as its slowest GPU: use nodes of one kind"
_RESET = "reset it (nvidia-smi --gpu-reset) or restart the node; if they come again, have the GPU replaced"
_COOL = "see its cooling and its power: nvidia-smi -q -d PERFORMANCE,TEMPERATURE,POWER"
CHECK = Check(NAME, _measure, judge, remedy="the driver hangs: nvidia-smi there; restart the node, or take it out")
