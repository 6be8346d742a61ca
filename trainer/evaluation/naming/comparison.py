"""Whether two numbers may be compared, and what differs between them.

They may be if they are of the same metric, of as many images, and measured in the same way (`measured_by`). What then
differs in `measured_of` is what the comparison is about.

A hash that has to differ because something else does (tokens, of another tokenizer) is a difference that follows from
it: it is named after it, and is no finding of its own.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from trainer.evaluation.naming.metric_names import part_of
from trainer.evaluation.naming.numbers import Leaves, Number, leaves

_TOKENIZER = ("tokenizer", "encoder", "decoder")
_FOLLOWS_FROM: dict[str, frozenset[str]] = {
    "tokens": frozenset({"images", *_TOKENIZER}),
    "generator": frozenset({"weights", "tokens", *_TOKENIZER}),
    "samples": frozenset(
        {"generator", "weights", "sampling", "seed", "labels", "keep", "perturbation", "device", *_TOKENIZER}
    ),
}
"""Parts of `measured_of` that are hashes of something made, and what they are made from."""
_HASH_KEYS = frozenset({"", "sha256", "fingerprint"})

Spelt = frozenset[tuple[str, str]]
"""All values of a number with their paths, as text."""


@dataclass(frozen=True)
class Difference:
    """Two values at the same place; None where a number does not have it."""

    path: str
    """Dotted: sampling.guidance."""
    first: Any
    second: Any
    follows_from: tuple[str, ...] = ()
    """Parts that differ, too, and from which this one is made."""

    def to_json(self) -> dict[str, Any]:
        """For records."""
        record = {"path": self.path, "first": self.first, "second": self.second}
        return record | ({"follows_from": list(self.follows_from)} if self.follows_from else {})


@dataclass(frozen=True)
class Comparison:
    """Two numbers, and what differs."""

    first: Number
    second: Number
    method: tuple[Difference, ...]
    """In metric, number of images and `measured_by`: why they may not be compared."""
    subject: tuple[Difference, ...]
    """In `measured_of`: what is compared."""

    @property
    def is_comparable(self) -> bool:
        """Whether they may be compared."""
        return not self.method

    @property
    def difference(self) -> float:
        """The second less the first."""
        return self.second.value - self.first.value

    @property
    def plus_minus(self) -> float | None:
        """One standard error of the difference of independent numbers; None unless both errors are known."""
        if self.first.plus_minus is None or self.second.plus_minus is None:
            return None
        return math.hypot(self.first.plus_minus, self.second.plus_minus)

    def to_json(self) -> dict[str, Any]:
        """For records."""
        return {
            "first": self.first.to_json(),
            "second": self.second.to_json(),
            "difference": self.difference,
            "plus_minus": self.plus_minus,
            "may_be_compared": self.is_comparable,
            "measured_by": [each.to_json() for each in self.method],
            "measured_of": [each.to_json() for each in self.subject],
        }


def compare(first: Number, second: Number) -> Comparison:
    """Whether they may be compared, and every value that differs."""
    heads: list[Leaves] = [{"metric": each.metric, "images": each.images} for each in (first, second)]
    method = [*_differences(*heads), *_differences(leaves(first.measured_by), leaves(second.measured_by))]
    subject = list(_differences(leaves(first.measured_of), leaves(second.measured_of)))
    return Comparison(first, second, tuple(method), tuple(_with_causes(subject)))


def _differences(first: Leaves, second: Leaves) -> Iterator[Difference]:
    for path in dict.fromkeys((*first, *second)):
        if _spelt(first.get(path)) != _spelt(second.get(path)):
            yield Difference(path, first.get(path), second.get(path))


def _spelt(value: Any) -> str:
    """As JSON, in which true is not 1."""
    return json.dumps(value)


def _with_causes(found: Sequence[Difference]) -> Iterator[Difference]:
    """Those that nothing else explains first, then those that follow."""
    differing = {each.path.partition(".")[0]: None for each in found}
    explained = []
    for each in found:
        part, _, key = each.path.partition(".")
        causes = tuple(name for name in differing if name in _FOLLOWS_FROM.get(part, ()))
        if causes and key in _HASH_KEYS:
            explained.append(Difference(each.path, each.first, each.second, causes))
        else:
            yield each
    yield from explained


@dataclass(frozen=True)
class Pairs:
    """The numbers of two evaluations, each with the one that it is compared with."""

    compared: tuple[Comparison, ...]
    only_first: tuple[Number, ...]
    only_second: tuple[Number, ...]


def pair(first: Sequence[Number], second: Sequence[Number]) -> Pairs:
    """Of the same metric and kind of images, the numbers that have most in common; in the order of the first."""
    partners: dict[int, int] = {}
    for key in (_settings, _question, _kind, _likely_kind):
        _match(first, second, key, partners)
    taken = set(partners.values())
    return Pairs(
        tuple(compare(first[place], second[partners[place]]) for place in sorted(partners)),
        tuple(number for place, number in enumerate(first) if place not in partners),
        tuple(number for place, number in enumerate(second) if place not in taken),
    )


def _match(
    first: Sequence[Number], second: Sequence[Number], key: Callable[[Number], Hashable], partners: dict[int, int]
) -> None:
    """Add a partner for each number that has none, and finds one of its own key that is free."""
    taken = set(partners.values())
    free: dict[Hashable, list[tuple[int, Spelt]]] = defaultdict(list)
    for place, number in enumerate(second):
        if place not in taken:
            free[key(number)].append((place, _spelt_leaves(number)))
    for place, number in enumerate(first):
        candidates = free[key(number)] if place not in partners else []
        if candidates:
            own = _spelt_leaves(number)
            distances = [len(own ^ other) for _, other in candidates]
            partners[place] = candidates.pop(distances.index(min(distances)))[0]


def _kind(number: Number) -> tuple[str, ...]:
    return number.metric, number.pictures, _spelt(part_of(number))


def _likely_kind(number: Number) -> tuple[str, ...]:
    """The same; a number that does not say what it is of, as those of papers, is taken for one of samples."""
    return _kind(number) if leaves(number.measured_of) else (number.metric, "samples", _spelt(part_of(number)))


def _question(number: Number) -> tuple[str, ...]:
    """What a number answers: measured how, of which part of the tokens, perturbed in which way."""
    part = leaves({key: number.measured_of.get(key) for key in ("keep", "perturbation")})
    return *_kind(number), str(number.images), number.method, _spelt(part)


def _settings(number: Number) -> tuple[str, ...]:
    """The same, of images that were drawn in the same way."""
    return *_question(number), _spelt(leaves(number.measured_of.get("sampling")))


def _spelt_leaves(number: Number) -> Spelt:
    every = {"images": number.images, "by": number.measured_by, "of": number.measured_of}
    return frozenset((path, _spelt(value)) for path, value in leaves(every).items())


def paths(differences: Iterable[Difference]) -> list[str]:
    """Where they differ, without what only follows from that."""
    return [each.path for each in differences if not each.follows_from]
