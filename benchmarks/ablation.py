"""Walk ImageFolder's ablation in small: train the rows of configs/ablation-small, and table what each adds.

    python benchmarks/ablation.py PICTURES [--runs FOLDER] [--steps N] [--workers N] [--json FILE] [ROW...]

PICTURES is a folder per class of small colour photographs (CIFAR-10's test set, say), of which the last 1,000 are held
out; ROW is a number from 1 to 9. A row that has trained already is tabled as it is. Columns: squared error of pixels in
[-1, 1]; perceptual distance, the mean squared difference of the teacher's features; share of the codebook that is used
in the finest scale, by branch; accuracy of a linear probe of each branch, the semantic one last. All are of held-out
images, all positions, and the moving average of the weights.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from report import write_report

from data_pipeline.images.transforms import to_model
from data_pipeline.shards.tokenizers import load_tokenizer
from trainer.evaluation.networks.teacher import Teacher, load_classifier
from trainer.evaluation.tokenizers.tokenizer_record import LabelledPixels, bits_of_prefixes, measure, probe_record
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
CPU = torch.device("cpu")
_BATCH, _TRAINING_IMAGES, _HELD_OUT = 100, 3_000, 1_000


def main() -> None:
    """Train, look, table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pictures", type=Path)
    parser.add_argument("--runs", type=Path, default=Path("runs/ablation"), help="where the runs go")
    parser.add_argument("--steps", type=int, default=600, help="of each row; the discriminator begins after two thirds")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("rows", nargs="*", type=int, default=list(ROWS))
    options = parser.parse_intermixed_args()
    images = options.runs / "images"
    if not (images / "teacher/export/card.json").exists():
        for stage in ("ingest", "train-teacher"):
            foldtrain(stage, 1, options, f"run={images}", "inputs.images=null", "inputs.teacher=null")
    found = [train_and_look(number, options) for number in options.rows]
    columns = ["row", "bits", "squared error", "perceptual", "codes used", "probe", "minutes"]
    figures = {"steps": options.steps, "rows": found}
    write_report("the ablation in small", columns, [row(each) for each in found], figures, options.json)


def foldtrain(stage: str, number: int, options: argparse.Namespace, *changes: str) -> None:
    """A stage of a row."""
    config = f"package:ablation-small/row-{number}.yaml"
    asked = [f"data.source.path={options.pictures}", f"cluster.workers={options.workers}", *changes]
    subprocess.run([sys.executable, "-m", "foldtrain", stage, config, *asked], check=True)


def train_and_look(number: int, options: argparse.Namespace) -> dict[str, Any]:
    """Train a row, if it is not there, and look at held-out images through it."""
    run, images = options.runs / f"row-{number}", options.runs / "images"
    changes = [f"run={run}", f"inputs.images={images}", f"inputs.teacher={images}"]
    changes += [f"tokenizer.trainer.steps={options.steps}"]
    changes += [f"tokenizer.loss.adversarial.start={options.steps * 2 // 3}"] if number >= 7 else []
    seconds = None
    if not (run / "tokenizer/export/card.json").exists():
        begin = time.perf_counter()
        foldtrain("train-tokenizer", number, options, *changes)
        seconds = time.perf_counter() - begin
    teacher = load_classifier(str(images / "teacher/export"), "teacher", CPU)
    return {"row": number, "seconds": seconds} | look(str(run / "tokenizer/export"), images, teacher)


@torch.inference_mode()
def look(uri: str, images: Path, teacher: Teacher) -> dict[str, Any]:
    """What the table has, of a tokenizer."""
    network, _ = load_tokenizer(uri, CPU)
    size = network.config.image_size
    training = LabelledPixels.load(str(images / "images/train"), size, "crop", _TRAINING_IMAGES)
    held_out = LabelledPixels.load(str(images / "images/validation"), size, "crop", _HELD_OUT)
    distance, total = teacher_distance(teacher), 0.0
    assert distance is not None
    for first in range(0, len(held_out.pixels_NHWC), _BATCH):
        image_BCHW = torch.from_numpy(to_model(held_out.pixels_NHWC[first : first + _BATCH]))
        total += float(distance(network.detokenize(network.tokenize(image_BCHW)), image_BCHW).sum())
    measured = measure(network, held_out.pixels_NHWC, CPU)
    return {
        "bits": bits_of_prefixes(network.layout, network.prefixes)[-1],
        "error": measured.mse,
        "perceptual": total / len(held_out.pixels_NHWC),
        "used": {name: codes.use[-1] for name, codes in measured.codes.items()},
        "probe": probe_record(network, training, held_out, CPU),
    }


def row(found: dict[str, Any]) -> list[str]:
    """Of the table."""
    probe = found["probe"] or {"branches": {}}
    return [
        f"{found['row']} {ROWS[found['row']]}",
        str(found["bits"]),
        f"{found['error']:.4f}",
        f"{found['perceptual']:.4f}",
        ", ".join(f"{share:.2f}" for share in found["used"].values()),
        ", ".join(f"{share:.3f}" for share in probe["branches"].values()),
        "" if found["seconds"] is None else f"{found['seconds'] / 60:.1f}",
    ]


if __name__ == "__main__":
    main()
