"""Convolutional tokenizers: sizes, padding, branches, decoding and gradients."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from torch import Tensor, nn

from model.config import MaskgitVqganConfig, VectorConfig, VqganConfig
from model.layers.convolutions import GridAttention, ResidualBlock
from model.tokenizers.grid import KEPT_SCALES
from model.tokenizers.maskgit_vqgan import MaskgitVqganTokenizer
from model.tokenizers.vqgan import ConvolutionalTokenizer
from trainer.engine.blocks import recompute_blocks, repeated_blocks

SMALL: dict[str, Any] = {
    "image_size": 16,
    "scales": (1, 2, 4),
    "quantizer": {"codebook_size": 16, "code_dim": 6},
    "latent_width": 10,
    "shared_residual_convs": 2,
    "encoder": {"widths": (8, 8, 16), "blocks": (1,), "norm_groups": 4},
    "decoder": {"widths": (8, 8, 16), "blocks": (1,), "norm_groups": 4},
}
STRIDED: dict[str, Any] = {
    "image_size": 28,
    "branches": 2,
    "scales": (1, 2, 3, 4),
    "quantizer": {"codebook_size": 16, "code_dim": 6},
    "quantization_kernel": 0,
    "shared_residual_convs": 2,
    "encoder": (
        sides := {
            "widths": (8, 8, 16),
            "blocks": (0, 2, 2),
            "middle_blocks": 0,
            "attention_levels": 0,
            "middle_attention": False,
            "norm_groups": 8,
            "residual": "3x3-1x1",
        }
    )
    | {"downsampling": "strided", "end_kernel": 1},
    "decoder": sides | {"upsampling": "transposed"},
}
"""As the quickstart's: it never sees the full side, and has cheap blocks."""


def build(options: dict[str, Any] = SMALL, **changes: Any) -> ConvolutionalTokenizer:
    torch.manual_seed(0)
    return ConvolutionalTokenizer(VqganConfig.model_validate(options | changes))


def images(size: int = 16, batch: int = 2) -> Tensor:
    return torch.rand(batch, 3, size, size, generator=torch.Generator().manual_seed(1)) * 2 - 1


def count(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


# Sizes


@pytest.mark.parametrize(
    ("widths", "grid", "expected"),
    [((128, 128, 256, 256, 512), 16, 71_883_403), ((128, 256, 256, 512), 32, 70_109_835)],
)
def test_llamagens_tokenizers_have_their_published_parameters(
    widths: tuple[int, ...], grid: int, expected: int
) -> None:
    with torch.device("meta"):
        network = build({"scales": (grid,)}, encoder={"widths": widths}, decoder={"widths": widths})
    parts = network.encoder, network.decoder, network.to_latent, network.from_latent
    codebook = network.get_parameter("quantizer.branches.0.quantizer.codebook")
    assert codebook.numel() == count(network.quantizer) == 131_072
    assert count(network) == expected
    assert [count(part) for part in parts[2:]] == [2_056, 2_304]
    assert count(network.encoder) == pytest.approx(29.298e6 if grid == 16 else 28.559e6, abs=500)


def test_vars_tokenizer_has_its_published_parameters() -> None:
    widths = {"widths": (160, 160, 320, 320, 640)}
    options = {
        "scales": (1, 2, 3, 4, 5, 6, 8, 10, 13, 16),
        "quantizer": {"codebook_size": 4096, "code_dim": 32},
        "quantization_kernel": 3,
        "latent_width": 32,
    }
    with torch.device("meta"):
        network = build(options, encoder=widths, decoder=widths)
    assert count(network) == 108_948_355
    assert (count(network.to_latent), count(network.from_latent)) == (9_248, 9_248)
    assert count(network.quantizer) == 131_072 + 36_992


def test_maskgits_tokenizer_has_its_published_parameters() -> None:
    with torch.device("meta"):
        network = MaskgitVqganTokenizer(MaskgitVqganConfig())
    assert (count(network.encoder), count(network.decoder)) == (23_775_104, 30_478_339)
    assert network.codebook.shape == (1024, 256)


@pytest.mark.parametrize("options", [SMALL, STRIDED])
def test_latents_have_a_grid_for_each_branch_and_images_their_size(options: dict[str, Any]) -> None:
    network, size = build(options).eval(), options["image_size"]
    branches = options.get("branches", 1)
    latent_BPCHW = network.encode(images(size))
    assert latent_BPCHW.shape == (2, branches, 6, 4, 4)
    assert network.tokenize(images(size)).shape == (2, sum(side**2 for side in options["scales"]), branches)
    assert network.decode(latent_BPCHW).shape == (2, 3, size, size)


def test_an_image_of_another_size_is_refused() -> None:
    with pytest.raises(ValueError, match=r"takes \[3, 16, 16\]"):
        build().encode(images(24))


REFUSED: dict[str, dict[str, Any]] = {
    r"images of 16 px at 4 px a cell have a grid of 4": {"scales": (1, 2)},
    r"the encoder makes 4 pixels a cell, and the decoder 2": {"decoder": {"widths": (8, 16), "norm_groups": 4}},
    r"widths \[10\] are no multiples of norm_groups 4": {"encoder": {"widths": (8, 8, 10), "norm_groups": 4}},
    r"give one number, or one for each of 3 levels": {"encoder": SMALL["encoder"] | {"blocks": (1, 2)}},
    r"attention_levels 4: there are 3 levels": {"encoder": SMALL["encoder"] | {"attention_levels": 4}},
    r"start_width 6 is no multiple of norm_groups 4": {"encoder": SMALL["encoder"] | {"start_width": 6}},
    r"start_width 8: strided levels begin with": {
        "encoder": SMALL["encoder"] | {"widths": (8, 16), "start_width": 8, "downsampling": "strided"}
    },
    r"blocks \[0, 1, 1\]: padded levels need one or more": {"encoder": SMALL["encoder"] | {"blocks": (0, 1, 1)}},
    r"blocks \[0\]: nearest levels need one or more": {"decoder": SMALL["decoder"] | {"blocks": (0,)}},
}


@pytest.mark.parametrize("reason", REFUSED)
def test_what_cannot_be_built_is_refused_with_its_reason(reason: str) -> None:
    with pytest.raises(ValidationError, match=reason):
        VqganConfig.model_validate(SMALL | REFUSED[reason])


def test_an_odd_side_is_padded_by_its_edge_and_cropped() -> None:
    odd, whole = build(STRIDED | {"image_size": 27}).eval(), build(STRIDED | {"image_size": 32}).eval()
    whole.load_state_dict(odd.state_dict())
    image_BCHW = images(27)
    rows = torch.tensor([0] * 2 + list(range(27)) + [26] * 3)
    torch.testing.assert_close(odd.encode(image_BCHW), whole.encode(image_BCHW[:, :, rows][:, :, :, rows]))
    latent_BPCHW = torch.randn(2, 2, 6, 4, 4)
    assert torch.equal(odd.decode(latent_BPCHW), whole.decode(latent_BPCHW)[:, :, 2:29, 2:29])


def test_the_first_convolution_may_have_another_width_than_the_first_level() -> None:
    network = build(encoder=SMALL["encoder"] | {"start_width": 12})
    first = network.encoder.levels[0].blocks[0]
    assert network.encoder.start.weight.shape[:2] == (12, 3)
    assert (first.conv1.in_channels, first.conv1.out_channels) == (12, 8)
    assert network.encode(images()).shape == (2, 1, 6, 4, 4)


def test_attention_and_blocks_are_where_they_are_asked_for() -> None:
    changes = {"blocks": (1, 2, 3), "attention_levels": 2}
    network = build(encoder=SMALL["encoder"] | changes, decoder=SMALL["decoder"] | changes | {"middle_blocks": 3})

    def kinds(blocks: nn.Module) -> str:
        return "".join({ResidualBlock: "r", GridAttention: "a"}[type(block)] for block in blocks.children())

    assert [kinds(level.blocks) for level in network.encoder.levels] == ["r", "rara", "rarara"]
    assert [kinds(level.blocks) for level in network.decoder.levels] == ["rarara", "rara", "r"]
    assert (kinds(network.encoder.middle.blocks), kinds(network.decoder.middle.blocks)) == ("rar", "rarar")


# Branches, prefixes, pixels


def test_branches_split_the_encoders_channels() -> None:
    network = build(branches=3)
    latent_BPCHW = network.encode(images())
    whole_BCHW = network.to_latent(network.encoder(images()))
    assert torch.equal(latent_BPCHW[:, 1], whole_BCHW[:, 6:12])
    assert network.from_latent(latent_BPCHW.flatten(1, 2)).shape == (2, 10, 4, 4)
    torch.testing.assert_close(network.decode(latent_BPCHW), network.decoder(network.from_latent(whole_BCHW)))


def test_a_prefix_of_the_scales_decodes_without_the_tokens_after_it() -> None:
    network = build().eval()
    tokens_BLF = network.tokenize(images())
    changed, keep = tokens_BLF.clone(), network.prefixes[1]
    changed[:, network.layout.span(2)] = (changed[:, network.layout.span(2)] + 1) % 16
    assert torch.equal(network.detokenize(tokens_BLF, keep), network.detokenize(changed, keep))
    assert not torch.equal(network.detokenize(tokens_BLF), network.detokenize(changed))


def test_images_are_clamped_and_no_others() -> None:
    network = build().eval()
    with torch.no_grad():
        network.decoder.end.bias.fill_(1.1)
        tokens_BLF = network.tokenize(images())
        image_BCHW = network.decode(network.quantizer.dequantize(tokens_BLF))
        assert image_BCHW.max() > 1
        assert torch.equal(network.detokenize(tokens_BLF), image_BCHW.clamp(-1, 1))


def test_maskgits_network_sees_and_makes_pixels_from_zero_to_one() -> None:
    options = {key: value for key, value in SMALL.items() if key != "latent_width"}
    network = MaskgitVqganTokenizer(MaskgitVqganConfig.model_validate(options)).eval()
    image_BCHW = images()
    torch.testing.assert_close(network.encode(image_BCHW)[:, 0], network.encoder((image_BCHW + 1) / 2))
    codes_BCHW = F.embedding(torch.arange(16).view(1, 4, 4), network.codebook).movedim(-1, 1)
    torch.testing.assert_close(network.decode(codes_BCHW[:, None]), network.decode_codes(codes_BCHW) * 2 - 1)


# Training


@pytest.mark.parametrize("options", [SMALL, STRIDED, SMALL | {"branches": 2, "quantization_kernel": 3}])
def test_every_parameter_gets_a_gradient(options: dict[str, Any]) -> None:
    network = build(options, teacher_width=7).train()
    image_BCHW = images(options["image_size"])
    output = network(image_BCHW, {KEPT_SCALES: torch.tensor([2, 3])})
    loss = (output.reconstruction_BCHW - image_BCHW).square().mean() + sum(output.losses.values())
    loss = loss + output.branch_BPC.square().mean()
    (loss + network.project_teacher(torch.ones(2, 7)).square().mean()).backward()
    assert [name for name, parameter in network.named_parameters() if parameter.grad is None] == []


def test_without_a_decoder_there_is_no_reconstruction() -> None:
    network = build()
    network.decoder.requires_grad_(False)
    assert network(images(), decode=False).reconstruction_BCHW.shape == (0, 3, 16, 16)


def test_what_teachers_are_compared_with_is_the_mean_of_each_branch() -> None:
    network = build(branches=3)
    output = network(images())
    latent_BPCHW = network.quantizer.dequantize(output.tokens_BLF)
    torch.testing.assert_close(output.branch_BPC, latent_BPCHW.mean((3, 4)))


@pytest.mark.parametrize(("width", "has"), [(None, "none"), (5, "5")])
def test_a_teacher_must_be_announced(width: int | None, has: str) -> None:
    network = build(teacher_width=width)
    with pytest.raises(ValueError, match=rf"takes {has}: set tokenizer\.model\.teacher_width to 7"):
        network.project_teacher(torch.ones(2, 7))
    assert build(teacher_width=7).project_teacher(torch.ones(2, 7, dtype=torch.bfloat16)).dtype == torch.float32


def test_names_say_codebooks_last_layer_and_what_is_not_decayed() -> None:
    network = build(branches=2)
    books = {f"quantizer.branches.{branch}.quantizer.codebook" for branch in range(2)}
    assert set(network.codebooks) == network.no_decay_parameters() == books
    assert set(network.codebooks.values()) == {(3, 16)}
    assert network.get_parameter(network.last_layer).shape == (3, 8, 3, 3)


def test_blocks_computed_twice_have_the_same_gradients() -> None:
    plain, twice = build(), build()
    assert len(repeated_blocks(twice)) == 14
    recompute_blocks(twice)
    for network in (plain, twice):
        network(images()).reconstruction_BCHW.square().mean().backward()
    for (name, expected), parameter in zip(plain.named_parameters(), twice.parameters(), strict=True):
        if expected.grad is not None:
            assert torch.equal(parameter.grad, expected.grad), name


@pytest.mark.parametrize("mode", ["bf16 weights", "autocast"])
def test_half_precision_trains_and_quantizes_in_float32(mode: str) -> None:
    network = build().bfloat16() if mode == "bf16 weights" else build()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=mode == "autocast"):
        output = network(images())
        assert network.encode(images()).dtype == torch.bfloat16
    (output.reconstruction_BCHW.float().square().mean() + output.losses["codebook"]).backward()
    assert output.losses["codebook"].dtype == output.losses["commitment"].dtype == torch.float32
    assert network.detokenize(output.tokens_BLF).dtype == torch.float32
    assert all(bool(p.grad.isfinite().all()) for p in network.parameters() if p.grad is not None)


def test_of_any_kind_of_quantizer_the_codes_are_the_configs() -> None:
    config = VqganConfig.model_validate(SMALL | {"quantizer": VectorConfig(codebook_size=9, code_dim=3), "branches": 2})
    assert config.layout.vocabularies == (9, 9)
    assert config.forcing_width == 6
    assert config.layout.groups == (1, 4, 16)
