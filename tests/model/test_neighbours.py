"""Which codes are near, for each kind of quantizer: against distances of all pairs of codes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from model.config import FiniteScalarConfig, LookupFreeConfig, QuantizerConfig, SphericalConfig, VectorConfig
from model.config.quantizers import QuantizerFamily
from model.families import build_neighbours, quantizer_families
from tests.model.small_quantizers import made


def ranked(config: QuantizerConfig, count: int) -> Tensor:
    """The nearest codes of each code [V, count]."""
    near = build_neighbours(made(config), count)
    tokens = torch.arange(config.vocabulary).repeat_interleave(count)
    ranks = torch.arange(count).repeat(config.vocabulary)
    return near(tokens, ranks).view(config.vocabulary, count)


def codes_of(config: QuantizerConfig) -> Tensor:
    found: Tensor = made(config).codes(torch.arange(config.vocabulary)[None])[0].detach().double()
    return found


@pytest.mark.parametrize("lookup", ["cosine", "euclidean"])
def test_codes_of_a_codebook_are_near_as_it_looks_them_up(lookup: str) -> None:
    config = VectorConfig.model_validate(
        {"codebook_size": 30, "code_dim": 3, "lookup": lookup, "initialization": "uniform"}
    )
    codes = codes_of(config)
    seen = codes / codes.norm(dim=1, keepdim=True) if lookup == "cosine" else codes
    assert torch.equal(ranked(config, 7), torch.cdist(seen, seen).argsort(1)[:, :7])


def test_distance_and_cosine_differ_in_which_is_nearest() -> None:
    by = {lookup: VectorConfig(codebook_size=3, code_dim=2, lookup=lookup) for lookup in ("cosine", "euclidean")}  # type: ignore[arg-type]
    codes = torch.tensor([[1.0, 0.0], [9.0, 0.0], [0.9, 0.5]])
    found = {}
    for lookup, config in by.items():
        quantizer = made(config)
        with torch.no_grad():
            quantizer.codebook.copy_(codes)
        found[lookup] = build_neighbours(quantizer, 2)(torch.tensor([0, 0]), torch.tensor([0, 1])).tolist()
    assert found == {"cosine": [0, 1], "euclidean": [0, 2]}


@pytest.mark.parametrize("config", [LookupFreeConfig(bits=6), SphericalConfig(bits=6)])
@pytest.mark.parametrize("count", [1, 7, 64])
def test_codes_of_signs_are_near_where_few_bits_differ(config: QuantizerConfig, count: int) -> None:
    found, codes = ranked(config, count), codes_of(config)
    distance_VV = torch.cdist(codes, codes)
    assert (found[:, 0] == torch.arange(64)).all()
    torch.testing.assert_close(distance_VV.gather(1, found), distance_VV.sort(1).values[:, :count])
    assert all(len(set(row)) == count for row in found.tolist())


@pytest.mark.parametrize(("levels", "counts"), [((5, 3, 2), (1, 4, 11, 30)), ((8, 5), (6, 40)), ((7,), (3, 7))])
def test_codes_of_levels_are_near_where_few_steps_are_between(levels: tuple[int, ...], counts: tuple[int, ...]) -> None:
    config = FiniteScalarConfig(levels=levels)
    digits = np.stack(np.unravel_index(np.arange(config.vocabulary), levels, order="F"), 1)
    steps_VV = np.abs(digits[:, None] - digits).sum(2)
    for count in counts:
        found = ranked(config, count).numpy()
        assert (found[:, 0] == np.arange(config.vocabulary)).all()
        np.testing.assert_array_equal(np.take_along_axis(steps_VV, found, 1), np.sort(steps_VV, 1)[:, :count])
        assert all(len(set(row)) == count for row in found.tolist())


def test_more_codes_than_there_are_is_refused() -> None:
    with pytest.raises(ValueError, match="9 nearest codes of 8"):
        build_neighbours(made(LookupFreeConfig(bits=3)), 9)


def test_a_kind_without_neighbours_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    family = quantizer_families()["lfq"]
    monkeypatch.setitem(quantizer_families(), "lfq", QuantizerFamily(family.config, family.network))
    with pytest.raises(ValueError, match="of kind lfq does not say which codes are near"):
        build_neighbours(made(LookupFreeConfig(bits=3)), 2)
