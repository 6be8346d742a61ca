"""The papers' thesis, small: what fewer positions cost, and what they save.

    python benchmarks/positions.py PICTURES [--runs FOLDER] [--steps N] [--generator-steps N] [--samples 1000]
                                   [--workers N] [--figure FILE] [--json FILE] [NAME...]

PICTURES is a folder for each class of small colour photographs (CIFAR-10's test set, say), of which 1,000 are held out.
Trains ImageFolder at three grids and TiTok at three counts of latents, with a generator on the tokens of each
(configs/small/positions), all on the same images, teacher and judge; NAME is one of these configs without ".yaml". What
has finished is tabled as it is, and what was killed goes on.

    bits         of an image's tokens
    error        squared error of held-out images, pixels in [-1, 1]; `components`: of principal components at as many
                 bits
    distance     Fréchet distance of samples from held-out images in the features of the judge, a classifier that no
                 tokenizer was trained with; `reconstructions`: of what the tokenizer leaves of these images themselves
    passes       of the generator's network for an image
    images/s     sampled per second of processor time of one thread, with guidance and decoding

The figure has error, distance and images/s by the number of positions.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from commands import foldtrain
from drawing import draw, passes
from report import write_report

from cluster.config.loading import load_config
from trainer.evaluation.naming.numbers import Number, read_numbers
from trainer.evaluation.samples.sampler import Sampler
from trainer.report.charts import Line, chart_file, stacked_files
from trainer.report.perturbation import whole

TITLES = {"imagefolder": "ImageFolder, next scale", "titok": "TiTok, masked"}
"""How the names of configs begin, and what stands in the legend."""
NAMES = ("imagefolder-2", "imagefolder-4", "imagefolder-8", "titok-8", "titok-16", "titok-32")
CHARTS = {
    "error": ("Squared error of reconstructions", "squared error"),
    "distance": ("Fréchet distance of samples (judge)", "distance of samples"),
    "images_per_second": ("Sampled images per second of a core", "images/s of a core"),
}
"""Title and label of each."""
SHARED = {"images": "ingest", "teacher": "train-teacher", "judge": "train-judge"}
"""What all share, and the stage that makes it."""
CPU = torch.device("cpu")
Found = dict[str, Any]


def main() -> None:
    """Train, measure, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pictures", type=Path)
    parser.add_argument("--runs", type=Path, default=Path("runs/positions"), help="where the runs go")
    parser.add_argument("--steps", type=int, help="of each tokenizer, in place of its config's")
    parser.add_argument("--generator-steps", type=int, help="of each generator, in place of its config's")
    parser.add_argument("--samples", type=int, default=1000, help="images of each generator")
    parser.add_argument("--workers", type=int, default=2, help="training processes")
    parser.add_argument("--figure", type=Path, help="write the charts to this SVG file")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("names", nargs="*", default=list(NAMES))
    options = parser.parse_intermixed_args()
    if unknown := set(options.names) - set(NAMES):
        parser.error(f"there is no {', '.join(sorted(unknown))}: choose from {', '.join(NAMES)}")
    for stage in SHARED.values():
        foldtrain(stage, config_of(NAMES[0]), f"run={options.runs / 'shared'}", *asked(options))
    torch.set_num_threads(1)
    found = [measure(name, options) for name in options.names]
    if options.figure is not None:
        options.figure.write_text(figure(found))
    columns = ["tokenizer", "positions", "bits", "error", "components", "distance", "reconstructions"]
    columns += ["passes", "images/s"]
    write_report("positions", columns, [row(each) for each in found], {"lengths": found}, options.json)


def asked(options: argparse.Namespace) -> list[str]:
    """Changes of the configs, for all."""
    steps = {"tokenizer": options.steps, "generator": options.generator_steps}
    return [
        f"data.source.path={options.pictures}",
        f"cluster.workers={options.workers}",
        f"evaluation.samples={options.samples}",
        *(f"{stage}.trainer.steps={number}" for stage, number in steps.items() if number is not None),
    ]


def config_of(name: str) -> str:
    """Where its config is."""
    return f"package:small/positions/{name}.yaml"


def measure(name: str, options: argparse.Namespace) -> Found:
    """Train a tokenizer and its generator, as far as they have not, and take their numbers."""
    run, shared = options.runs / name, options.runs / "shared"
    changes = [f"run={run}", *asked(options)]
    changes += [f"inputs.{each}={shared}" for each in SHARED]
    changes.append(f"evaluation.networks=[{{kind: classifier, uri: {shared / 'judge'}}}]")
    if not (run / "report.html").exists():  # the last that is made
        foldtrain("quickstart", config_of(name), *changes)
    config = load_config(config_of(name), changes)
    exports = [str(run / stage / "export") for stage in ("generator", "tokenizer")]
    sampler = Sampler.load(exports[0], exports[1], config.sampling, config.seed, CPU)
    _, rate = draw(sampler, min(options.samples, 200))
    layout = sampler.generator.layout
    speed = {"positions": layout.positions, "passes": passes(sampler), "images_per_second": rate}
    return {"name": name, "kind": name.rpartition("-")[0]} | speed | quality(run)


def quality(run: Path) -> Found:
    """Errors and distances that `foldtrain evaluate` has written, beside those of principal components."""
    numbers = read_numbers(str(run / "evaluation.json"))
    judge = next(each.measured_by["network"] for each in numbers if each.metric == "class_accuracy")
    kept = {(each.metric, each.pictures): each.value for each in whole(numbers) if is_of(each, judge)}
    largest = json.loads((run / "evaluation.json").read_text())["baselines"]["components"][-1]
    return {
        "bits": largest["bits"],
        "error": kept["mse", "reconstructions"],
        "components": largest["mse"],
        "distance": kept["frechet_distance", "samples"],
        "distance_of_reconstructions": kept["frechet_distance", "reconstructions"],
    }


def is_of(number: Number, judge: Any) -> bool:
    """Whether a number is of no network's features, or of the judge's."""
    return number.measured_by.get("network") in (None, judge)


def figure(found: list[Found]) -> str:
    """Charts by the number of positions below each other, SVG."""
    files = []
    for key, (title, label) in CHARTS.items():
        lines = [
            Line(TITLES[kind], sorted((each["positions"], each[key]) for each in found if each["kind"] == kind), place)
            for place, kind in enumerate(TITLES)
        ]
        drawn = [line for line in lines if len(line.points)]
        files.append(chart_file(drawn, title=title, x_label="positions", y_label=label))
    return stacked_files(files)


def row(found: Found) -> list[str]:
    """Of the table."""
    return [
        *(found["name"], str(found["positions"]), str(found["bits"])),
        *(f"{found['error']:.4f}", f"{found['components']:.4f}"),
        *(f"{found['distance']:.3f}", f"{found['distance_of_reconstructions']:.3f}"),
        *(str(found["passes"]), f"{found['images_per_second']:.0f}"),
    ]


if __name__ == "__main__":
    main()
