"""How fast image files become pixels the exact way and the fast way, on one thread, and how far apart the two are.

    python benchmarks/decode.py [--images FOLDER] [--json FILE]

Every picture is stored as JPEG (quality 95, 4:2:0) at three sizes and made a square of 256 pixels by ADM's centre crop.
500 x 375 is the commonest size of ImageNet: nothing is halved. 1024 x 768 is halved once, and so is 1021 x 765, whose
odd sides Pillow's box filter halves a little unevenly. Without `--images` the pictures are made by this program: 1/f
noise, as in photographs, with hard-edged shapes on it.
"""

from __future__ import annotations

import argparse
import io
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw
from rich.console import Console
from rich.table import Table

from data_pipeline.images.transforms import Transform, decode

SIZES = ((500, 375), (1024, 768), (1021, 765))
TARGET = 256
MODES = ("exact", "fast")


def made_picture(seed: int, width: int = 2048, height: int = 1536) -> Image.Image:
    """Colour noise whose amplitude falls as 1/f, and a dozen ellipses and rectangles with hard edges."""
    random = np.random.default_rng(seed)
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
    frequency[0, 0] = 1
    grey, *colours = (np.fft.irfft2(np.fft.rfft2(random.normal(size=(height, width))) / frequency) for _ in range(4))
    noise = np.stack([grey / grey.std() + 0.4 * colour / colour.std() for colour in colours], axis=-1)
    image = Image.fromarray((128 + 48 * noise).clip(0, 255).astype(np.uint8))
    draw = ImageDraw.Draw(image)
    for number in range(12):
        left, top = random.integers(0, width), random.integers(0, height)
        box = (left, top, left + random.integers(20, width // 3), top + random.integers(20, height // 3))
        shape = draw.ellipse if number % 2 else draw.rectangle
        shape([int(edge) for edge in box], fill=tuple(int(level) for level in random.integers(0, 256, 3)))
    return image


def own_pictures(folder: Path, most: int) -> list[Image.Image]:
    """Pictures of a folder that are at least 1024 x 768."""
    found = []
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        try:
            image = decode(path.read_bytes())
        except ValueError:
            continue
        if image.width >= 1024 and image.height >= 768:
            found.append(image)
        if len(found) == most:
            break
    if not found:
        raise SystemExit(f"{folder} holds no picture of 1024 x 768 or more")
    return found


def stored(image: Image.Image, width: int, height: int) -> bytes:
    """A picture, cut to the shape and resized, as a JPEG file."""
    scale = min(image.width / width, image.height / height)
    box = (0, 0, round(width * scale), round(height * scale))
    buffer = io.BytesIO()
    image.resize((width, height), Image.Resampling.LANCZOS, box=box).save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


def rates(files: Sequence[bytes], rounds: int) -> dict[str, float]:
    """Images per second of processor time, the best of some interleaved rounds."""
    best = dict.fromkeys(MODES, float("inf"))
    for _ in range(rounds):
        for mode in MODES:
            transform = Transform(TARGET, decode=mode)
            start = time.process_time()
            for file in files:
                transform(file)
            best[mode] = min(best[mode], time.process_time() - start)
    return {mode: len(files) / seconds for mode, seconds in best.items()}


def psnr(one: npt.NDArray[np.uint8], other: npt.NDArray[np.uint8]) -> float:
    """Peak signal-to-noise ratio of two pictures of bytes, in dB; at most 100."""
    error = np.mean((one.astype(np.float64) - other) ** 2)
    return min(100.0, float(10 * np.log10(255**2 / error))) if error else 100.0


def measure(pictures: Sequence[Image.Image], width: int, height: int, rounds: int) -> dict[str, Any]:
    """Rates, ratio and PSNR at one size."""
    files = [stored(picture, width, height) for picture in pictures]
    exact, fast = (Transform(TARGET, decode=mode) for mode in MODES)
    distances = [psnr(fast(file), exact(file)) for file in files]
    rate = rates(files, rounds)
    return {
        "bytes": round(sum(map(len, files)) / len(files)),
        "images_per_second": rate,
        "ratio": rate["fast"] / rate["exact"],
        "psnr": {"mean": float(np.mean(distances)), "min": min(distances)},
    }


def table(measured: dict[str, dict[str, Any]], title: str) -> Table:
    """The figures for a reader."""
    shown = Table("size", "kB a file", "exact, images/s", "fast, images/s", "ratio", "PSNR, dB", "least", title=title)
    for size, row in measured.items():
        rate, distance = row["images_per_second"], row["psnr"]
        cells = (row["bytes"] / 1e3, rate["exact"], rate["fast"], row["ratio"], distance["mean"], distance["min"])
        shown.add_row(size, *(f"{cell:.{digits}f}" for cell, digits in zip(cells, (0, 0, 0, 2, 1, 1), strict=True)))
    return shown


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Speed and PSNR of fast decoding against exact decoding.")
    parser.add_argument("--images", type=Path, help="a folder of pictures of 1024 x 768 or more")
    parser.add_argument("--pictures", type=int, default=12, help="how many pictures to take or to make")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of which the fastest counts")
    parser.add_argument("--json", type=Path, help="write the figures to this file, too")
    given = parser.parse_args(arguments)
    if given.images:
        pictures = own_pictures(given.images, given.pictures)
    else:
        pictures = [made_picture(seed) for seed in range(given.pictures)]
    measured = {f"{width}x{height}": measure(pictures, width, height, given.rounds) for width, height in SIZES}
    source = str(given.images) if given.images else "made pictures"
    Console().print(table(measured, f"{len(pictures)} pictures ({source}) to {TARGET}x{TARGET}, one thread"))
    if given.json:
        figures = {
            "pictures": source,
            "target": TARGET,
            "sizes": measured,
            "ratio": {"fast_exact": measured["500x375"]["ratio"]}
            | {f"fast_exact_{size}": row["ratio"] for size, row in measured.items()},
            "psnr": {size: row["psnr"] for size, row in measured.items()},
        }
        given.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
