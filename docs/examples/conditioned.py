"""The picture of docs/sampling.md: a reference, what is kept of it, and images that keep it.

    python docs/examples/conditioned.py runs/quickstart shoe.png conditioned.png Sneaker Bag Dress

What is kept is shown as the mean of 64 images of no class that keep it: what they have in common.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from foldtrain import Generator
from trainer.evaluation.images import image_grid

MEAN_OF, EACH = 64, 3


def left_half(folder: str, size: int) -> str:
    """A mask whose left half is white."""
    pixels = np.zeros((size, size), np.uint8)
    pixels[:, : size // 2] = 255
    Image.fromarray(pixels).save(Path(folder, "left.png"))
    return f"mask:{folder}/left.png"


def draw(run: str, picture: str, output: str, classes: list[str]) -> None:
    """Write the picture."""
    generator, reference = Generator.load(run), Image.open(picture)
    size, labels = generator.image_size, [name for name in classes for _ in range(EACH)]
    square = np.asarray(reference.convert("RGB").resize((size, size)))
    with tempfile.TemporaryDirectory() as folder:
        half = f"scales:{len(generator.layout.groups) // 2}"
        kept = {"semantic": "semantic", "detail": "detail", half: half, "left half": left_half(folder, size)}
        cells = []
        for keep in kept.values():
            common = generator.sample([None] * MEAN_OF, guidance=0.0, reference=reference, keep=keep).mean(0)
            samples = generator.sample(labels, seed=1, guidance=3.0, reference=reference, keep=keep)
            cells += [square, common.round().astype(np.uint8), *samples]
    heads = ["reference", "kept", *labels]
    grid = image_grid(
        np.stack(cells), len(heads), upscale=max(1, 96 // size), row_labels=list(kept), column_labels=heads
    )
    grid.save(output)


if __name__ == "__main__":
    draw(sys.argv[1], sys.argv[2], sys.argv[3], sys.argv[4:])
