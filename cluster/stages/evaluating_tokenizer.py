"""`foldtrain evaluate tokenizer`: all that is measured of anybody's tokenizer on anybody's images.

1. errors, use of codes and distances of reconstructions; of each prefix of the tokens, and of perturbed tokens
2. linear probes of the branches and of pixels, trained on other images with classes
3. bits against error and distances, with principal components of other images and JPEG at as many bits
4. whether text is legible in reconstructions

Each part that is measured image by image has rows of its own (measuring.py), from which a start goes on; the rest takes
seconds. Beside what evaluating_given.py writes are here

    OUT/rate-distortion.svg, OUT/perturbation.svg    charts of the page as files
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cluster.stages.evaluating_given import How, crop_of, named_set, slots_of, this_device, write_evaluation
from cluster.stages.measuring import Measuring
from data_pipeline import storage
from data_pipeline.errors import UsageError
from data_pipeline.shards import weights
from data_pipeline.shards.tokenizers import load_tokenizer
from trainer.evaluation.naming.metric_names import title
from trainer.evaluation.naming.numbers import Number
from trainer.evaluation.networks.network_rows import NetworkRows, Slot
from trainer.evaluation.row_files import StoredRows
from trainer.evaluation.set_numbers import Naming, Reference, is_distance, prefix_distances, set_numbers
from trainer.evaluation.sets import ImageSet, open_images
from trainer.evaluation.tokenizers.baselines import components, images_needed
from trainer.evaluation.tokenizers.compressed import Codec, ComponentCodec, CompressedRows, JpegCodec
from trainer.evaluation.tokenizers.perturbed_tokens import TokenPerturbation
from trainer.evaluation.tokenizers.rate_distortion import RateDistortion, codec_curve, tokenizer_curve
from trainer.evaluation.tokenizers.tokenizer_numbers import Columns, tokenizer_numbers
from trainer.evaluation.tokenizers.tokenizer_rows import ProbeRows, TokenizerRows, columns_of
from trainer.inference.exports import find_export
from trainer.report.perturbation import perturbation_file
from trainer.report.rate_distortion import distortion_file

if TYPE_CHECKING:
    import torch

    from data_pipeline.shards.weights import Card
    from model.protocols import Tokenizer

DISTORTION_CHART, PERTURBATION_CHART = "rate-distortion.svg", "perturbation.svg"
_BEYOND = (2, 4)
"""Times the bits of all tokens at which there are components and JPEG, too: small images have no JPEG of fewer."""


@dataclass(frozen=True)
class Asked:
    """What is measured of a tokenizer beside its errors, its codes and distances of whole reconstructions."""

    prefixes: bool = False
    """Distances of what each prefix of the tokens gives, and of what baselines make of as many bits."""
    perturbations: Sequence[TokenPerturbation] = ()
    """All of it again of tokens that are replaced so before they are decoded (pFID)."""
    probe: str | None = None
    """URI of the images, with classes, that linear probes are trained on; the others judge them."""
    baselines: str | None = None
    """URI of the images that principal components are computed from."""
    legibility: bool = False
    """Whether text can be read in reconstructions."""


def evaluate_tokenizer(tokenizer: str, images: str, how: How, asked: Asked) -> list[Number]:
    """Reconstruct images, compare them with their originals, and measure what else is asked for.

    Args:
        tokenizer: URI of a run, of the stage that trained it, or of an export or import.
        images: of the originals.
        how: networks, sizes, where.
        asked: further parts.

    Raises:
        UsageError: if something that is needed is not there, or the tokenizer has not what is asked for.
    """
    subject = _Subject.open(tokenizer, images, how)
    subject.check(asked)
    own = list(_reconstructed(subject, None, of_prefixes=asked.prefixes))
    perturbed = [number for each in asked.perturbations for number in _reconstructed(subject, each)]
    probes = _probes(subject, asked.probe) if asked.probe else []
    text = _legibility(subject) if asked.legibility else []
    numbers = [*own, *perturbed, *probes, *text]
    slots = subject.slots if asked.prefixes else ()
    distortion = _rate_distortion(subject, asked.baselines, own, slots) if asked.baselines else None
    if perturbed:
        _write_chart(how, PERTURBATION_CHART, perturbation_file({"": [*own, *perturbed]}))
    if distortion:
        _write_chart(how, DISTORTION_CHART, distortion_file(distortion))
    write_evaluation(how.output, tokenizer, numbers, distortion)
    return numbers


@dataclass(frozen=True)
class _Subject:
    """A tokenizer, the images that it is measured on, and by what."""

    uri: str
    """Of its export."""
    card: Card
    network: Tokenizer
    originals: ImageSet
    slots: tuple[Slot, ...]
    measuring: Measuring
    how: How

    @classmethod
    def open(cls, tokenizer: str, images: str, how: How) -> _Subject:
        """Load it, and find the images."""
        uri, device = storage.absolute(find_export(tokenizer, "tokenizer")), this_device()
        card = weights.read_card(uri, "tokenizer")
        network, _ = load_tokenizer(uri, device)
        originals = open_images(images, how.size or network.config.image_size, how.fit, how.most)
        measuring = Measuring(how.output, device, how.cluster)
        return cls(uri, card, network, originals, slots_of(how, device), measuring, how)

    def check(self, asked: Asked) -> None:
        """Refuse what cannot be measured, before anything is.

        Raises:
            UsageError: if it has no tokens for what is asked for, or they cannot be perturbed so.
        """
        if asked.baselines and not self.network.config.has_tokens:
            raise UsageError("--baselines: this tokenizer has a Gaussian bottleneck, and no bits to compare at")
        if asked.prefixes and not self.slots:
            raise UsageError("--prefixes: distances need a network: give --inception FILE, or --network KIND:NAME@FILE")
        for each in asked.perturbations:
            each.of(self.network)

    @property
    def device(self) -> torch.device:
        """Of this process."""
        return self.measuring.device

    @functools.cached_property
    def columns(self) -> Columns:
        """What rows of reconstructions are."""
        return columns_of(self.network, self.how.perceptual)

    @functools.cached_property
    def reference(self) -> Reference | None:
        """The originals as what reconstructions are compared with; None without a network."""
        if not self.slots:
            return None
        rows = self.measuring.rows("real", self.originals, NetworkRows(self.slots))
        return Reference({"reference": named_set(self.originals, rows)} | crop_of(self.originals), rows)

    def of(self, rows: StoredRows) -> dict[str, Any]:
        """`measured_of` of all that is measured on the originals; any rows of theirs name them."""
        halves = {"encoder": self.card.encoder(), "decoder": self.card.decoder()}
        return {"tokenizer": halves, "images": named_set(self.originals, rows)}

    def others(self, images: str, most: int | None = None) -> ImageSet:
        """Other images, cut as the originals."""
        size = self.how.size or self.network.config.image_size
        return open_images(images, size, self.how.fit, most)


def _reconstructed(
    subject: _Subject, perturbation: TokenPerturbation | None, *, of_prefixes: bool = False
) -> Iterator[Number]:
    """Distances, errors and use of codes; of the images' own tokens, or of perturbed ones."""
    how, reference = subject.how, subject.reference
    measure = TokenizerRows.of(
        subject.uri, subject.card, how.rounding, subject.slots, how.perceptual, perturbation, of_prefixes
    )
    rows = subject.measuring.rows("reconstructions", subject.originals, measure)
    of = subject.of(rows) | ({"perturbation": perturbation.to_json()} if perturbation else {})
    naming = Naming(of, how.rounding)
    if reference is not None:
        yield from set_numbers(subject.slots, rows, reference, naming, how.options)
        if of_prefixes:
            prefixes = subject.columns.prefixes[:-1]
            yield from prefix_distances(subject.slots, rows, reference, naming, prefixes, how.options)
    yield from tokenizer_numbers(rows, subject.columns, crop_of(subject.originals), of)


def _probes(subject: _Subject, images: str) -> list[Number]:
    """Accuracy of a linear layer on each branch, and on pixels."""
    from trainer.evaluation.tokenizers.linear_probe import PIXELS, linear_probes

    measure, training = ProbeRows.of(subject.uri, subject.card), subject.others(images)
    seen = subject.measuring.rows("probe-training", training, measure)
    asked = subject.measuring.rows("probe", subject.originals, measure)
    branches = {f"branch_{number}": name for number, name in enumerate(subject.columns.folds)}
    by = {"training": named_set(training, seen)} | crop_of(subject.originals)
    return linear_probes(seen, asked, branches | {PIXELS: PIXELS}, by, subject.of(asked), device=subject.device)


def _legibility(subject: _Subject) -> list[Number]:
    """Share of the characters that are read right in reconstructions of text."""
    from trainer.evaluation.tokenizers.legibility import legibility, sizes_that_fit
    from trainer.evaluation.tokenizers.tokenizer_measure import reconstructing

    side = subject.how.size or subject.network.config.image_size
    halves = {"encoder": subject.card.encoder(), "decoder": subject.card.decoder()}
    reconstruct = reconstructing(subject.network, subject.device)
    return legibility(reconstruct, side, sizes_that_fit(side), {"image_size": side}, {"tokenizer": halves})


def _rate_distortion(subject: _Subject, images: str, own: Sequence[Number], slots: Sequence[Slot]) -> RateDistortion:
    """The tokenizer at each prefix; principal components and JPEG at its bits, and at some more.

    Args:
        subject: what is measured.
        images: URI of those that components are computed from.
        own: numbers of the images' own tokens.
        slots: networks by whose features distances of all three are measured.
    """
    tokens = tokenizer_curve(own, subject.network.layout, slots)
    own_bits = [point.budget for point in tokens.points]
    budgets = (*own_bits, *(factor * own_bits[-1] for factor in _BEYOND))
    by_components = _component_codec(subject, images, budgets)
    codecs: dict[str, Codec] = {"principal components": by_components, "JPEG": JpegCodec(budgets)}
    curves = [tokens]
    for name, codec in codecs.items():
        folder = codec.identity()["kind"]
        rows = subject.measuring.rows(folder, subject.originals, CompressedRows(codec, tuple(slots)))
        curves.append(codec_curve(name, rows, budgets, slots, subject.reference if slots else None))
    called = {slot.name: title(each) for slot in slots for each in own if is_distance(each, slot)}
    return RateDistortion(tuple(curves), by_components.training, called)


def _component_codec(subject: _Subject, images: str, budgets: Sequence[int]) -> ComponentCodec:
    """Principal components of the first images of a set, cut as the originals."""
    import torch

    from trainer.evaluation.tokenizers.tokenizer_record import most_images

    side = subject.how.size or subject.network.config.image_size
    training = subject.others(images, min(images_needed(side), most_images(side)))
    pixels_NHWC, _ = training.open(torch.device("cpu")).read(0, training.count)
    return ComponentCodec(components(pixels_NHWC, budgets), training.identity(), images, budgets)


def _write_chart(how: How, name: str, svg: str) -> None:
    storage.write_bytes(storage.join(how.output, name), svg.encode())
