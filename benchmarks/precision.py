"""How many tokens change when the tokenizer runs in bf16 instead of fp32.

    python benchmarks/precision.py [--tokenizer EXPORT] [--images 512] [--json FILE]

The images are those that come with foldtrain (Fashion-MNIST, padded or resized to the tokenizer's size). Without
`--tokenizer` the weights are random, of a small network, whose latents hardly differ between
images; so measure your own, too: EXPORT is <run>/tokenizer/export.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from report import write_report

from data_pipeline.config import IdxSource
from data_pipeline.images.transforms import Transform, to_model
from data_pipeline.shards.tokenizers import load_tokenizer
from data_pipeline.sources import open_source
from data_pipeline.tokens.tokenizing import encoder_of
from model.config import ImageFolderConfig, VectorConfig
from model.protocols import Tokenizer
from model.tokenizers.imagefolder import ImageFolderTokenizer

SOURCE = IdxSource(
    images="embedded:fashion_mnist/t10k-images-idx3-ubyte.gz", labels="embedded:fashion_mnist/t10k-labels-idx1-ubyte.gz"
)
SIDE = 28
SMALL = ImageFolderConfig(
    image_size=28, patch_size=4, scales=(1, 2, 3, 4, 5, 7), quantizer=VectorConfig(codebook_size=512, code_dim=16)
)
BATCH = 64


def load(tokenizer: str | None) -> Tokenizer:
    """The tokenizer at a URI, or a small one of random weights."""
    torch.manual_seed(0)
    if tokenizer is None:
        return ImageFolderTokenizer(SMALL).eval()
    return load_tokenizer(tokenizer, "cpu")[0]


def images(count: int, size: int) -> npt.NDArray[np.float32]:
    """The first packaged images, [N, C, H, W]."""
    source = open_source(SOURCE)
    transform = Transform(size, "pad" if size >= SIDE and size < 2 * SIDE else "crop")
    return to_model([transform(source.reader.read(item)) for item in source.items[:count]])


def compare(network: Tokenizer, image_NCHW: npt.NDArray[np.float32]) -> dict[str, Any]:
    """Shares of tokens and images that differ; tokens also by scale, coarse to fine."""
    fp32, bf16 = (encoder_of(network, precision, "cpu") for precision in ("fp32", "bf16"))
    changed = []
    for start in range(0, len(image_NCHW), BATCH):
        image_BCHW = image_NCHW[start : start + BATCH]
        changed.append(fp32(image_BCHW) != bf16(image_BCHW))
    changed_NLF = np.concatenate(changed)
    layout = network.layout
    scales = [float(changed_NLF[:, layout.span(scale)].mean()) for scale in range(len(layout.groups))]
    by_scale = [
        {"positions": positions, "tokens": share} for positions, share in zip(layout.groups, scales, strict=True)
    ]
    return {
        "images": len(image_NCHW),
        "changed": {"tokens": float(changed_NLF.mean()), "images": float(changed_NLF.any(axis=(1, 2)).mean())},
        "by_scale": by_scale,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Tokens that change in bf16.")
    parser.add_argument("--tokenizer", help="URI of a tokenizer's export")
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--json", type=Path, help="write the figures here")
    given = parser.parse_args()
    network = load(given.tokenizer)
    found = compare(network, images(given.images, network.config.image_size))
    found["weights"] = given.tokenizer or "random"
    rows = [[f"tokens of the scale of {row['positions']}", f"{row['tokens']:.2%}"] for row in found["by_scale"]]
    rows += [["tokens", f"{found['changed']['tokens']:.2%}"], ["images", f"{found['changed']['images']:.2%}"]]
    write_report(f"changed by bf16 ({found['weights']} weights)", ["", "share"], rows, found, given.json)


if __name__ == "__main__":
    main()
