"""Run a function on several real processes that share a gloo group."""

from __future__ import annotations

import contextlib
import multiprocessing as mp
import os
import traceback
from collections.abc import Callable
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
PRELOADED = [
    "pytest",
    "hypothesis.strategies",
    "pandas",
    "prometheus_client",
    "scipy.linalg",
    "timm",
    "torch._dynamo",
    "deepspeed.module_inject.auto_ep_layer",
    "deepspeed.ops.adam",
    "deepspeed.ops.lion",
    "deepspeed.ops.op_builder.all_ops",
    "deepspeed.ops.triton_ops",
    "deepspeed.runtime.superoffload.superoffload_stage3",
    "deepspeed.runtime.zero.muon.muon_optimizer",
    *(
        f"trainer.engine.{name}"
        for name in ("deepspeed_engine", "fragments.zero0", "fragments.zero12", "fragments.zero3")
    ),
    *(f"trainer.loop.{name}" for name in ("compose", "worker")),
    *(f"trainer.stages.{name}" for name in ("classifier", "generator", "tokenizer", "validation")),
    "tests.trainer.frozen_heap",
]
"""Imported once, before processes are forked: each of them would take longer than the training of a test."""


def forking() -> ForkServerContext:
    """Forks processes from one that has imported what they need.

    It is started in the repository's folder, wherever a test has gone: Python 3.11 gives it no other path, and it would
    take the package `tests` of torch-fidelity for ours.
    """
    context = mp.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    with contextlib.chdir(ROOT):
        forkserver.ensure_running()
    return context


def run_gloo(
    world: int, folder: Path, function: Callable[..., Any], *arguments: Any, patience: float = 120
) -> list[Any]:
    """Results of `function(*arguments)` on each rank. A failure on any rank fails the caller with its traceback."""
    context = forking()
    queue = context.Queue()
    rendezvous = folder / f"rendezvous-{os.urandom(4).hex()}"
    processes = [
        context.Process(target=_child, args=(rank, world, str(rendezvous), queue, function, arguments))
        for rank in range(world)
    ]
    for process in processes:
        process.start()
    try:
        answers = [queue.get(timeout=patience) for _ in processes]
    finally:
        for process in processes:
            process.join(timeout=30)
            process.kill()
    failures = [answer for rank, failed, answer in answers if failed]
    assert not failures, failures[0]
    return [answer for _, _, answer in sorted(answers, key=lambda item: item[0])]


def _child(rank: int, world: int, rendezvous: str, queue: Any, function: Callable[..., Any], arguments: Any) -> None:
    import torch
    import torch.distributed as dist

    os.environ.update(LOCAL_RANK=str(rank), RANK=str(rank), WORLD_SIZE=str(world))
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=world)
    try:
        queue.put((rank, False, function(*arguments)))
    except BaseException:
        queue.put((rank, True, traceback.format_exc()))
        raise
    finally:
        dist.destroy_process_group()
