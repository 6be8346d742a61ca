"""Freed memory is used again, in processes of their own, since the setting is for good."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

pytestmark = pytest.mark.slow

MEASURED = """
import json, os, resource
import psutil
import torch
from data_pipeline.node.host_memory import keep_freed_memory, release_freed_memory

torch.set_num_threads(1)

def round():
    torch.ones(16, 2**20)  # 64 MiB, 16384 pages

def faults(keep):
    assert not keep or keep_freed_memory()
    for _ in range(50):  # small blocks find their places between the large ones
        round()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        round()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def released():
    assert keep_freed_memory()
    torch.ones(64, 2**20)  # 256 MiB
    held = psutil.Process().memory_info().rss
    assert release_freed_memory()
    return held - psutil.Process().memory_info().rss

def in_a_process(work):
    given, taken = os.pipe()
    if os.fork() == 0:
        os.write(taken, str(work()).encode())
        os._exit(0)
    os.close(taken)
    return int(os.fdopen(given).read())

work = {"kept": lambda: faults(True), "not kept": lambda: faults(False), "released": released}
print(json.dumps({name: in_a_process(each) for name, each in work.items()}))
"""
"""Forks before anything is allocated: torch is imported once."""


@pytest.fixture(scope="module")
def measured() -> dict[str, int]:
    """Pages that the kernel had to give while the same large block was allocated and freed ten times, with the setting
    and without it, and bytes that a process with it gave back when it was asked."""
    done = subprocess.run([sys.executable, "-c", MEASURED], check=True, capture_output=True, text=True)
    found: dict[str, int] = json.loads(done.stdout)
    return found


def test_a_large_block_that_was_freed_is_not_asked_of_the_kernel_again(measured: dict[str, int]) -> None:
    assert measured["kept"] < 100


def test_what_was_kept_is_given_back_when_it_is_asked_for(measured: dict[str, int]) -> None:
    assert measured["released"] > 200 * 2**20


def test_without_the_setting_it_is(measured: dict[str, int]) -> None:
    assert measured["not kept"] > 100_000
