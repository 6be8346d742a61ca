"""Peak arithmetic, memory and bandwidth of devices, by the name that torch gives or a person writes.

Peaks are dense: without the sparsity that data sheets like to double them by. A device that is not in the table has no
peak, and nothing is made up for it: `cluster.peak_tflops` gives one. Only whole names match, since variants differ (an
A10G is no A10, an H100 NVL no H100 PCIe, and a MIG slice is no whole device).
"""

from __future__ import annotations

import re
from dataclasses import dataclass

TERA, GIGA = 1e12, 1e9


@dataclass(frozen=True)
class Device:
    """What its maker says of a device."""

    name: str
    """As in the table that `foldtrain plan` prints."""
    pattern: str
    """Regular expression of the names it goes by, in lower case."""
    bf16: float
    """Operations per second in bf16 with float32 accumulation, dense; all of these devices do as many in fp16."""
    fp32: float
    """Operations per second in float32, outside of tensor cores (TF32 is another format)."""
    memory: float
    """Bytes, with the maker's GB taken as 10^9, which is a little less than there is."""
    bandwidth: float
    """Bytes per second from and to its memory."""
    link: float
    """Bytes per second to each side, in one direction, between the devices of a node: NVLink's, else the bus's."""
    source: str
    """Where the figures are from."""


_ADA = "NVIDIA Ada GPU whitepaper, appendix A"
_MI300X = "AMD Instinct MI300X data sheet"
_H200 = "NVIDIA H200 datasheet, half of with sparsity"
_B200 = "NVIDIA HGX B200 datasheet, half of with sparsity"
_A100 = "NVIDIA A100 Tensor Core GPU datasheet (2021)"
_H100 = "NVIDIA H100 Tensor Core GPU architecture whitepaper, table of peak rates"

DEVICES = (
    Device("A100 40GB", r"a100([- ](sxm4|pcie))?[- ]40gb|a100 40gb pcie", 312e12, 19.5e12, 40e9, 1555e9, 300e9, _A100),
    Device("A100", r"a100( sxm4?)?|a100([- ](sxm4|pcie))?[- ]80gb|a100 80gb (pcie|sxm)", 312e12, 19.5e12, 80e9, 2039e9,
           300e9, _A100),
    Device("H100 SXM", r"h100( sxm5?)?|h100 80gb hbm3", 989.4e12, 66.9e12, 80e9, 3350e9, 450e9, _H100),
    Device("H100 PCIe", r"h100 pcie", 756e12, 51.2e12, 80e9, 2000e9, 64e9, _H100),
    Device("H200", r"h200( sxm)?", 989e12, 67e12, 141e9, 4800e9, 450e9, _H200),
    Device("B200", r"(hgx )?b200", 2250e12, 75e12, 180e9, 8000e9, 900e9, _B200),
    Device("L40S", r"l40s", 362.05e12, 91.6e12, 48e9, 864e9, 32e9, "NVIDIA L40S datasheet"),
    Device("A10", r"a10", 125e12, 31.2e12, 24e9, 600e9, 32e9, "NVIDIA A10 datasheet"),
    Device("RTX 4090", r"(geforce )?rtx 4090", 165.2e12, 82.6e12, 24e9, 1008e9, 32e9, _ADA),
    Device("MI300X", r"(instinct )?mi300x( oam)?", 1307.4e12, 163.4e12, 192e9, 5300e9, 448e9, _MI300X),
)  # fmt: skip


def find_device(name: str) -> Device | None:
    """The entry of a device, None if it is not in the table."""
    plain = re.sub(r"^(nvidia|amd) ", "", " ".join(name.lower().split()))
    return next((device for device in DEVICES if re.fullmatch(device.pattern, plain)), None)


def peak_flops(device_name: str, dtype: str) -> float | None:
    """Operations per second of a device at its best.

    Args:
        device_name: as torch says it, or short: "NVIDIA H100 80GB HBM3", "H100 SXM".
        dtype: "bf16", "fp16" or "fp32".

    Returns:
        None if the device is not in the table, or its entry has no such number format.
    """
    device = find_device(device_name)
    if device is None or dtype not in {"bf16", "fp16", "fp32"}:
        return None
    return device.fp32 if dtype == "fp32" else device.bf16


def mfu(flops: float, seconds: float, peak: float, devices: int) -> float:
    """Model FLOPs utilization (PaLM, arXiv 2204.02311, appendix B): the model's operations over what the devices could.

    Args:
        flops: operations of the model in the time, without any that are done twice.
        seconds: the time.
        peak: operations per second of one device.
        devices: how many there are.
    """
    return flops / (seconds * peak * devices)
