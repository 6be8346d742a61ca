"""The numbers of an evaluation with their full names, as the report lists them.

Of a metric that is measured at many prefixes or scales, the last one is shown (all positions, the finest scale), and
the others can be unfolded.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from data_pipeline import storage
from trainer.evaluation.naming.metric_names import part_of, title, without_part
from trainer.evaluation.naming.number_names import full_name, value_text
from trainer.evaluation.naming.numbers import Number, leaves

_CODES = frozenset({"code_use", "code_perplexity", "dead_codes"})
_HEADINGS = {"samples": "Samples", "reconstructions": "Reconstructions", "codes": "Codes", "images": "Images"}


def number_groups(numbers: Sequence[Number]) -> list[dict[str, Any]]:
    """What the template needs: of samples, of reconstructions, of codes, of other images."""
    found: dict[str, list[int]] = defaultdict(list)
    for place, number in enumerate(numbers):
        found["codes" if number.metric in _CODES else number.pictures].append(place)
    return [_group(heading, numbers, found[kind]) for kind, heading in _HEADINGS.items() if kind in found]


def link_to(numbers: Sequence[Number], pictures: str, metric: str, value: float | None) -> str:
    """Where on the page the full name of a number stands; empty if it is not among them."""
    for place, each in enumerate(numbers):
        if each.pictures == pictures and each.metric == metric and each.value == value:
            return _anchor(place)
    return ""


def _anchor(place: int) -> str:
    return f"number-{place}"


def _group(heading: str, numbers: Sequence[Number], places: Sequence[int]) -> dict[str, Any]:
    last = {_series(numbers[place]): place for place in places}
    shown = set(last.values())
    return {
        "heading": heading,
        "shown": [_named(numbers[place], place) for place in places if place in shown],
        "others": [_named(numbers[place], place) for place in places if place not in shown],
    }


def _series(number: Number) -> str:
    """The same for what differs in prefix or scale alone."""
    part = {key: value for key, value in part_of(number).items() if key != "scale"}
    of = {key: value for key, value in number.measured_of.items() if key != "keep"}
    return storage.fingerprint([number.metric, part, leaves(without_part(number)), leaves(of)])


def _named(number: Number, place: int) -> dict[str, str]:
    head = f"{title(number)} {value_text(number)}"
    return {"anchor": _anchor(place), "head": head, "name": full_name(number).removeprefix(head)}
