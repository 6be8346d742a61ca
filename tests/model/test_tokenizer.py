"""ImageFolder's tokenizer: sizes, decoding, gradients, and the paper's config."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

import configs
from cluster.config.loading import load_config
from data_pipeline.shards.halves import ENCODE, halves_of, settings_of
from model.config import ImageFolderConfig, VectorConfig, ViTConfig
from model.layers.vit import build_trunk, resize_positions
from model.protocols import TokenizerOutput
from model.quantizers.multi_scale import FoldedQuantizer
from model.tokenizers.grid import KEPT_SCALES
from model.tokenizers.imagefolder import ImageFolderTokenizer

DROPPING = {"width": 24, "depth": 2, "heads": 2, "drop_path": 0.5, "layer_scale": None}
PAPER = Path(configs.__file__).parent / "tokenizer" / "imagefolder-msvr10p2-4096.yaml"


def _tokenizer(**changes: object) -> ImageFolderTokenizer:
    torch.manual_seed(0)
    vit = {"width": 24, "depth": 2, "heads": 2}
    options: dict[str, object] = {
        "image_size": 20,
        "patch_size": 4,
        "encoder": vit,
        "decoder": vit,
        "scales": (1, 2, 3),
        "quantizer": VectorConfig(codebook_size=16, code_dim=6),
        "shared_residual_convs": 2,
    }
    return ImageFolderTokenizer(ImageFolderConfig.model_validate({**options, **changes}))


def _images(size: int = 20, batch: int = 2) -> Tensor:
    return torch.rand(batch, 3, size, size, generator=torch.Generator().manual_seed(1)) * 2 - 1


def _paper() -> ImageFolderConfig:
    return load_config(PAPER).tokenizer.model.without_pretraining()


# Shapes


def test_what_rebuilds_a_trained_tokenizer_asks_no_hub_for_weights() -> None:
    config = ImageFolderConfig(encoder=ViTConfig(pretrained=True, depth=5), decoder=ViTConfig(pretrained=True))
    rebuilt = config.without_pretraining()
    assert (rebuilt.encoder.pretrained, rebuilt.decoder.pretrained, rebuilt.encoder.depth) == (False, False, 5)


@pytest.mark.parametrize(
    ("size", "patch", "scales", "branches"),
    [(20, 4, (1, 2, 3), 2), (32, 8, (4,), 1), (24, 8, (1, 5), 3), (30, 10, (1, 2), 4)],
)
def test_any_size_of_image_patch_grid_and_number_of_branches(
    size: int, patch: int, scales: tuple[int, ...], branches: int
) -> None:
    tokenizer = _tokenizer(
        image_size=size, patch_size=patch, scales=scales, branches=branches, dropout_min_scales=1
    ).eval()
    latent_BPCHW = tokenizer.encode(_images(size))
    assert latent_BPCHW.shape == (2, branches, 6, scales[-1], scales[-1])
    tokens_BLF = tokenizer.tokenize(_images(size))
    assert tokens_BLF.shape == (2, tokenizer.layout.positions, branches)
    assert tokenizer.decode(latent_BPCHW).shape == (2, 3, size, size)


def test_an_image_of_another_size_is_refused() -> None:
    with pytest.raises(ValueError, match=r"takes \[3, 20, 20\]"):
        _tokenizer().encode(_images(24))


def test_the_papers_tokenizer_has_172_million_parameters_and_286_positions() -> None:
    config = _paper()
    with torch.device("meta"):
        tokenizer = ImageFolderTokenizer(config)
    count = sum(parameter.numel() for parameter in tokenizer.parameters())
    assert count == pytest.approx(172.33e6, rel=1e-3)
    assert config.layout.positions == 286


@pytest.mark.parametrize(
    ("branches", "scales", "encoded", "decoded"),
    [(2, (1, 1, 2, 3, 3, 4, 5, 6, 8, 11), 499, 379), (1, (16,), 513, 514), (2, (16,), 769, 514)],
    ids=["MSVR10P2", "VQ", "VP2"],
)
def test_encoder_and_decoder_look_at_as_many_tokens_as_published(
    branches: int, scales: tuple[int, ...], encoded: int, decoded: int
) -> None:
    with torch.device("meta"):
        tokenizer = _tokenizer(
            image_size=256, patch_size=16, branches=branches, scales=scales, dropout_min_scales=1
        ).eval()
        seen: list[int] = []
        for trunk in (tokenizer.encoder.trunk, tokenizer.decoder.trunk):
            trunk.blocks[0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape[1]))
        tokenizer.decode(tokenizer.encode(torch.zeros(1, 3, 256, 256)))
    assert seen == [encoded, decoded]


def test_a_generator_sees_285_rows_of_both_branches_of_the_papers_tokenizer() -> None:
    config = _paper()
    assert sum(side**2 for side in config.scales) == config.layout.positions == 286
    with torch.device("meta"):
        rows = FoldedQuantizer(config).generator_input(torch.zeros(2, 286, 2, dtype=torch.int64))
    assert rows.shape == (2, 285, 64)


def test_the_papers_stochastic_depth_grows_from_nothing_to_a_tenth_over_twelve_blocks() -> None:
    with torch.device("meta"):
        trunk = build_trunk(_paper().encoder, 256, 16)
    rates = [getattr(block.drop_path1, "drop_prob", 0.0) for block in trunk.blocks]
    assert rates == pytest.approx([0.1 * block / 11 for block in range(12)])


@pytest.mark.parametrize(("given", "std"), [({}, 0.02), ({"initial_std": 0.06}, 0.06)], ids=["default", "given"])
def test_the_weights_of_blocks_begin_with_the_deviation_of_the_config(given: dict[str, float], std: float) -> None:
    vit = {"width": 96, "depth": 2, "heads": 4} | given
    tokenizer = _tokenizer(encoder=vit, decoder=vit)
    for trunk in (tokenizer.encoder.trunk, tokenizer.decoder.trunk):
        layers = [layer for layer in trunk.blocks.modules() if isinstance(layer, nn.Linear)]
        assert len(layers) == 2 * 4
        for layer in layers:
            assert layer.weight.std().item() == pytest.approx(std, rel=0.05)
    assert tokenizer.encoder.trunk.pos_embed.std().item() == pytest.approx(0.02, rel=0.1)


@pytest.mark.parametrize("std", [0.0, 1.5])
def test_weights_that_begin_as_nothing_or_beyond_one_are_refused(std: float) -> None:
    with pytest.raises(ValueError, match="initial_std"):
        ViTConfig(initial_std=std)


def test_how_weights_began_is_no_part_of_what_a_tokenizer_is() -> None:
    names = halves_of(_tokenizer())
    assert names is not None
    vit = {"width": 24, "depth": 2, "heads": 2, "initial_std": 0.06}
    other = _tokenizer(encoder=vit, decoder=vit).config.model_dump()
    assert settings_of(other, names, ENCODE) == settings_of(_tokenizer().config.model_dump(), names, ENCODE)


def test_which_branches_an_image_misses_is_not_a_matter_of_its_batch() -> None:
    tokenizer = _tokenizer(encoder=DROPPING, decoder=DROPPING).train()
    image_BCHW, seed_B = torch.cat([_images(), _images()]), torch.arange(4)
    whole = tokenizer(image_BCHW, seed_B=seed_B).reconstruction_BCHW
    parts = [tokenizer(image_BCHW[i : i + 1], seed_B=seed_B[i : i + 1]).reconstruction_BCHW for i in range(4)]
    torch.testing.assert_close(torch.cat(parts), whole)
    assert not torch.allclose(whole[:2], whole[2:])  # the same images with other seeds
    with pytest.raises(ValueError, match="stochastic depth in training needs seed_B"):
        tokenizer(image_BCHW)


def test_encoder_and_decoder_miss_other_branches() -> None:
    tokenizer = _tokenizer(encoder=DROPPING, decoder=DROPPING).train()
    seen: dict[str, Tensor] = {}
    for name in ("encoder", "decoder"):
        block = getattr(tokenizer, name).trunk.blocks[-1]
        block.register_forward_pre_hook(lambda _, inputs, name=name: seen.update({name: inputs[1]}))
    tokenizer(_images(), seed_B=torch.arange(2))
    assert not torch.equal(seen["encoder"], seen["decoder"])


def test_attention_is_torchs_fused_one() -> None:
    for trunk in (_tokenizer().encoder.trunk, _tokenizer().decoder.trunk):
        assert isinstance(trunk, VisionTransformer)
        assert all(block.attn.fused_attn for block in trunk.blocks)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("vit_base_patch14_reg4_dinov2.lvd142m", "needs a plain ViT"),
        ("resnet18", "needs a plain ViT"),
        ("vit_small_patch16_18x2_224", "needs a plain ViT"),  # its blocks are of another kind
        ("vit_basic", "no model of this name"),
    ],
)
def test_a_backbone_that_cannot_serve_is_refused_by_name(name: str, reason: str) -> None:
    with torch.device("meta"), pytest.raises(ValueError, match=f"backbone {name}.*{reason}"):
        build_trunk(ViTConfig(backbone=name), 224, 14)


# The position table


def test_resizing_the_position_table_keeps_the_class_row_and_the_mean() -> None:
    table_1LD = torch.randn(1, 1 + 16 * 16, 4)
    small_1LD = resize_positions(table_1LD, 11)
    assert small_1LD.shape == (1, 1 + 11 * 11, 4)
    assert torch.equal(small_1LD[:, :1], table_1LD[:, :1])
    torch.testing.assert_close(small_1LD[:, 1:].mean(1), table_1LD[:, 1:].mean(1), rtol=0, atol=0.05)


def test_a_table_of_the_asked_size_is_left_alone() -> None:
    table_1LD = torch.randn(1, 10, 4)
    assert torch.equal(resize_positions(table_1LD, 3), table_1LD)


# Decoding


def test_reconstruction_decodes_the_quantized_latent_and_clamps() -> None:
    tokenizer = _tokenizer().eval()
    with torch.no_grad():
        tokenizer.decoder.to_pixel.bias.fill_(1.1)
        tokens_BLF = tokenizer.tokenize(_images())
        image_BCHW = tokenizer.decode(tokenizer.quantizer.dequantize(tokens_BLF))
        assert image_BCHW.max() > 1
        assert torch.equal(tokenizer.detokenize(tokens_BLF), image_BCHW.clamp(-1, 1))


def test_a_prefix_of_the_scales_decodes_without_the_tokens_after_it() -> None:
    tokenizer = _tokenizer().eval()
    tokens_BLF = tokenizer.tokenize(_images())
    changed = tokens_BLF.clone()
    keep = tokenizer.prefixes[1]
    changed[:, tokenizer.layout.span(2)] = (changed[:, tokenizer.layout.span(2)] + 1) % 16
    assert torch.equal(tokenizer.detokenize(tokens_BLF, keep=keep), tokenizer.detokenize(changed, keep=keep))
    assert not torch.equal(tokenizer.detokenize(tokens_BLF), tokenizer.detokenize(changed))


def test_each_patch_is_laid_out_by_row_column_and_colour() -> None:
    decoder = _tokenizer().decoder
    patches_BND = torch.arange(25 * 48).view(1, 25, 48).float()
    image_BCHW = decoder._unpatchify(patches_BND)
    row, column, colour = 4 * 2 + 3, 4 * 1 + 2, 1  # patch (2, 1), pixel (3, 2)
    assert image_BCHW[0, colour, row, column] == patches_BND[0, 2 * 5 + 1, (3 * 4 + 2) * 3 + colour]


# Training


def test_every_parameter_gets_a_gradient() -> None:
    tokenizer = _tokenizer(teacher_width=7).train()
    output: TokenizerOutput = tokenizer(_images(), {KEPT_SCALES: torch.tensor([2, 3])})
    assert output.branch_BPC is not None
    loss = (output.reconstruction_BCHW - _images()).square().mean() + sum(output.losses.values())
    loss = loss + output.branch_BPC[:, -1].square().mean()
    (loss + tokenizer.project_teacher(torch.ones(2, 7)).square().mean()).backward()
    assert [name for name, parameter in tokenizer.named_parameters() if parameter.grad is None] == []


def test_the_student_is_the_mean_of_the_last_branch_and_reaches_the_encoder() -> None:
    tokenizer = _tokenizer(branches=3)
    output: TokenizerOutput = tokenizer(_images())
    latent_BPCHW = tokenizer.quantizer.dequantize(output.tokens_BLF)
    assert output.branch_BPC is not None
    torch.testing.assert_close(output.branch_BPC[:, -1], latent_BPCHW[:, 2].mean((2, 3)))
    output.branch_BPC[:, -1].sum().backward()
    assert tokenizer.to_latent.weight.grad is not None


def test_quantizer_dropout_changes_the_reconstruction_of_the_dropped_image_only() -> None:
    tokenizer = _tokenizer().eval()
    plain, dropped = tokenizer(_images()), tokenizer(_images(), {KEPT_SCALES: torch.tensor([1, 3])})
    assert not torch.equal(plain.reconstruction_BCHW[0], dropped.reconstruction_BCHW[0])
    torch.testing.assert_close(plain.reconstruction_BCHW[1], dropped.reconstruction_BCHW[1])


def test_a_teacher_of_the_encoders_width_shares_the_encoders_projection() -> None:
    tokenizer = _tokenizer()
    feature_BD = torch.randn(2, 24)
    assert torch.equal(tokenizer.project_teacher(feature_BD), tokenizer.to_latent(feature_BD))


def test_a_teacher_of_another_width_must_be_announced() -> None:
    with pytest.raises(ValueError, match=r"set tokenizer\.model\.teacher_width to 7"):
        _tokenizer().project_teacher(torch.ones(2, 7))
    assert _tokenizer(teacher_width=7).project_teacher(torch.ones(2, 7)).shape == (2, 6)


@pytest.mark.parametrize("mode", ["bf16 weights", "autocast"])
def test_half_precision_trains(mode: str) -> None:
    tokenizer = _tokenizer()
    tokenizer = tokenizer.bfloat16() if mode == "bf16 weights" else tokenizer
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=mode == "autocast"):
        output: TokenizerOutput = tokenizer(_images())
    (output.reconstruction_BCHW.float().square().mean() + output.losses["codebook"]).backward()
    assert output.losses["codebook"].dtype == torch.float32
    assert tokenizer.detokenize(output.tokens_BLF).dtype == torch.float32
    gradients = [parameter.grad for parameter in tokenizer.parameters() if parameter.grad is not None]
    assert all(bool(gradient.isfinite().all()) for gradient in gradients)
