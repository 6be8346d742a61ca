"""ImageNet in its two usual forms, with small pictures: the tars of ILSVRC 2012, and the WebDataset tars of the hub.

    python benchmarks/synthetic_imagenet.py ilsvrc FOLDER [--classes 1000] [--per-class 20]
    python benchmarks/synthetic_imagenet.py hub FOLDER [--classes 1000] [--per-class 20] [--tars 1024]

`ilsvrc` writes ILSVRC2012_img_train.tar (a tar per class), ILSVRC2012_img_val.tar and LOC_val_solution.csv. `hub`
writes imagenet1k-train-0000.tar and so on (.jpg, .cls and .json of each image, shuffled over the tars) and
imagenet1k-validation-00.tar, as timm/imagenet-1k-wds has them. The odd files of ImageNet are there under their own
names: 22 JPEGs in CMYK and a PNG that is called .JPEG; and some of each kind that cameras write: grey, turned by EXIF,
with an EXIF block that is cut.
"""

from __future__ import annotations

import argparse
import io
import json
import random
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from PIL import Image

PNG = "n02105855_2933"
CMYK = (
    *("n01739381_1309", "n02077923_14822", "n02447366_23489", "n02492035_15739", "n02747177_10752", "n03018349_4028"),
    *("n03062245_4620", "n03347037_9675", "n03467068_12171", "n03529860_11437", "n03544143_17228", "n03633091_5218"),
    *("n03710637_5125", "n03961711_5286", "n04033995_2932", "n04258138_17003", "n04264628_27969", "n04336792_7448"),
    *("n04371774_5854", "n04596742_4225", "n07583066_647", "n13037406_4650"),
)
"""As Inception's script for ImageNet lists them."""


class Photo(NamedTuple):
    """An image of ImageNet."""

    name: str
    """n01440764_10026, without an ending."""
    label: int
    data: bytes


def wnids(classes: int) -> list[str]:
    """Names of so many classes, those of the odd files among them, sorted."""
    odd = sorted({name.partition("_")[0] for name in (PNG, *CMYK)})
    made = (f"n{number:08d}" for number in range(1_440_764, 15_100_000, 9973))
    others = [wnid for wnid in made if wnid not in odd]
    return sorted([*odd, *others[: classes - len(odd)]][:classes])


def picture(seed: int) -> Image.Image:
    """A smooth colour picture of a size of its own, as small as makes sense."""
    draw = random.Random(seed)
    corners = Image.new("RGB", (3, 3))
    corners.putdata([tuple(draw.randrange(256) for _ in range(3)) for _ in range(9)])
    return corners.resize((draw.randrange(24, 49), draw.randrange(24, 49)), Image.Resampling.BICUBIC)


def encoded(image: Image.Image, form: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def turned(image: Image.Image) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return encoded(image, "JPEG", exif=exif)


def cut_exif(image: Image.Image) -> bytes:
    """An EXIF block whose first table lies beyond its end."""
    return encoded(image, "JPEG", exif=b"Exif\x00\x00MM\x00\x2a\x00\x00\x7f\xff")


USUAL: tuple[Callable[[Image.Image], bytes], ...] = (
    *[lambda image: encoded(image, "JPEG")] * 17,
    lambda image: encoded(image.convert("L"), "JPEG"),
    turned,
    cut_exif,
)
"""How images are stored, in turn."""


def photos(classes: int, per_class: int) -> Iterator[Photo]:
    """All images, class by class."""
    odd = {PNG: lambda image: encoded(image, "PNG")}
    odd |= {name: lambda image: encoded(image.convert("CMYK"), "JPEG") for name in CMYK}
    for label, wnid in enumerate(wnids(classes)):
        names = [f"{wnid}_{number}" for number in range(10, 10 + per_class)]
        mine = [name for name in odd if name.startswith(wnid)]
        names[len(names) - len(mine) :] = mine
        for row, name in enumerate(names):
            number = label * per_class + row
            yield Photo(name, label, odd.get(name, USUAL[number % len(USUAL)])(picture(number)))


def add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    """A member as other people's programs write them."""
    info = tarfile.TarInfo(name)
    info.size, info.mtime, info.mode, info.uname, info.gname = len(data), 1_339_171_200, 0o644, "imagenet", "imagenet"
    tar.addfile(info, io.BytesIO(data))


def write_ilsvrc(folder: Path, classes: int, per_class: int) -> None:
    """ILSVRC2012_img_train.tar, ILSVRC2012_img_val.tar with an image of each class, and Kaggle's labels of those."""
    folder.mkdir(parents=True, exist_ok=True)
    by_class: dict[str, list[Photo]] = {}
    for photo in photos(classes, per_class):
        by_class.setdefault(photo.name.partition("_")[0], []).append(photo)
    order = list(by_class)
    random.Random(0).shuffle(order)
    with tarfile.open(folder / "ILSVRC2012_img_train.tar", "w", format=tarfile.GNU_FORMAT) as outer:
        for wnid in order:
            inner = io.BytesIO()
            with tarfile.open(fileobj=inner, mode="w", format=tarfile.GNU_FORMAT) as tar:
                for photo in by_class[wnid]:
                    add(tar, f"{photo.name}.JPEG", photo.data)
            add(outer, f"{wnid}.tar", inner.getvalue())
    lines = ["ImageId,PredictionString"]
    with tarfile.open(folder / "ILSVRC2012_img_val.tar", "w", format=tarfile.GNU_FORMAT) as tar:
        for number, wnid in enumerate(order, start=1):
            name = f"ILSVRC2012_val_{number:08d}"
            add(tar, f"{name}.JPEG", encoded(picture(10**6 + number), "JPEG"))
            lines.append(f"{name},{wnid} 1 2 30 40 ")
    (folder / "LOC_val_solution.csv").write_text("\n".join([lines[0], *sorted(lines[1:], key=lambda line: line[::-1])]))


def write_hub(folder: Path, classes: int, per_class: int, tars: int) -> None:
    """imagenet1k-train-*.tar and imagenet1k-validation-*.tar, a sixteenth as many."""
    folder.mkdir(parents=True, exist_ok=True)
    train = list(photos(classes, per_class))
    names = wnids(classes)
    validation = [
        Photo(f"ILSVRC2012_val_{label + 1:08d}", label, encoded(picture(10**6 + label), "JPEG"))
        for label in range(classes)
    ]
    for split, samples, parts, digits in (("train", train, tars, 4), ("validation", validation, max(1, tars // 16), 2)):
        random.Random(split).shuffle(samples)
        for part in range(parts):
            path = folder / f"imagenet1k-{split}-{part:0{digits}d}.tar"
            with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
                for photo in samples[part::parts]:
                    about = {"filename": f"{photo.name}.JPEG", "label": photo.label, "class": names[photo.label]}
                    add(tar, f"{photo.name}.cls", str(photo.label).encode())
                    add(tar, f"{photo.name}.jpg", photo.data)
                    add(tar, f"{photo.name}.json", json.dumps(about).encode())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("form", choices=("ilsvrc", "hub"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--per-class", type=int, default=20)
    parser.add_argument("--tars", type=int, default=1024)
    given = parser.parse_args()
    if given.form == "ilsvrc":
        write_ilsvrc(given.folder, given.classes, given.per_class)
    else:
        write_hub(given.folder, given.classes, given.per_class, given.tars)


if __name__ == "__main__":
    main()
