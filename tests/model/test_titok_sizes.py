"""Settings of TiTok that go together, and its published sizes (arXiv 2406.07550)."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from model.config import VectorConfig
from model.config.titok import GaussianConfig, TiTokConfig, TiTokViTConfig
from model.quantizers.gaussian import gaussian_of
from model.tokenizers.titok import TiTokTokenizer
from tests.model.small_titok import PAINTER, config_of

# Settings


def test_sizes_have_names() -> None:
    assert TiTokViTConfig(size="large") == TiTokViTConfig(size="large", width=1024, depth=24, heads=16)
    assert TiTokViTConfig(size="base").model_dump() == {
        "size": "base",
        "width": 768,
        "depth": 12,
        "heads": 12,
        "mlp_ratio": 4,
        "patch_size": 16,
    }
    assert TiTokViTConfig.model_validate(TiTokViTConfig(size="small").model_dump()) == TiTokViTConfig(size="small")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"encoder": {"size": "base", "width": 512}}, "size base is .* set size to null"),
        ({"encoder": {"width": 20, "heads": 3}}, "width 20 is no multiple of heads 3"),
        ({"encoder": {"patch_size": 5}}, "image_size 16 is no multiple of encoder.patch_size 5"),
        ({"decoder": {"patch_size": 5}}, "image_size 16 is no multiple of decoder.patch_size 5"),
        ({"pixel_decoder": PAINTER}, "target rgb paints without a pixel_decoder"),
        ({"target": "pixels"}, "target pixels paints through a pixel_decoder"),
        ({"latent_dropout": {"kept": [2]}, "latent_layout": "interleaved"}, "set latent_layout to correct"),
        ({"latent_dropout": {"kept": [2, 5]}}, r"kept \[2, 5\]: each has to be less than latents 5"),
        ({"latent_dropout": {"kept": [3, 2]}}, "give each number once, ascending"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        config_of(**changes)


def test_patch_sizes_that_would_paint_another_size_are_refused_with_the_arithmetic() -> None:
    """The published code at 512 px with patches of 32 in the decoder gives an image of 256 px without a word."""
    at_512: dict[str, Any] = {"image_size": 512, "target": "pixels", "pixel_decoder": {}, "encoder": {"patch_size": 32}}
    with pytest.raises(ValidationError, match=r"512/32 = 16 x 16 codes.* an image of 256 px, not of 512"):
        TiTokConfig.model_validate(at_512 | {"decoder": {"patch_size": 32}})
    assert TiTokConfig.model_validate(at_512 | {"decoder": {"patch_size": 16}}).proxy_positions == 32 * 32


# The published sizes


def count(network: nn.Module | None) -> int:
    return 0 if network is None else sum(parameter.numel() for parameter in network.parameters())


UNIT = VectorConfig(codebook_size=4096, code_dim=12, lookup="euclidean", unit_codes=True)
PLAIN = VectorConfig(codebook_size=8192, code_dim=64, lookup="euclidean")


@pytest.mark.parametrize(
    ("encoder", "decoder", "latents", "quantizer", "millions"),
    [
        ("small", "small", 128, UNIT, {"encoder": 25.8, "decoder": 27.0, "codebook": 0.05, "total": 83.67}),
        ("base", "base", 64, UNIT, {"encoder": 85.9, "decoder": 88.1, "codebook": 0.05, "total": 204.81}),
        ("large", "large", 32, UNIT, {"encoder": 303.4, "decoder": 306.8, "codebook": 0.05, "total": 641.05}),
        ("base", "large", 64, PLAIN, {"encoder": 85.9, "decoder": 303.5, "codebook": 0.52, "total": 390.02}),
        ("small", "large", 256, PLAIN, {"encoder": 25.9, "decoder": 303.7, "codebook": 0.52, "total": 330.26}),
        ("large", "large", 32, GaussianConfig(), {"total": 606.88}),
    ],
)
def test_parameters_are_as_many_as_published(
    encoder: str, decoder: str, latents: int, quantizer: Any, millions: dict[str, float]
) -> None:
    two_stage = quantizer is UNIT
    options: dict[str, Any] = {"target": "pixels", "pixel_decoder": {}} if two_stage else {}
    with torch.device("meta"):
        network = TiTokTokenizer(
            TiTokConfig(
                latents=latents, quantizer=quantizer, encoder={"size": encoder}, decoder={"size": decoder}, **options
            )
        )
    own_latents = network.encoder.latent_tokens.numel()
    found = {
        "encoder": count(network.encoder) - own_latents,  # the published ones belong to the model above it
        "decoder": count(network.decoder) + count(network.head),
        "codebook": count(network.quantizer),
        "total": count(network),
    }
    for part, expected in millions.items():
        assert found[part] / 1e6 == pytest.approx(expected, rel=1e-3, abs=0.06 if part != "total" else 0.006), part
    if two_stage:
        trained = sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad)
        expected = {128: 57.74, 64: 118.81, 32: 337.56}[latents]
        assert trained / 1e6 == pytest.approx(expected, abs=0.006)


@pytest.mark.parametrize(("decoder_patch", "millions"), [(32, 643.5), (16, 644.3)])
def test_the_model_for_512_px_fits_the_quoted_size_with_either_patch(decoder_patch: int, millions: float) -> None:
    """Only the smaller patch gives images of 512 px: the other is counted with its parts side by side."""
    vit = {"size": "large", "patch_size": 32}
    with torch.device("meta"):
        network = TiTokTokenizer(
            TiTokConfig(
                image_size=512,
                latents=64,
                quantizer=UNIT,
                encoder=vit,
                decoder=vit | {"patch_size": decoder_patch},
                target="codes",
            )
        )
        painter = TiTokTokenizer(TiTokConfig(target="pixels", pixel_decoder={}))
    parts = count(network) + count(painter.pixel_codebook) + count(painter.pixel_decoder)
    assert parts / 1e6 == pytest.approx(millions, abs=0.06)


def test_shapes_of_the_published_small_model() -> None:
    with torch.device("meta"):
        network = TiTokTokenizer(
            TiTokConfig(
                latents=128, quantizer=UNIT, encoder={"size": "small"}, decoder={"size": "small"}, target="codes"
            )
        )
        image_BCHW = torch.empty(2, 3, 256, 256)
        vectors_BKC = network.encode(image_BCHW)
        assert vectors_BKC.shape == (2, 128, 12)
        assert network.patches(vectors_BKC).shape == (2, 256, 1024)
        assert gaussian_of(torch.empty(2, 128, 32)).divergence().shape == (2, 128)
    assert network.layout.groups == (128,)
