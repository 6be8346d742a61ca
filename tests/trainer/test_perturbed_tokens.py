"""Tokens that an evaluation replaces: how many, by which, and of what that is a function."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from data_pipeline.errors import UsageError
from model.config import LookupFreeConfig, VectorConfig, ViTConfig
from model.config.titok import GaussianConfig
from model.losses.perturbation import nearest_codes
from model.protocols import Tokenizer
from model.tokenizers.imagefolder import ImageFolderTokenizer
from tests.model.small_quantizers import grid
from tests.model.small_titok import tokenizer_of
from trainer.evaluation.tokenizers.perturbed_tokens import TokenPerturbation
from trainer.evaluation.tokenizers.tokenizer_measure import TokenizerMeasure

VIT = ViTConfig(width=8, depth=1, heads=2, layer_scale=None)
CODES = 40


def folded(codes: int = CODES) -> ImageFolderTokenizer:
    """Two branches of three scales, 14 positions."""
    quantizer = VectorConfig(codebook_size=codes, code_dim=4)
    config = grid(quantizer, image_size=12, patch_size=4, encoder=VIT, decoder=VIT)
    torch.manual_seed(0)
    return ImageFolderTokenizer(config).eval()


TOKENIZER = folded()
TOKENS = torch.randint(CODES, (200, 14, 2), generator=torch.Generator().manual_seed(0))
NUMBERS = np.arange(200)


def perturbed(alpha: float, delta: int, seed: int = 0, tokenizer: Tokenizer = TOKENIZER) -> Tensor:
    return TokenPerturbation(alpha, delta, seed).of(tokenizer)(TOKENS, NUMBERS)


@pytest.mark.parametrize(("alpha", "delta"), [(0.0, 10), (1.0, 1), (0.0, 1)])
def test_no_share_or_no_code_but_the_tokens_own_changes_nothing(alpha: float, delta: int) -> None:
    assert torch.equal(perturbed(alpha, delta), TOKENS)


def test_of_two_nearest_codes_all_tokens_keep_their_own_or_become_the_other() -> None:
    found = perturbed(1.0, 2)
    other = torch.stack([nearest_codes(each.codebook, 2)[:, 1] for each in TOKENIZER.fold_quantizers()], 1)  # type: ignore[attr-defined]
    nearest = torch.stack([other[TOKENS[..., fold], fold] for fold in range(2)], 2)
    assert ((found == TOKENS) | (found == nearest)).all()
    assert (found == nearest).float().mean().item() == pytest.approx(0.5, abs=4 * 0.5 / TOKENS.numel() ** 0.5)


@pytest.mark.parametrize(("alpha", "delta"), [(0.3, CODES), (0.8, 5), (1.0, 10)])
def test_the_share_that_changes_is_alpha_without_what_becomes_itself(alpha: float, delta: int) -> None:
    share = alpha * (1 - 1 / delta)
    changed = (perturbed(alpha, delta) != TOKENS).float().mean((0, 1))
    deviation = (share * (1 - share) / (200 * 14)) ** 0.5
    for fold in changed.tolist():
        assert fold == pytest.approx(share, abs=4 * deviation)


def test_only_near_codes_are_drawn_each_as_likely() -> None:
    found, quantizers = perturbed(1.0, 4), TOKENIZER.fold_quantizers()
    for fold in range(2):
        near = nearest_codes(quantizers[fold].codebook, 4)  # type: ignore[attr-defined]
        is_rank = near[TOKENS[..., fold]] == found[..., fold, None]
        assert (is_rank.sum(-1) == 1).all()
        torch.testing.assert_close(is_rank.float().mean((0, 1)), torch.full((4,), 0.25), atol=0.035, rtol=0)


def test_folds_seeds_and_images_are_drawn_by_themselves() -> None:
    found = perturbed(0.5, 2) != TOKENS
    assert not torch.equal(found[..., 0], found[..., 1])
    assert not torch.equal(found, perturbed(0.5, 2, seed=1) != TOKENS)
    assert not torch.equal(found[0], found[1])


def test_what_is_drawn_follows_from_the_images_number_in_any_batch() -> None:
    replace = TokenPerturbation(0.5, 8).of(TOKENIZER)
    whole = replace(TOKENS, NUMBERS)
    picked = [7, 150, 3]
    assert torch.equal(replace(TOKENS[picked], NUMBERS[picked]), whole[picked])


def test_more_alpha_replaces_the_same_tokens_and_more() -> None:
    few, many = (perturbed(alpha, CODES) != TOKENS for alpha in (0.2, 0.6))
    assert few.sum() < many.sum()
    assert (few <= many).float().mean() > 0.95  # but those that became themselves


def test_latents_in_a_row_and_codes_of_signs_are_perturbed_too() -> None:
    tokenizer = tokenizer_of(quantizer=LookupFreeConfig(bits=6))
    tokens = TOKENS[:, :5, :1]
    found = TokenPerturbation(1.0, 7).of(tokenizer)(tokens, NUMBERS)
    turned = [bin(each).count("1") for each in (found ^ tokens).flatten().tolist()]
    assert set(turned) == {0, 1}


def test_a_measure_decodes_the_replaced_tokens_and_says_how_many_they_are() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 12, 12, 3), dtype=np.uint8)
    labels, device = np.zeros(5, np.int64), torch.device("cpu")
    plain = TokenizerMeasure(TOKENIZER, device)(pixels, labels, 100)
    strength = TokenPerturbation(1.0, 10)
    found = TokenizerMeasure(TOKENIZER, device, perturbation=strength.of(TOKENIZER))(pixels, labels, 100)
    own = torch.from_numpy(plain["tokens"]).long()
    expected = strength.of(TOKENIZER)(own, np.arange(100, 105))
    np.testing.assert_array_equal(found["tokens"], expected)
    np.testing.assert_allclose(found["replaced"], (expected != own).float().mean((1, 2)))
    assert (found["mse"][:, -1] != plain["mse"][:, -1]).all()
    unchanged = TokenizerMeasure(TOKENIZER, device, perturbation=TokenPerturbation(0.0, 10).of(TOKENIZER))
    np.testing.assert_array_equal(unchanged(pixels, labels, 100)["mse"], plain["mse"])


@pytest.mark.parametrize(
    ("alpha", "delta", "said"), [(1.5, 3, "alpha 1.5 is a share"), (-0.1, 3, "alpha"), (0.5, 0, "delta 0 counts codes")]
)
def test_a_strength_out_of_range_is_refused(alpha: float, delta: int, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        TokenPerturbation(alpha, delta)


def test_more_codes_than_the_codebook_has_are_refused() -> None:
    with pytest.raises(UsageError, match="41 nearest codes of 40"):
        TokenPerturbation(0.5, 41).of(TOKENIZER)


def test_a_gaussian_bottleneck_is_refused() -> None:
    with pytest.raises(UsageError, match="Gaussian bottleneck, and no tokens"):
        TokenPerturbation(0.5, 2).of(tokenizer_of(quantizer=GaussianConfig(code_dim=4)))
