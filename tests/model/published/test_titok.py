"""Published TiToks of other shapes: sizes come from tensors, and what no tensor tells is asked for by name."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from model.config import VectorConfig
from model.config.titok import GaussianConfig, PixelDecoderConfig, TiTokConfig, TiTokViTConfig
from model.published.families import find_family
from model.published.titok import load_tokenizer, published_name, tokenizer_config
from model.tokenizers.titok import TiTokTokenizer

ENCODER = TiTokViTConfig(width=24, depth=2, heads=3, patch_size=8)
DECODER = TiTokViTConfig(width=16, depth=1, heads=2, patch_size=4, mlp_ratio=2)
CODES = VectorConfig(codebook_size=16, code_dim=6, lookup="euclidean", unit_codes=True, initialization="uniform")
PAINTER = PixelDecoderConfig(code_dim=8, widths=(32, 32, 64), blocks=(2, 1, 1), middle_blocks=3)
BASE = TiTokConfig(image_size=16, latents=5, encoder=ENCODER, decoder=DECODER, quantizer=CODES)
CASES = {
    "rgb": {},
    "rgb, interleaved": {"latent_layout": "interleaved"},
    "kl": {"quantizer": GaussianConfig(code_dim=6)},
    "codes": {"target": "codes", "proxy_codes": 32, "latent_layout": "interleaved"},
    "pixels": {"target": "pixels", "proxy_codes": 32, "pixel_decoder": PAINTER, "latent_layout": "interleaved"},
    "pixels, correct": {"target": "pixels", "proxy_codes": 32, "pixel_decoder": PAINTER},
}


def tokenizer_of(case: str) -> TiTokTokenizer:
    torch.manual_seed(0)
    return TiTokTokenizer(TiTokConfig.model_validate(BASE.model_dump() | CASES[case])).eval()


def state_of(tokenizer: TiTokTokenizer) -> dict[str, Tensor]:
    levels = len(tokenizer.config.pixel_decoder.widths) if tokenizer.config.pixel_decoder else 0
    state = {published_name(name, levels): tensor for name, tensor in tokenizer.state_dict().items()}
    for name in ("encoder.conv_out.weight", "decoder.ffn.0.weight", "decoder.ffn.2.weight"):
        if name in state:
            state[name] = state[name][:, :, None, None]
    return state


def options_of(tokenizer: TiTokTokenizer, **changes: Any) -> dict[str, object]:
    legacy = tokenizer.config.latent_layout == "interleaved"
    model = {"vq_model": {"use_l2_norm": True, "is_legacy": legacy, "commitment_cost": 0.5} | changes}
    return {"model": model, "vit": {"heads": 3}, "vit_decoder": {"heads": 2}}


@pytest.mark.parametrize("case", CASES)
def test_sizes_come_from_the_tensors_and_weights_survive(case: str) -> None:
    tokenizer = tokenizer_of(case)
    options, state = options_of(tokenizer), state_of(tokenizer)
    family = find_family({}, state)
    assert family is not None
    assert family.name == "TiTok"
    loaded = load_tokenizer(options, state)
    expected = tokenizer.config
    if isinstance(expected.quantizer, VectorConfig):
        changed = expected.quantizer.model_copy(update={"commitment": 0.5})
        expected = expected.model_copy(update={"quantizer": changed})
    assert loaded.config == expected
    assert not loaded.training
    own = tokenizer.state_dict()
    assert all(torch.equal(tensor, own[name]) for name, tensor in loaded.state_dict().items())
    image_BCHW = torch.rand(2, 3, 16, 16) * 2 - 1
    # the weights are equal bit for bit; where they lie in memory decides on some CPUs how a product is summed
    torch.testing.assert_close(loaded.encode(image_BCHW), tokenizer.encode(image_BCHW), rtol=0, atol=1e-6)


def test_a_model_of_released_sizes_needs_no_options() -> None:
    for codebook, unit in (((4096, 12), True), ((8192, 64), False)):
        quantizer = CODES.model_copy(update={"codebook_size": codebook[0], "code_dim": codebook[1], "unit_codes": unit})
        config = TiTokConfig(
            quantizer=quantizer,
            encoder=TiTokViTConfig(size="small"),
            decoder=TiTokViTConfig(size="base"),
            target="codes" if unit else "rgb",
            latent_layout="interleaved" if unit else "correct",
        )
        with torch.device("meta"):
            found = tokenizer_config({}, state_of(TiTokTokenizer(config)))
        named = {"encoder": config.encoder, "decoder": config.decoder}
        unnamed = {side: vit.model_copy(update={"size": None}) for side, vit in named.items()}
        assert found == config.model_copy(update=unnamed)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": {"vq_model": {"use_l2_norm": True}}}, r"need vit\.heads, a whole number"),
        ({"vit": {"heads": 3}, "vit_decoder": {"heads": 2}}, r"need model\.vq_model\.use_l2_norm, true or false"),
    ],
)
def test_what_no_tensor_tells_is_asked_for_by_its_name(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_tokenizer(options, state_of(tokenizer_of("codes")))


def test_parameters_that_do_not_fit_are_named() -> None:
    tokenizer = tokenizer_of("rgb")
    options, state = options_of(tokenizer), state_of(tokenizer)
    with pytest.raises(ValueError, match=r"not known: decoder\.text_embed"):
        load_tokenizer(options, state | {"decoder.text_embed": torch.zeros(1)})
    with pytest.raises(ValueError, match=r"unexpected shapes: decoder\.mask_token \[1, 1, 17\]"):
        load_tokenizer(options, state | {"decoder.mask_token": torch.zeros(1, 1, 17)})
    del state["encoder.ln_pre.bias"]
    with pytest.raises(ValueError, match=r"misses: encoder\.ln_pre\.bias"):
        load_tokenizer(options, state)


def test_how_often_a_clustered_codebook_used_its_codes_is_left_out() -> None:
    tokenizer = tokenizer_of("rgb")
    load_tokenizer(options_of(tokenizer), state_of(tokenizer) | {"quantize.embed_prob": torch.zeros(16)})


def test_the_legacy_model_at_512_px_with_patches_of_32_is_refused_with_the_arithmetic() -> None:
    """As it stands it gives images of 256 px; shrunk here by sixteen."""
    tokenizer = tokenizer_of("pixels")
    state = state_of(tokenizer)
    state["decoder.positional_embedding"] = torch.zeros(1 + 2 * 2, 16)
    with pytest.raises(ValueError, match=r"16/8 = 2 x 2 codes.* an image of 8 px, not of 16"):
        load_tokenizer(options_of(tokenizer), state)
