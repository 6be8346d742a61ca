"""The entropy term of soft look-ups: of a row, of scales and branches, and over workers; against arithmetic."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from model.config import LookupFreeConfig, QuantizerConfig, SphericalConfig, VectorConfig
from model.quantizers.flat import FlatQuantizer, QuantizedVectors
from model.quantizers.multi_scale import FoldedQuantizer, Quantized
from tests.model.small_quantizers import grid, made


def soft(kind: str, **changes: Any) -> QuantizerConfig:
    options: dict[str, Any] = {"entropy": 0.7, "entropy_temperature": 0.5, **changes}
    kinds = {"lfq": LookupFreeConfig, "bsq": SphericalConfig}
    if kind in kinds:
        return kinds[kind](bits=4, **options)
    return VectorConfig(codebook_size=16, code_dim=4, lookup=kind, **options)


SOFT = ("cosine", "euclidean", "lfq", "bsq")


def shares_by_hand(quantizer: Any, vector_NC: Tensor) -> Tensor:
    """Probabilities of all codes [N, V]: a softmax of minus the squared distance over the temperature."""
    codes_VC = quantizer.codes(torch.arange(16)[None])[0]
    if isinstance(quantizer.config, VectorConfig) and quantizer.config.lookup == "cosine":
        vector_NC, codes_VC = (each / each.norm(dim=1, keepdim=True) for each in (vector_NC, codes_VC))
    distance_NV = ((vector_NC[:, None] - codes_VC[None]) ** 2).sum(2).double()
    return torch.exp(-distance_NV / 0.5) / torch.exp(-distance_NV / 0.5).sum(1, keepdim=True)


def entropy_by_hand(quantizer: Any, vector_NC: Tensor) -> tuple[float, float]:
    """Mean entropy of each vector's shares in all codes; entropy of the mean shares, of bits each bit by itself."""
    share_NV = shares_by_hand(quantizer, vector_NC)
    samples = -(share_NV * share_NV.log()).sum(1).mean().detach()
    mean_V = share_NV.mean(0).detach()
    if isinstance(quantizer.config, VectorConfig):
        return float(samples), float(-(mean_V * mean_V.log()).sum())
    bits = [mean_V[[code for code in range(16) if code >> bit & 1]].sum() for bit in range(4)]
    return float(samples), float(sum(-(p * p.log() + (1 - p) * (1 - p).log()) for p in bits))


@pytest.mark.parametrize("kind", SOFT)
def test_the_entropy_term_of_a_row_is_that_of_a_softmax_over_all_codes(kind: str) -> None:
    torch.manual_seed(2)
    flat = FlatQuantizer(soft(kind))
    with torch.no_grad():
        for codebook in flat.parameters():
            codebook.mul_(torch.linspace(0.5, 1.5, 16)[:, None])
    vector_BKC = torch.randn(3, 5, 4)
    found: QuantizedVectors = flat(vector_BKC)
    samples, codes = entropy_by_hand(flat.quantizer, flat.quantizer.project(vector_BKC).flatten(0, 1).detach())
    assert samples > 0.01
    assert found.losses["sample_entropy"].item() == pytest.approx(0.7 * samples, rel=1e-4)
    assert list(found.means) == ["code_shares"]
    assert flat.losses_of_means(found.means)["code_entropy"].item() == pytest.approx(-0.7 * codes, rel=1e-4)


@pytest.mark.parametrize("kind", SOFT)
@pytest.mark.parametrize("positions", ["cells", "grid"])
def test_the_entropy_term_of_scales_is_the_mean_over_scales_and_branches(kind: str, positions: str) -> None:
    folded = FoldedQuantizer(grid(soft(kind, entropy_positions=positions), scales=(1, 2, 3)))
    latent_BPCHW = torch.randn(4, 2, 4, 3, 3, generator=torch.Generator().manual_seed(1))
    found: Quantized = folded(latent_BPCHW)
    samples, codes = [], []
    for p, scale in itertools.product(range(2), range(3)):
        before = (
            folded.dequantize(found.tokens_BLF, folded.layout.offsets[scale])
            if scale
            else torch.zeros_like(latent_BPCHW)
        )
        residual = folded.branch(p).project(latent_BPCHW[:, p]) - before[:, p]
        side = scale + 1 if positions == "cells" else 3
        cells = F.interpolate(residual, size=(side, side), mode="area").flatten(2).transpose(1, 2).flatten(0, 1)
        of_sample, of_codes = entropy_by_hand(folded.branch(p).quantizer, cells.detach())
        samples.append(of_sample)
        codes.append(of_codes)
    assert found.losses["sample_entropy"].item() == pytest.approx(0.7 * np.mean(samples), rel=1e-4)
    assert folded.losses_of_means(found.means)["code_entropy"].item() == pytest.approx(-0.7 * np.mean(codes), rel=1e-4)


@pytest.mark.parametrize("kind", SOFT)
@pytest.mark.parametrize("kept", [[3, 3, 3, 3], [1, 3, 2, 3], [1, 1, 1, 1]])
def test_entropy_over_workers_is_that_of_the_global_batch_in_value_and_gradient(kind: str, kept: list[int]) -> None:
    folded = FoldedQuantizer(grid(soft(kind), scales=(1, 2, 3), quantizer_dropout=1.0))
    latent_BPCHW = torch.randn(4, 2, 4, 3, 3, generator=torch.Generator().manual_seed(1), requires_grad=True)
    kept_B = torch.tensor(kept)
    share_S = (kept_B[:, None] > torch.arange(3)).float().mean(0)

    def entropy(outputs: list[Quantized]) -> Tensor:
        mean = {"code_shares": torch.stack([each.means["code_shares"] for each in outputs]).mean(0)}
        of_samples = torch.stack([each.losses["sample_entropy"] for each in outputs]).mean()
        return of_samples + folded.losses_of_means(mean)["code_entropy"]

    whole = entropy([folded(latent_BPCHW, kept_B)])
    halves = entropy([folded(latent_BPCHW[part], kept_B[part], share_S) for part in (slice(0, 2), slice(2, 4))])
    torch.testing.assert_close(halves, whole, rtol=0, atol=1e-6)
    wholes, parts = (torch.autograd.grad(each, latent_BPCHW)[0] for each in (whole, halves))
    assert wholes.isfinite().all()
    assert wholes.abs().sum() > 0
    torch.testing.assert_close(parts, wholes, rtol=0, atol=1e-6)
    first, rest = folded(latent_BPCHW[:1], kept_B[:1]), folded(latent_BPCHW[1:], kept_B[1:])
    assert not torch.allclose(entropy([first, rest]), whole, atol=1e-4)  # a mean of local terms is another number


@pytest.mark.parametrize("kind", SOFT)
def test_entropies_of_images_that_lose_a_scale_leave_it(kind: str) -> None:
    folded = FoldedQuantizer(grid(soft(kind), scales=(1, 2, 3), branches=1))
    latent_BPCHW = torch.randn(4, 1, 4, 3, 3, generator=torch.Generator().manual_seed(1))
    kept_B = torch.tensor([1, 3, 3, 1])
    found: Quantized = folded(latent_BPCHW, kept_B)
    alone: Quantized = folded(latent_BPCHW[1:3])
    torch.testing.assert_close(found.means["code_shares"][0, 1:], alone.means["code_shares"][0, 1:])
    everyone: Quantized = folded(latent_BPCHW)
    torch.testing.assert_close(found.means["code_shares"][0, 0], everyone.means["code_shares"][0, 0])
    first = [folded(part, torch.ones(len(part))).losses["sample_entropy"] for part in (latent_BPCHW[1:3], latent_BPCHW)]
    expected = alone.losses["sample_entropy"] - first[0] + first[1]  # all images at the first scale, two at the others
    torch.testing.assert_close(found.losses["sample_entropy"], expected)
    assert not torch.allclose(found.losses["sample_entropy"], everyone.losses["sample_entropy"], rtol=1e-5, atol=0)


@pytest.mark.parametrize("kind", SOFT)
def test_entropy_moves_latents_and_codes_and_no_convolutions(kind: str) -> None:
    folded = FoldedQuantizer(grid(soft(kind), branches=1))
    latent_BPCHW = torch.randn(4, 1, 4, 3, 3, requires_grad=True)
    found: Quantized = folded(latent_BPCHW)
    loss = found.losses["sample_entropy"] + folded.losses_of_means(found.means)["code_entropy"]
    leaves = {"latent": latent_BPCHW, **dict(folded.named_parameters())}
    gradients = zip(leaves, torch.autograd.grad(loss, list(leaves.values()), allow_unused=True), strict=True)
    moved = {name for name, gradient in gradients if gradient is not None}
    assert moved == {"latent"} | set(folded.codebooks)


def test_shares_at_each_scale_are_those_of_codes_of_its_length() -> None:
    folded = FoldedQuantizer(grid(soft("lfq"), scales=(2, 2), residual_ratio=0, scale_decay=0.5, branches=1))
    latent_BPCHW = torch.randn(3, 1, 4, 2, 2)
    found: Quantized = folded(latent_BPCHW)
    second = (latent_BPCHW - folded.dequantize(found.tokens_BLF, 4))[:, 0]
    expected = torch.sigmoid(4 * second / 0.5 / 0.5).mean((0, 2, 3))  # over the length of codes and the temperature
    torch.testing.assert_close(found.means["code_shares"][0, 1], expected)


@pytest.mark.parametrize("kind", SOFT)
def test_shares_of_nothing_and_of_all_give_finite_gradients(kind: str) -> None:
    torch.manual_seed(6)
    flat = FlatQuantizer(soft(kind, entropy_temperature=1e-6))
    vector_BKC = (100 * torch.randn(2, 3, 4)).requires_grad_()
    found: QuantizedVectors = flat(vector_BKC)
    loss = found.losses["sample_entropy"] + flat.losses_of_means(found.means)["code_entropy"]
    loss.backward()
    assert loss.isfinite()
    assert vector_BKC.grad is not None
    assert vector_BKC.grad.isfinite().all()


def test_entropy_is_off_unless_asked_for_vectors_and_as_published_for_bits() -> None:
    assert made(VectorConfig(codebook_size=4, code_dim=2)).soft is None
    for config in (LookupFreeConfig(bits=2), SphericalConfig(bits=2)):
        quantizer = made(config)
        assert quantizer.soft is quantizer
        assert (quantizer.entropy_weight, config.entropy_temperature, quantizer.entropy_of_cells) == (0.1, 1.0, False)
        x = torch.tensor([[[0.3, -0.2]]])
        torch.testing.assert_close(quantizer.shares(x), torch.sigmoid(4 * x * config.length))
    assert made(VectorConfig(codebook_size=4, code_dim=2, entropy=0.1)).entropy_of_cells
