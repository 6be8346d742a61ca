"""Freed memory is used again, in a process of its own, since the setting is for good."""

from __future__ import annotations

import subprocess
import sys

FAULTS = """
import resource
import torch
from data_pipeline.node.host_memory import keep_freed_memory

torch.set_num_threads(1)
if {keep}:
    assert keep_freed_memory()

def round():
    torch.ones(16, 2**20)  # 64 MiB, 16384 pages

for _ in range(50):  # small blocks find their places between the large ones
    round()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    round()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def page_faults(*, keep: bool) -> int:
    """Pages that the kernel had to give while the same large block was allocated and freed ten times."""
    command = [sys.executable, "-c", FAULTS.format(keep=keep)]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def test_a_large_block_that_was_freed_is_not_asked_of_the_kernel_again() -> None:
    assert page_faults(keep=True) < 100


RELEASED = """
import psutil
import torch
from data_pipeline.node.host_memory import keep_freed_memory, release_freed_memory

assert keep_freed_memory()
torch.ones(64, 2**20)  # 256 MiB
held = psutil.Process().memory_info().rss
assert release_freed_memory()
print(held - psutil.Process().memory_info().rss)
"""


def test_what_was_kept_is_given_back_when_it_is_asked_for() -> None:
    done = subprocess.run([sys.executable, "-c", RELEASED], check=True, capture_output=True, text=True)
    assert int(done.stdout) > 200 * 2**20


def test_without_the_setting_it_is() -> None:
    assert page_faults(keep=False) > 100_000
