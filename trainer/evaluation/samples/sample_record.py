"""What is written of drawn images as a whole: the plan before the first, and after the last grid, npz and record.

The files are those of sample_files.py. Imports no torch.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Sequence
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from data_pipeline import storage
from data_pipeline.errors import UsageError
from data_pipeline.shards.manifest import differences
from data_pipeline.text import json_records
from trainer.evaluation.images import Pixels, image_grid, to_png
from trainer.evaluation.samples.sample_files import VERSION, Parts, SamplePlan, part_array, read_pixels

PLAN, SAMPLING, GRID = "plan.json", "sampling.json", "grid.png"
_GRID_IMAGES, _GRID_COLUMNS, _PIXELS_WIDE = 64, 8, 96
_OURS = {"lease", "quarantine", "progress.json", "control.json"}
"""What a driver leaves before its plan."""


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


def read_sampling(output: str) -> tuple[SamplePlan, str] | None:
    """The plan of what lies in a folder, or an npz, that `foldtrain sample` has finished, and the hash of its files.

    Returns:
        None if there is no such record.

    Raises:
        UsageError: if there is one, and it is of another version or damaged.
    """
    uri = f"{output.removesuffix('.npz')}.{SAMPLING}" if output.endswith(".npz") else storage.join(output, SAMPLING)
    record = _record(uri)
    if record is None:
        return None
    try:
        return SamplePlan.of_record(output, record), str(record["sha256_of_parts"])
    except (KeyError, TypeError, ValueError) as error:
        raise UsageError(f"{uri} is damaged ({error!r}): sample again") from None


def _planned(uri: str) -> dict[str, Any] | None:
    """What a record says of the plan; None if there is no record."""
    record = _record(uri)
    return None if record is None else {name: record.get(name) for name in ("plan", "made_by")}


def _record(uri: str) -> dict[str, Any] | None:
    try:
        record = storage.read_json(uri)
    except (FileNotFoundError, NotADirectoryError):
        return None
    if not isinstance(record, dict) or record.get("version") != VERSION:
        raise UsageError(f"{uri} is no record of samples of this version of foldtrain: choose another --out")
    return record


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
    """Stream the parts into one archive, with the plan; the same parts give the same bytes."""
    first = part_array(plan, 0)
    label_N = plan.labels.between(0, plan.labels.images)
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        with archive.open(zipfile.ZipInfo("arr_0.npy"), "w", force_zip64=True) as member:
            _write_header(member, first, (plan.labels.images, *first.shape[1:]))
            for pixels in _all_pixels(plan):
                member.write(np.ascontiguousarray(pixels).data)
        with archive.open(zipfile.ZipInfo("arr_1.npy"), "w", force_zip64=True) as member:
            np.lib.format.write_array(member, label_N, allow_pickle=False)
        archive.writestr(zipfile.ZipInfo(SAMPLING), storage.canonical_json({"version": VERSION} | plan.to_json()))


def npz_plan(uri: str, archive: zipfile.ZipFile) -> SamplePlan | None:
    """The plan of an npz's images, which it carries wherever it goes; None if it is of another maker or version.

    Raises:
        UsageError: if its plan is damaged.
    """
    if SAMPLING not in archive.namelist():
        return None
    try:
        with archive.open(SAMPLING) as member:
            record = json_records.parse(member.read(json_records.MOST_BYTES + 1))
        return SamplePlan.of_record(uri, record) if record["version"] == VERSION else None
    except (KeyError, TypeError, ValueError, zipfile.BadZipFile) as error:
        raise UsageError(f"{uri}: its {SAMPLING} is damaged ({error!r}): sample again") from None


def _all_pixels(plan: SamplePlan) -> Iterator[Pixels]:
    for part in range(plan.parts):
        yield part_array(plan, part)


def _write_header(member: IO[bytes], array: npt.NDArray[Any], shape: tuple[int, ...]) -> None:
    header = np.lib.format.header_data_from_array_1_0(array) | {"shape": shape}
    np.lib.format.write_array_header_1_0(member, header)
