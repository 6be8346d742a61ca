"""Time and peak memory of a tokenizer's optimizer step: without and with each loss, before and after the start.

    python benchmarks/tokenizer_step.py [--json FILE] [--steps 5] [--batch 8] [--width 96]

A row is a process of its own, so that its peak is its own. Seconds are CPU seconds of a step, the median of `--steps`:
others' load on the machine does not matter. On a CPU memory is the resident peak over that of the process before the
stage was built. The networks are small; what counts is the difference between rows.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import root_on_path  # noqa: F401 - finds the packages

SIZE = 64
ADVERSARIAL: dict[str, Any] = {"discriminator": {"kind": "patch", "width": 32, "layers": 3, "group": 4}, "weight": 0.5}
TEACHER: dict[str, Any] = {"perceptual": [{"kind": "teacher", "weight": 0.2}]}
ROWS: dict[str, tuple[dict[str, Any], int]] = {
    "pixels": ({}, 0),
    "perceptual (teacher)": (TEACHER, 0),
    "semantic": ({"semantic": {"weight": 0.1}}, 0),
    "semantic and detail": ({"semantic": {"weight": 0.1}, "detail": {"weight": 0.1, "feature": "patch"}}, 0),
    "adversarial, before its start": ({"adversarial": ADVERSARIAL | {"start": 1000}}, 0),
    "adversarial": ({"adversarial": ADVERSARIAL}, 0),
    "adversarial, adaptive": ({"adversarial": ADVERSARIAL | {"adaptive": True}}, 0),
    "adversarial, adaptive, LeCam": ({"adversarial": ADVERSARIAL | {"adaptive": True, "lecam": {}}}, 0),
    "the same in 2 micro-batches": ({"adversarial": ADVERSARIAL | {"adaptive": True, "lecam": {}}}, 2),
}
"""Losses, and micro-batches of a step (0: one)."""


def measure(name: str, given: argparse.Namespace) -> dict[str, Any]:
    """One row, in this process."""
    import torch
    import torch.distributed as dist

    from model.classifier import Classifier
    from model.config import ClassifierConfig, ImageFolderConfig, VectorConfig, ViTConfig
    from model.tokenizers.imagefolder import ImageFolderTokenizer
    from trainer.config import TokenizerLossConfig, TokenizerStageConfig, TrainerConfig
    from trainer.engine.deepspeed_engine import DeepSpeedEngine, prepare_deepspeed
    from trainer.stages.guides import Guides
    from trainer.stages.tokenizer import TokenizerStage

    os.environ.update(LOCAL_RANK="0", RANK="0", WORLD_SIZE="1")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    cpu, (losses, parts) = torch.device("cpu"), ROWS[name]
    with tempfile.TemporaryDirectory() as folder:
        dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=0, world_size=1)
        prepare_deepspeed(cpu)
        vit = ViTConfig(width=given.width, depth=4, heads=4)
        model = ImageFolderConfig(
            image_size=SIZE,
            patch_size=8,
            scales=(1, 2, 4, 8),
            dropout_min_scales=2,
            quantizer=VectorConfig(codebook_size=256, code_dim=16),
            encoder=vit,
            decoder=vit,
            teacher_width=64,
        )
        trainer = TrainerConfig(
            steps=2000,
            global_batch=given.batch,
            micro_batch=given.batch // parts if parts else None,
            zero_stage=0,
            bucket_elements=1_000_000,
        )
        section = TokenizerStageConfig(model=model, loss=TokenizerLossConfig.model_validate(losses), trainer=trainer)
        teacher = Classifier(ClassifierConfig(image_size=SIZE, num_classes=10, widths=(32, 64))).eval()
        guides = Guides(section.loss, teacher.requires_grad_(False) if section.loss.needs_teacher else None)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        stage = TokenizerStage.without_data(section, ImageFolderTokenizer(model), guides, cpu)
        engines = {key: DeepSpeedEngine(each, trainer, cpu) for key, each in stage.trainables.items()}
        batch = stage.blank_batch(given.batch)
        batch.pixels_BCHW.random_(0, 256)
        idle = section.loss.adversarial is not None and section.loss.adversarial.start
        seconds = []
        for step in range(given.steps + 1):
            batch = type(batch)(**(vars(batch) | {"step": step if idle else 1999}))
            began = time.process_time()
            stage.step(batch.split(engines["tokenizer"].accumulation), engines, 1e-4)
            seconds.append(time.process_time() - began)
        peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
        weights = {key: sum(p.numel() for p in each.module.parameters()) * 4 / 2**20 for key, each in engines.items()}
        dist.destroy_process_group()
    found = {"loss": name, "cpu_seconds": statistics.median(seconds[1:]), "peak_mb": peak}
    return found | {f"{key}_weights_mb": value for key, value in weights.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--width", type=int, default=96)
    parser.add_argument("--row", help="measure this row alone, and print it as JSON")
    given = parser.parse_args()
    if given.row:
        print(json.dumps(measure(given.row, given)))
        return
    rows = []
    sizes = ("--steps", str(given.steps), "--batch", str(given.batch), "--width", str(given.width))
    for name in ROWS:
        done = subprocess.run(
            [sys.executable, __file__, "--row", name, *sizes], check=True, capture_output=True, text=True
        )
        rows.append(json.loads(done.stdout.splitlines()[-1]))
        row = rows[-1]
        print(f"{name:32} {row['cpu_seconds']:7.3f} CPU s a step   peak {row['peak_mb']:7.1f} MB", flush=True)
    if given.json:
        given.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
