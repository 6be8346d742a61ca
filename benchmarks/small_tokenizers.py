"""Train the small tokenizers of configs/small, and table each beside principal components at its own bits.

    python benchmarks/small_tokenizers.py [--runs FOLDER] [--json FILE] [--picture FILE] [--steps N]
                                          [--workers N] [NAME...]

Needs the run of `make quickstart`, whose images and teacher they share. NAME is a config of configs/small without
".yaml", or NAME@LATENTS for a number of latents. A tokenizer that has trained already is tabled as it is. Errors are
squared errors of pixels in [-1, 1] on the held-out images, by the moving average of the weights, after each prefix of
the tokens. The picture has a row for each: the first held-out images, and what is left of them.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from commands import foldtrain
from report import write_report

from cluster.config.loading import load_config
from data_pipeline.images.transforms import to_model
from data_pipeline.shards.tokenizers import load_tokenizer
from trainer.evaluation.images import image_grid, to_png, to_uint8
from trainer.evaluation.tokenizers.tokenizer_record import (
    LabelledPixels,
    baseline_record,
    bits_of_prefixes,
    probe_record,
)

NAMES = (
    *("fsq", "bsq", "vqgan", "msvr", "msbr", "imagefolder", "titok-proxy", "titok-stage1", "titok-stage2"),
    *("titok-single-stage@8", "titok-single-stage@16", "titok-single-stage@32"),
)
MOST_TRAINING_IMAGES = 9_000
_BATCH, _SHOWN = 100, 12


def main() -> None:
    """Train, look, table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs/small"), help="where the runs go")
    parser.add_argument("--quickstart", type=Path, default=Path("runs/quickstart"), help="the quickstart's run")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--steps", type=int, help="of each, in place of its own; discriminators begin after 60 percent")
    parser.add_argument("--workers", type=int, default=2, help="training processes of each")
    parser.add_argument("--picture", type=Path, help="write reconstructions to this PNG file")
    parser.add_argument("names", nargs="*", default=list(NAMES))
    options = parser.parse_args()
    found = [measure(name, options.runs, options.quickstart, options.steps, options.workers) for name in options.names]
    if options.picture is not None:
        options.picture.write_bytes(picture(options.names, options.runs, options.quickstart))
    columns = ["tokenizer", "bits", "squared error", "principal components", "PSNR", "probe", "minutes"]
    write_report(
        "small tokenizers",
        columns,
        [row(each) for each in found],
        {"steps": options.steps, "tokenizers": found},
        options.json,
    )


def measure(name: str, runs: Path, quickstart: Path, steps: int | None = None, workers: int = 2) -> dict[str, Any]:
    """Train one, if it is not there, and look at held-out images through it."""
    kind, _, latents = name.partition("@")
    run = folder(runs, name)
    config = f"package:small/{kind}.yaml"
    changes = [f"run={run}", f"inputs.images={quickstart}", f"inputs.teacher={quickstart}"]
    changes.append(f"cluster.workers={workers}")
    changes += [f"tokenizer.model.latents={latents}"] if latents else []
    changes += [f"inputs.proxy={runs / 'titok-proxy'}"] if "titok-stage" in kind else []
    changes += [f"tokenizer.init_from={runs / 'titok-stage1'}"] if kind == "titok-stage2" else []
    changes += [] if steps is None else [f"tokenizer.trainer.steps={steps}"]
    if steps is not None and load_config(config).tokenizer.loss.adversarial is not None:
        changes.append(f"tokenizer.loss.adversarial.start={steps * 6 // 10}")
    seconds = None
    if not (run / "tokenizer/export/card.json").exists():
        begin = time.perf_counter()
        foldtrain("train-tokenizer", config, *changes)
        seconds = time.perf_counter() - begin
    return {"name": name, "seconds": seconds} | look(
        str(run / "tokenizer/export"), quickstart, load_config(config).data.fit
    )


@torch.inference_mode()
def look(uri: str, quickstart: Path, fit: str) -> dict[str, Any]:
    """Errors after each prefix, beside those of principal components at as many bits."""
    network, _ = load_tokenizer(uri, "cpu")
    size, layout = network.config.image_size, network.layout
    sets = {
        split: LabelledPixels.load(str(quickstart / "images" / split), size, fit, MOST_TRAINING_IMAGES)
        for split in ("train", "validation")
    }
    training, held_out = sets["train"], sets["validation"]
    bits = bits_of_prefixes(layout, network.prefixes)
    baselines = baseline_record(training.pixels_NHWC, held_out.pixels_NHWC, bits)
    sums = dict.fromkeys(network.prefixes, 0.0)
    for first in range(0, len(held_out.pixels_NHWC), _BATCH):
        image_BCHW = torch.from_numpy(to_model(held_out.pixels_NHWC[first : first + _BATCH]))
        tokens_BLF = network.tokenize(image_BCHW)
        for keep in network.prefixes:
            sums[keep] += float((network.detokenize(tokens_BLF, keep) - image_BCHW).square().mean((1, 2, 3)).sum())
    return {
        "bits": bits,
        "errors": [total / len(held_out.pixels_NHWC) for total in sums.values()],
        "components": [each["mse"] for each in baselines["components"]],
        "mean_image": baselines["mean_image"],
        "probe": probe_record(network, training, held_out, torch.device("cpu")),
    }


def folder(runs: Path, name: str) -> Path:
    """Of the run of a tokenizer."""
    return runs / name.replace("@", "-")


@torch.inference_mode()
def picture(names: Sequence[str], runs: Path, quickstart: Path) -> bytes:
    """The first held-out images, and under them what each tokenizer makes of them; PNG."""
    rows, labels = [], ["original"]
    for name in names:
        network, _ = load_tokenizer(str(folder(runs, name) / "tokenizer/export"), "cpu")
        uri, fit = str(quickstart / "images/validation"), load_config("package:small/base.yaml").data.fit
        shown = LabelledPixels.load(uri, network.config.image_size, fit, _SHOWN).pixels_NHWC
        made_BCHW = network.detokenize(network.tokenize(torch.from_numpy(to_model(shown))))
        rows.append(to_uint8(made_BCHW))
        labels.append(name)
    return to_png(image_grid(np.concatenate([shown, *rows]), _SHOWN, upscale=1, row_labels=labels))


def row(found: dict[str, Any]) -> list[str]:
    """Of the table."""
    psnr = 10 * torch.tensor(4 / found["errors"][-1]).log10()
    probe = found["probe"]
    seen = "" if probe is None else ", ".join(f"{name} {share:.2f}" for name, share in probe["branches"].items())
    minutes = "" if found["seconds"] is None else f"{found['seconds'] / 60:.1f}"
    return [
        found["name"],
        *(" ".join(map(str, found["bits"])), " ".join(f"{each:.4f}" for each in found["errors"])),
        *(" ".join(f"{each:.4f}" for each in found["components"]), f"{psnr:.1f}", seen, minutes),
    ]


if __name__ == "__main__":
    main()
