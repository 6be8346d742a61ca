"""Drawn images as files: numbered PNG, one npz, or WebDataset tars; made part by part, so that a set of them resumes.

    OUT/plan.json              what all images follow from; written first
    OUT/parts/00000.json       a part that is there: its files with their sizes and sha256; written after them
    OUT/000000.png             kind png: an image a file
    OUT/samples-00000.tar      kind shards: 000000.png and 000000.cls of each image of a part
    OUT/grid.png               the first images
    OUT/sampling.json          all that made them; written last: its presence means complete

    OUT.npz                    kind npz, in ADM's layout: arr_0 uint8 [N, H, W, 3], arr_1 int64 [N], the labels. The
                               parts are in OUT.npz.parts until it is there; OUT.grid.png and OUT.sampling.json beside

A part is a function of its plan, so that it does no harm to make one twice. Imports no torch.
Shapes: B images of a part, H height, W width, C channels.
"""

from __future__ import annotations

import hashlib
import io
import zipfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import IO, Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from data_pipeline import storage
from data_pipeline.errors import CorruptShardError, UsageError
from data_pipeline.shards.manifest import differences
from data_pipeline.storage.tar import list_members, write_tar
from data_pipeline.text.json_records import first_problem
from data_pipeline.text.names import Count, Sha256
from data_pipeline.text.npy import parse_npy
from trainer.evaluation.images import Pixels, image_grid, to_png
from trainer.evaluation.label_plan import LabelPlan

Kind = Literal["png", "npz", "shards"]
PLAN, SAMPLING, GRID, PARTS = "plan.json", "sampling.json", "grid.png", "parts"
VERSION = 1
PART_IMAGES: dict[Kind, int] = {"png": 64, "npz": 64, "shards": 512}
"""Images of a part, about: what is drawn again where a worker dies."""
_AT_ONCE = 16
"""Files that are written or read at the same time."""
_GRID_IMAGES, _GRID_COLUMNS, _PIXELS_WIDE = 64, 8, 96
_OURS = {"lease", "quarantine", "progress.json", "control.json"}
"""What a driver leaves before its plan."""


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
    def fingerprint(self) -> str:
        """Of all that decides the files."""
        return storage.fingerprint(self.to_json())

    def to_json(self) -> dict[str, Any]:
        """For records."""
        plan = {"kind": self.kind, "part_images": self.part_images, "labels": self.labels.to_json()}
        return {"plan": plan, "made_by": self.made_by}

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
        return _npy(plan, part)[:count]
    names = [f"{image_name(start + at)}.png" for at in range(count)]
    if plan.kind == "png":
        files = [storage.read_bytes(storage.join(plan.folder, name)) for name in names]
    else:
        archive = storage.read_bytes(storage.join(plan.folder, _tar_name(part)))
        members = {member.name: member for member in list_members(archive)}
        files = [archive[members[name].offset :][: members[name].length] for name in names]
    from PIL import Image

    return np.stack([np.asarray(Image.open(io.BytesIO(file)).convert("RGB")) for file in files])


def _npy(plan: SamplePlan, part: int) -> Pixels:
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


# --------------------------------------------------------------------------------------------------------- the whole


def is_finished(plan: SamplePlan) -> bool:
    """Whether all is there already.

    Raises:
        UsageError: if the output holds other samples, and says what differs; or something else.
    """
    finished = _planned(plan.beside(SAMPLING))
    begun = _planned(storage.join(plan.folder, PLAN))
    for uri, found in ((plan.beside(SAMPLING), finished), (storage.join(plan.folder, PLAN), begun)):
        if found is not None and (differing := differences(found, plan.to_json())):
            shown = "\n  ".join(differing[:20])
            raise UsageError(
                f"{uri} is of samples that were drawn otherwise (there -> now):\n  {shown}\nChoose another --out, or "
                "delete what is there"
            )
    if finished is not None:
        return True
    if plan.kind == "npz" and storage.exists(plan.output):
        if begun is None:
            raise UsageError(
                f"{plan.output} is there already, and no {SAMPLING} says how it was made: choose another --out"
            )
    elif begun is None and (others := set(storage.list_names(plan.folder)) - _OURS):
        raise UsageError(
            f"{plan.output} holds other files ({sorted(others)[0]}, {len(others)} in all): choose a new folder as --out"
        )
    return False


def _planned(uri: str) -> dict[str, Any] | None:
    """What a record says of the plan; None if there is no record."""
    try:
        record = storage.read_json(uri)
    except (FileNotFoundError, NotADirectoryError):
        return None
    if not isinstance(record, dict) or record.get("version") != VERSION:
        raise UsageError(f"{uri} is no record of samples of this version of foldtrain: choose another --out")
    return {name: record.get(name) for name in ("plan", "made_by")}


def begin(plan: SamplePlan) -> None:
    """Put on record what is about to be made."""
    storage.write_json(storage.join(plan.folder, PLAN), {"version": VERSION} | plan.to_json())


def finish(plan: SamplePlan, parts: Parts, names: Sequence[str], told: dict[str, Any]) -> None:
    """With all parts there: the npz, the grid, and last the record.

    Args:
        plan: of the samples.
        parts: all of its parts.
        names: of the classes, by label.
        told: what is on record beside the plan.
    """
    files = {}
    if plan.kind == "npz":
        storage.write_stream(plan.output, lambda file: _write_npz(plan, file))
    grid = _grid(plan, names)
    storage.write_bytes(plan.beside(GRID), grid)
    files[plan.beside(GRID).rpartition("/")[2]] = storage.sha256(grid)
    record = {"version": VERSION} | plan.to_json() | told
    record |= {
        "images": plan.labels.images,
        "software": parts.software,
        "files": files,
        "sha256_of_parts": parts.digest,
    }
    storage.write_json(plan.beside(SAMPLING), record)


def _grid(plan: SamplePlan, names: Sequence[str]) -> bytes:
    pixels = read_pixels(plan, 0, _GRID_IMAGES)
    labels = plan.labels.segments[0].labels
    columns = len(labels) if 1 < len(labels) <= _GRID_IMAGES // 4 and len(pixels) >= len(labels) else _GRID_COLUMNS
    columns = min(columns, len(pixels))
    heads = [names[label] if label >= 0 else "no class" for label in plan.labels.between(0, columns).tolist()]
    is_even = columns == len(labels) or len(set(heads)) == 1
    upscale = max(1, _PIXELS_WIDE // pixels.shape[2])
    return to_png(image_grid(pixels, columns, upscale=upscale, column_labels=heads if is_even else ()))


def _write_npz(plan: SamplePlan, file: IO[bytes]) -> None:
    """Stream the parts into one archive; the same parts give the same bytes."""
    first = _npy(plan, 0)
    label_N = plan.labels.between(0, plan.labels.images)
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        with archive.open(zipfile.ZipInfo("arr_0.npy"), "w", force_zip64=True) as member:
            _write_header(member, first, (plan.labels.images, *first.shape[1:]))
            for pixels in _all_pixels(plan):
                member.write(np.ascontiguousarray(pixels).data)
        with archive.open(zipfile.ZipInfo("arr_1.npy"), "w", force_zip64=True) as member:
            np.lib.format.write_array(member, label_N, allow_pickle=False)


def _all_pixels(plan: SamplePlan) -> Iterator[Pixels]:
    for part in range(plan.parts):
        yield _npy(plan, part)


def _write_header(member: IO[bytes], array: npt.NDArray[Any], shape: tuple[int, ...]) -> None:
    header = np.lib.format.header_data_from_array_1_0(array) | {"shape": shape}
    np.lib.format.write_array_header_1_0(member, header)
