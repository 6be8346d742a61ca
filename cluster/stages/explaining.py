"""The chain from image to number: what each number of an evaluation follows from, and where that is on record.

    images → tokenizer → tokens → generator → sampling → images as bytes → network → reference → number

Each link has its hash. Where something else lies in the run by now than what was measured, a warning says so.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from cluster.progress.stage_records import recorded_folder
from data_pipeline import storage
from data_pipeline.errors import UsageError
from data_pipeline.shards.manifest import ImageManifest, TokenManifest
from data_pipeline.shards.weights import Card
from data_pipeline.text.counted import counted
from data_pipeline.text.printable import printable
from trainer.evaluation.naming.metric_names import shown_value, title, without_part
from trainer.evaluation.naming.number_names import PARTS, value_text, words_of
from trainer.evaluation.naming.numbers import Number, leaves, numbers_file, read_numbers
from trainer.registry import TRAINING
from trainer.report.belonging import card_at, hashes_of

_EVALUATION = "evaluation.json"
_HASH_KEYS = ("", "sha256", "images", "fingerprint")
_HASH_DIGITS = 64
_DRAWN = ("device", "image_size")
_NAME_WIDTH = 17


@dataclass(frozen=True)
class Link:
    """One thing that numbers follow from."""

    name: str
    what: str
    """With its hash, in words."""
    recorded: str
    """The files that say so, below the run."""
    warning: str = ""
    """What lies there by now instead; empty if it is the same, or nothing lies there."""


@dataclass(frozen=True)
class Chain:
    """Numbers that follow from the same, and from what."""

    numbers: tuple[Number, ...]
    links: tuple[Link, ...]


def explain(place: str) -> Iterator[str]:
    """The lines that say what the numbers of a run, or of a file, follow from.

    Raises:
        UsageError: if there are none; it names the file.
    """
    for chain in chains_of(place):
        yield ", ".join(f"{_title(number)} {value_text(number)}" for number in chain.numbers)
        for link in chain.links:
            yield printable(f"  {link.name:<{_NAME_WIDTH}}{link.what}  [{link.recorded}]")
            if link.warning:
                yield printable(f"  {'':<{_NAME_WIDTH}}warning: {link.warning}")
        yield ""


def _title(number: Number) -> str:
    keep = number.measured_of.get("keep")
    return title(number) if keep is None else f"{title(number)} of the first {shown_value(keep)} positions"


def chains_of(place: str) -> list[Chain]:
    """The numbers of a run, or of a file, with what they follow from; those together that follow from the same.

    Raises:
        UsageError: if there are none; it names the file.
    """
    uri = numbers_file(place.rstrip("/"))
    try:
        numbers = read_numbers(uri)
    except FileNotFoundError:
        raise UsageError(f"{uri} is missing: run `foldtrain evaluate` first") from None
    run = Run.of(uri)
    groups: dict[str, list[Number]] = defaultdict(list)
    for number in numbers:
        of = {key: value for key, value in number.measured_of.items() if key != "keep"}
        same = [number.pictures, number.images, leaves(without_part(number)), leaves(of)]
        groups[storage.fingerprint(same)].append(number)
    return [Chain(tuple(found), tuple(_links(found[0], run))) for found in groups.values()]


@dataclass(frozen=True)
class Run:
    """What lies in a run now."""

    folder: str
    inputs: dict[str, str]
    """URIs of what was given from elsewhere, by what it is."""
    cards: dict[str, Card]
    """Of the networks that are there, by the stage's folder."""
    images: dict[str, str]
    """Where data sets of images are, by fingerprint."""
    tokens: TokenManifest | None

    @classmethod
    def of(cls, uri: str) -> Run:
        """That which holds a file of numbers."""
        folder, record = uri.rpartition("/")[0] or ".", storage.read_json(uri)
        given = record.get("inputs")
        inputs = {key: each for key, each in given.items() if isinstance(each, str)} if isinstance(given, dict) else {}
        names = [stage.folder for stage in TRAINING]
        cards = {name: card_at(inputs.get(name) or storage.join(folder, name, "export"), name) for name in names}
        training = inputs.get("images") or storage.join(recorded_folder(folder, "images"), "train")
        found = _image_sets(training, storage.join(training.rpartition("/")[0], "validation"))
        tokens = _manifest(TokenManifest, inputs.get("tokens") or recorded_folder(folder, "tokens"))
        return cls(folder, inputs, {name: card for name, card in cards.items() if card}, found, tokens)

    def card_file(self, stage: str) -> str:
        """Where a network's card is: below the run, or at the URI that was given."""
        return storage.join(self.inputs.get(stage) or f"{stage}/export", "card.json")

    @property
    def tokens_file(self) -> str:
        """The same of the manifest of tokens."""
        return storage.join(self.inputs.get("tokens", "tokens"), "manifest.json")


def _manifest(kind: Any, uri: str) -> Any:
    try:
        return kind.read(uri)
    except UsageError:
        return None


def _links(number: Number, run: Run) -> Iterator[Link]:
    yield from _images(number, run)
    yield from _network(number, run, "tokenizer", ("tokenizer", "encoder", "decoder"))
    if number.pictures == "samples":
        yield from _tokens(number, run)
        yield from _network(number, run, "generator", ("generator", "weights"))
        yield from _said("sampling", number.measured_of, ("sampling", "seed", "labels", *_DRAWN))
    made = words_of(number.measured_of, ("perturbation", "samples"))
    count = counted(number.images, number.pictures.removesuffix("s"))
    yield Link(number.pictures, ", ".join([count, *made]), _EVALUATION)
    yield from _said("as bytes", number.measured_by, ("rounding",))
    yield from _measured_in(number, run)
    yield from _reference(number, run)
    yield from _said("method", without_part(number), ("protocol", *_unknown(number.measured_by)))
    yield from _said("else", number.measured_of, _unknown(number.measured_of))


def _unknown(record: dict[str, Any]) -> tuple[str, ...]:
    """Keys that no link has."""
    return tuple(key for key in record if key not in {*PARTS, *_DRAWN, "samples"})


def _said(name: str, record: dict[str, Any], keys: tuple[str, ...]) -> Iterator[Link]:
    words = words_of(record, keys)
    if words:
        yield Link(name, ", ".join(words), _EVALUATION)


def _images(number: Number, run: Run) -> Iterator[Link]:
    """Those that were reconstructed, or those that the tokenizer was trained on."""
    words = words_of(number.measured_of, ("images",))
    if words:
        shown = ", ".join([*words, *words_of(number.measured_by, ("crop",))])
        yield Link("images", shown, _EVALUATION, _moved(number.measured_of["images"], run))
    card = run.cards.get("tokenizer")
    trained_on = card.lineage.get("images") if card else None
    if trained_on is not None:
        shown = f"training images {shown_value(trained_on)}"
        yield Link("images", shown, run.card_file("tokenizer"), _moved(trained_on, run))


def _moved(record: Any, run: Run) -> str:
    """What is said of images if others are where they were, or the run has others."""
    fields = record if isinstance(record, dict) else {}
    digest, place = _hash(record), fields.get("uri")
    if not isinstance(digest, str) or fields.get("kind", "shards") != "shards":
        return ""
    images = _image_sets(place) if isinstance(place, str) else run.images
    if not images or digest in images:
        return ""
    there = ", ".join(f"{uri}: {shown_value(found)}" for found, uri in images.items())
    return f"the images that are there now are others ({there})"


def _image_sets(*places: str) -> dict[str, str]:
    """Where data sets of images are, by fingerprint."""
    return {manifest.fingerprint: place for place in places if (manifest := _manifest(ImageManifest, place))}


def _hash(record: Any) -> Any:
    found = leaves(record)
    return next((found[key] for key in _HASH_KEYS if key in found), None)


def _network(number: Number, run: Run, stage: str, keys: tuple[str, ...]) -> Iterator[Link]:
    """A network of the run: what was measured, and what its card adds to that."""
    words = words_of(number.measured_of, keys)
    if not words:
        return
    card = run.cards.get(stage)
    if card is None:
        yield Link(stage, ", ".join(words), _EVALUATION)
        return
    measured = [
        value for value in leaves({key: number.measured_of.get(key) for key in keys}).values() if _is_hash(value)
    ]
    others = [value for value in measured if value not in hashes_of(card)]
    if others:
        now = f"{shown_value(card.fingerprint())}, not {shown_value(others[0])}"
        warning = f"another {stage} lies there now ({now}): evaluate again"
        yield Link(stage, ", ".join(words), _EVALUATION, warning)
        return
    if card.steps is not None and "step" not in leaves(number.measured_of.get(stage)):
        words.append(f"{card.steps:,} steps")
    made_from = [f"{name} {shown_value(value)}" for name, value in leaves(card.lineage).items()]
    if made_from:
        words.append(f"made from {', '.join(made_from)}")
    yield Link(stage, ", ".join(words), f"{_EVALUATION}, {run.card_file(stage)}")


def _is_hash(value: Any) -> bool:
    return isinstance(value, str) and len(value) == _HASH_DIGITS


def _tokens(number: Number, run: Run) -> Iterator[Link]:
    """Those that the generator was trained on."""
    card = run.cards.get("generator")
    stated = number.measured_of.get("tokens")
    digest = _hash(stated) if stated is not None else card.lineage.get("tokens") if card else None
    if digest is None:
        return
    where = run.card_file("generator") if stated is None else _EVALUATION
    words, warning = [f"tokens {shown_value(digest)}"], ""
    if run.tokens is not None and run.tokens.fingerprint == digest:
        words.append(f"of encoder {shown_value(run.tokens.tokenizer.encoder)}, images {shown_value(run.tokens.source)}")
        where = f"{where}, {run.tokens_file}"
    elif run.tokens is not None:
        warning = f"other tokens lie there now ({shown_value(run.tokens.fingerprint)})"
    yield Link("tokens", ", ".join(words), where, warning)


def _measured_in(number: Number, run: Run) -> Iterator[Link]:
    """The network that measured it; of a classifier, whether it is one of the run by now."""
    for link in _said("network", number.measured_by, ("network",)):
        network = number.measured_by["network"]
        digest, kind = _hash(network), network.get("kind") if isinstance(network, dict) else None
        cards = {name: run.cards[name] for name in ("teacher", "judge") if name in run.cards}
        if kind not in {"classifier", *cards} or not cards or digest is None:
            yield link
        elif name := next((name for name, card in cards.items() if digest in hashes_of(card)), None):
            yield Link(link.name, f"{link.what}, the run's {name}", f"{link.recorded}, {run.card_file(name)}")
        else:
            others = " or ".join(f"{name} {shown_value(card.fingerprint())}" for name, card in cards.items())
            warning = f"it is not the {others} that lies there now: trained again since, or of another run"
            yield Link(link.name, link.what, link.recorded, warning)


def _reference(number: Number, run: Run) -> Iterator[Link]:
    words = words_of(number.measured_by, ("reference", "crop"))
    reference = number.measured_by.get("reference")
    if words and reference is not None:
        place = reference.get("uri") if isinstance(reference, dict) else None
        at = [f"at {place}"] if isinstance(place, str) else []
        yield Link("reference", ", ".join([*words, *at]), _EVALUATION, _moved(reference, run))
