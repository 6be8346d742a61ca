"""Published ImageFolder quantizers of other shapes than those at hand, against plain torch over published names."""

from __future__ import annotations

import math
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor

from model.published.families import find_family
from model.published.imagefolder import BACKBONES, load_tokenizer
from model.tokenizers.imagefolder import ImageFolderTokenizer

WIDTH, PATCH = 24, 4
TICKS = {2: [1 / 4, 3 / 4], 4: [1 / 12, 13 / 36, 23 / 36, 11 / 12]}
Case = tuple[str, int, tuple[int, ...], int, int, int]
CASES: dict[str, Case] = {  # kind, branches, scales, bits or channels, shared convolutions, patches
    "one-branch-msvr": ("vq", 1, (1, 2, 3), 6, 4, 5),
    "three-branches-own-convs": ("vq", 3, (1, 3, 4), 5, 0, 5),
    "residual": ("vq", 2, (3, 3, 3), 4, 1, 4),
    "vq": ("vq", 1, (4,), 6, 0, 4),
    "vp3": ("vq", 3, (3,), 5, 0, 6),
    "msbr": ("bsq", 2, (1, 2, 4), 7, 2, 5),
    "msbr-four-branches": ("bsq", 4, (1, 1, 3), 5, 4, 3),
    "mslr": ("lfq", 1, (1, 2, 4), 6, 2, 5),
}


def vit(name: str, depth: int, patches: int, draw: Any) -> dict[str, Tensor]:
    """A vision transformer by timm's names."""
    shapes = {"cls_token": (1, 1, WIDTH), "pos_embed": (1, 1 + patches**2, WIDTH)}
    shapes |= {"norm.weight": (WIDTH,), "norm.bias": (WIDTH,)}
    if name == "encoder":
        shapes |= {"patch_embed.proj.weight": (WIDTH, 3, PATCH, PATCH), "patch_embed.proj.bias": (WIDTH,)}
    for block in range(depth):
        for part, rows, columns in [
            *(("attn.qkv", 3 * WIDTH, WIDTH), ("attn.proj", WIDTH, WIDTH)),
            *(("mlp.fc1", 2 * WIDTH, WIDTH), ("mlp.fc2", WIDTH, 2 * WIDTH)),
        ]:
            shapes |= {f"blocks.{block}.{part}.weight": (rows, columns), f"blocks.{block}.{part}.bias": (rows,)}
        for part in ("norm1.weight", "norm1.bias", "norm2.weight", "norm2.bias", "ls1.gamma", "ls2.gamma"):
            shapes[f"blocks.{block}.{part}"] = (WIDTH,)
    return {f"{name}.model.{part}": draw(*shape) for part, shape in shapes.items()}


def published(case: Case) -> tuple[dict[str, object], dict[str, Tensor]]:
    """Options and parameters of such a model, with random weights."""
    kind, branches, scales, channels, shared, patches = case
    generator = torch.Generator().manual_seed(5)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator) * 0.4

    queries = branches * scales[-1] ** 2
    state = vit("encoder", 2, patches, draw) | vit("decoder", 1, patches, draw)
    state |= {
        "encoder.latent_tokens": draw(1, queries, WIDTH),
        "encoder.lvl_embed.weight": draw(branches + 1, WIDTH),
        "encoder.lvl1LC": torch.zeros(1, 1 + patches**2 + queries, dtype=torch.int64),
        "decoder.lvl_embed.weight": draw(2, WIDTH),
        "decoder.mask_token": draw(1, 1, WIDTH),
        "decoder.to_pixel.model.weight": draw(3 * PATCH**2, WIDTH),
        "decoder.to_pixel.model.bias": draw(3 * PATCH**2),
        "quant_conv.weight": draw(channels, WIDTH, 1, 1),
        "quant_conv.bias": draw(channels),
        "post_quant_conv.weight": draw(WIDTH, branches * channels, 1, 1),
        "post_quant_conv.bias": draw(WIDTH),
    }
    for branch in range(branches):
        name = f"quantizes.{branch}" if branches > 1 else "quantize"
        if kind == "vq":
            state[f"{name}.embedding.weight"] = draw(40, channels)
        else:
            state[f"{name}.scaler"] = torch.full((len(scales),), 1 / math.sqrt(channels) if kind == "bsq" else 1.0)
        state[f"{name}.ema_vocab_hit_SV"] = torch.zeros(len(scales), 40)
        for conv in range((shared or len(scales)) if len(scales) > 1 else 0):
            holder = {0: str(conv), 1: "qresi"}.get(shared, f"qresi_ls.{conv}")
            state[f"{name}.quant_resi.{holder}.weight"] = draw(channels, channels, 3, 3)
            state[f"{name}.quant_resi.{holder}.bias"] = draw(channels)
    return {"v_patch_nums": list(scales), "vit": {"num_heads": 2}}, state


def convolution(case: Case, scale: int) -> str:
    """Name of the one that a scale uses, by exact nearest ticks."""
    _, _, scales, _, shared, _ = case
    if shared < 2:
        return "qresi" if shared else str(scale)
    distances = [abs(tick - scale / (len(scales) - 1)) for tick in TICKS[shared]]
    return f"qresi_ls.{distances.index(min(distances))}"


def plain(case: Case, state: dict[str, Tensor], latent_BCHW: Tensor, branch: int) -> tuple[Tensor, Tensor]:
    """Tokens [B, L] and the quantized latent of one branch, cell by cell, as specified."""
    kind, branches, scales, channels, _, _ = case
    name = f"quantizes.{branch}" if branches > 1 else "quantize"
    several = len(scales) > 1
    residual = latent_BCHW if several and kind != "bsq" else latent_BCHW / latent_BCHW.norm(dim=1, keepdim=True)
    total, tokens = torch.zeros_like(residual), []
    for scale, side in enumerate(scales):
        cells = F.interpolate(residual, size=(side, side), mode="area").flatten(2).transpose(1, 2)
        if kind == "vq":
            codes = state[f"{name}.embedding.weight"]
            distances = torch.cdist(cells / cells.norm(dim=2, keepdim=True), codes / codes.norm(dim=1, keepdim=True))
            tokens.append(distances.argmin(2))
            chosen = codes[tokens[-1]]
            chosen = chosen if several else chosen / chosen.norm(dim=2, keepdim=True)
        else:
            bits = (cells > 0).long()
            tokens.append(sum(bits[..., bit] * 2**bit for bit in range(channels)))
            chosen = (2.0 * bits - 1) * (channels**-0.5 if kind == "bsq" else 1.0)
        step = chosen.transpose(1, 2).unflatten(2, (side, side))
        if side != scales[-1]:
            step = F.interpolate(step, size=scales[-1], mode="bicubic", align_corners=False)
        if several:
            conv = f"{name}.quant_resi.{convolution(case, scale)}"
            step = 0.5 * step + 0.5 * F.conv2d(step, state[f"{conv}.weight"], state[f"{conv}.bias"], padding=1)
        total, residual = total + step, residual - step
    return torch.cat(tokens, 1), total


@pytest.mark.parametrize("name", CASES)
@torch.no_grad()
def test_a_published_quantizer_of_another_shape_gives_the_specified_tokens_and_sums(name: str) -> None:
    case = CASES[name]
    options, state = published(case)
    family = find_family({}, state)
    assert family is not None
    expected = "MSBR" if case[0] != "vq" else "MSVR" if len(case[2]) > 1 else "VQ"
    assert family.name == f"ImageFolder {expected} tokenizer"
    tokenizer: ImageFolderTokenizer = load_tokenizer(options, state)
    image_BCHW = torch.rand(2, 3, case[5] * PATCH, case[5] * PATCH, generator=torch.Generator().manual_seed(1)) * 2 - 1
    tokens_BLF, latent_BPCHW = tokenizer.tokenize(image_BCHW), tokenizer.encode(image_BCHW)
    sums_BPCHW = tokenizer.quantizer.dequantize(tokens_BLF)
    for branch in range(case[1]):
        tokens_BL, sum_BCHW = plain(case, state, latent_BPCHW[:, branch], branch)
        assert torch.equal(tokens_BLF[..., branch], tokens_BL)
        torch.testing.assert_close(sums_BPCHW[:, branch], sum_BCHW, rtol=0, atol=1e-5)
    reconstruction_BCHW = tokenizer.detokenize(tokens_BLF)
    assert reconstruction_BCHW.shape == image_BCHW.shape
    assert len(tokens_BLF.unique()) > 3


def test_a_backbone_that_no_width_tells_is_asked_for() -> None:
    _, state = published(CASES["vp3"])
    with pytest.raises(ValueError, match="the published options need encoder_model, the name of a timm model"):
        load_tokenizer({}, state)


def test_published_widths_tell_the_backbone() -> None:
    for width in (384, 768):
        with torch.device("meta"):
            assert timm.create_model(BACKBONES[width], num_classes=0).num_features == width


def test_scales_that_do_not_fit_the_queries_are_refused() -> None:
    options, state = published(CASES["msbr"])
    with pytest.raises(ValueError, match=r"v_patch_nums \[1, 2, 5\]: the published tokenizer has queries for .* 4 x 4"):
        load_tokenizer(options | {"v_patch_nums": [1, 2, 5]}, state)


def test_lengths_of_binary_codes_that_are_neither_published_kinds_are_refused() -> None:
    options, state = published(CASES["msbr"])
    with pytest.raises(ValueError, match=r"unexpected lengths of codes: quantizes\.0\.scaler"):
        load_tokenizer(options, state | {"quantizes.0.scaler": torch.tensor([0.5, 0.25, 0.125])})
    with pytest.raises(ValueError, match="unexpected lengths of codes"):
        load_tokenizer(options, state | {"quantizes.1.scaler": torch.full((3,), 0.5)})


def test_heads_of_the_decoder_may_differ() -> None:
    options, state = published(CASES["vq"])
    tokenizer = load_tokenizer(options | {"vit_decoder": {"num_heads": 3}}, state)
    assert (tokenizer.config.encoder.heads, tokenizer.config.decoder.heads) == (2, 3)
