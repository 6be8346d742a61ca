"""Published VQ-GANs of other sizes than the folders': every parameter has its place, and what has none is named."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from model.config import MaskgitVqganConfig, VqganConfig
from model.layers.convolutions import GridAttention, ResidualBlock
from model.published import maskgit_vqgan, var_vqvae, vqgan
from model.published.convolutions import joined_attention
from model.published.families import PublishedTokenizer, find_family
from model.tokenizers.maskgit_vqgan import MaskgitVqganTokenizer
from model.tokenizers.vqgan import ConvolutionalTokenizer

IGNORED = re.compile(r"codebook_used|ema_vocab_hit|sem_linear")
KINDS = {"LlamaGen": "vqgan", "XQ-GAN of scales": "vqgan", "VAR": "var-vqvae", "MaskGIT": "maskgit-vqgan"}
ENCODER = {"widths": (32, 32, 64), "blocks": (1, 2, 1)}
DECODER = {"widths": (32, 64, 32), "blocks": (2, 1, 3)}
ONE = {"image_size": 20, "scales": (5,), "latent_width": 12}


@dataclass(frozen=True)
class Case:
    """A network of ours, and the options and names under which it is published."""

    own: ConvolutionalTokenizer
    options: dict[str, Any]
    published: dict[str, Tensor]


def llamagen() -> Case:
    quantizer = {"codebook_size": 24, "code_dim": 5, "unit_codes": True}
    own = made({**ONE, "encoder": ENCODER | {"start_width": 64}, "decoder": DECODER, "quantizer": quantizer})
    return Case(own, {"image_size": 20}, renamed(own, "llamagen") | {"quantize.codebook_used": torch.zeros(65_536)})


def xqgan_of_scales() -> Case:
    options = {"branches": 2, "scales": (1, 3, 5), "shared_residual_convs": 1}
    quantizer = {"codebook_size": 24, "code_dim": 5, "unit_codes": False}
    own = made({**ONE, **options, "encoder": ENCODER, "decoder": DECODER, "quantizer": quantizer})
    scales = {"v_patch_nums": [1, 3, 5], "codebook_l2_norm": True}
    hits = {f"quantizes.{branch}.ema_vocab_hit_SV": torch.zeros(3, 24) for branch in range(2)}
    return Case(own, scales, renamed(own, "llamagen") | hits | {"sem_linear.weight": torch.zeros(5, 384)})


def var() -> Case:
    options = {"scales": (1, 2, 5), "shared_residual_convs": 0, "quantization_kernel": 3, "residual_ratio": 0.25}
    quantizer = {"codebook_size": 24, "code_dim": 12, "lookup": "euclidean", "unit_codes": False}
    attention = {"attention_levels": 2, "middle_blocks": 3}
    sides = {"encoder": ENCODER | attention, "decoder": DECODER | {"attention_levels": 0}}
    own = made({**ONE, **options, **sides, "quantizer": quantizer})
    given = {"v_patch_nums": [1, 2, 5], "quant_resi": 0.25}
    return Case(own, given, renamed(own, "var") | {"quantize.ema_vocab_hit_SV": torch.zeros(3, 24)})


def maskgit() -> Case:
    default = MaskgitVqganConfig()
    own = made(
        {
            "image_size": 20,
            "scales": (5,),
            "encoder": default.encoder.model_dump() | ENCODER,
            "decoder": default.decoder.model_dump() | DECODER,
            "quantizer": {"codebook_size": 24, "code_dim": 12, "lookup": "euclidean"},
        },
        MaskgitVqganConfig,
        MaskgitVqganTokenizer,
    )
    return Case(own, {"resolution": 20}, renamed(own, "maskgit"))


CASES: dict[str, Callable[[], Case]] = {
    "LlamaGen": llamagen,
    "XQ-GAN of scales": xqgan_of_scales,
    "VAR": var,
    "MaskGIT": maskgit,
}


def made(options: dict[str, Any], config: Any = VqganConfig, network: Any = ConvolutionalTokenizer) -> Any:
    torch.manual_seed(0)
    tokenizer = network(config.model_validate(options)).eval()
    with torch.no_grad():
        for parameter in tokenizer.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)  # norms that differ
    return tokenizer


def renamed(own: ConvolutionalTokenizer, style: str) -> dict[str, Tensor]:
    """Published names of all parameters, found by walking through the network."""
    places: dict[nn.Module, str] = {}
    llamagen = style == "llamagen"
    for side, half in (("encoder", own.encoder), ("decoder", own.decoder)):
        places |= {half.start: f"{side}.conv_in", half.norm: f"{side}.norm_out", half.end: f"{side}.conv_out"}
        levels = list(half.levels)
        for number, level in enumerate(levels):
            here = number if side == "encoder" or llamagen else len(levels) - 1 - number
            name = f"{side}.{'conv_blocks' if llamagen else {'encoder': 'down', 'decoder': 'up'}[side]}.{here}"
            places |= numbered(level.blocks, f"{name}.{'res' if llamagen else 'block'}.{{}}", f"{name}.attn.{{}}", 0)
            change = {"encoder": "downsample.conv", "decoder": "upsample.conv"}[side]
            places[level.resampling] = f"{name}.{'upsample_conv' if style == 'maskgit' else change}"
        if style == "var":
            places |= numbered(half.middle.blocks, f"{side}.mid.block_{{}}", f"{side}.mid.attn_{{}}", 1)
        else:
            places |= {block: f"{side}.mid.{place}" for place, block in enumerate(half.middle.blocks)}
    places |= {own.to_latent: "quant_conv", own.from_latent: "post_quant_conv"}
    for number, branch in enumerate(own.quantizer.branches):
        quantizer = f"quantizes.{number}" if own.config.branches > 1 else "quantize"
        places |= {branch.quantizer: f"{quantizer}.embedding"}
        holder = "qresi_ls.{}" if own.config.shared_residual_convs > 1 else "qresi"
        holder = holder if own.config.shared_residual_convs else "{}"
        convs = branch.residual_convs
        places |= {conv: f"{quantizer}.quant_resi.{holder.format(place)}" for place, conv in enumerate(convs)}
    state = {}
    for module, place in places.items():
        for leaf, tensor in module.state_dict().items():
            name = f"{place}.{leaf}".replace("shortcut", "nin_shortcut").replace("proj", "proj_out")
            name = name.replace("codebook", "weight")
            if llamagen and "qkv" in name:
                state |= {name.replace("qkv", part): t for part, t in zip("qkv", tensor.chunk(3), strict=True)}
            else:
                state[name] = tensor
    return state


def numbered(blocks: nn.ModuleList, residual: str, attention: str, first: int) -> dict[nn.Module, str]:
    """Residual blocks and attention, each counted by itself."""
    places: dict[nn.Module, str] = {}
    counts = {ResidualBlock: first, GridAttention: first}
    for block in blocks:
        places[block] = (attention if isinstance(block, GridAttention) else residual).format(counts[type(block)])
        counts[type(block)] += 1
    return places


def load(case: Case, state: dict[str, Tensor] | None = None) -> ConvolutionalTokenizer:
    state = case.published if state is None else state
    family = find_family({}, state)
    assert isinstance(family, PublishedTokenizer)
    loaded = family.load(case.options, state)
    assert isinstance(loaded, ConvolutionalTokenizer)
    return loaded


@pytest.mark.parametrize("name", CASES)
def test_sizes_come_from_the_state_and_weights_survive(name: str) -> None:
    case = CASES[name]()
    assert len(case.published) > len(set(case.own.state_dict())) - 40
    loaded = load(case)
    assert find_family({}, case.published) is find_family({}, case.published, KINDS[name])
    assert type(loaded) is type(case.own)
    image_BCHW = torch.rand(2, 3, 20, 20, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        torch.testing.assert_close(loaded.encode(image_BCHW), case.own.encode(image_BCHW))
        tokens_BLF = case.own.tokenize(image_BCHW)
        assert len(tokens_BLF.unique()) > 3
        assert torch.equal(loaded.tokenize(image_BCHW), tokens_BLF)
        torch.testing.assert_close(loaded.detokenize(tokens_BLF), case.own.detokenize(tokens_BLF))


@pytest.mark.parametrize("name", CASES)
def test_whatever_parameter_is_missing_is_named(name: str) -> None:
    case = CASES[name]()
    last_of_a_sort = {re.sub(r"\d+", "n", each): each for each in case.published if not IGNORED.search(each)}
    middle = [each for each in last_of_a_sort.values() if re.search(r"decoder\.mid.*(conv1|q|qkv)\.weight", each)]
    for missing in [*middle, *list(last_of_a_sort.values())[::8]]:
        given = {each: tensor for each, tensor in case.published.items() if each != missing}
        family = find_family({}, case.published)
        assert isinstance(family, PublishedTokenizer)
        with pytest.raises(ValueError, match="misses") as error:
            family.load(case.options, given)
        assert missing in str(error.value)


@pytest.mark.parametrize("name", CASES)
def test_what_has_no_place_or_another_shape_is_named(name: str) -> None:
    case = CASES[name]()
    with pytest.raises(ValueError, match=r"not known: decoder\.extra$"):
        load(case, case.published | {"decoder.extra": torch.zeros(1)})
    wrong = "decoder.conv_in.bias"
    with pytest.raises(ValueError, match=r"unexpected shapes: decoder\.conv_in\.bias \[33\], which should hold \[32\]"):
        load(case, case.published | {wrong: torch.zeros(33)})


def test_queries_and_keys_of_different_shapes_are_named() -> None:
    case = llamagen()
    with pytest.raises(
        ValueError, match=r"encoder\.mid\.1\.q\.weight \[64, 64, 1, 1\].*mid\.1\.k\.weight \[8, 64, 1, 1\]"
    ):
        load(case, case.published | {"encoder.mid.1.k.weight": torch.zeros(8, 64, 1, 1)})


@pytest.mark.parametrize(
    ("case", "options", "reason"),
    [
        (var, {"quant_resi": 2}, r"have quant_resi=2, which should be a share above 0"),
        (var, {"v_patch_nums": "10"}, r"have v_patch_nums='10', which should be a list"),
        (llamagen, {"codebook_l2_norm": "yes"}, r"have codebook_l2_norm='yes', which should be true or false"),
        (maskgit, {"resolution": "20"}, r"have resolution='20', which should be a whole number"),
    ],
)
def test_a_wrong_option_is_named(case: Callable[[], Case], options: dict[str, Any], reason: str) -> None:
    made_of = case()
    with pytest.raises(ValueError, match=reason):
        load(Case(made_of.own, made_of.options | options, made_of.published))


def test_without_options_images_have_the_published_256_pixels() -> None:
    case = llamagen()
    found = vqgan.tokenizer_config({}, joined_attention(case.published))
    assert (found.image_size, found.scales, found.quantizer.unit_codes) == (256, (64,), True)
    assert maskgit_vqgan.tokenizer_config({}, maskgit().published).scales == (64,)
    assert var_vqvae.tokenizer_config({}, var().published).scales == (1, 2, 3, 4, 5, 6, 8, 10, 13, 16)


def test_codes_are_compared_as_the_options_say() -> None:
    state = joined_attention(llamagen().published)
    plain = vqgan.tokenizer_config({"codebook_l2_norm": False}, state).quantizer
    assert (plain.lookup, plain.unit_codes) == ("euclidean", False)
    assert var_vqvae.tokenizer_config({"using_znorm": True}, var().published).quantizer.lookup == "cosine"
    assert var_vqvae.tokenizer_config({}, var().published).quantizer.lookup == "euclidean"
