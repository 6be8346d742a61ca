"""Peak memory of a rank, predicted by `foldtrain plan` and measured, for ZeRO 0 to 3 at two sizes.

    python benchmarks/memory.py [--json FILE] [--world 2] [--precision fp32]

Measured is what torch's own allocator gave out and has not got back, at its highest, from before the network is built
to the end of the second step: the events of torch.profiler with `profile_memory`, on the rank that has most. Like
`torch.cuda.max_memory_allocated` it counts what is asked for, whether it is touched or not, and not what gloo, the
kernels' own buffers and Python hold. All that the plan names is in it: weights, masters, moments, the moving average,
gradients, DeepSpeed's buffers, activations, and a checkpoint's snapshot, which on a CPU comes from the same memory.
"""

from __future__ import annotations

import argparse
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import root_on_path  # noqa: F401 - tests/ is found through it
import torch
import torch.distributed as dist
from report import write_report
from torch import Tensor, nn

from data_pipeline.config import ReadingConfig, TokensConfig
from model.config import ImageFolderConfig, NextScaleConfig, VectorConfig
from model.generators.next_scale import FoldedGenerator
from tests.trainer.gloo import run_gloo
from trainer.checkpoints.snapshot import Snapshot, pieces
from trainer.config import GeneratorStageConfig, TrainerConfig
from trainer.engine.deepspeed_engine import DeepSpeedEngine, prepare_deepspeed
from trainer.engine.engine import train
from trainer.engine.scalars import Terms
from trainer.engine.trainable import Trainable
from trainer.planning.blank_stages import StageConfigs
from trainer.planning.memory import RankMemory, rank_memory
from trainer.planning.step_trace import trace_micro_batch

MIB = 2**20
STEPS = 2
_PATIENCE = 1_800.0
"""Seconds for a cell: on a machine that does other work, too, the large ones take minutes."""
TOKENIZER = ImageFolderConfig(scales=(1, 2, 3, 4, 6), quantizer=VectorConfig(codebook_size=4096))
SIZES = {
    "small": NextScaleConfig(num_classes=100, depth=5, width=512, heads=8),
    "large": NextScaleConfig(num_classes=100, depth=8, width=768, heads=12),
}
BUCKET = 10_000_000
"""Elements of the reduce bucket and of what ZeRO 3 gathers ahead: the defaults of 500 and 50 million would be most of
the memory at these sizes, and gloo's threads decide how many of the latter are on their way."""


class Trainee(nn.Module):
    """The generator with its loss as forward, as the training loop has it."""

    def __init__(self, config: NextScaleConfig) -> None:
        super().__init__()
        self.network = FoldedGenerator(config, TOKENIZER.layout, TOKENIZER.forcing_width)

    def forward(self, label_B: Tensor, input_BLC: Tensor, tokens_BLF: Tensor) -> Terms:
        return {"loss": self.network(label_B, input_BLC, None, tokens_BLF)[0]}


def trainer_config(stage: int, precision: str) -> TrainerConfig:
    """Of one cell of the table."""
    extra = {"zero_optimization": {"reduce_bucket_size": BUCKET, "stage3_prefetch_bucket_size": BUCKET}}
    return TrainerConfig.model_validate(
        {
            "overlap_communication": False,
            "steps": STEPS,
            "global_batch": 8,
            "zero_stage": stage,
            "ema_decay": 0.99,
            "gradient_clipping": 1.0,
        }
        | {"precision": precision, "extra": extra}
    )


def make_batch(samples: int) -> tuple[Tensor, Tensor, Tensor]:
    """Random labels, inputs of the right shape, and tokens."""
    layout = TOKENIZER.layout
    tokens = torch.randint(0, layout.vocabulary(), (samples, layout.positions, layout.folds))
    rest = layout.positions - layout.groups[0]
    inputs = torch.randn(samples, rest, TOKENIZER.forcing_width)
    return torch.randint(0, 100, (samples,)), inputs, tokens


def measure(size: str, stage: int, precision: str) -> int:
    """Peak bytes of this rank."""
    from torch.profiler import ProfilerActivity, profile

    prepare_deepspeed(torch.device("cpu"))
    config = trainer_config(stage, precision)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        trainee = Trainee(SIZES[size])
        engine = DeepSpeedEngine(Trainable(trainee), config, torch.device("cpu"))
        snapshot = Snapshot()
        snapshot.reserve(pieces({"network": engine}, {}))
        batch = make_batch(config.global_batch // dist.get_world_size())
        for _ in range(STEPS):
            train(engine, [partial(trainee.forward, *batch)], 1e-4)
    return peak_bytes(profiler)


def peak_bytes(profiler: Any) -> int:
    """The highest sum of all allocations and frees so far."""
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    events.sort(key=lambda event: event.start_ns())
    now = peak = 0
    for event in events:
        now += event.nbytes()
        peak = max(peak, now)
    return peak


def predict(size: str, stage: int, precision: str, world: int) -> RankMemory:
    """What the plan says of the same."""
    config = trainer_config(stage, precision)
    section = GeneratorStageConfig(model=SIZES[size], trainer=config)
    configs = StageConfigs(None, section, None, TokensConfig(), ReadingConfig(), TOKENIZER)
    trace = trace_micro_batch("train-generator", configs, config.split_over(world)[0], "cpu", warm=True)
    return rank_memory(trace.weights, config, world, trace.held, touched_only=False)


def main() -> None:
    """Measure all cells, and compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--world", type=int, default=2)
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--json", type=Path, default=None)
    parser.add_argument("--only", default=None, help="a cell, for instance zero2_small")
    options = parser.parse_args()
    rows, cells = [], {}
    for size in SIZES:
        for stage in range(4):
            name = f"zero{stage}_{size}"
            if options.only not in {None, name}:
                continue
            predicted = predict(size, stage, options.precision, options.world)
            whole = predicted.device_bytes + predicted.host_bytes
            with tempfile.TemporaryDirectory() as folder:
                arguments = (size, stage, options.precision)
                measured = max(run_gloo(options.world, Path(folder), measure, *arguments, patience=_PATIENCE))
            cells[name] = {"predicted": whole, "measured": measured, "moment": predicted.moment}
            numbers = [f"{whole / MIB:,.0f}", f"{measured / MIB:,.0f}", f"{measured / whole:.3f}", predicted.moment]
            rows.append([name, *numbers])
            print(*rows[-1], flush=True)
    ratio = {name: round(cell["measured"] / cell["predicted"], 4) for name, cell in cells.items()}
    figures = {"options": {"world": options.world, "precision": options.precision}, "cells": cells, "ratio": ratio}
    columns = ["cell", "predicted MiB", "measured MiB", "ratio", "peak at"]
    write_report("memory", columns, rows, figures, options.json)


if __name__ == "__main__":
    main()
