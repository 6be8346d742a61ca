"""What a perturbation of tokens costs a plain VQ, and one that was trained with RobustTok's perturbation.

    python benchmarks/perturbed_tokens.py PICTURES [--runs FOLDER] [--steps N] [--workers N]
                                          [--alphas LIST] [--delta N] [--figure FILE] [--json FILE]

PICTURES is a folder for each class of small colour photographs (CIFAR-10's training set, say), of which 1,000 are held
out. Trains configs/small/vq.yaml with a teacher and a judge, and vq-robust.yaml, as far as they are not there; then
`foldtrain evaluate tokenizer` measures both on the held-out pictures: squared error, and the Fréchet distance in the
features of the judge, a classifier that neither has seen. The figure has both by alpha, the share of the tokens that
become one of their DELTA nearest codes.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from commands import foldtrain
from report import write_report

from trainer.evaluation.naming.number_names import value_text
from trainer.evaluation.naming.numbers import Number, read_numbers
from trainer.report.perturbation import perturbation_file, whole

NAMES = {"vq": "VQ", "vq-robust": "VQ, trained with perturbation"}
_METRICS = ("mse", "frechet_distance")


def main() -> None:
    """Train, measure, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pictures", type=Path)
    parser.add_argument("--runs", type=Path, default=Path("runs/small"), help="where the runs go")
    parser.add_argument("--steps", type=int, default=600, help="of each tokenizer")
    parser.add_argument("--workers", type=int, default=1, help="training processes of each")
    parser.add_argument("--alphas", default="0.1,0.2,0.3,0.5,0.7,1")
    parser.add_argument("--delta", type=int, default=25)
    parser.add_argument("--figure", type=Path, help="write the chart to this SVG file")
    parser.add_argument("--json", type=Path, help="write the numbers to this file")
    options = parser.parse_args()
    found = {}
    for name in NAMES:
        train(name, options)
        found[NAMES[name]] = measure(name, options)
    if options.figure is not None:
        options.figure.write_text(perturbation_file(found))
    rows = [row for name, numbers in found.items() for row in table(name, numbers)]
    columns = ["tokenizer", "alpha", "squared error", "Fréchet distance (judge)"]
    figures = {name: [number.to_json() for number in numbers] for name, numbers in found.items()}
    write_report("perturbed tokens", columns, rows, {"steps": options.steps, "tokenizers": figures}, options.json)


def train(name: str, options: argparse.Namespace) -> None:
    """The tokenizer of a config, if it is not there; with the first one images, teacher and judge."""
    stages = ["train-tokenizer"] if name != "vq" else ["ingest", "train-teacher", "train-judge", "train-tokenizer"]
    first, run = options.runs / "vq", options.runs / name
    changes = [f"run={run}", f"data.source.path={options.pictures}", f"cluster.workers={options.workers}"]
    changes += [f"tokenizer.trainer.steps={options.steps}"]
    changes += [] if name == "vq" else [f"inputs.{each}={first}" for each in ("images", "teacher", "judge")]
    if not (run / "tokenizer/export/card.json").exists():
        for stage in stages:
            foldtrain(stage, f"package:small/{name}.yaml", *changes)


def measure(name: str, options: argparse.Namespace) -> tuple[Number, ...]:
    """All numbers of a tokenizer, of its own tokens and of perturbed ones."""
    out = options.runs / name / "evaluated"
    foldtrain(
        *("evaluate", "tokenizer", str(options.runs / name), "--out", str(out)),
        *("--images", str(options.runs / "vq/images/validation")),
        *("--network", f"classifier:{options.runs / 'vq/judge'}"),
        *("--perturb", f"{options.alphas}:{options.delta}", "--resamples", "200"),
    )
    return read_numbers(str(out / "evaluation.json"))


def table(name: str, numbers: tuple[Number, ...]) -> list[list[str]]:
    """A row for each alpha; 0 for the images' own tokens."""
    found: dict[float, dict[str, str]] = {}
    for number in whole(numbers):
        if number.metric in _METRICS:
            alpha = float((number.measured_of.get("perturbation") or {"alpha": 0})["alpha"])
            found.setdefault(alpha, {})[number.metric] = value_text(number)
    return [[name, f"{alpha:g}", *(found[alpha].get(metric, "") for metric in _METRICS)] for alpha in sorted(found)]


if __name__ == "__main__":
    main()
