"""What a run of the quickstart reaches, at several strengths of guidance.

    python benchmarks/quickstart.py [RUN] [--guidance 0 1.5 3] [--samples 1000] [--json FILE]

RUN is the folder of a finished run (runs/quickstart). Its record says: squared error and PSNR of held-out images after
each prefix of the tokens, beside principal components at as many bits and the mean image; the accuracy of linear probes
of each branch; and of `--samples` images at each guidance, how many the judge gives to the asked class, and their
Fréchet distances from held-out images in the teacher's and in the judge's features. Only the sampling is drawn anew:
the rest is what `foldtrain evaluate` wrote.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from judged_images import RealImages, predict, statistics
from report import write_report

from cluster.config.loading import load_config
from data_pipeline import storage
from trainer.evaluation.networks.teacher import load_classifier
from trainer.evaluation.samples.sampler import Sampler
from trainer.metrics.frechet import frechet_distance

CPU = torch.device("cpu")


def main() -> None:
    """Read, draw, table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, nargs="?", default=Path("runs/quickstart"))
    parser.add_argument("--guidance", type=float, nargs="+", default=[0.0, 1.5, 3.0])
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    options = parser.parse_args()
    evaluated = storage.read_json(str(options.run / "evaluation.json"))
    found = {"tokenizer": of_tokenizer(evaluated), "generator": of_samples(options)}
    write_report("quickstart", ["what", "value"], [*rows_of(found)], found, options.json)


def of_tokenizer(evaluated: dict[str, Any]) -> dict[str, Any]:
    """Of evaluation.json, what says how good the tokenizer is."""
    made, baselines = evaluated["reconstruction"], evaluated["baselines"]
    return {
        "bits": [each["bits"] for each in baselines["components"]],
        "errors": made["mse_of_prefixes"],
        "psnr": made["psnr_of_prefixes"],
        "components": [each["mse"] for each in baselines["components"]],
        "mean_image": baselines["mean_image"],
        "probe": evaluated["probe"],
        "teacher_distance": made["frechet_distance"],
    }


def of_samples(options: argparse.Namespace) -> dict[str, Any]:
    """Images at each guidance, as the judge and the teacher see them."""
    run, config = options.run, load_config(options.run / "generator" / "config.yaml")
    exports = {name: str(run / name / "export") for name in ("generator", "tokenizer", "teacher", "judge")}
    networks = {name: load_classifier(exports[name], name, CPU) for name in ("teacher", "judge")}
    judge, size = networks["judge"], networks["judge"].config.image_size
    held_out = str(run / "images" / "validation")
    real = RealImages.load(held_out, size, config.data.fit, options.samples, CPU)
    seen = {name: statistics(network, real.image_NCHW) for name, network in networks.items()}
    rows = []
    for guidance in options.guidance:
        sampling = config.sampling.model_copy(update={"guidance": guidance})
        sampler = Sampler.load(exports["generator"], exports["tokenizer"], sampling, config.seed, CPU)
        label_N = torch.arange(options.samples) % len(sampler.class_names)
        with torch.inference_mode():
            image_NCHW = torch.cat(list(sampler.draw(label_N)))
        distances = {
            f"{name}_distance": frechet_distance(statistics(network, image_NCHW), seen[name])
            for name, network in networks.items()
        }
        right = (predict(judge, image_NCHW) == label_N).float().mean()
        rows.append({"guidance": guidance, "judged": float(right)} | distances)
    on_real = (predict(judge, real.image_NCHW) == real.label_N).float().mean()
    return {"samples": options.samples, "judged_of_real": float(on_real), "guidances": rows}


def rows_of(found: dict[str, Any]) -> list[list[str]]:
    """Of the table."""
    tokenizer, generator = found["tokenizer"], found["generator"]
    probe = tokenizer["probe"] or {"branches": {}, "pixels": float("nan")}
    numbers = {name: _line(tokenizer[name], 4) for name in ("errors", "components")}
    rows = [
        [f"{generator['samples']} samples at guidance {row['guidance']:g}", _of_guidance(row)]
        for row in generator["guidances"]
    ]
    return [
        ["bits", " ".join(map(str, tokenizer["bits"]))],
        ["squared error", numbers["errors"]],
        ["PSNR", _line(tokenizer["psnr"], 1)],
        ["principal components", numbers["components"]],
        ["mean image", f"{tokenizer['mean_image']:.4f}"],
        ["linear probe", ", ".join(f"{name} {share:.3f}" for name, share in probe["branches"].items())],
        ["linear probe, pixels", f"{probe['pixels']:.3f}"],
        ["reconstructions, distance in the teacher's features", f"{tokenizer['teacher_distance']:.2f}"],
        ["real images that the judge gives to their class", f"{generator['judged_of_real']:.3f}"],
        *rows,
    ]


def _of_guidance(row: dict[str, float]) -> str:
    distances = f"teacher's features {row['teacher_distance']:.2f}, judge's {row['judge_distance']:.2f}"
    return f"judged {row['judged']:.3f}, distances: {distances}"


def _line(values: list[float], digits: int) -> str:
    return " ".join(f"{value:.{digits}f}" for value in values)


if __name__ == "__main__":
    main()
