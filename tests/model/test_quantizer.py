"""The multi-scale quantizer: what it chooses, what it sums up, what it is trained with."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from model.config import ImageFolderConfig, VectorConfig
from model.quantizers.multi_scale import FoldedQuantizer, Quantized, area_resize, conv_of_scale

SCALES = (1, 2, 3, 5)


def _quantizer(**changes: object) -> FoldedQuantizer:
    torch.manual_seed(3)
    options = {
        "scales": SCALES,
        "quantizer": VectorConfig(codebook_size=24, code_dim=6),
        "branches": 2,
        "shared_residual_convs": 2,
    }
    return FoldedQuantizer(ImageFolderConfig.model_validate({**options, "image_size": 32, "patch_size": 4, **changes}))


def _latent(batch: int = 4, branches: int = 2) -> Tensor:
    return torch.randn(batch, branches, 6, 5, 5, generator=torch.Generator().manual_seed(7))


# Which convolution each scale uses


def test_ten_scales_share_four_convolutions_as_published() -> None:
    assert conv_of_scale(10, 4) == (0, 0, 1, 1, 1, 2, 2, 3, 3, 3)


def test_a_tie_goes_up_with_four_convolutions_and_down_with_two_as_in_the_published_arithmetic() -> None:
    assert conv_of_scale(5, 4) == (0, 1, 2, 2, 3)
    assert conv_of_scale(5, 2) == (0, 0, 0, 1, 1)


@given(st.integers(1, 40))
def test_as_many_convolutions_as_scales_gives_each_its_own(scales: int) -> None:
    assert conv_of_scale(scales, scales) == tuple(range(scales))


@given(st.integers(2, 24), st.integers(2, 24))
def test_each_scale_uses_a_convolution_whose_tick_is_nearest(scales: int, convs: int) -> None:
    first = Fraction(1, 12) if convs == 4 else Fraction(1, 2 * convs)
    ticks = [first + (1 - 2 * first) * tick / (convs - 1) for tick in range(convs)]
    for scale, conv in enumerate(conv_of_scale(scales, convs)):
        distances = [abs(tick - Fraction(scale, scales - 1)) for tick in ticks]
        assert distances[conv] == min(distances)


@pytest.mark.parametrize(("shared", "convs"), [(0, 4), (1, 1), (2, 2)])
def test_convolutions_are_shared_as_asked(shared: int, convs: int) -> None:
    assert len(_quantizer(shared_residual_convs=shared).branch(0).residual_convs) == convs


# Encoding and decoding


def test_what_quantization_sums_up_is_what_decoding_the_tokens_gives_bit_for_bit() -> None:
    quantizer, latent_BPCHW = _quantizer(), _latent()
    quantized: Quantized = quantizer(latent_BPCHW)
    decoded_BPCHW = quantizer.dequantize(quantizer.tokenize(latent_BPCHW))
    sums_BPCHW = torch.stack([sum(quantizer.branch(p).quantize(latent_BPCHW[:, p])[2]) for p in range(2)], dim=1)
    assert torch.equal(decoded_BPCHW, sums_BPCHW)
    torch.testing.assert_close(quantized.latent_BPCHW, decoded_BPCHW, rtol=0, atol=1e-6)  # f + (q - f) rounds


def test_training_and_tokenizing_choose_the_same_tokens() -> None:
    quantizer = _quantizer()
    tokens_BLF = quantizer.tokenize(_latent())
    assert torch.equal(quantizer(_latent(), torch.tensor([1, 2, 3, 4])).tokens_BLF, tokens_BLF)
    assert tokens_BLF.dtype == torch.int64
    assert tokens_BLF.shape == (4, 39, 2)


def test_each_token_is_the_code_of_largest_cosine_similarity_to_the_residual() -> None:
    quantizer, latent_BPCHW = _quantizer(), _latent()
    tokens_BLF = quantizer.tokenize(latent_BPCHW)
    for scale, side in enumerate(SCALES):
        decoded = (
            quantizer.dequantize(tokens_BLF, quantizer.layout.offsets[scale])
            if scale
            else torch.zeros_like(latent_BPCHW)
        )
        for p in range(2):
            cells_BCK = F.interpolate((latent_BPCHW - decoded)[:, p], size=(side, side), mode="area").flatten(2)
            cosine_BVK = F.cosine_similarity(
                quantizer.branch(p).quantizer.codebook[None, :, :, None], cells_BCK[:, None], dim=2
            )
            chosen_B1K = tokens_BLF[:, quantizer.layout.span(scale), p][:, None]
            torch.testing.assert_close(cosine_BVK.gather(1, chosen_B1K)[:, 0], cosine_BVK.amax(1), rtol=0, atol=1e-6)


def test_a_code_is_added_at_its_own_length_through_bicubic_and_convolution() -> None:
    quantizer = _quantizer(branches=1)
    branch = quantizer.branch(0)
    with torch.no_grad():
        branch.quantizer.codebook.mul_(3)
    tokens_BK = torch.tensor([[5, 1, 7, 0]])
    grid_BCkk = branch.quantizer.codebook[tokens_BK].transpose(1, 2).reshape(1, 6, 2, 2)
    wide_BCHW = F.interpolate(grid_BCkk, size=(5, 5), mode="bicubic", align_corners=False)
    conv = branch.residual_convs[conv_of_scale(4, 2)[1]]
    torch.testing.assert_close(branch.step(tokens_BK, 1), 0.5 * wide_BCHW + 0.5 * conv(wide_BCHW))


def test_branches_do_not_touch_each_other() -> None:
    quantizer, latent_BPCHW = _quantizer(), _latent()
    changed = latent_BPCHW.clone()
    changed[:, 0] += 1
    before, after = quantizer.tokenize(latent_BPCHW), quantizer.tokenize(changed)
    assert torch.equal(before[..., 1], after[..., 1])
    assert not torch.equal(before[..., 0], after[..., 0])


@pytest.mark.parametrize("keep", [0, 3, 1000])
def test_a_prefix_that_ends_within_a_scale_is_refused(keep: int) -> None:
    with pytest.raises(ValueError, match="scales end at"):
        _quantizer().dequantize(_quantizer().tokenize(_latent()), keep)


def test_one_scale_alone_works_and_has_no_teacher_forcing_rows() -> None:
    quantizer = _quantizer(scales=(5,), dropout_min_scales=1)
    tokens_BLF = quantizer.tokenize(_latent())
    assert quantizer.generator_input(tokens_BLF).shape == (4, 0, 12)
    assert quantizer.dequantize(tokens_BLF).shape == (4, 2, 6, 5, 5)


# What the generator sees


def test_sampling_scale_by_scale_gives_the_teacher_forcing_rows_bit_for_bit() -> None:
    quantizer = _quantizer()
    tokens_BLF = quantizer.tokenize(_latent())
    latent_BPCHW = torch.zeros(4, 2, 6, 5, 5)
    rows = []
    for scale in range(len(SCALES)):
        tokens_BKF = tokens_BLF[:, quantizer.layout.span(scale)]
        latent_BPCHW, input_BKC = quantizer.next_scale(latent_BPCHW, tokens_BKF, scale)
        assert torch.equal(latent_BPCHW, quantizer.dequantize(tokens_BLF, quantizer.layout.offsets[scale + 1]))
        if input_BKC is not None:
            rows.append(input_BKC)
    assert input_BKC is None
    assert torch.equal(torch.cat(rows, dim=1), quantizer.generator_input(tokens_BLF))


def test_a_row_holds_the_cell_of_every_branch_side_by_side() -> None:
    quantizer = _quantizer()
    tokens_BLF = quantizer.tokenize(_latent())
    first_BPCHW = quantizer.dequantize(tokens_BLF, quantizer.layout.offsets[1])
    expected_BKC = torch.cat([area_resize(first_BPCHW[:, p], 2).flatten(2).transpose(1, 2) for p in range(2)], dim=2)
    assert torch.equal(quantizer.generator_input(tokens_BLF)[:, :4], expected_BKC)


def test_rows_of_a_scale_do_not_know_the_tokens_of_that_scale_or_later() -> None:
    quantizer = _quantizer()
    tokens_BLF = quantizer.tokenize(_latent())
    changed = tokens_BLF.clone()
    changed[:, 5:] = (changed[:, 5:] + 1) % 24  # scales 3 and 4
    before, after = quantizer.generator_input(tokens_BLF), quantizer.generator_input(changed)
    assert torch.equal(before[:, : 4 + 9], after[:, : 4 + 9])
    assert not torch.equal(before[:, 4 + 9 :], after[:, 4 + 9 :])


def test_tokens_may_come_as_they_are_stored() -> None:
    quantizer = _quantizer()
    tokens_BLF = quantizer.tokenize(_latent())
    assert torch.equal(quantizer.generator_input(tokens_BLF.to(torch.int32)), quantizer.generator_input(tokens_BLF))


# Losses


@torch.no_grad()
def _reference_losses(quantizer: FoldedQuantizer, latent_BPCHW: Tensor, kept: list[int]) -> tuple[float, float]:
    """The definition, image by image: the mean over the images that keep a scale, over scales and over branches."""
    tokens_BLF = quantizer.tokenize(latent_BPCHW)
    total = torch.zeros(())
    for scale in range(len(SCALES)):
        images = [image for image, count in enumerate(kept) if scale < count]
        for image in images:
            summed = quantizer.dequantize(tokens_BLF[image : image + 1], quantizer.layout.offsets[scale + 1])
            total += (summed - latent_BPCHW[image]).square().mean() / len(images)
    return total.item() / len(SCALES), total.item()


@pytest.mark.parametrize("kept", [[4, 4, 4, 4], [2, 4, 3, 4], [2, 2, 2, 2]])
@pytest.mark.parametrize("over_scales", [True, False])
def test_losses_are_means_over_the_images_that_keep_each_scale(kept: list[int], over_scales: bool) -> None:
    quantizer, latent_BPCHW = _quantizer(commitment_over_scales=over_scales), _latent()
    quantized: Quantized = quantizer(latent_BPCHW, torch.tensor(kept))
    over_scales_mean, over_scales_sum = _reference_losses(quantizer, latent_BPCHW, kept)
    assert quantized.losses["codebook"].item() == pytest.approx(over_scales_mean, rel=1e-5)
    expected = over_scales_mean if over_scales else over_scales_sum
    assert quantized.losses["commitment"].item() == pytest.approx(0.25 * expected, rel=1e-5)


def test_keeping_all_scales_is_no_dropout() -> None:
    quantizer, latent_BPCHW = _quantizer(), _latent()
    kept, plain = quantizer(latent_BPCHW, torch.full((4,), 4)), quantizer(latent_BPCHW)
    assert torch.equal(kept.latent_BPCHW, plain.latent_BPCHW)
    torch.testing.assert_close(kept.losses, plain.losses)


def test_an_image_that_keeps_n_scales_is_the_sum_of_its_first_n() -> None:
    quantizer, latent_BPCHW = _quantizer(), _latent()
    quantized: Quantized = quantizer(latent_BPCHW, torch.tensor([1, 2, 3, 4]))
    for image, count in enumerate([1, 2, 3, 4]):
        prefix = quantizer.dequantize(quantized.tokens_BLF[image : image + 1], quantizer.layout.offsets[count])[0]
        torch.testing.assert_close(quantized.latent_BPCHW[image], prefix, rtol=0, atol=1e-6)


def test_workers_that_know_the_global_shares_average_to_the_loss_of_the_whole_batch() -> None:
    quantizer, latent_BPCHW, kept_B = _quantizer(), _latent(), torch.tensor([1, 4, 2, 4])
    whole: Quantized = quantizer(latent_BPCHW, kept_B)
    share_S = torch.tensor([1.0, 0.75, 0.5, 0.5])
    halves = [quantizer(latent_BPCHW[part], kept_B[part], share_S) for part in (slice(0, 2), slice(2, 4))]
    for name in ("codebook", "commitment"):
        mean = torch.stack([half.losses[name] for half in halves]).mean()
        torch.testing.assert_close(mean, whole.losses[name])


def test_a_scale_that_nobody_keeps_leaves_the_losses_finite() -> None:
    quantizer, latent_BPCHW = _quantizer(), _latent().requires_grad_()
    quantized: Quantized = quantizer(latent_BPCHW, torch.full((4,), 2))
    (quantized.losses["codebook"] + quantized.losses["commitment"]).backward()
    assert latent_BPCHW.grad is not None
    assert latent_BPCHW.grad.isfinite().all()


def test_the_latents_gradient_goes_straight_through() -> None:
    latent_BPCHW = _latent().requires_grad_()
    weight = torch.randn(latent_BPCHW.shape)
    (_quantizer()(latent_BPCHW).latent_BPCHW * weight).sum().backward()
    assert latent_BPCHW.grad is not None
    assert torch.equal(latent_BPCHW.grad, weight)


def test_the_codebook_loss_moves_codes_and_the_commitment_loss_moves_latents() -> None:
    quantizer, latent_BPCHW = _quantizer(), _latent().requires_grad_()
    quantized: Quantized = quantizer(latent_BPCHW)
    parameters = list(quantizer.parameters())
    to_latent = torch.autograd.grad(quantized.losses["codebook"], [latent_BPCHW], retain_graph=True, allow_unused=True)
    to_codes = torch.autograd.grad(quantized.losses["commitment"], parameters, retain_graph=True, allow_unused=True)
    assert to_latent == (None,)
    assert all(gradient is None for gradient in to_codes)
    assert all(bool(g.abs().sum() > 0) for g in torch.autograd.grad(quantized.losses["codebook"], parameters))
    assert torch.autograd.grad(quantized.losses["commitment"], [latent_BPCHW])[0].abs().sum() > 0


# Codes and number formats


def test_hits_count_every_token_of_its_branch_and_scale() -> None:
    quantizer = _quantizer()
    quantized: Quantized = quantizer(_latent())
    for branch in range(2):
        for scale in range(len(SCALES)):
            tokens = quantized.tokens_BLF[:, quantizer.layout.span(scale), branch].flatten()
            assert torch.equal(
                quantized.hits[f"branches.{branch}.quantizer.codebook"][scale], torch.bincount(tokens, minlength=24)
            )


def test_codes_start_on_the_unit_sphere_and_differ_between_branches() -> None:
    quantizer = _quantizer()
    torch.testing.assert_close(quantizer.branch(0).quantizer.codebook.norm(dim=1), torch.ones(24))
    assert not torch.equal(quantizer.branch(0).quantizer.codebook, quantizer.branch(1).quantizer.codebook)


def test_autocast_around_it_changes_nothing() -> None:
    quantizer, latent_BPCHW = _quantizer(), _latent()
    plain = quantizer.tokenize(latent_BPCHW)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        quantized: Quantized = quantizer(latent_BPCHW)
        assert torch.equal(quantizer.tokenize(latent_BPCHW), plain)
        assert quantizer.generator_input(plain).dtype == torch.float32
    assert torch.equal(quantized.tokens_BLF, plain)
    assert quantized.latent_BPCHW.dtype == torch.float32


def test_half_precision_weights_and_latents_are_computed_with_in_float32() -> None:
    quantizer = _quantizer().bfloat16()
    quantized: Quantized = quantizer(_latent().bfloat16())
    assert quantized.latent_BPCHW.dtype == torch.float32
    assert quantizer.dequantize(quantized.tokens_BLF).dtype == torch.float32
