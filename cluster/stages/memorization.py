"""The part of `evaluate` that looks for copies of training images among samples (`evaluation.memorization`).

RUN/evaluation/training-…      rows of the training images, which stay for the next evaluation
RUN/samples/nearest.png        the samples that are closest to a training image, beside it
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cluster.config.run import RunConfig
from cluster.stages.measuring import Measuring
from cluster.stages.results import PIXELS_WIDE
from data_pipeline.errors import UsageError
from trainer.config.evaluation import MemorizationConfig
from trainer.evaluation.naming.numbers import Number
from trainer.evaluation.networks.network_rows import FEATURES, NetworkRows, Slot
from trainer.evaluation.row_files import StoredRows
from trainer.evaluation.samples.memorization import QUANTILE, NearestTraining
from trainer.evaluation.set_numbers import Naming
from trainer.evaluation.sets import ImageReader, ShardSet

PICTURE = "samples/nearest.png"


@dataclass(frozen=True)
class Memorized:
    """What was found."""

    number: Number
    record: dict[str, Any]
    png: bytes


@dataclass(frozen=True)
class Samples:
    """Images that were drawn, with their rows."""

    reader: ImageReader
    rows: StoredRows
    naming: Naming


def memorization_network(config: RunConfig, slots: Sequence[Slot], is_held_out: bool) -> Slot | None:
    """The network by whose features training images are compared; None if it is not asked for.

    Raises:
        UsageError: if there is no such network, or there are no held-out images to compare with.
    """
    asked = config.evaluation.memorization
    if asked is None:
        return None
    if not is_held_out:
        raise UsageError(
            "evaluation.memorization: the run holds no images out, so nothing says how near a training image is near; "
            "set data.validation_source or data.validation_samples, or evaluation.memorization: null"
        )
    found = next((slot for slot in slots if asked.network in {slot.name, slot.identity.get("name")}), None)
    if found is None:
        names = ", ".join(str(slot.identity.get("name", slot.name)) for slot in slots) or "none"
        raise UsageError(
            f"evaluation.memorization.network: {asked.network} is no network of this evaluation ({names}): name one of "
            "them, or add it to evaluation.networks"
        )
    return found


def memorization(
    asked: MemorizationConfig,
    slot: Slot,
    measuring: Measuring,
    samples: Samples,
    held_out: tuple[ShardSet, StoredRows],
    training: ShardSet,
) -> Memorized:
    """Find the nearest training image of each of the first samples.

    Args:
        asked: of how many, by what.
        slot: whose features say what is near.
        measuring: measures the training images.
        samples: what was drawn.
        held_out: images that nothing was trained on, and their rows.
        training: the images that the generator was trained on.
    """
    rows, name = measuring.rows("training", training, NetworkRows((slot,))), f"{slot.name}.{FEATURES}"
    drawn, (real, real_rows) = samples.rows.first(asked.samples), held_out
    others = real_rows.first(asked.held_out)
    found = NearestTraining.find(drawn.column(name), others.column(name), rows.column(name))
    by = {
        "reference": {"images": training.fingerprint, "count": training.count},
        "crop": training.how_cut,
        "network": slot.identity,
        "protocol": {"quantile": QUANTILE, "held_out": {"images": real.fingerprint, "count": others.count}},
    }
    number = samples.naming.number("memorized_share", found.share, drawn.count, by, found.standard_error)
    record = found.to_json(asked.shown) | {"network": slot.identity.get("name", slot.name)}
    record["training_images"] = training.count
    return Memorized(number, record, _picture(record["closest"], samples.reader, training.open(measuring.device)))


def _picture(closest: Sequence[Mapping[str, Any]], drawn: ImageReader, training: ImageReader) -> bytes:
    """A PNG: in each row a sample, and the training image nearest to it."""
    from trainer.evaluation.images import image_grid, to_png

    pairs = [(_image(drawn, each["sample"]), _image(training, each["training_image"])) for each in closest]
    pixels = np.stack([image for pair in pairs for image in pair])
    distances = [f"{each['distance']:.3g}" for each in closest]
    upscale = max(1, PIXELS_WIDE // pixels.shape[1])
    labels = ["sample", "nearest"]
    return to_png(image_grid(pixels, 2, upscale=upscale, row_labels=distances, column_labels=labels))


def _image(images: ImageReader, number: int) -> Any:
    pixels_1HWC, _ = images.read(number, number + 1)
    return pixels_1HWC[0]
