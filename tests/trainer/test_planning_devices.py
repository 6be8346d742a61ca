"""Devices are known by whole names, with peaks that nobody guessed."""

from __future__ import annotations

import pytest

from trainer.planning.devices import DEVICES, find_device, mfu, peak_flops


@pytest.mark.parametrize(
    ("name", "entry"),
    [
        ("NVIDIA A100-SXM4-80GB", "A100"),
        ("NVIDIA A100 80GB PCIe", "A100"),
        ("NVIDIA A100-PCIE-40GB", "A100 40GB"),
        ("NVIDIA A100-SXM4-40GB", "A100 40GB"),
        ("NVIDIA H100 80GB HBM3", "H100 SXM"),
        ("H100 SXM", "H100 SXM"),
        ("h100", "H100 SXM"),
        ("NVIDIA H100 PCIe", "H100 PCIe"),
        ("NVIDIA H200", "H200"),
        ("NVIDIA L40S", "L40S"),
        ("NVIDIA A10", "A10"),
        ("NVIDIA GeForce RTX 4090", "RTX 4090"),
        ("NVIDIA B200", "B200"),
        ("AMD Instinct MI300X", "MI300X"),
    ],
)
def test_devices_are_known_by_the_names_that_drivers_give(name: str, entry: str) -> None:
    device = find_device(name)
    assert device is not None
    assert device.name == entry


@pytest.mark.parametrize(
    "name",
    [
        "NVIDIA A10G",
        "NVIDIA H100 NVL",
        "NVIDIA A100-SXM4-40GB MIG 1g.5gb",
        "NVIDIA GeForce RTX 4090 Laptop GPU",
        "GB200",
        "",
    ],
)
def test_a_relative_of_a_known_device_has_no_peak(name: str) -> None:
    assert peak_flops(name, "bf16") is None


def test_a_number_format_that_is_not_in_the_table_has_no_peak() -> None:
    assert peak_flops("NVIDIA H200", "fp8") is None


def test_every_entry_names_its_source_and_finds_itself() -> None:
    assert all(device.source and find_device(device.name) == device for device in DEVICES)


def test_every_entry_has_a_memory_faster_than_its_link() -> None:
    assert all(device.bandwidth > device.link > 0 for device in DEVICES)


def test_mfu_is_the_share_of_what_all_devices_could_do() -> None:
    assert mfu(flops=4e12, seconds=2.0, peak=1e12, devices=8) == pytest.approx(0.25)
