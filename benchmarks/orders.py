"""Train the small generators of configs/small/generators on the same tokens, and table them.

    python benchmarks/orders.py [--source RUN] [--images RUN] [--runs FOLDER] [--samples 1000] [--json FILE] [NAME...]

The source (runs/quickstart) is a finished run whose tokens and tokenizer they share, with its images, teacher and judge
unless --images names another run for these; NAME is a config of configs/small/generators without ".yaml". A generator
that has trained already is tabled as it is. An order that cannot predict such tokens stands in the table with the
reason.

    steps        passes of the network for an image
    nats         cost of the tokens of a held-out image, by the moving average of the weights: comparable between rows,
                 as the tokens are the same. Masked generators have no likelihood
    judged       share of samples that the judge gives to their class, at each guidance
    distance     Fréchet distance of the samples from held-out images, in the judge's features, at each guidance
    images/s     images per second of processor time, with guidance and decoding
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from drawing import passes
from judged_images import RealImages, judge_samples, statistics
from report import write_report

from cluster.config.loading import load_config
from cluster.config.run import RunConfig
from trainer.evaluation.networks.teacher import load_classifier
from trainer.evaluation.samples.sampler import Sampler
from trainer.records.jsonl import read_records

NAMES = (
    *("next-scale", "next-scale-depth", "next-token", "next-token-depth", "next-token-unfolded"),
    *("random", "masked"),
)
CPU = torch.device("cpu")


def main() -> None:
    """Train, draw, table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=Path, default=Path("runs/quickstart"))
    parser.add_argument("--images", type=Path, help="the run with images, teacher and judge; default: the source")
    parser.add_argument("--runs", type=Path, default=Path("runs/orders"), help="where the runs go")
    parser.add_argument("--samples", type=int, default=1000, help="images that are judged at each guidance")
    parser.add_argument("--guidance", type=float, nargs="+", default=[0.0, 1.5, 3.0])
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("names", nargs="*", default=list(NAMES))
    options = parser.parse_args()
    torch.set_num_threads(1)
    found = [measure(name, options) for name in options.names]
    columns = ["generator", "parameters", "folds", "positions", "steps", "nats", "judged", "distance", "images/s"]
    write_report("orders", columns, [row(each) for each in found], {"generators": found}, options.json)


def measure(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Train one, if it is not there, and look at what it draws."""
    run, config = options.runs / name, f"package:small/generators/{name}.yaml"
    changes = [f"run={run}", *(f"inputs.{name}={place}" for name, place in places(options).items())]
    began = time.perf_counter()
    if not (run / "generator/export/card.json").exists():
        command = [sys.executable, "-m", "foldtrain", "train-generator", config, *changes]
        done = subprocess.run(command, stderr=subprocess.PIPE, text=True)
        if done.returncode == 2:
            return {"name": name, "refused": done.stderr.strip()}
        if done.returncode:
            sys.exit(f"{name}: {done.stderr}")
    seconds = time.perf_counter() - began
    return {"name": name, "seconds": seconds} | look(run, load_config(config, changes), options)


def places(options: argparse.Namespace) -> dict[str, Path]:
    """The run of each input."""
    tokens, images = options.source, options.images or options.source
    return {"tokens": tokens, "tokenizer": tokens, "images": images, "teacher": images, "judge": images}


def look(run: Path, config: RunConfig, options: argparse.Namespace) -> dict[str, Any]:
    """What a trained generator says of held-out tokens, and what it draws."""
    of = places(options)
    judge = load_classifier(str(of["judge"] / "judge/export"), "judge", CPU)
    held_out, size = str(of["images"] / "images/validation"), judge.config.image_size
    real = RealImages.load(held_out, size, config.data.fit, options.samples, CPU)
    seen, rows = statistics(judge, real.image_NCHW), []
    for guidance in options.guidance:
        sampling = config.sampling.model_copy(update={"guidance": guidance})
        exports = (str(run / "generator/export"), str(of["tokenizer"] / "tokenizer/export"))
        sampler = Sampler.load(*exports, sampling, config.seed, CPU)
        judged = judge_samples(sampler, judge, seen, options.samples)
        rows.append({"guidance": guidance, "steps": passes(sampler)} | judged)
    network = sampler.generator
    return {
        "parameters": sum(each.numel() for each in network.parameters()),
        "folds": network.layout.folds,
        "positions": network.layout.positions,
        "guidances": rows,
        "nats": nats(run),
    }


def nats(run: Path) -> float | None:
    """Cost of the tokens of a held-out image at the last look."""
    looks = [each for each in read_records(str(run / "generator/events.jsonl")) if each.get("event") == "validation"]
    held_out = looks[-1]["held_out"]
    return None if "masked_loss" in held_out else held_out["loss"] * looks[-1]["tokens_per_sample"]


def row(found: dict[str, Any]) -> list[str]:
    """Of the table."""
    if "refused" in found:
        return [found["name"], found["refused"], *[""] * 7]
    rows = found["guidances"]
    return [
        *(found["name"], f"{found['parameters']:,}", str(found["folds"]), str(found["positions"])),
        f"{rows[-1]['steps']:g}",
        "" if found["nats"] is None else f"{found['nats']:.1f}",
        " ".join(f"{each['judged']:.3f}" for each in rows),
        " ".join(f"{each['distance']:.2f}" for each in rows),
        f"{rows[-1]['images_per_second']:.0f}",
    ]


if __name__ == "__main__":
    main()
