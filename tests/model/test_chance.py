"""Random numbers of the training pass: functions of a sample's seed and of what they are for."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from model.layers.dropout import element_dropout
from model.layers.random_numbers import block_chances, drop_path, drop_path_rates, dropout, split_seed, uniform

MASK = 2**64 - 1
INT64 = st.integers(-(2**63), 2**63 - 1)


def splitmix64(seed: int, number: int) -> int:
    """The n-th output (from 1) of the generator, in Python's integers, as an int64."""
    z = (seed + number * 0x9E3779B97F4A7C15) & MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    z ^= z >> 31
    return z - 2**64 if z >= 2**63 else z


@given(st.lists(INT64, min_size=1, max_size=4), st.integers(1, 40))
def test_seeds_are_those_of_splitmix64(seeds: list[int], count: int) -> None:
    expected = [[splitmix64(seed, number) for seed in seeds] for number in range(1, count + 1)]
    assert split_seed(torch.tensor(seeds), count).tolist() == expected


def test_the_first_outputs_are_the_published_ones() -> None:
    published = [6457827717110365317, 3203168211198807973, 9817491932198370423 - 2**64]  # from seed 1234567
    assert split_seed(torch.tensor([1234567]), 3)[:, 0].tolist() == published


def test_numbers_are_uniform_and_independent_between_samples_and_purposes() -> None:
    chance_NB = uniform(torch.arange(20_000), 8)
    assert chance_NB.dtype == torch.float32
    assert chance_NB.min() >= 0
    assert chance_NB.max() < 1
    counts = torch.histc(chance_NB, bins=20, min=0, max=1) / chance_NB.numel()
    np.testing.assert_allclose(counts, 1 / 20, atol=0.002)
    between = np.corrcoef(chance_NB.numpy()) - np.eye(8)
    assert np.abs(between).max() < 0.03
    neighbours = np.corrcoef(chance_NB[0, :-1].numpy(), chance_NB[0, 1:].numpy())[0, 1]
    assert abs(neighbours) < 0.03


@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_drop_path_leaves_out_the_given_share_and_keeps_the_mean(rate: float) -> None:
    for chances in block_chances(torch.arange(20_000), 3):
        assert chances is not None
        for chance_B in chances:
            out_BLC = drop_path(torch.ones(20_000, 1, 2), chance_B, rate)
            assert (out_BLC == 0).float().mean() == pytest.approx(rate, abs=0.015)
            assert out_BLC.mean() == pytest.approx(1, abs=0.03)
            assert torch.equal(out_BLC[..., 0], out_BLC[..., 1])  # a sample misses the branch as a whole


def test_stochastic_depth_grows_in_even_steps_from_nothing_to_the_last_blocks() -> None:
    assert drop_path_rates(0.3, 4) == pytest.approx([0.0, 0.1, 0.2, 0.3])
    assert drop_path_rates(0.3, 2) == [0.0, 0.3]
    assert drop_path_rates(0.3, 1) == [0.0]


def test_blocks_and_branches_decide_apart() -> None:
    missed = torch.cat([chance < 0.5 for chance in block_chances(torch.arange(4000), 3) if chance is not None])
    agreeing = (missed[:, None] == missed[None]).float().mean(2)
    np.testing.assert_allclose(agreeing[~torch.eye(6, dtype=torch.bool)], 0.5, atol=0.05)


def test_dropout_leaves_out_single_elements() -> None:
    out_BC = dropout(torch.ones(5000, 8), torch.arange(5000), 0.25)
    assert (out_BC == 0).float().mean(0).numpy() == pytest.approx(0.25, abs=0.03)
    assert out_BC.unique().tolist() == [0, pytest.approx(4 / 3)]


def test_each_element_is_left_out_by_its_own_16_bits() -> None:
    """Positions and channels in turn are the 16-bit parts of the sample's numbers, the lowest first."""
    seed, rate = 1234567, 0.5
    bits = [splitmix64(seed, number) & MASK for number in range(1, 13)]
    parts = [number >> 16 * part & 0xFFFF for number in bits for part in range(4)]
    kept = [(part ^ 0x8000) >= rate * 2**16 for part in parts[:46]]
    out = element_dropout(torch.full((1, 23, 2), 3.0), torch.tensor([seed]), rate)
    assert out.flatten().tolist() == [6.0 * keeps for keeps in kept]


@pytest.mark.parametrize("rate", [0.0, 0.1, 0.5])
def test_element_dropout_leaves_out_the_given_share_everywhere(rate: float) -> None:
    out_BLC = element_dropout(torch.ones(4000, 3, 5), torch.arange(4000), rate)
    assert (out_BLC == 0).float().mean(0).flatten().tolist() == pytest.approx([rate] * 15, abs=0.03)
    assert float(out_BLC.max()) == pytest.approx(1 / (1 - rate), rel=1e-4)
    together = np.corrcoef((out_BLC == 0).flatten(1).T.numpy()) if rate else np.eye(15)
    assert np.abs(together - np.eye(15)).max() < 0.08


def test_element_dropout_needs_a_seed_and_leaves_each_sample_its_own() -> None:
    x_BLC, seed_B = torch.ones(4, 5, 7), torch.arange(4)
    together = element_dropout(x_BLC, seed_B, 0.3)
    assert torch.equal(element_dropout(x_BLC[2:3], seed_B[2:3], 0.3), together[2:3])
    with pytest.raises(ValueError, match="needs seed_B"):
        element_dropout(x_BLC, None, 0.3)


@given(st.lists(INT64, min_size=2, max_size=8), st.integers(1, 7))
def test_a_batch_in_parts_has_the_same_numbers(seeds: list[int], cut: int) -> None:
    seed_B = torch.tensor(seeds)
    parts = torch.cat([uniform(seed_B[:cut], 4), uniform(seed_B[cut:], 4)], dim=1)
    assert torch.equal(parts, uniform(seed_B, 4))


def test_nothing_is_drawn_from_torchs_own_generator() -> None:
    before = torch.get_rng_state()
    dropout(torch.ones(4, 8), torch.arange(4), 0.5)
    block_chances(torch.arange(4), 3)
    assert torch.equal(torch.get_rng_state(), before)
