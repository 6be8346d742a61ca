"""Quantizer dropout: which images, how many scales, and losses against a reference that goes image by image."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from data_pipeline.order.permutations import keyed_uniform
from model.config import ImageFolderConfig, VectorConfig, ViTConfig
from model.protocols import Draws
from model.quantizers.multi_scale import FoldedQuantizer, Quantized, conv_of_scale
from model.tokenizers.grid import DROPPED, KEPT_MEAN, KEPT_SCALES
from model.tokenizers.imagefolder import ImageFolderTokenizer

SMALL = ViTConfig(width=8, depth=1, heads=2)


def draws(world: int, everyone: int, **changes: Any) -> list[Draws]:
    """What each of some workers draws for a step."""
    config = ImageFolderConfig.model_validate({"encoder": SMALL, "decoder": SMALL, **changes})
    with torch.device("meta"):
        tokenizer = ImageFolderTokenizer(config)
    positions = np.arange(1000, 1000 + everyone, dtype=np.int64)
    return [tokenizer.draw(partial(keyed_uniform, 0), mine, positions) for mine in np.split(positions, world)]


FIRST = {"quantizer_dropout_images": "first"}


@pytest.mark.parametrize(("local", "dropped"), [(9, 0), (10, 1), (32, 3), (128, 12)])
def test_the_first_tenth_of_each_workers_batch_rounded_down_is_dropped(local: int, dropped: int) -> None:
    for each in draws(3, 3 * local, **FIRST):
        assert each.of_sample[DROPPED].tolist() == [True] * dropped + [False] * (local - dropped)
        assert (each.of_sample[KEPT_SCALES][dropped:] == 10).all()
        assert (each.of_sample[KEPT_SCALES][:dropped] >= 3).all()


def test_dropped_images_keep_a_uniform_number_of_scales_from_the_fewest_to_all() -> None:
    (each,) = draws(1, 200_000, quantizer_dropout=0.5, **FIRST)
    counts = np.bincount(each.of_sample[KEPT_SCALES][:100_000], minlength=11) / 100_000
    np.testing.assert_allclose(counts, [0] * 3 + [1 / 8] * 8, atol=0.005)
    assert (each.of_sample[KEPT_SCALES][100_000:] == 10).all()


def test_the_share_that_keeps_a_scale_is_over_the_first_images_of_all_workers() -> None:
    found = draws(4, 40, quantizer_dropout=0.3, **FIRST)
    kept = np.concatenate([each.of_sample[KEPT_SCALES] for each in found])
    assert (kept < 10).sum() > 4
    assert all((kept[worker * 10 + 3 : worker * 10 + 10] == 10).all() for worker in range(4))
    for each in found:
        np.testing.assert_allclose(each.of_step[KEPT_MEAN], [(kept > scale).mean() for scale in range(10)], rtol=1e-6)


def test_images_that_happen_to_keep_all_scales_are_dropped_all_the_same() -> None:
    (each,) = draws(1, 20, quantizer_dropout=0.5, scales=(4,), dropout_min_scales=1, **FIRST)
    assert each.of_sample[DROPPED].sum() == 10
    assert (each.of_sample[KEPT_SCALES] == 1).all()


def test_images_spread_over_the_batch_stay_in_the_semantic_losses() -> None:
    (each,) = draws(1, 200, quantizer_dropout=0.5)
    assert 60 < (each.of_sample[KEPT_SCALES] < 10).sum() < 120
    assert each.of_sample[DROPPED].dtype == np.bool_
    assert not each.of_sample[DROPPED].any()


# Losses

SCALES = (1, 2, 3)


def quantizer(**changes: Any) -> FoldedQuantizer:
    torch.manual_seed(3)
    book = VectorConfig(codebook_size=24, code_dim=6, commitment=0.25)
    options = {"scales": SCALES, "quantizer": book, "shared_residual_convs": 2, "dropout_min_scales": 1, **changes}
    return FoldedQuantizer(ImageFolderConfig.model_validate(options))


def reference(folded: FoldedQuantizer, latent_BPCHW: Tensor, kept: list[int]) -> tuple[Tensor, Tensor]:
    """Codebook and commitment loss: means over the images that keep a scale, over scales and over branches."""
    tokens_BLF = folded.tokenize(latent_BPCHW)
    codebook_loss, commitment_loss = torch.zeros(()), torch.zeros(())
    for p in range(2):
        branch = folded.branch(p)
        for image, count in enumerate(kept):
            latent_CHW, total_CHW, at = latent_BPCHW[image, p], torch.zeros(6, 3, 3), 0
            for scale, side in enumerate(SCALES):
                codes = branch.quantizer.codebook[tokens_BLF[image, at : at + side**2, p]]
                wide = codes.t().reshape(1, 6, side, side)
                if side < 3:
                    wide = F.interpolate(wide, size=(3, 3), mode="bicubic", align_corners=False)
                conv = branch.residual_convs[conv_of_scale(3, 2)[scale]]
                total_CHW = total_CHW + 0.5 * wide[0] + 0.5 * conv(wide)[0]
                at += side**2
                if scale < count:
                    share = 1 / sum(scale < other for other in kept) / len(SCALES) / 2
                    codebook_loss = codebook_loss + share * (total_CHW - latent_CHW.detach()).square().mean()
                    commitment_loss = commitment_loss + share * (total_CHW.detach() - latent_CHW).square().mean()
    return codebook_loss, 0.25 * commitment_loss


@pytest.mark.parametrize("kept", [[3, 3, 3, 3], [1, 3, 2, 3], [2, 2, 1, 1], [1, 1, 1, 1]])
@pytest.mark.parametrize("workers", [1, 2])
def test_losses_and_their_gradients_are_those_of_a_reference_that_goes_image_by_image(
    kept: list[int], workers: int
) -> None:
    folded = quantizer()
    latent_BPCHW = torch.randn(4, 2, 6, 3, 3, generator=torch.Generator().manual_seed(7), requires_grad=True)
    kept_B = torch.tensor(kept)
    mean_S = (kept_B[:, None] > torch.arange(3)).float().mean(0)
    parts: list[Quantized] = [
        folded(latent_BCHW, of_part, mean_S)
        for latent_BCHW, of_part in zip(latent_BPCHW.chunk(workers), kept_B.chunk(workers), strict=True)
    ]
    leaves = [latent_BPCHW, *folded.parameters()]
    for name, expected in zip(("codebook", "commitment"), reference(folded, latent_BPCHW, kept), strict=True):
        loss = torch.stack([part.losses[name] for part in parts]).mean()
        torch.testing.assert_close(loss, expected, rtol=0, atol=1e-6)
        pairs = [torch.autograd.grad(each, leaves, allow_unused=True, retain_graph=True) for each in (loss, expected)]
        for leaf, one, other in zip(leaves, *pairs, strict=True):
            one, other = (torch.zeros_like(leaf) if each is None else each for each in (one, other))
            assert one.isfinite().all()
            torch.testing.assert_close(one, other, rtol=0, atol=1e-6)


def test_dropping_all_images_to_one_scale_decodes_and_learns_from_that_scale_alone() -> None:
    (drawn,) = draws(1, 4, scales=SCALES, quantizer_dropout=1.0, dropout_min_scales=1)
    config = ImageFolderConfig(
        image_size=12,
        patch_size=4,
        encoder=SMALL,
        decoder=SMALL,
        scales=SCALES,
        quantizer=VectorConfig(codebook_size=24, code_dim=6),
        dropout_min_scales=1,
    )
    torch.manual_seed(0)
    tokenizer = ImageFolderTokenizer(config)
    kept = {KEPT_SCALES: torch.ones(4, dtype=torch.int64), KEPT_MEAN: torch.tensor([1.0, 0, 0])}
    assert set(kept) < set(drawn.of_sample) | set(drawn.of_step)
    output = tokenizer(torch.rand(4, 3, 12, 12) * 2 - 1, kept)
    (output.reconstruction_BCHW.square().mean() + sum(output.losses.values())).backward()
    assert all(loss.isfinite() for loss in output.losses.values())
    assert all(each.grad is None or bool(each.grad.isfinite().all()) for each in tokenizer.parameters())
    assert tokenizer.to_latent.weight.grad is not None
    first = tokenizer.quantizer.dequantize(output.tokens_BLF, 1)
    assert output.branch_BPC is not None
    torch.testing.assert_close(output.branch_BPC, first.mean((3, 4)), rtol=0, atol=1e-6)
