"""A published model's family: found by its parameters, or asked for by its kind."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch

from model.published import families
from model.published.families import FAMILIES, PublishedTokenizer, find_family


def test_no_two_families_have_a_kind_or_a_name_in_common() -> None:
    kinds = [kind for family in FAMILIES for kind in family.kinds]
    assert len(set(kinds)) == len(kinds)
    assert len({family.name for family in FAMILIES}) == len(FAMILIES)
    assert all(
        family.kinds and kind == kind.lower() and " " not in kind for family in FAMILIES for kind in family.kinds
    )


def test_each_kind_gives_its_family_whatever_the_parameters_are() -> None:
    for family in FAMILIES:
        assert all(find_family({}, {}, kind) is family for kind in family.kinds)


def test_an_unknown_kind_is_named_with_those_that_there_are() -> None:
    with pytest.raises(ValueError, match=r"there is no kind vqgan2: there are msvr, .*var"):
        find_family({}, {}, "vqgan2")


@pytest.mark.parametrize("state", [{}, {"weight": torch.zeros(2, 2)}])
def test_what_is_of_no_family_is_not_taken_for_one(state: Mapping[str, torch.Tensor]) -> None:
    assert find_family({}, state) is None


def test_parameters_that_two_families_take_are_not_given_to_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    greedy = [PublishedTokenizer(name, (name,), lambda _o, _s: True, lambda _o, _s: None) for name in "ab"]  # type: ignore[arg-type, return-value]
    monkeypatch.setattr(families, "FAMILIES", tuple(greedy))
    with pytest.raises(ValueError, match=r"could be a or b: say which \(--as a\|b\)"):
        find_family({}, {})
    assert find_family({}, {}, "b") is greedy[1]
