"""`foldtrain evaluate images`, and what it has in common with `evaluate tokenizer`: numbers without a run.

OUT/evaluation.json    the numbers, which `foldtrain compare` takes beside those of runs; written last
OUT/evaluation.html    the same as a page
OUT/NAME-HASH          rows of images, from which a start goes on; they may be deleted
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cluster.config.run import ClusterConfig
from cluster.stages.evaluation_inputs import open_slots_of
from cluster.stages.measuring import Measuring
from data_pipeline import storage
from data_pipeline.errors import UsageError
from model.config.losses import PerceptualConfig
from trainer.config.evaluation import Rounding
from trainer.config.feature_networks import FeatureNetworkConfig
from trainer.evaluation.naming.numbers import VERSION, Number
from trainer.evaluation.networks.network_rows import NetworkRows, Slot
from trainer.evaluation.reference import ReferenceFile
from trainer.evaluation.row_files import StoredRows
from trainer.evaluation.set_numbers import MetricOptions, Naming, Reference, drawn_of, set_numbers
from trainer.evaluation.sets import ImageSet, NpzSet, SampledSet, ShardSet, open_images
from trainer.evaluation.tokenizers.rate_distortion import RateDistortion
from trainer.report.evaluation_page import evaluation_page

if TYPE_CHECKING:
    import torch

EVALUATION, PAGE = "evaluation.json", "evaluation.html"


@dataclass(frozen=True)
class How:
    """What evaluations of given things have in common."""

    output: str
    """Folder that evaluation.json and the rows go to."""
    networks: Sequence[FeatureNetworkConfig] = ()
    size: int | None = None
    fit: str = "crop"
    most: int | None = None
    """Images, the first ones."""
    rounding: Rounding = "nearest"
    options: MetricOptions | None = None
    """None for the usual ones."""
    perceptual: tuple[PerceptualConfig, ...] = ()
    """Networks of perceptual distances of reconstructions."""
    cluster: ClusterConfig | None = None
    """Whose workers measure; None for this process."""


def evaluate_images(images: str, reference: str, how: How) -> list[Number]:
    """Compare images with others, or with published statistics.

    Args:
        images: URI of a folder, an npz, image shards, or of what `foldtrain sample` wrote.
        reference: the same, or an npz with ADM's statistics.
        how: networks, sizes, where.

    Raises:
        UsageError: if something that is needed is not there.
    """
    if not how.networks:
        raise UsageError("nothing to compare images by: give --inception FILE, or --network KIND:NAME@FILE")
    device = this_device()
    shown = open_images(images, how.size, how.fit, how.most)
    slots = slots_of(how, device)
    measuring = Measuring(how.output, device, how.cluster)
    rows = measuring.rows("images", shown, NetworkRows(slots))
    compared = _reference(reference, how, slots, measuring)
    made_by = shown.made_by if isinstance(shown, SampledSet | NpzSet) else None
    naming = Naming({"images": named_set(shown, rows)}, "as given") if made_by is None else _drawn_naming(made_by)
    numbers = list(set_numbers(slots, rows, compared, naming, how.options))
    write_evaluation(how.output, images, numbers)
    return numbers


def slots_of(how: How, device: torch.device) -> tuple[Slot, ...]:
    """The networks that were asked for."""
    return open_slots_of({f"network{number}": each for number, each in enumerate(how.networks)}, device)


def _reference(uri: str, how: How, slots: tuple[Slot, ...], measuring: Measuring) -> Reference:
    """Statistics of an npz, as far as it has them, and rows of its images or of another set."""
    if not uri.endswith(".npz"):
        images = open_images(uri, how.size, how.fit)
        rows = measuring.rows("reference", images, NetworkRows(slots))
        return Reference({"reference": named_set(images, rows)} | crop_of(images), rows)
    found = ReferenceFile.read(uri)
    named = {"reference": found.identity() | {"uri": uri}}
    of_inception = [slot for slot in slots if slot.config.kind == "inception"]
    if found.shape is None:
        if len(of_inception) < len(slots):
            raise UsageError(f"{uri} has statistics of Inception alone: name images as --reference for other networks")
        return Reference(named, None, found.statistics)
    rows = measuring.rows("reference", NpzSet.of(uri), NetworkRows(slots))
    return Reference(named, rows, found.statistics if of_inception else {})


def named_set(images: ImageSet, rows: StoredRows) -> dict[str, Any]:
    """A set of images in the name of a number: by the manifest's hash, or by the bytes of all images."""
    sha256 = images.fingerprint if isinstance(images, ShardSet) else rows.finished.pixels
    return {"images": sha256, "count": images.count}


def crop_of(images: ImageSet) -> dict[str, Any]:
    """How images are cut, for `measured_by`; empty where they are taken as they are."""
    cut = images.identity().get("crop")
    return {"crop": cut} if cut else {}


def _drawn_naming(made_by: Mapping[str, Any]) -> Naming:
    """The name of images that foldtrain drew: by what made them, and how values became bytes."""
    return Naming(drawn_of(made_by), str(made_by.get("rounding", "nearest")))


def this_device() -> torch.device:
    """A GPU of this machine, or its CPU."""
    from trainer.engine.device import given_device

    return given_device(0)


def write_evaluation(
    output: str, subject: str, numbers: Sequence[Number], distortion: RateDistortion | None = None
) -> None:
    """Put numbers, and curves of bits against error, into a folder: the page, and last the record.

    Args:
        output: URI of the folder.
        subject: what was measured, for the page's heading.
        numbers: with their names.
        distortion: of a tokenizer.
    """
    page = evaluation_page(subject, numbers, distortion)
    storage.write_bytes(storage.join(output, PAGE), page.encode())
    record: dict[str, Any] = {"version": VERSION, "numbers": [number.to_json() for number in numbers]}
    record |= {} if distortion is None else {"rate_distortion": distortion.to_json()}
    storage.write_json(storage.join(output, EVALUATION), record)
