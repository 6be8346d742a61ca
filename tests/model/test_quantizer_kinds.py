"""Quantizers of every kind: ids and codes, bit by bit; alone, in a row, and around scales and branches."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor

from model.config import FiniteScalarConfig, LookupFreeConfig, QuantizerConfig, SphericalConfig, VectorConfig
from model.quantizers.flat import FlatQuantizer, QuantizedVectors
from model.quantizers.multi_scale import FoldedQuantizer, Quantized
from tests.model.small_quantizers import grid, made

VECTORS = st.builds(
    VectorConfig,
    codebook_size=st.integers(2, 40),
    code_dim=st.integers(2, 8),
    lookup=st.sampled_from(["cosine", "euclidean"]),
    unit_codes=st.booleans(),
    initialization=st.sampled_from(["sphere", "uniform"]),
)
BINARY = st.one_of(
    st.builds(LookupFreeConfig, bits=st.integers(1, 14)), st.builds(SphericalConfig, bits=st.integers(1, 14))
)
SCALARS = st.builds(FiniteScalarConfig, levels=st.lists(st.integers(2, 9), min_size=1, max_size=4).map(tuple))
KINDS = st.one_of(VECTORS, BINARY, SCALARS)
few = settings(max_examples=60, deadline=None)


def ids(config: QuantizerConfig) -> Tensor:
    """Some ids, the first and the last among them; all of them if they are few."""
    most = config.vocabulary
    return (
        torch.arange(most)[None]
        if most < 300
        else torch.cat([torch.tensor([0, most - 1]), torch.randint(most, (90,))])[None]
    )


# From id to code to id, and from code to id to code


@few
@given(KINDS)
def test_the_code_of_an_id_has_this_id_and_stays_what_it_is(config: QuantizerConfig) -> None:
    quantizer = made(config)
    tokens_BK = ids(config)
    codes_BKC = quantizer.codes(tokens_BK)
    assert codes_BKC.dtype == torch.float32
    assert codes_BKC.shape == (*tokens_BK.shape, config.width)
    again_BK = quantizer.search()(codes_BKC)
    assert again_BK.dtype == torch.int64
    assert torch.equal(again_BK, tokens_BK)
    assert torch.equal(quantizer.codes(again_BK), codes_BKC)


@few
@given(KINDS, st.integers(0, 2**20))
def test_the_chosen_code_is_the_nearest_of_all(config: QuantizerConfig, seed: int) -> None:
    if config.vocabulary > 4096:
        return
    quantizer = made(config)
    vector_BKC = 2 * torch.randn(2, 5, config.width, generator=torch.Generator().manual_seed(seed))
    projected_BKC = quantizer.project(vector_BKC)
    all_VC = quantizer.codes(torch.arange(config.vocabulary)[None])[0]
    if isinstance(config, VectorConfig) and config.lookup == "cosine":
        projected_BKC, all_VC = F.normalize(projected_BKC, dim=-1), F.normalize(all_VC, dim=-1)
    distance_BKV = torch.cdist(projected_BKC, all_VC.expand(2, -1, -1), compute_mode="donot_use_mm_for_euclid_dist")
    chosen_BK1 = quantizer.search()(quantizer.project(vector_BKC))[..., None]
    torch.testing.assert_close(distance_BKV.gather(2, chosen_BK1)[..., 0], distance_BKV.amin(2), rtol=0, atol=1e-5)


# Order of bits and digits


def test_the_first_channel_is_the_lowest_bit_of_an_id() -> None:
    vector_BKC = torch.tensor([[[1.0, -2.0, 3.0, -0.1], [-1.0, -1.0, -1.0, 0.5], [0.0, 2.0, 0.0, 0.0]]])
    for config in (LookupFreeConfig(bits=4), SphericalConfig(bits=4)):
        quantizer = made(config)
        assert quantizer.search()(quantizer.project(vector_BKC)).tolist() == [[1 + 4, 8, 2]]  # 0 is not positive


def test_lfq_codes_are_signs_and_bsq_codes_are_signs_of_length_one() -> None:
    tokens_BK = torch.tensor([[0, 1, 6]])
    signs = torch.tensor([[[-1.0, -1, -1], [1, -1, -1], [-1, 1, 1]]])
    assert torch.equal(made(LookupFreeConfig(bits=3)).codes(tokens_BK), signs)
    torch.testing.assert_close(made(SphericalConfig(bits=3)).codes(tokens_BK), signs / math.sqrt(3))


def test_fsq_digits_count_from_the_first_channel_and_levels_from_the_lowest() -> None:
    quantizer = made(FiniteScalarConfig(levels=(4, 3)))
    codes = quantizer.codes(torch.arange(12)[None])[0]
    expected = [[first, second] for second in (-1.0, 0.0, 1.0) for first in (-1.0, -0.5, 0.0, 0.5)]
    assert codes.tolist() == expected


def test_fsq_bounds_and_rounds_as_the_paper_says() -> None:
    levels = (8, 5, 2, 7)
    quantizer = made(FiniteScalarConfig(levels=levels))
    z = np.linspace(-4, 4, 33)
    vector_BKC = torch.from_numpy(np.stack([z] * 4, axis=-1)).float()[None]
    projected_BKC = quantizer.project(vector_BKC)
    codes_BKC = quantizer.codes(quantizer.search()(projected_BKC))
    for channel, count in enumerate(levels):
        half_l = (count - 1) * (1 - 1e-3) / 2
        offset = 0.5 if count % 2 == 0 else 0.0
        bound = np.tanh(z + np.tan(offset / half_l)) * half_l - offset
        np.testing.assert_allclose(projected_BKC[0, :, channel] * (count // 2), bound, atol=1e-5)
        np.testing.assert_allclose(codes_BKC[0, :, channel], np.round(bound) / (count // 2), atol=1e-6)
        assert len(codes_BKC[0, :, channel].unique()) == count


def test_a_vector_codebook_starts_as_its_config_says() -> None:
    sphere = made(VectorConfig(codebook_size=50, code_dim=6)).codebook
    torch.testing.assert_close(sphere.norm(dim=1), torch.ones(50))
    cube = made(VectorConfig(codebook_size=50, code_dim=6, initialization="uniform")).codebook
    assert 0.019 < cube.abs().max() <= 0.02
    assert cube.min() < -0.019


def test_unit_codes_are_put_out_at_length_one_and_others_as_they_are() -> None:
    for unit in (False, True):
        quantizer = made(VectorConfig(codebook_size=9, code_dim=4, unit_codes=unit))
        with torch.no_grad():
            quantizer.codebook.mul_(torch.arange(1.0, 10)[:, None])
        lengths = quantizer.codes(torch.arange(9)[None]).norm(dim=2)[0]
        torch.testing.assert_close(lengths, torch.ones(9) if unit else torch.arange(1.0, 10))
        vector = torch.full((1, 1, 4), 3.0)
        torch.testing.assert_close(quantizer.project(vector).norm(), torch.tensor(1.0 if unit else 6.0))


def test_cosine_looks_at_directions_and_euclidean_at_distances() -> None:
    codes = torch.tensor([[10.0, 0.0], [0.9, 0.9]])
    vector = torch.tensor([[[1.0, 0.2]]])
    found = []
    for lookup in ("cosine", "euclidean"):
        quantizer = made(VectorConfig(codebook_size=2, code_dim=2, lookup=lookup))
        with torch.no_grad():
            quantizer.codebook.copy_(codes)
        found.append(quantizer.search()(vector).item())
    assert found == [0, 1]


@pytest.mark.parametrize(
    ("config", "codes", "width"),
    [
        (VectorConfig(codebook_size=30, code_dim=5), 30, 5),
        (LookupFreeConfig(bits=10), 1024, 10),
        (SphericalConfig(bits=18), 262_144, 18),
        (FiniteScalarConfig(levels=(8, 5, 5, 5)), 1000, 4),
    ],
)
def test_a_config_knows_how_many_codes_and_how_wide(config: QuantizerConfig, codes: int, width: int) -> None:
    assert (config.vocabulary, config.width) == (codes, width)


def test_levels_that_make_more_codes_than_ids_can_hold_are_refused() -> None:
    with pytest.raises(ValidationError, match=r"levels \[4096, 4097\] make 16781312 codes"):
        FiniteScalarConfig(levels=(4096, 4097))
    assert FiniteScalarConfig(levels=(4096, 4096)).vocabulary == 2**24


# In a row


@few
@given(KINDS)
def test_vectors_in_a_row_become_their_codes(config: QuantizerConfig) -> None:
    torch.manual_seed(1)
    flat = FlatQuantizer(config)
    vector_BKC = torch.randn(3, 4, config.width, requires_grad=True)
    found: QuantizedVectors = flat(vector_BKC)
    assert torch.equal(found.tokens_BK, flat.tokenize(vector_BKC))
    torch.testing.assert_close(found.vectors_BKC, flat.dequantize(found.tokens_BK), rtol=0, atol=1e-6)
    assert torch.equal(flat.dequantize(found.tokens_BK.to(torch.int32)), flat.dequantize(found.tokens_BK))
    weight = torch.randn_like(found.vectors_BKC)
    through = torch.autograd.grad((found.vectors_BKC * weight).sum(), vector_BKC, retain_graph=True)[0]
    projected = torch.autograd.grad((flat.quantizer.project(vector_BKC) * weight).sum(), vector_BKC)[0]
    assert torch.equal(through, projected)


def test_losses_of_a_row_are_means_over_all_elements_with_the_commitments_weight() -> None:
    torch.manual_seed(1)
    flat = FlatQuantizer(VectorConfig(codebook_size=9, code_dim=4, unit_codes=True, commitment=0.3))
    vector_BKC = torch.randn(3, 5, 4)
    found: QuantizedVectors = flat(vector_BKC)
    unit = vector_BKC / vector_BKC.norm(dim=2, keepdim=True)
    codes = flat.quantizer.codebook[found.tokens_BK]
    error = ((codes / codes.norm(dim=2, keepdim=True) - unit) ** 2).mean()
    assert set(found.losses) == {"codebook", "commitment"}
    torch.testing.assert_close(found.losses["codebook"], error)
    torch.testing.assert_close(found.losses["commitment"], 0.3 * error)
    assert found.means == {}
    assert flat.losses_of_means({}) == {}


def test_the_codebook_loss_of_a_row_moves_codes_and_the_commitment_loss_moves_vectors() -> None:
    flat = FlatQuantizer(VectorConfig(codebook_size=9, code_dim=4))
    vector_BKC = torch.randn(3, 5, 4, requires_grad=True)
    losses = flat(vector_BKC).losses
    leaves = [vector_BKC, flat.quantizer.codebook]
    to_codebook = torch.autograd.grad(losses["codebook"], leaves, allow_unused=True, retain_graph=True)
    to_vectors = torch.autograd.grad(losses["commitment"], leaves, allow_unused=True)
    assert [gradient is None for gradient in (*to_codebook, *to_vectors)] == [True, False, False, True]


def test_hits_of_a_row_are_counted_and_what_was_looked_up_is_kept() -> None:
    flat = FlatQuantizer(VectorConfig(codebook_size=9, code_dim=4, unit_codes=True))
    vector_BKC = torch.randn(3, 5, 4, requires_grad=True)
    found: QuantizedVectors = flat(vector_BKC)
    assert flat.codebooks == {"quantizer.codebook": (1, 9)}
    assert dict(flat.named_parameters()).keys() == flat.codebooks.keys()
    expected = torch.bincount(found.tokens_BK.flatten(), minlength=9)[None]
    assert torch.equal(found.hits["quantizer.codebook"], expected)
    seen_NC = found.seen["quantizer.codebook"]
    assert not seen_NC.requires_grad
    torch.testing.assert_close(seen_NC, F.normalize(vector_BKC.detach(), dim=2).flatten(0, 1))


@pytest.mark.parametrize("config", [LookupFreeConfig(bits=3, entropy=0), FiniteScalarConfig(levels=(5, 4))])
def test_fixed_codes_have_no_codebook_to_train_or_to_restart(config: QuantizerConfig) -> None:
    flat = FlatQuantizer(config)
    found: QuantizedVectors = flat(torch.randn(2, 3, config.width))
    assert flat.codebooks == found.hits == found.seen == {}
    assert set(found.losses) == ({"commitment"} if config.commitment else set())


def test_autocast_and_half_precision_change_nothing() -> None:
    flat = FlatQuantizer(VectorConfig(codebook_size=30, code_dim=4))
    vector_BKC = torch.randn(3, 5, 4).bfloat16()
    plain: QuantizedVectors = flat(vector_BKC)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found: QuantizedVectors = flat(vector_BKC)
        assert torch.equal(flat.tokenize(vector_BKC), plain.tokens_BK)
        assert torch.equal(flat.dequantize(plain.tokens_BK), flat.quantizer.codes(plain.tokens_BK))
    assert torch.equal(found.vectors_BKC, plain.vectors_BKC)
    assert found.vectors_BKC.dtype == torch.float32


# Around scales and branches


@settings(max_examples=40, deadline=None)
@given(
    KINDS,
    st.integers(1, 4),
    st.lists(st.integers(1, 4), min_size=1, max_size=4).map(lambda sides: (*sides, max(sides))),
    st.sampled_from([0.0, 0.5]),
    st.sampled_from([0.5, 1.0]),
)
def test_ids_decode_to_what_was_summed_up_bit_for_bit(
    config: QuantizerConfig, branches: int, scales: tuple[int, ...], ratio: float, decay: float
) -> None:
    folded = FoldedQuantizer(grid(config, branches=branches, scales=scales, residual_ratio=ratio, scale_decay=decay))
    latent_BPCHW = torch.randn(2, branches, config.width, scales[-1], scales[-1])
    tokens_BLF = folded.tokenize(latent_BPCHW)
    assert tokens_BLF.shape == (2, sum(side**2 for side in scales), branches)
    assert 0 <= int(tokens_BLF.min()) <= int(tokens_BLF.max()) < config.vocabulary
    found: Quantized = folded(latent_BPCHW)
    assert torch.equal(found.tokens_BLF, tokens_BLF)
    direct = [folded.branch(p).quantize(folded.branch(p).project(latent_BPCHW[:, p]))[2] for p in range(branches)]
    sums = torch.stack([sum(steps[1:], steps[0]) for steps in direct], 1)
    assert torch.equal(folded.dequantize(tokens_BLF), sums)
    latent = torch.zeros_like(sums)
    for scale in range(len(scales)):
        latent, _ = folded.next_scale(latent, tokens_BLF[:, folded.layout.span(scale)], scale)
        assert torch.equal(latent, folded.dequantize(tokens_BLF, folded.layout.offsets[scale + 1]))


def test_one_scale_is_the_plain_quantizer_of_each_position() -> None:
    config = VectorConfig(codebook_size=30, code_dim=4, unit_codes=True, commitment=0.3)
    folded = FoldedQuantizer(grid(config, scales=(3,), branches=1))
    assert [name for name, _ in folded.named_parameters()] == ["branches.0.quantizer.codebook"]
    flat = FlatQuantizer(config)
    flat.quantizer.load_state_dict(folded.branch(0).quantizer.state_dict())
    latent_BPCHW = torch.randn(2, 1, 4, 3, 3)
    rows_BKC = latent_BPCHW[:, 0].flatten(2).transpose(1, 2)
    found, expected = folded(latent_BPCHW), flat(rows_BKC)
    assert torch.equal(found.tokens_BLF[..., 0], expected.tokens_BK)
    torch.testing.assert_close(found.latent_BPCHW[:, 0].flatten(2).transpose(1, 2), expected.vectors_BKC)
    torch.testing.assert_close(found.losses, expected.losses)
    torch.testing.assert_close(found.seen["branches.0.quantizer.codebook"], expected.seen["quantizer.codebook"])


def test_a_residual_ratio_of_zero_leaves_the_convolutions_out() -> None:
    folded = FoldedQuantizer(grid(VectorConfig(codebook_size=9, code_dim=4), residual_ratio=0))
    assert [name for name, _ in folded.named_parameters() if "conv" in name] == []
    tokens_BK = torch.tensor([[1, 2, 3, 4]])
    wide = F.interpolate(
        folded.branch(0).quantizer.codebook[tokens_BK].transpose(1, 2).unflatten(2, (2, 2)), size=(3, 3), mode="bicubic"
    )
    torch.testing.assert_close(folded.branch(0).step(tokens_BK, 1), wide)


def test_equal_scales_are_residual_quantization() -> None:
    folded = FoldedQuantizer(
        grid(VectorConfig(codebook_size=9, code_dim=4, lookup="euclidean"), scales=(2, 2, 2), residual_ratio=0)
    )
    latent_BPCHW = torch.randn(2, 2, 4, 2, 2)
    tokens_BLF = folded.tokenize(latent_BPCHW)
    for p in range(2):
        residual = latent_BPCHW[:, p].flatten(2).transpose(1, 2)
        for depth in range(3):
            codes_VC = folded.branch(p).quantizer.codebook
            chosen = torch.cdist(residual, codes_VC.expand(2, -1, -1)).argmin(2)
            assert torch.equal(tokens_BLF[:, depth * 4 : (depth + 1) * 4, p], chosen)
            residual = residual - codes_VC[chosen]


def test_codes_of_each_scale_are_shorter_by_the_decay_and_looked_up_at_their_own_length() -> None:
    folded = FoldedQuantizer(
        grid(FiniteScalarConfig(levels=(9, 9)), scales=(2, 2, 2), residual_ratio=0, scale_decay=0.125)
    )
    latent_BPCHW = torch.randn(2, 2, 2, 2, 2)
    projected = torch.stack([folded.branch(p).project(latent_BPCHW[:, p]) for p in range(2)], 1)
    errors = [
        (folded.dequantize(folded.tokenize(latent_BPCHW), keep) - projected).abs().max().item() for keep in (4, 8, 12)
    ]
    for step, error in enumerate(errors):
        assert error <= 0.125 ** (step + 1) + 1e-6  # half a step of a quarter, an eighth finer each time
    tokens_BK = torch.tensor([[0, 8, 40, 80]])
    torch.testing.assert_close(folded.branch(0).step(tokens_BK, 2), folded.branch(0).step(tokens_BK, 0) / 64)


def test_bits_in_scales_are_brought_to_length_one_once_and_not_their_residuals() -> None:
    folded = FoldedQuantizer(grid(SphericalConfig(bits=4), scales=(2, 2), residual_ratio=0, branches=1))
    latent_BPCHW = 5 * torch.randn(2, 1, 4, 2, 2)
    unit = latent_BPCHW[:, 0] / latent_BPCHW[:, 0].norm(dim=1, keepdim=True)
    first = torch.where(unit > 0, 0.5, -0.5)
    found: Quantized = folded(latent_BPCHW)
    torch.testing.assert_close(folded.dequantize(found.tokens_BLF, 4)[:, 0], first)
    second = first + torch.where(unit - first > 0, 0.5, -0.5)
    torch.testing.assert_close(found.latent_BPCHW[:, 0], second)
    assert "codebook" not in found.losses  # nothing is learned
    assert FoldedQuantizer(grid(SphericalConfig(bits=4), branches=1))(torch.randn(1, 1, 4, 3, 3)).losses["codebook"] > 0


def test_what_was_looked_up_is_the_residual_at_each_scale() -> None:
    folded = FoldedQuantizer(grid(VectorConfig(codebook_size=9, code_dim=4), branches=2))
    latent_BPCHW = torch.randn(3, 2, 4, 3, 3, requires_grad=True)
    found: Quantized = folded(latent_BPCHW)
    assert list(found.seen) == list(found.hits) == list(folded.codebooks)
    assert folded.codebooks["branches.1.quantizer.codebook"] == (3, 9)
    for p in range(2):
        seen_BLC = found.seen[f"branches.{p}.quantizer.codebook"].view(3, 14, 4)
        assert not seen_BLC.requires_grad
        residual = latent_BPCHW[:, p]
        torch.testing.assert_close(seen_BLC[:, 0], residual.mean((2, 3)).detach())
        last = (residual - folded.dequantize(found.tokens_BLF, 5)[:, p]).flatten(2).transpose(1, 2)
        torch.testing.assert_close(seen_BLC[:, 5:], last.detach())
