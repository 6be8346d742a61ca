"""Drawn images as files: numbered PNG, one npz, or WebDataset tars; made part by part, so that a set of them resumes.

    OUT/plan.json              what all images follow from; written first
    OUT/parts/00000.json       a part that is there: its files with their sizes and sha256; written after them
    OUT/000000.png             kind png: an image a file
    OUT/samples-00000.tar      kind shards: 000000.png and 000000.cls of each image of a part
    OUT/grid.png               the first images
    OUT/sampling.json          all that made them; written last: its presence means complete

    OUT.npz                    kind npz, in ADM's layout: arr_0 uint8 [N, H, W, 3], arr_1 int64 [N], the labels. The
                               parts are in OUT.npz.parts until it is there; OUT.grid.png and OUT.sampling.json beside

What is said of the whole (the plan, the grid, the npz, sampling.json) is written by sample_record.py. A part is a
function of its plan, so that it does no harm to make one twice. Imports no torch.
Shapes: B images of a part, H height, W width, C channels.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from data_pipeline import storage
from data_pipeline.errors import CorruptShardError, UsageError
from data_pipeline.storage.tar import list_members, write_tar
from data_pipeline.text.json_records import first_problem
from data_pipeline.text.names import Count, Sha256
from data_pipeline.text.npy import parse_npy
from trainer.evaluation.images import Pixels
from trainer.evaluation.samples.label_plan import LabelPlan

Kind = Literal["png", "npz", "shards"]
PARTS = "parts"
VERSION = 1
PART_IMAGES: dict[Kind, int] = {"png": 64, "npz": 64, "shards": 512}
"""Images of a part, about: what is drawn again where a worker dies."""
_AT_ONCE = 16
"""Files that are written or read at the same time."""


@dataclass(frozen=True)
class SamplePlan:
    """What is to be made. Plain data, of the same size for any number of images."""

    output: str
    """URI of a folder, or of the npz."""
    kind: Kind
    labels: LabelPlan
    part_images: int
    made_by: dict[str, Any]
    """What all images follow from, as JSON."""

    @property
    def folder(self) -> str:
        """Where parts, plan and progress are."""
        return f"{self.output}.parts" if self.kind == "npz" else self.output

    @property
    def parts(self) -> int:
        """Number of parts."""
        return -(-self.labels.images // self.part_images)

    @property
    def drawn_by(self) -> dict[str, Any]:
        """What the images follow from, as JSON: generator, weights, sampling, seed, tokenizer, labels."""
        return self.made_by | {"labels": self.labels.to_json()}

    @property
    def fingerprint(self) -> str:
        """Of all that decides the files."""
        return storage.fingerprint(self.to_json())

    def to_json(self) -> dict[str, Any]:
        """For records."""
        plan = {"kind": self.kind, "part_images": self.part_images, "labels": self.labels.to_json()}
        return {"plan": plan, "made_by": self.made_by}

    @classmethod
    def of_record(cls, output: str, record: dict[str, Any]) -> SamplePlan:
        """The inverse, for the images at `output`.

        Raises:
            KeyError, TypeError, ValueError: if it is none.
        """
        plan = record["plan"]
        if plan["kind"] not in PART_IMAGES:
            raise ValueError(f"kind {plan['kind']!r}")
        labels = LabelPlan.of_json(plan["labels"])
        return cls(output, plan["kind"], labels, int(plan["part_images"]), dict(record["made_by"]))

    def span(self, part: int) -> tuple[int, int]:
        """The first image of a part, and the first after it."""
        start = part * self.part_images
        return start, min(start + self.part_images, self.labels.images)

    def images(self, part: int) -> int:
        """Images of a part."""
        start, stop = self.span(part)
        return stop - start

    def beside(self, name: str) -> str:
        """URI of grid.png and sampling.json."""
        if self.kind != "npz":
            return storage.join(self.output, name)
        return f"{self.output.removesuffix('.npz')}.{name}"

    def record(self, part: int) -> str:
        """URI of the record of a part."""
        return storage.join(self.folder, PARTS, f"{part:05d}.json")


def image_name(number: int) -> str:
    """Of an image, without its ending."""
    return f"{number:06d}"


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid")

    bytes: Count
    sha256: Sha256


class _Part(BaseModel):
    """The record of a part."""

    model_config = ConfigDict(extra="forbid")

    version: Literal[1]
    plan: Sha256
    part: Count
    files: dict[str, _File] = Field(max_length=1_000_000)
    software: dict[str, str]


# --------------------------------------------------------------------------------------------------------- one part


def write_part(plan: SamplePlan, part: int, pixels_BHWC: Pixels, software: dict[str, str]) -> dict[str, Any]:
    """Commit a part: its files, and then its record, which is returned."""
    start, stop = plan.span(part)
    label_B = plan.labels.between(start, stop)
    files = _encode(plan.kind, part, start, pixels_BHWC, label_B)
    with ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="samples") as pool:
        list(pool.map(lambda file: storage.write_bytes(storage.join(plan.folder, file[0]), file[1]), files))
    found = {name: {"bytes": len(data), "sha256": storage.sha256(data)} for name, data in files}
    record = {"version": VERSION, "plan": plan.fingerprint, "part": part, "files": found, "software": software}
    storage.write_json(plan.record(part), record)
    return record


def digest_of(files: dict[str, Any]) -> str:
    """sha256 over the names and hashes of a part's files, as its record has them."""
    return storage.fingerprint({name: file["sha256"] for name, file in files.items()})


def _encode(
    kind: Kind, part: int, start: int, pixels_BHWC: Pixels, label_B: npt.NDArray[np.int64]
) -> list[tuple[str, bytes]]:
    if kind == "npz":
        buffer = io.BytesIO()
        np.lib.format.write_array(buffer, np.ascontiguousarray(pixels_BHWC), allow_pickle=False)
        return [(_npy_name(part), buffer.getvalue())]
    pictures = [(f"{image_name(start + at)}.png", _png(pixels)) for at, pixels in enumerate(pixels_BHWC)]
    if kind == "png":
        return pictures
    classes = [(f"{image_name(start + at)}.cls", str(label).encode()) for at, label in enumerate(label_B.tolist())]
    members = [member for pair in zip(pictures, classes, strict=True) for member in pair]
    return [(_tar_name(part), write_tar(members)[0])]


def _png(pixels_HWC: Pixels) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(pixels_HWC).save(buffer, "PNG")
    return buffer.getvalue()


def _npy_name(part: int) -> str:
    return f"part-{part:05d}.npy"


def _tar_name(part: int) -> str:
    return f"samples-{part:05d}.tar"


def read_pixels(plan: SamplePlan, part: int, most: int) -> Pixels:
    """The first images of a part that is there."""
    start, stop = plan.span(part)
    count = min(most, stop - start)
    if plan.kind == "npz":
        return part_array(plan, part)[:count]
    names = [f"{image_name(start + at)}.png" for at in range(count)]
    if plan.kind == "png":
        files = [storage.read_bytes(storage.join(plan.folder, name)) for name in names]
    else:
        archive = storage.read_bytes(storage.join(plan.folder, _tar_name(part)))
        members = {member.name: member for member in list_members(archive)}
        files = [archive[members[name].offset :][: members[name].length] for name in names]
    from PIL import Image

    return np.stack([np.asarray(Image.open(io.BytesIO(file)).convert("RGB")) for file in files])


def part_array(plan: SamplePlan, part: int) -> Pixels:
    """All images of a part that is there, of kind npz.

    Raises:
        CorruptShardError: if the file holds something else.
    """
    uri = storage.join(plan.folder, _npy_name(part))
    try:
        array = parse_npy(storage.read_bytes(uri))
    except ValueError as error:
        raise CorruptShardError(f"{uri}: {error}: delete it and run the same command again") from None
    if array.dtype != np.uint8 or array.ndim != 4 or len(array) != plan.images(part):
        raise CorruptShardError(f"{uri} holds other images than its plan: delete it and run the same command again")
    return array


# -------------------------------------------------------------------------------------------------------- all parts


class Parts:
    """Which parts of a plan are there."""

    def __init__(self, plan: SamplePlan) -> None:
        self.plan = plan
        self._digests = np.zeros((plan.parts, 32), np.uint8)
        self._is_there = np.zeros(plan.parts, np.bool_)
        self._software: dict[str, set[str]] = {}

    @property
    def missing(self) -> npt.NDArray[np.int64]:
        """Numbers of the parts that are still to be made, ascending."""
        return np.flatnonzero(~self._is_there)

    def images(self, parts: Sequence[int] | npt.NDArray[np.int64]) -> int:
        """Images of some parts."""
        return sum(self.plan.images(int(part)) for part in parts)

    @property
    def software(self) -> dict[str, list[str]]:
        """The versions of each package that made them."""
        return {name: sorted(versions) for name, versions in sorted(self._software.items())}

    @property
    def digest(self) -> str:
        """sha256 over the names and hashes of all files."""
        return hashlib.sha256(self._digests.tobytes()).hexdigest()

    def add(self, part: int, digest: str, software: dict[str, str]) -> None:
        """A part is there, with files of this digest."""
        self._digests[part] = np.frombuffer(bytes.fromhex(digest), np.uint8)
        self._is_there[part] = True
        for name, version in software.items():
            self._software.setdefault(name, set()).add(version)

    def look(self) -> None:
        """See what storage has: a part is there if its record is of this plan, and its files are as long as it says.

        Raises:
            UsageError: if a record is none, or of another plan.
        """
        plan = self.plan
        there = {name for name in storage.list_names(storage.join(plan.folder, PARTS)) if name.endswith(".json")}
        numbers = [part for part in range(plan.parts) if f"{part:05d}.json" in there]
        sizes = storage.walk(plan.folder) if numbers else {}
        with ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="samples") as pool:
            for part, record in zip(numbers, pool.map(self._read, numbers), strict=True):
                if all(sizes.get(name) == file.bytes for name, file in record.files.items()):
                    self.add(part, digest_of(record.model_dump()["files"]), record.software)

    def _read(self, part: int) -> _Part:
        uri = self.plan.record(part)
        try:
            record = _Part.model_validate(storage.read_json(uri))
        except ValidationError as error:
            raise UsageError(f"{uri} is no record of samples ({first_problem(error)}): delete it") from None
        if record.plan != self.plan.fingerprint or record.part != part:
            raise UsageError(f"{uri} is of other samples: delete it, or choose another --out")
        return record
