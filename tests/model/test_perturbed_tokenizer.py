"""A tokenizer that decodes near codes in place of some true ones (RobustTok)."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from model.config import ImageFolderConfig, VectorConfig, ViTConfig
from model.layers.random_numbers import split_seed
from model.losses.perturbation import perturbed_tokens
from model.tokenizers.grid import CHANCES, PERTURBED
from model.tokenizers.imagefolder import ImageFolderTokenizer
from trainer.config import TokenizerStageConfig
from trainer.stages.guides import Guides
from trainer.stages.tokenizer import TokenizerStage

VIT = ViTConfig(width=16, depth=1, heads=2)
CONFIG = ImageFolderConfig(
    image_size=8,
    patch_size=4,
    encoder=VIT,
    decoder=VIT,
    scales=(2,),
    quantizer_dropout=0,
    quantizer=VectorConfig(codebook_size=32, code_dim=4),
)
IMAGE, SEED = torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1, torch.tensor([5, 6, 7])
CHOSEN = torch.tensor([True, False, True])


@pytest.fixture
def tokenizer() -> ImageFolderTokenizer:
    torch.manual_seed(0)
    return ImageFolderTokenizer(CONFIG)


def drawn(chosen_B: Tensor = CHOSEN) -> dict[str, Tensor]:
    return {PERTURBED: chosen_B, CHANCES: torch.tensor([0.25, 0.5, 0.75, 1.0])}


def test_chosen_images_are_decoded_from_near_codes(tokenizer: ImageFolderTokenizer) -> None:
    found = tokenizer(IMAGE, drawn(), SEED)
    clean = tokenizer(IMAGE, {}, SEED)
    of_branches = split_seed(split_seed(SEED, 3)[2], 2)
    near = []
    for branch in range(2):
        codebook = tokenizer.quantizer.branch(branch).quantizer.codebook
        assert isinstance(codebook, Tensor)
        ids = clean.tokens_BLF[..., branch]
        near.append(perturbed_tokens(ids, codebook, of_branches[branch], CHOSEN, drawn()[CHANCES]))
    expected = tokenizer.decode(tokenizer.quantizer.dequantize(torch.stack(near, dim=2)), None)
    assert not torch.equal(torch.stack(near, dim=2)[CHOSEN], clean.tokens_BLF[CHOSEN])
    torch.testing.assert_close(found.reconstruction_BCHW, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.reconstruction_BCHW[1], clean.reconstruction_BCHW[1])


def test_all_but_the_reconstruction_is_of_the_true_codes(tokenizer: ImageFolderTokenizer) -> None:
    found, clean = tokenizer(IMAGE, drawn(), SEED), tokenizer(IMAGE, {}, SEED)
    torch.testing.assert_close(found.losses, clean.losses)
    torch.testing.assert_close(found.branch_BPC, clean.branch_BPC)
    assert torch.equal(found.tokens_BLF, clean.tokens_BLF)


def test_gradients_go_straight_through_to_the_encoder(tokenizer: ImageFolderTokenizer) -> None:
    tokenizer(IMAGE, drawn(), SEED).reconstruction_BCHW.sum().backward()
    assert tokenizer.to_latent.weight.grad is not None
    assert tokenizer.to_latent.weight.grad.abs().sum() > 0


def test_no_image_is_perturbed_where_none_is_chosen(tokenizer: ImageFolderTokenizer) -> None:
    found = tokenizer(IMAGE, drawn(torch.zeros(3, dtype=torch.bool)), SEED)
    torch.testing.assert_close(found.reconstruction_BCHW, tokenizer(IMAGE, {}, SEED).reconstruction_BCHW)


def test_without_seeds_it_is_refused(tokenizer: ImageFolderTokenizer) -> None:
    with pytest.raises(ValueError, match="needs seed_B"):
        tokenizer(IMAGE, drawn())


def test_it_is_of_tokenizers_with_one_scale() -> None:
    trainer, loss = {"steps": 10, "global_batch": 4}, {"perturbation": {}}
    one = {"scales": [11], "dropout_min_scales": 1}
    TokenizerStageConfig.model_validate({"model": one, "loss": loss, "trainer": trainer})
    with pytest.raises(ValidationError, match="perturbation is of tokenizers with one scale"):
        TokenizerStageConfig.model_validate(
            {"model": {"scales": [1, 11], "dropout_min_scales": 1}, "loss": loss, "trainer": trainer}
        )


def test_a_stage_draws_which_samples_and_how_strongly() -> None:
    """At the last of 10 steps a half is left of a share of 0.8 and of 4 neighbours."""
    loss = {"perturbation": {"tokens": 0.8, "neighbours": 4, "images": 0.25}}
    section = {"model": CONFIG.model_dump(), "loss": loss, "trainer": {"steps": 10, "global_batch": 4}}
    config = TokenizerStageConfig.model_validate(section)
    guides = Guides(config.loss, None)
    stage = TokenizerStage.without_data(config, ImageFolderTokenizer(CONFIG), guides, torch.device("cpu"))
    batch = stage.blank_batch(3)
    torch.testing.assert_close(batch.drawn[CHANCES], torch.tensor([0.2, 0.4, 0.4, 0.4]))
    torch.testing.assert_close(torch.from_numpy(stage._chances(0)[CHANCES]), torch.tensor([0.2, 0.4, 0.6, 0.8]))
    chosen = stage._perturbed(np.arange(4000))[PERTURBED]
    assert chosen.mean() == pytest.approx(0.25, abs=0.03)
    assert (stage._perturbed(np.arange(100, 200))[PERTURBED] == chosen[100:200]).all()
    assert batch.drawn_B[PERTURBED].shape == (3,)
