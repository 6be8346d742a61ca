"""Walk ImageFolder's ablation in small: train the rows of configs/ablation-small, and table what each adds.

    python benchmarks/ablation.py PICTURES [--runs FOLDER] [--steps N] [--generators] [--guidance G...] [--workers N]
                                   [--json FILE] [ROW...]

PICTURES is a folder per class of small colour photographs (CIFAR-10's test set, say), of which the last 1,000 are held
out; ROW is a number from 1 to 9. What has trained already is tabled as it is. All is of held-out images, all positions,
and the moving average of the weights:

    error            squared error of pixels in [-1, 1]
    components       the same of principal components of the training images at as many bits
    perceptual       mean squared difference of the teacher's features
    codes used       share of the codebook in the finest scale, by branch
    probe            accuracy of a linear layer on each branch, the semantic one last
    reconstructions  their Fréchet distance from the images in the features of a judge that no tokenizer has seen
    samples          the same of 1,000 samples of a generator on the row's tokens, at each guidance (--generators)
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from commands import foldtrain
from judged_images import RealImages, judge_samples, statistics
from report import write_report

from cluster.config.loading import load_config
from data_pipeline.images.transforms import to_model
from data_pipeline.shards.tokenizers import load_tokenizer
from model.classifier import Classifier
from trainer.evaluation.networks.teacher import load_classifier
from trainer.evaluation.samples.sampler import Sampler
from trainer.evaluation.tokenizers.tokenizer_record import (
    LabelledPixels,
    baseline_record,
    bits_of_prefixes,
    measure,
    probe_record,
)
from trainer.metrics.frechet import FeatureStatistics, frechet_distance
from trainer.stages.validation import teacher_distance

ROWS = {
    1: "multi-scale",
    2: "+ quantizer dropout",
    3: "+ smaller grid",
    4: "+ product",
    5: "+ semantic, all branches",
    6: "semantic, one branch",
    7: "+ adversarial (patch)",
    8: "teacher's features judge",
    9: "+ LeCam",
}
SHARED = {"images": "ingest", "teacher": "train-teacher", "judge": "train-judge"}
"""What all rows share, and the stage that makes it."""
CPU = torch.device("cpu")
_BATCH, _COMPONENT_IMAGES, _PROBE_IMAGES, _HELD_OUT, _SAMPLES = 100, 9_000, 3_000, 1_000, 1_000


@dataclass(frozen=True)
class Shared:
    """What all rows are looked at with."""

    images: Path
    teacher: Classifier
    judge: Classifier
    real: FeatureStatistics

    @classmethod
    def of(cls, run: Path) -> Shared:
        """Of the run that made them."""
        teacher, judge = (load_classifier(str(run / name / "export"), name, CPU) for name in ("teacher", "judge"))
        size = judge.config.image_size
        real = RealImages.load(str(run / "images/validation"), size, "crop", _HELD_OUT, CPU)
        return cls(run, teacher, judge, statistics(judge, real.image_NCHW))


def main() -> None:
    """Train, look, table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pictures", type=Path)
    parser.add_argument("--runs", type=Path, default=Path("runs/ablation"), help="where the runs go")
    parser.add_argument("--steps", type=int, default=600, help="of each row; the discriminator begins after two thirds")
    parser.add_argument("--generators", action="store_true", help="train one on each row's tokens, and draw with it")
    parser.add_argument("--guidance", type=float, nargs="+", default=[0.0, 1.5], help="of the samples")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("rows", nargs="*", type=int, default=list(ROWS))
    options = parser.parse_intermixed_args()
    images = options.runs / "images"
    if not (images / "judge/export/card.json").exists():
        for stage in SHARED.values():
            own = [f"run={images}", *(f"inputs.{name}=null" for name in SHARED)]
            foldtrain(stage, config_of(1), *asked(options), *own)
    shared = Shared.of(images)
    found = [train_and_look(number, options, shared) for number in options.rows]
    columns = ["row", "bits", "error", "components", "perceptual", "codes used", "probe", "reconstructions"]
    columns += ["samples", "minutes"]
    figures = {"steps": options.steps, "rows": found}
    write_report("the ablation in small", columns, [row(each) for each in found], figures, options.json)


def asked(options: argparse.Namespace) -> list[str]:
    """Changes of the configs, for all."""
    return [f"data.source.path={options.pictures}", f"cluster.workers={options.workers}"]


def config_of(number: int) -> str:
    """Where a row's config is."""
    return f"package:ablation-small/row-{number}.yaml"


def train_and_look(number: int, options: argparse.Namespace, shared: Shared) -> dict[str, Any]:
    """Train a row, if it is not there, and look at held-out images through it."""
    run = options.runs / f"row-{number}"
    changes = [*asked(options), f"run={run}", *(f"inputs.{name}={shared.images}" for name in SHARED)]
    changes += [f"tokenizer.trainer.steps={options.steps}"]
    changes += [f"tokenizer.loss.adversarial.start={options.steps * 2 // 3}"] if number >= 7 else []
    seconds = None
    if not (run / "tokenizer/export/card.json").exists():
        begin = time.perf_counter()
        foldtrain("train-tokenizer", config_of(number), *changes)
        seconds = time.perf_counter() - begin
    found = {"row": number, "seconds": seconds} | look(str(run / "tokenizer/export"), shared)
    return found | ({"samples": draw(number, options, shared, changes)} if options.generators else {})


@torch.inference_mode()
def look(uri: str, shared: Shared) -> dict[str, Any]:
    """What the table has, of a tokenizer."""
    network, _ = load_tokenizer(uri, CPU)
    size, images = network.config.image_size, str(shared.images / "images")
    training, whole = (
        LabelledPixels.load(f"{images}/train", size, "crop", count) for count in (_PROBE_IMAGES, _COMPONENT_IMAGES)
    )
    held_out = LabelledPixels.load(f"{images}/validation", size, "crop", _HELD_OUT)
    distance, total, made = teacher_distance(shared.teacher), 0.0, []
    assert distance is not None
    for first in range(0, len(held_out.pixels_NHWC), _BATCH):
        image_BCHW = torch.from_numpy(to_model(held_out.pixels_NHWC[first : first + _BATCH]))
        made.append(network.detokenize(network.tokenize(image_BCHW)))
        total += float(distance(made[-1], image_BCHW).sum())
    measured = measure(network, held_out.pixels_NHWC, CPU)
    bits = bits_of_prefixes(network.layout, network.prefixes)[-1]
    return {
        "bits": bits,
        "error": measured.mse,
        "components": baseline_record(whole.pixels_NHWC, held_out.pixels_NHWC, [bits])["components"][0]["mse"],
        "perceptual": total / len(held_out.pixels_NHWC),
        "used": {name: codes.use[-1] for name, codes in measured.codes.items()},
        "probe": probe_record(network, training, held_out, CPU),
        "distance_of_reconstructions": frechet_distance(statistics(shared.judge, torch.cat(made)), shared.real),
    }


def draw(number: int, options: argparse.Namespace, shared: Shared, changes: list[str]) -> list[dict[str, float]]:
    """Train a generator on a row's tokens, if it is not there, and look at its samples at each guidance."""
    run = options.runs / f"row-{number}"
    if not (run / "generator/export/card.json").exists():
        for stage in ("tokenize", "train-generator"):
            foldtrain(stage, config_of(number), *changes)
    config = load_config(config_of(number), changes)
    exports = [str(run / stage / "export") for stage in ("generator", "tokenizer")]
    rows = []
    for guidance in options.guidance:
        sampling = config.sampling.model_copy(update={"guidance": guidance})
        sampler = Sampler.load(exports[0], exports[1], sampling, config.seed, CPU)
        rows.append({"guidance": guidance} | judge_samples(sampler, shared.judge, shared.real, _SAMPLES))
    return rows


def row(found: dict[str, Any]) -> list[str]:
    """Of the table."""
    probe = found["probe"] or {"branches": {}}
    return [
        f"{found['row']} {ROWS[found['row']]}",
        str(found["bits"]),
        f"{found['error']:.4f}",
        f"{found['components']:.4f}",
        f"{found['perceptual']:.4f}",
        ", ".join(f"{share:.2f}" for share in found["used"].values()),
        ", ".join(f"{share:.3f}" for share in probe["branches"].values()),
        f"{found['distance_of_reconstructions']:.2f}",
        ", ".join(f"{each['distance']:.2f}" for each in found.get("samples", [])),
        "" if found["seconds"] is None else f"{found['seconds'] / 60:.1f}",
    ]


if __name__ == "__main__":
    main()
