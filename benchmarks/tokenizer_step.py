"""Time and memory of a tokenizer's optimizer step: without and with each loss, before and after the start.

    python benchmarks/tokenizer_step.py [--json FILE] [--steps 5] [--batch 8] [--width 96] [--zero 0] [--rows TEXT]

A row is a process of its own. Seconds are CPU seconds of a step, the median of `--steps`: others' load on the machine
does not matter. Memory is what torch's allocator gives out, exactly, from before the stage is built: `held` once its
engines are made, and the `peak` of its first two steps. Frozen networks are built before and do not count; they have
random weights, which cost what others cost. The networks are small; what counts is the difference between rows.

Last stands what a discriminator costs. Before its start that is its weights and its two moments, which are there from
the first step on, so that a run which has no room for them ends at once and not after a day. Its start adds its
gradients, and what its passes hold for a moment.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import Any

import root_on_path  # noqa: F401 - finds the packages

SIZE, MB = 64, 2**20
ADVERSARIAL: dict[str, Any] = {"discriminator": {"kind": "patch", "width": 32, "layers": 3, "group": 4}, "weight": 0.5}
ALL = ADVERSARIAL | {"adaptive": True, "lecam": {}}
TEACHER: dict[str, Any] = {"perceptual": [{"kind": "teacher", "weight": 0.2}]}
BEFORE, STARTED = "adversarial, before its start", "adversarial"


@dataclass(frozen=True)
class Row:
    """What is measured."""

    losses: dict[str, Any] = field(default_factory=dict)
    parts: int = 1
    """Micro-batches of a step."""
    distance: str | None = None
    """A perceptual distance with a network of its own."""
    entropy: float = 0.0
    """Weight of the codes' entropy."""


ROWS = {
    "pixels": Row(),
    "entropy": Row(entropy=0.1),
    "perceptual (teacher)": Row(TEACHER),
    "lpips": Row(distance="lpips"),
    "convnext": Row(distance="convnext"),
    "semantic": Row({"semantic": {"weight": 0.1}}),
    "semantic and detail": Row({"semantic": {"weight": 0.1}, "detail": {"weight": 0.1, "feature": "patch"}}),
    BEFORE: Row({"adversarial": ADVERSARIAL | {"start": 1000}}),
    STARTED: Row({"adversarial": ADVERSARIAL}),
    "adversarial, adaptive": Row({"adversarial": ADVERSARIAL | {"adaptive": True}}),
    "adversarial, adaptive, LeCam": Row({"adversarial": ALL}),
    "pixels in 2 micro-batches": Row(parts=2),
    "adversarial, adaptive, LeCam in 2": Row({"adversarial": ALL}, parts=2),
}


def build(row: Row, given: argparse.Namespace) -> tuple[Any, Any, dict[str, Any]]:
    """The stage's config, its networks from elsewhere, and the arguments of its own."""
    import torch

    from model.classifier import Classifier
    from model.config import ClassifierConfig, ImageFolderConfig, VectorConfig, ViTConfig
    from trainer.config import TokenizerLossConfig, TokenizerStageConfig, TrainerConfig
    from trainer.stages.guides import Guides

    vit = ViTConfig(width=given.width, depth=4, heads=4)
    model = ImageFolderConfig(
        image_size=SIZE,
        patch_size=8,
        scales=(1, 2, 4, 8),
        dropout_min_scales=2,
        quantizer=VectorConfig(codebook_size=256, code_dim=16, entropy=row.entropy),
        encoder=vit,
        decoder=vit,
        teacher_width=64,
    )
    trainer = TrainerConfig(
        steps=2000, global_batch=given.batch, micro_batch=given.batch // row.parts, zero_stage=given.zero
    )
    section = TokenizerStageConfig(model=model, loss=TokenizerLossConfig.model_validate(row.losses), trainer=trainer)
    teacher = Classifier(ClassifierConfig(image_size=SIZE, num_classes=10, widths=(32, 64))).eval()
    guides = Guides(section.loss, teacher.requires_grad_(False) if section.loss.needs_teacher else None)
    return section, guides, {"distances": distances(row.distance), "device": torch.device("cpu")}


def distances(kind: str | None) -> list[tuple[str, float, Any]]:
    """A perceptual distance with random weights, as the stage takes it: name, weight, network."""
    from model.losses.logit_distance import LogitDistance, convnext_small
    from model.losses.lpips import Lpips

    made = {"lpips": Lpips, "convnext": lambda: LogitDistance(convnext_small())}
    return [] if kind is None else [(kind, 0.1, made[kind]())]


def measure(name: str, given: argparse.Namespace) -> dict[str, Any]:
    """One row, in this process."""
    import torch
    import torch.distributed as dist
    from torch.profiler import ProfilerActivity, profile

    from model.families import build_discriminator
    from model.tokenizers.imagefolder import ImageFolderTokenizer
    from trainer.engine.deepspeed_engine import DeepSpeedEngine, prepare_deepspeed
    from trainer.stages.judges import Judges
    from trainer.stages.tokenizer import TokenizerStage

    os.environ.update(LOCAL_RANK="0", RANK="0", WORLD_SIZE="1")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    row = ROWS[name]
    with tempfile.TemporaryDirectory() as folder:
        dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=0, world_size=1)
        section, guides, others = build(row, given)
        device, asked = others["device"], section.loss.adversarial
        prepare_deepspeed(device)
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as watched:
            critic = None if asked is None else build_discriminator(asked.discriminator, SIZE)
            judges = Judges(others["distances"], critic)
            network = ImageFolderTokenizer(section.model)
            stage = TokenizerStage.without_data(section, network, guides, device, judges=judges)
            engines = {key: DeepSpeedEngine(each, section.trainer, device) for key, each in stage.trainables.items()}
            built = time.time_ns()
            batch = stage.blank_batch(given.batch)
            batch.pixels_BCHW.random_(0, 256)
            batch = type(batch)(**(vars(batch) | {"step": 0 if asked is not None and asked.start else 1999}))
            for _ in range(2):
                stage.step(batch.split(engines["tokenizer"].accumulation), engines, 1e-4)
        seconds = []
        for _ in range(given.steps):
            began = time.process_time()
            stage.step(batch.split(engines["tokenizer"].accumulation), engines, 1e-4)
            seconds.append(time.process_time() - began)
        weights = {key: each.elements * 4 / MB for key, each in stage.trainables.items()}
        dist.destroy_process_group()
    held, peak = memory(watched, built)
    found = {"loss": name, "cpu_seconds": statistics.median(seconds), "held_mb": held, "peak_mb": peak}
    return found | {f"{key}_weights_mb": value for key, value in weights.items()}


def memory(watched: Any, built: int) -> tuple[float, float]:
    """MB that were given out and not given back, by the time in ns `built`, and at most after it."""
    events = [event for event in watched.profiler.kineto_results.events() if event.name() == "[memory]"]
    events.sort(key=lambda event: event.start_ns())
    given_out = list(accumulate(event.nbytes() for event in events))
    before = sum(event.start_ns() <= built for event in events)
    return given_out[before - 1] / MB, max(given_out[before:]) / MB


def account(rows: dict[str, dict[str, Any]]) -> list[str]:
    """What the discriminator costs beside its own size."""
    if not {"pixels", BEFORE, STARTED} <= rows.keys():
        return []
    weights = rows[STARTED]["discriminator_weights_mb"]
    own = f"{weights:.2f} MB of weights; with gradients and two moments {4 * weights:.2f} MB"
    lines = [f"the discriminator has {own}"]
    for one, other, what in (("pixels", BEFORE, "before its start it"), (BEFORE, STARTED, "its start")):
        held, peak = (rows[other][key] - rows[one][key] for key in ("held_mb", "peak_mb"))
        seconds = rows[other]["cpu_seconds"] - rows[one]["cpu_seconds"]
        lines.append(f"{what} adds {held:.2f} MB held, {peak:.2f} MB at the peak, {seconds:.3f} CPU s a step")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--width", type=int, default=96)
    parser.add_argument("--zero", type=int, default=0, choices=range(4), help="stage of ZeRO")
    parser.add_argument("--rows", default="", help="only rows that have this in their name")
    parser.add_argument("--row", help="measure this row alone, and print it as JSON")
    given = parser.parse_args()
    if given.row:
        print(json.dumps(measure(given.row, given)))
        return
    rows: dict[str, dict[str, Any]] = {}
    sizes = [f"--{name}={getattr(given, name)}" for name in ("steps", "batch", "width", "zero")]
    for name in (name for name in ROWS if given.rows in name):
        command = [sys.executable, __file__, "--row", name, *sizes]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        row = rows[name] = json.loads(done.stdout.splitlines()[-1])
        numbers = f"held {row['held_mb']:7.2f} MB   peak {row['peak_mb']:7.2f} MB"
        print(f"{name:34} {row['cpu_seconds']:7.3f} CPU s a step   {numbers}", flush=True)
    print("\n".join(account(rows)))
    if given.json:
        given.json.write_text(json.dumps(list(rows.values()), indent=1) + "\n")


if __name__ == "__main__":
    main()
