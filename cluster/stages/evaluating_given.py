"""`foldtrain evaluate images` and `evaluate tokenizer`: numbers of anybody's images and tokenizers, without a run.

evaluation.json of the output folder has them, and `foldtrain compare` takes it beside those of runs. A start goes on
from the parts that are there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cluster.config.run import ClusterConfig
from cluster.stages.evaluation_inputs import open_slots_of
from cluster.stages.measuring import Measuring
from data_pipeline import storage
from data_pipeline.errors import UsageError
from data_pipeline.shards import weights
from data_pipeline.shards.tokenizers import load_tokenizer
from model.config.losses import PerceptualConfig
from trainer.config.evaluation import Rounding
from trainer.config.feature_networks import FeatureNetworkConfig
from trainer.evaluation.network_rows import NetworkRows, Slot
from trainer.evaluation.numbers import VERSION, Number
from trainer.evaluation.perturbed_tokens import TokenPerturbation
from trainer.evaluation.reference import ReferenceFile
from trainer.evaluation.row_files import StoredRows
from trainer.evaluation.set_numbers import Naming, Reference, drawn_of, set_numbers
from trainer.evaluation.sets import ImageSet, NpzSet, SampledSet, ShardSet, open_images
from trainer.evaluation.tokenizer_numbers import tokenizer_numbers
from trainer.evaluation.tokenizer_rows import TokenizerRows, columns_of
from trainer.inference.exports import find_export
from trainer.metrics.inception_score import SPLITS

if TYPE_CHECKING:
    import torch

EVALUATION = "evaluation.json"


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
    splits: int = SPLITS
    """Of the Inception score."""
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
    device = _device()
    shown = open_images(images, how.size, how.fit, how.most)
    slots = _slots(how, device)
    measuring = Measuring(how.output, device, how.cluster)
    rows = measuring.rows("images", shown, NetworkRows(slots))
    compared = _reference(reference, how, slots, measuring)
    of = drawn_of(shown.made_by) if isinstance(shown, SampledSet) else {"images": _named(shown, rows)}
    numbers = list(set_numbers(slots, rows, compared, Naming(of, _rounding(shown)), how.splits))
    return write_numbers(how.output, numbers)


def evaluate_tokenizer(tokenizer: str, images: str, how: How, perturbation: TokenPerturbation | None) -> list[Number]:
    """Reconstruct images, and compare them with their originals, and as a set.

    Args:
        tokenizer: URI of a run, of the stage that trained it, or of an export or import.
        images: of the originals.
        how: networks, sizes, where.
        perturbation: of the tokens before they are decoded (pFID); None decodes the images' own.

    Raises:
        UsageError: if something that is needed is not there, or the tokenizer has no tokens to perturb.
    """
    uri = storage.absolute(find_export(tokenizer, "tokenizer"))
    card = weights.read_card(uri, "tokenizer")
    device = _device()
    network, _ = load_tokenizer(uri, device)
    size = how.size or network.config.image_size
    originals = open_images(images, size, how.fit, how.most)
    slots = _slots(how, device)
    measuring = Measuring(how.output, device, how.cluster)
    measure = TokenizerRows.of(uri, card, how.rounding, slots, how.perceptual, perturbation)
    rows = measuring.rows("reconstructions", originals, measure)
    named = _named(originals, rows)
    of = {"tokenizer": measure.tokenizer, "images": named}
    of |= {"perturbation": perturbation.to_json()} if perturbation else {}
    real = measuring.rows("real", originals, NetworkRows(slots)) if slots else None
    numbers: list[Number] = []
    if real is not None:
        reference = Reference({"reference": named} | _crop(originals), real)
        numbers += set_numbers(slots, rows, reference, Naming(of, how.rounding), how.splits)
    numbers += tokenizer_numbers(rows, columns_of(network, how.perceptual), _crop(originals), of)
    return write_numbers(how.output, numbers)


def _slots(how: How, device: torch.device) -> tuple[Slot, ...]:
    return open_slots_of({f"network{number}": each for number, each in enumerate(how.networks)}, device)


def _reference(uri: str, how: How, slots: tuple[Slot, ...], measuring: Measuring) -> Reference:
    """Statistics of an npz, as far as it has them, and rows of its images or of another set."""
    if not uri.endswith(".npz"):
        images = open_images(uri, how.size, how.fit)
        rows = measuring.rows("reference", images, NetworkRows(slots))
        return Reference({"reference": _named(images, rows)} | _crop(images), rows)
    found = ReferenceFile.read(uri)
    named = {"reference": found.identity() | {"uri": uri}}
    of_inception = [slot for slot in slots if slot.config.kind == "inception"]
    if found.shape is None:
        if len(of_inception) < len(slots):
            raise UsageError(f"{uri} has statistics of Inception alone: name images as --reference for other networks")
        return Reference(named, None, found.statistics)
    rows = measuring.rows("reference", NpzSet.of(uri), NetworkRows(slots))
    return Reference(named, rows, found.statistics if of_inception else {})


def _named(images: ImageSet, rows: StoredRows) -> dict[str, Any]:
    """A set of images in the name of a number: by the manifest's hash, or by the bytes of all images."""
    sha256 = images.fingerprint if isinstance(images, ShardSet) else rows.finished.pixels
    return {"images": sha256, "count": images.count}


def _crop(images: ImageSet) -> dict[str, Any]:
    cut = images.identity().get("crop")
    return {"crop": cut} if cut else {}


def _rounding(images: ImageSet) -> str:
    """How values became the bytes that are measured: of files that foldtrain drew it is known."""
    return "nearest" if isinstance(images, SampledSet) else "as given"


def _device() -> torch.device:
    from trainer.engine.device import given_device

    return given_device(0)


def write_numbers(output: str, numbers: list[Number]) -> list[Number]:
    """Put the numbers into evaluation.json of a folder, and give them back."""
    record = {"version": VERSION, "numbers": [number.to_json() for number in numbers]}
    storage.write_json(storage.join(output, EVALUATION), record)
    return numbers
