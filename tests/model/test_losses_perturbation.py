"""RobustTok's perturbation of codes, and its annealing."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from model.config import PerturbationConfig
from model.losses import perturbation
from model.losses.perturbation import Perturbation, chances_of, nearest_codes, perturbation_at, perturbed_tokens

CODES = torch.randn(50, 4, generator=torch.Generator().manual_seed(0))
SEED = torch.arange(40) * 7919


def chances(tokens: float, neighbours: int) -> Tensor:
    return torch.from_numpy(chances_of(Perturbation(tokens, neighbours), neighbours))


@pytest.mark.parametrize(
    ("epoch", "tokens", "neighbours"), [(0, 1, 100), (40, 1, 100), (80, 0.75, 75), (120, 0.5, 50), (200, 0.5, 50)]
)
def test_the_published_annealing(epoch: int, tokens: float, neighbours: int) -> None:
    found = perturbation_at(epoch / 200, PerturbationConfig())
    assert found.tokens == pytest.approx(tokens)
    assert found.neighbours == neighbours


def test_it_may_end_elsewhere_than_at_a_half_and_all_at_once() -> None:
    config = PerturbationConfig(anneal_from=0.5, anneal_to=0.5, final=0, tokens=0.4, neighbours=3)
    assert perturbation_at(0.49, config) == Perturbation(0.4, 3)
    assert perturbation_at(0.5, config) == Perturbation(0.0, 1)
    line = PerturbationConfig(anneal_from=0, anneal_to=1, final=0.2, tokens=0.5, neighbours=10)
    found = perturbation_at(0.5, line)
    assert found.tokens == pytest.approx(0.5 * 0.6)
    assert found.neighbours == 6


def test_an_annealing_that_ends_before_it_begins_is_refused() -> None:
    with pytest.raises(ValidationError, match=r"anneal_to 0.1 is before"):
        PerturbationConfig(anneal_to=0.1)


@pytest.mark.parametrize("products", [2**26, 120])
def test_neighbours_are_the_nearest_of_the_codes_at_length_one(monkeypatch: pytest.MonkeyPatch, products: int) -> None:
    monkeypatch.setattr(perturbation, "_PRODUCTS_AT_ONCE", products)
    unit = CODES / CODES.norm(dim=1, keepdim=True)
    expected = torch.cdist(unit.double(), unit.double()).argsort(1)[:, :5]
    assert torch.equal(nearest_codes(CODES, 5), expected)


def test_a_code_is_its_own_nearest_even_beside_its_double() -> None:
    codes = torch.tensor([[1.0, 1.0], [2.0, 2.0], [-1.0, 0.0]])
    assert nearest_codes(codes, 1)[:, 0].tolist() == [0, 1, 2]


def test_tokens_of_chosen_images_become_neighbours() -> None:
    tokens = torch.arange(40 * 25).view(40, 25) % 50
    chosen = torch.arange(40) < 30
    found = perturbed_tokens(tokens, CODES, SEED, chosen, chances(1.0, 5))
    near = nearest_codes(CODES, 5)
    ranks = (near[tokens[:30]] == found[:30, :, None]).float()
    assert (ranks.sum(-1) == 1).all()
    torch.testing.assert_close(ranks.mean((0, 1)), torch.full((5,), 0.2), atol=0.05, rtol=0)
    assert torch.equal(found[30:], tokens[30:])


def test_a_share_of_the_tokens_is_replaced() -> None:
    tokens = torch.zeros(40, 50, dtype=torch.int64)
    found = perturbed_tokens(tokens, CODES, SEED, torch.ones(40, dtype=torch.bool), chances(0.3, 50))
    assert (found != 0).float().mean().item() == pytest.approx(0.3 * 49 / 50, abs=0.04)


def test_what_is_drawn_follows_from_each_images_seed() -> None:
    tokens = torch.arange(40 * 6).view(40, 6) % 50
    chosen = torch.ones(40, dtype=torch.bool)
    whole = perturbed_tokens(tokens, CODES, SEED, chosen, chances(0.5, 9))
    part = perturbed_tokens(tokens[7:9], CODES, SEED[7:9], chosen[7:9], chances(0.5, 9))
    assert torch.equal(whole[7:9], part)


def test_chances_end_at_the_share_and_have_one_length() -> None:
    found = chances_of(Perturbation(0.6, 2), 4)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, [0.3, 0.6, 0.6, 0.6], rtol=1e-6)
