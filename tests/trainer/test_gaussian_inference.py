"""A tokenizer without tokens, by API and by commands: it reconstructs from means or draws, and refuses the rest."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from typer.testing import CliRunner

from cluster.cli import app
from data_pipeline.errors import UsageError
from data_pipeline.shards.halves import halves_of
from data_pipeline.shards.weights import write_weights
from model.config.titok import GaussianConfig, TiTokConfig, TiTokViTConfig
from model.layers.random_numbers import split_seed
from model.tokenizers.titok import TiTokTokenizer
from trainer.inference.tokenizer import Tokenizer, load_tokenizer

VIT = TiTokViTConfig(width=16, depth=1, heads=2, patch_size=4)
CONFIG = TiTokConfig(image_size=16, latents=3, encoder=VIT, decoder=VIT, quantizer=GaussianConfig(code_dim=4))


@pytest.fixture
def export(tmp_path: Path) -> Path:
    """Of a tokenizer whose latents vary."""
    torch.manual_seed(0)
    network = TiTokTokenizer(CONFIG)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn(parameter.shape) * 0.1)
    files = {"model": network.state_dict()}
    config = CONFIG.model_dump(mode="json")
    write_weights(str(tmp_path / "kl"), "tokenizer", config, files, {}, halves=halves_of(network))
    return tmp_path / "kl"


@pytest.fixture
def tokenizer(export: Path) -> Tokenizer:
    return load_tokenizer(str(export))


def images() -> Tensor:
    return torch.randint(256, (5, 16, 16, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def test_means_are_decoded_or_draws_that_follow_from_seed_and_place_at_any_batch(tokenizer: Tokenizer) -> None:
    network = tokenizer.network
    image_BCHW = images().permute(0, 3, 1, 2).float() / 127.5 - 1
    of_means = tokenizer.reconstruct(images().numpy(), output="torch")
    torch.testing.assert_close(of_means, network.reconstruct(image_BCHW))
    seeds_B = split_seed(torch.tensor([7]), 5)[:, 0]
    drawn = tokenizer.reconstruct(images().numpy(), seed=7, output="torch", batch=2)
    torch.testing.assert_close(drawn, network.reconstruct(image_BCHW, seeds_B))
    assert not torch.allclose(drawn, of_means)
    rest = tokenizer.reconstruct(images()[3:].numpy(), seed=7, first=3, output="torch")
    torch.testing.assert_close(rest, drawn[3:])


def test_what_needs_tokens_is_refused_by_name(tokenizer: Tokenizer) -> None:
    assert not tokenizer.has_tokens
    with pytest.raises(ValueError, match=r"quantizer\.kind kl\) has no tokens"):
        tokenizer.encode(images().numpy())
    with pytest.raises(ValueError, match=r"keep 2: a tokenizer with a Gaussian bottleneck"):
        tokenizer.reconstruct(images().numpy(), keep=2)


def foldtrain(*arguments: object) -> tuple[int, str]:
    done = CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)
    return done.exit_code, " ".join(done.output.split())


def test_the_command_reconstructs_and_those_for_tokens_refuse(export: Path, tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number, pixels in enumerate(images().numpy()):
        Image.fromarray(pixels).save(folder / f"{number}.png")
    code, said = foldtrain("reconstruct", folder, "--tokenizer", export, "--out", tmp_path / "means")
    assert (code, "Gaussian latents, no tokens" in said) == (0, True), said
    code, said = foldtrain("reconstruct", folder, "--tokenizer", export, "--out", tmp_path / "drawn", "--draw", 7)
    assert code == 0, said
    expected = load_tokenizer(str(export)).reconstruct(images().numpy(), seed=7, output="pil")
    for number, picture in enumerate(expected):
        found = np.asarray(Image.open(tmp_path / f"drawn/{number}.png"))
        np.testing.assert_array_equal(found, np.asarray(picture))
        assert (found != np.asarray(Image.open(tmp_path / f"means/{number}.png"))).any()
    with pytest.raises(UsageError, match="Gaussian bottleneck"):
        foldtrain("encode", folder, "--tokenizer", export, "--out", tmp_path / "tokens.npz")
    assert not (tmp_path / "tokens.npz").exists()
    with pytest.raises(UsageError, match="this tokenizer has none"):
        foldtrain("reconstruct", folder, "--tokenizer", export, "--out", tmp_path / "x", "--scales", 1)
    assert not (tmp_path / "x").exists()
