"""How long a checkpoint keeps training waiting: ours in the background, against DeepSpeed's `engine.save_checkpoint`.

    python benchmarks/checkpoint_blocked.py [--millions 50] [--workers 2] [--stage 2] [--to FOLDER] [--json FILE]

Both write the same training to the same folder: master weights and two moments, ours the moving average on top. The
model is a row of square linear layers, a step has 64 rows. Ours waits twice: in `save`, and in `hold` before the next
optimizer update, if the copy to host memory took longer than forward and backward. The first checkpoint of each is left
out; shown are medians of the others, of the slowest rank.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import root_on_path  # noqa: F401 - tests/ is found through it
import torch
import torch.distributed as dist
from report import write_report
from torch import Tensor, nn

from tests.trainer.gloo import run_gloo
from trainer.checkpoints.retention import Retention
from trainer.checkpoints.snapshot import pieces
from trainer.checkpoints.writer import CheckpointWriter
from trainer.config import TrainerConfig
from trainer.engine.agreement import Agreement
from trainer.engine.deepspeed_engine import DeepSpeedEngine, prepare_deepspeed
from trainer.engine.engine import train
from trainer.engine.scalars import Terms
from trainer.engine.trainable import Trainable

WIDTH, ROWS, ROUNDS = 1024, 64, 4


class Layers(nn.Module):
    """About `millions` million parameters."""

    def __init__(self, millions: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(*(nn.Linear(WIDTH, WIDTH) for _ in range(round(millions * 1e6 / WIDTH**2))))

    def forward(self, x_BC: Tensor) -> Terms:
        return {"loss": self.layers(x_BC).square().mean()}


def measure(folder: str, millions: int, stage: int, kind: str = "cpu") -> dict[str, list[float]]:
    """Seconds of each checkpoint, on this rank."""
    device = torch.device(kind)
    prepare_deepspeed(device)
    config = TrainerConfig(steps=9, global_batch=ROWS, zero_stage=stage, ema_decay=0.99)
    module = Layers(millions).to(device)
    waits: list[Callable[[], None]] = []
    engine = DeepSpeedEngine(Trainable(module), config, device, lambda: [wait() for wait in waits] and None)
    engines = {"layers": engine}
    writer = CheckpointWriter(f"{folder}/ours", Agreement(), Retention(1), 3, lambda *_, **__: None)
    writer.reserve(pieces(engines, {}))
    found: dict[str, list[float]] = {"blocked": [], "whole": [], "step": [], "synchronous": []}

    def held() -> None:
        began = time.perf_counter()
        writer.wait_for_copy()
        found["blocked"][-1] += time.perf_counter() - began

    work = partial(module.forward, torch.randn(ROWS // dist.get_world_size(), WIDTH, device=device))
    for step in range(1, ROUNDS + 1):
        waits.clear()
        began = time.perf_counter()
        train(engine, [work], 1e-3)
        found["step"].append(time.perf_counter() - began)
        began = time.perf_counter()
        engine._engine.save_checkpoint(f"{folder}/theirs", tag="step")
        found["synchronous"].append(time.perf_counter() - began)
        began = time.perf_counter()
        writer.save(step, pieces(engines, {}), {"step": step})
        found["blocked"].append(time.perf_counter() - began)
        waits.append(held)
        train(engine, [work], 1e-3)
        writer.finish()
        found["whole"].append(time.perf_counter() - began)
    return found


def medians(millions: int, workers: int, stage: int, place: str | None = None, device: str = "cpu") -> dict[str, float]:
    """Seconds of the slowest rank, medians over rounds: blocked, whole (ours), synchronous (theirs), step."""
    folder = Path(tempfile.mkdtemp(dir=place))
    try:
        ranks = run_gloo(workers, folder, measure, str(folder), millions, stage, device, patience=1800)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    slowest = {name: [max(rank[name][i] for rank in ranks) for i in range(1, ROUNDS)] for name in ranks[0]}
    return {name: round(statistics.median(times), 4) for name, times in slowest.items()}


def main() -> None:
    """Measure, print, and write the figures if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--millions", type=int, default=50)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--stage", type=int, default=2)
    parser.add_argument("--to", default=None)
    parser.add_argument("--json", type=Path, default=None)
    options = parser.parse_args()
    seconds = medians(options.millions, options.workers, options.stage, options.to)
    ratio = {"checkpoint_blocked": round(seconds["blocked"] / seconds["synchronous"], 4)}
    settings = {key: value for key, value in vars(options).items() if key != "json"}
    rows = [[name, f"{value:.4f} s"] for name, value in seconds.items()]
    rows.append(["blocked / synchronous", f"{ratio['checkpoint_blocked']:.4f}"])
    title = f"checkpoint: {options.millions} million parameters, {options.workers} workers, ZeRO {options.stage}"
    figures: dict[str, Any] = {"seconds": seconds, "settings": settings, "ratio": ratio}
    write_report(title, ["", "median"], rows, figures, options.json)


if __name__ == "__main__":
    main()
