"""TiTok's tokenizer: its parts and its targets against arithmetic (arXiv 2406.07550)."""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from data_pipeline.shards.halves import DECODE, ENCODE, half_fingerprints, halves_of, settings_of
from data_pipeline.shards.tokenizers import recorded_config
from model.config.titok import GaussianConfig, LatentDropoutConfig, LinearDecoderConfig, TiTokConfig, TiTokViTConfig
from model.layers.random_numbers import normal
from model.layers.titok_vit import interleave
from model.quantizers.gaussian import Gaussian, divergence_loss, gaussian_of
from model.tokenizers.titok import KEPT_LATENTS, TiTokTokenizer
from tests.model.small_titok import SMALL, images, seeds, stage_1, stage_2, tokenizer_of

KL = GaussianConfig(code_dim=6)


# The transformers, against torch's own


class TorchBlock(nn.Module):
    """A pre-norm block around torch's attention, whose parameters it takes as published models name them."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = nn.MultiheadAttention(width, heads, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        y = self.ln_1(x)
        x = x + self.attn(y, y, y, need_weights=False)[0]
        return x + self.mlp(self.ln_2(x))


def as_torch(block: nn.Module) -> TorchBlock:
    names = {"norm": "ln_", "attn.qkv.": "attn.in_proj_", "attn.proj": "attn.out_proj", "fc1": "0", "fc2": "2"}
    state = {}
    for name, tensor in block.state_dict().items():
        for ours, torchs in names.items():
            name = name.replace(ours, torchs)
        state[name] = tensor
    found = TorchBlock(SMALL.width, SMALL.heads)
    found.load_state_dict(state)
    return found


def perturbed(network: Any) -> Any:
    """With biases and norms that are not 0 and 1."""
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn(parameter.shape) * 0.1)
    return network


@pytest.mark.parametrize("layout", ["correct", "interleaved"])
def test_the_encoder_reads_class_patches_latents_and_keeps_the_latents(layout: str) -> None:
    encoder = perturbed(tokenizer_of(latent_layout=layout).encoder)
    x_BCHW = (images() + 1) / 2
    patches = F.unfold(x_BCHW, 4, stride=4).mT @ encoder.patch_embedding.weight.flatten(1).T
    image = torch.cat([encoder.class_embedding.expand(2, 1, -1), patches + encoder.patch_embedding.bias], 1)
    latents = (encoder.latent_tokens + encoder.latent_positions).expand(2, -1, -1)
    x = encoder.norm_pre(torch.cat([image + encoder.image_positions, latents], 1))
    for block in encoder.blocks:
        x = as_torch(block)(x)
    last = encoder.norm_post(x[:, -5:])
    if layout == "interleaved":
        flat = last.reshape(2, -1)  # channel j of code k is the number j * K + k of the sample
        last = torch.stack([torch.stack([flat[:, j * 5 + k] for j in range(24)], 1) for k in range(5)], 1)
    expected = last @ encoder.to_latent.weight.T + encoder.to_latent.bias
    torch.testing.assert_close(encoder(x_BCHW), expected, rtol=1e-4, atol=1e-5)


def test_the_decoder_puts_latents_behind_the_mask_tokens_and_reads_these() -> None:
    decoder = perturbed(tokenizer_of().decoder)
    codes = torch.randn(2, 5, 6)
    image = torch.cat([decoder.class_embedding.expand(2, 1, -1), decoder.mask_token.expand(2, 16, -1)], 1)
    latents = codes @ decoder.from_latent.weight.T + decoder.from_latent.bias + decoder.latent_positions
    x = decoder.norm_pre(torch.cat([image + decoder.image_positions, latents], 1))
    for block in decoder.blocks:
        x = as_torch(block)(x)
    torch.testing.assert_close(decoder(codes), decoder.norm_post(x[:, 1:17]), rtol=1e-4, atol=1e-5)


def test_pixels_of_a_patch_are_row_column_colour_before_the_last_convolution() -> None:
    head = perturbed(tokenizer_of().head)
    patches = torch.randn(1, 16, 24)
    flat = patches @ head.to_pixel.weight.T + head.to_pixel.bias
    image = torch.empty(1, 3, 16, 16)
    for row in range(16):
        for column in range(16):
            patch, inside = row // 4 * 4 + column // 4, (row % 4 * 4 + column % 4) * 3
            image[0, :, row, column] = flat[0, patch, inside : inside + 3]
    expected = F.conv2d(image, head.conv_out.weight, head.conv_out.bias, padding=1)
    torch.testing.assert_close(head(patches), expected, rtol=1e-4, atol=1e-5)


def test_the_interleaved_layout_mixes_latents_and_the_correct_one_does_not() -> None:
    """Of the published sizes each code sees all latents: 32 of 32 channels of L-32, 4 of 512 of S-128."""
    for latents, width, channels in ((32, 1024, 32), (64, 768, 12), (128, 512, 4)):
        owner_BKD = torch.arange(latents)[None, :, None].expand(1, latents, width)
        counts = torch.stack([torch.bincount(row, minlength=latents) for row in interleave(owner_BKD)[0]])
        assert torch.equal(counts, torch.full((latents, latents), channels))


@pytest.mark.parametrize("head", ["rgb", "codes"])
@pytest.mark.parametrize("layout", ["correct", "interleaved"])
def test_layout_and_head_are_chosen_apart(head: str, layout: str) -> None:
    network = tokenizer_of(target=head, latent_layout=layout)
    assert network.encoder.interleaved == (layout == "interleaved")
    assert network.patches(torch.randn(1, 5, 6)).shape == ((1, 3, 16, 16) if head == "rgb" else (1, 16, 32))


@torch.no_grad()
def test_weights_begin_as_published() -> None:
    torch.manual_seed(0)
    network = TiTokTokenizer(
        TiTokConfig(encoder=TiTokViTConfig(depth=1), decoder=TiTokViTConfig(depth=1), target="codes", latents=64)
    )
    for table in ("class_embedding", "image_positions", "latent_positions", "latent_tokens"):
        assert network.encoder.get_parameter(table).std() == pytest.approx(512**-0.5, rel=0.1), table
    assert network.decoder.mask_token.std() == pytest.approx(512**-0.5, rel=0.1)
    block = network.encoder.blocks[0]
    weights = [network.encoder.patch_embedding, network.decoder.from_latent, network.head.hidden, block.attn.proj]
    for layer in (*weights, block.mlp.fc1, block.mlp.fc2, network.encoder.to_latent):
        assert layer.weight.std() == pytest.approx(0.02, rel=0.05)
        assert not layer.bias.any()
    assert block.attn.qkv.weight.std() == pytest.approx(0.03125, rel=0.02)  # xavier over [3 D, D]
    assert block.attn.qkv.weight.abs().max() <= math.sqrt(6 / (4 * 512))
    assert not block.attn.qkv.bias.any()
    assert network.quantizer.quantizer.codebook.abs().max() <= 1 / 4096


def test_what_is_not_decayed_is_as_published() -> None:
    """Tables, tokens, embeddings of patches and codes, and both codebooks; vectors are left alone anyway."""
    network = stage_1()
    matrices = {name for name, parameter in network.named_parameters() if parameter.ndim > 1}
    decayed = matrices - network.no_decay_parameters()
    layers = r"attn\.qkv|attn\.proj|mlp\.fc1|mlp\.fc2|to_latent|head\.hidden|head\.to_logits|pixel_decoder\..*"
    expected = {name for name in matrices if re.search(layers, name)}
    assert decayed == expected
    assert {"encoder.patch_embedding.weight", "decoder.from_latent.weight", "encoder.latent_tokens"}.isdisjoint(decayed)


# Tokens


def test_images_become_tokens_and_images_again() -> None:
    network = tokenizer_of().eval()
    tokens_BLF = network.tokenize(images())
    assert tokens_BLF.shape == (2, 5, 1)
    assert tokens_BLF.dtype == torch.int64
    seen_BCHW = network.detokenize(tokens_BLF)
    assert seen_BCHW.shape == (2, 3, 16, 16)
    assert torch.equal(seen_BCHW, network.reconstruct(images()))
    code_BKC = network.quantizer.dequantize(tokens_BLF[..., 0])
    torch.testing.assert_close(code_BKC.norm(dim=-1), torch.ones(2, 5))
    rgb_BCHW = network.head(network.decoder(code_BKC))
    torch.testing.assert_close(seen_BCHW, (2 * rgb_BCHW - 1).clamp(-1, 1))
    assert (network.layout.groups, network.layout.folds, network.prefixes) == ((5,), 1, (5,))
    assert network.config.forcing_width is None


def test_the_encoder_sees_images_between_0_and_1() -> None:
    network = tokenizer_of()
    seen: list[Tensor] = []
    network.encoder.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    network.encode(torch.tensor([-1.0, 1.0])[:, None, None, None].expand(2, 3, 16, 16))
    assert seen[0].flatten(1)[:, 0].tolist() == [0, 1]


def test_an_image_of_another_size_is_refused() -> None:
    with pytest.raises(ValueError, match=r"shape \[3, 12, 12\]: this tokenizer takes \[3, 16, 16\]"):
        tokenizer_of().encode(images(size=12))


def test_tokens_follow_from_the_recorded_settings_of_the_encoding_half_alone() -> None:
    network = stage_2(image_size=20, decoder=SMALL.model_copy(update={"width": 48}))
    names = halves_of(network)
    recorded = settings_of(network.config.model_dump(mode="json"), names, ENCODE)
    assert {"target", "decoder", "pixel_decoder", "proxy_codes"}.isdisjoint(recorded)
    assert recorded_config(recorded).layout == network.layout


def test_another_decoder_keeps_the_tokens_valid() -> None:
    """Stage 2 trains what decodes alone: the fingerprint of what encodes is that of stage 1."""
    first, second = stage_1(), stage_2()
    second.load_state_dict(first.state_dict())
    before = half_fingerprints(first.config.model_dump(mode="json"), first.state_dict(), halves_of(first))
    optimizer = torch.optim.SGD([p for p in second.parameters() if p.requires_grad], lr=0.1)
    output = second.train()(images(), {}, seeds())
    assert output.losses == output.hits == output.means == second.codebooks == {}
    F.mse_loss(output.reconstruction_BCHW, images()).backward()
    optimizer.step()
    after = half_fingerprints(second.config.model_dump(mode="json"), second.state_dict(), halves_of(second))
    assert after[ENCODE] == before[ENCODE]
    assert after[DECODE] != before[DECODE]


# Stage 1 and stage 2


def test_stage_1_minimizes_the_cross_entropy_to_the_proxys_codes_and_the_quantizers_losses() -> None:
    network = stage_1().train()
    proxy_BK = torch.randint(32, (2, 16), generator=torch.Generator().manual_seed(2))
    output = network(images(), {"proxy_BK": proxy_BK}, seeds())
    assert len(output.reconstruction_BCHW) == 0
    sum(output.losses.values()).backward()
    given = {name: p.grad for name, p in network.named_parameters() if p.grad is not None}
    assert not any(name.startswith("pixel_") for name in given)

    again = stage_1()
    vectors = again.encode(images())
    unit, codebook = vectors / vectors.norm(dim=-1, keepdim=True), again.quantizer.quantizer.codebook
    codes = codebook / codebook.norm(dim=-1, keepdim=True)
    token_BK = torch.cdist(unit.flatten(0, 1), codes).argmin(1).view(2, 5)
    chosen = codes[token_BK]
    straight = unit + (chosen - unit).detach()
    logits = again.head(again.decoder(straight))
    likelihoods = logits.log_softmax(-1).gather(-1, proxy_BK[..., None])
    expected = {
        "codes": -likelihoods.mean(),
        "codebook": (chosen - unit.detach()).square().mean(),
        "commitment": 0.25 * (chosen.detach() - unit).square().mean(),
    }
    assert torch.equal(output.tokens_BLF[..., 0], token_BK)
    assert output.losses.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(output.losses[name], value, msg=name)
    sum(expected.values()).backward()
    for name, parameter in again.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(given.pop(name), parameter.grad, rtol=1e-3, atol=1e-6, msg=name)
    assert not given


def test_stage_2_paints_a_soft_look_up_and_trains_decoder_codebook_and_painter() -> None:
    network = stage_2().train()
    output = network(images(), {}, seeds())
    output.reconstruction_BCHW.square().mean().backward()
    given = {name: p.grad for name, p in network.named_parameters() if p.grad is not None}
    assert {name.partition(".")[0] for name in given} == {"decoder", "head", "pixel_codebook", "pixel_decoder"}

    again = stage_2()
    with torch.no_grad():
        code_BKC = again.quantizer.dequantize(again.tokenize(images())[..., 0])
    share = again.head(again.decoder(code_BKC)).exp()
    share = share / share.sum(-1, keepdim=True)
    mixed = sum(share[..., code, None] * again.pixel_codebook.codebook[code] for code in range(32))
    image = 2 * again.pixel_decoder(mixed.mT.reshape(2, 8, 4, 4)) - 1
    torch.testing.assert_close(output.reconstruction_BCHW, image, rtol=1e-4, atol=1e-4)
    image.square().mean().backward()
    for name, parameter in again.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(given.pop(name), parameter.grad, rtol=1e-3, atol=1e-5, msg=name)
    assert not given


def test_stage_1_is_looked_at_through_the_likeliest_codes() -> None:
    network = stage_1().eval()
    tokens_BLF = network.tokenize(images())
    logits_BNV = network.patches(network.quantizer.dequantize(tokens_BLF[..., 0]))
    code_BCHW = network.pixel_codebook.codebook[logits_BNV.argmax(-1)].mT.reshape(2, 8, 4, 4)
    expected = (2 * network.pixel_decoder(code_BCHW) - 1).clamp(-1, 1)
    torch.testing.assert_close(network.detokenize(tokens_BLF), expected)


def test_both_stages_have_the_same_parameters_so_that_the_second_begins_from_the_first() -> None:
    shapes = [{name: tensor.shape for name, tensor in each.state_dict().items()} for each in (stage_1(), stage_2())]
    assert shapes[0] == shapes[1]


def test_without_a_pixel_decoder_stage_1_trains_and_says_that_it_paints_nothing() -> None:
    network = tokenizer_of(target="codes")
    output = network(images(), {"proxy_BK": torch.zeros(2, 16, dtype=torch.int64)}, seeds())
    assert output.losses["codes"] > 0
    with pytest.raises(ValueError, match="no pixel_decoder to paint"):
        network.detokenize(network.tokenize(images()))


def test_the_last_layer_is_a_parameter_through_which_all_that_is_painted_has_gone() -> None:
    for network in (tokenizer_of(), stage_1(), stage_2()):
        last = network.get_parameter(network.last_layer)
        found = network.patches(torch.randn(1, 5, 6)) if network.config.target == "codes" else None
        found = network.decode(torch.randn(1, 5, 6)) if found is None else found
        assert torch.autograd.grad(found.square().sum(), last)[0].abs().sum() > 0


# The Gaussian bottleneck


def test_divergence_is_summed_over_an_images_latents_and_averaged_over_images() -> None:
    mean, variance = torch.tensor([[[1.0, -2.0]], [[0.0, 0.0]]]), torch.tensor([[[1.0, 4.0]], [[1.0, 1.0]]])
    gaussian = Gaussian(mean, variance.log())
    terms = (1 + 1 - 1 - 0 + 4 + 4 - 1 - math.log(4)) / 2
    torch.testing.assert_close(gaussian.divergence(), torch.tensor([[terms], [0.0]]))
    torch.testing.assert_close(divergence_loss(gaussian, GaussianConfig(divergence=0.5)), torch.tensor(terms / 4))
    of_torch = torch.distributions.kl_divergence(
        torch.distributions.Normal(mean, variance.sqrt()), torch.distributions.Normal(0.0, 1.0)
    )
    torch.testing.assert_close(gaussian.divergence(), of_torch.sum(2))


def test_means_come_first_and_log_variances_are_clamped() -> None:
    gaussian = gaussian_of(torch.tensor([[[1.0, 2.0, -99.0, 99.0]]]))
    assert gaussian.mean_BKC.tolist() == [[[1, 2]]]
    assert gaussian.logvar_BKC.tolist() == [[[-30, 20]]]


def test_numbers_are_normal_and_follow_from_the_seed_alone() -> None:
    numbers_NB = normal(torch.arange(4_000), 10)
    assert numbers_NB.mean() == pytest.approx(0, abs=0.02)
    assert numbers_NB.std() == pytest.approx(1, abs=0.02)
    assert (numbers_NB.abs() < 1).float().mean() == pytest.approx(0.6827, abs=0.01)
    assert (numbers_NB**4).mean() == pytest.approx(3, abs=0.15)
    assert np.abs(np.corrcoef(numbers_NB.numpy()) - np.eye(10)).max() < 0.08
    assert torch.isfinite(numbers_NB).all()
    assert torch.equal(normal(torch.tensor([7, 3]), 4)[:, 1], normal(torch.tensor([3]), 4)[:, 0])


def test_a_gaussian_bottleneck_trains_on_draws_that_follow_from_each_samples_seed() -> None:
    network = tokenizer_of(quantizer=KL).train()
    output = network(images(), {}, seeds())
    gaussian = gaussian_of(network.encode(images()))
    noise_BKC = normal(seeds(), 30).T.reshape(2, 5, 6)
    code_BKC = gaussian.mean_BKC + (0.5 * gaussian.logvar_BKC).exp() * noise_BKC
    torch.testing.assert_close(output.reconstruction_BCHW, network.decode(code_BKC))
    torch.testing.assert_close(output.losses["divergence"], 1e-6 * gaussian.divergence().sum(1).mean())
    alone = network(images()[1:], {}, seeds()[1:])
    torch.testing.assert_close(alone.reconstruction_BCHW, output.reconstruction_BCHW[1:])
    assert output.tokens_BLF.shape == (2, 0, 1)
    output.reconstruction_BCHW.square().mean().backward()
    assert network.encoder.to_latent.weight.grad[6:].abs().sum() > 0  # of the log variances
    with pytest.raises(ValueError, match="needs seed_B"):
        network(images(), {})


def test_a_gaussian_bottleneck_reconstructs_from_means_or_from_draws() -> None:
    network = tokenizer_of(quantizer=KL).eval()
    gaussian = gaussian_of(network.encode(images()))
    of_mean = network.decode(gaussian.mean_BKC).clamp(-1, 1)
    torch.testing.assert_close(network.reconstruct(images()), of_mean)
    drawn = network.reconstruct(images(), seeds())
    torch.testing.assert_close(drawn, network.decode(gaussian.sample(seeds())).clamp(-1, 1))
    assert not torch.allclose(drawn, of_mean)


def test_a_gaussian_bottleneck_has_no_tokens_and_says_so() -> None:
    network = tokenizer_of(quantizer=KL)
    assert not network.config.has_tokens
    assert network.codebooks == {}
    for ask in (lambda: network.layout, lambda: network.tokenize(images()), lambda: network.detokenize(images())):
        with pytest.raises(ValueError, match=r"Gaussian bottleneck \(quantizer.kind kl\) has no tokens"):
            ask()


# Latent dropout


def uniform_of(rows: dict[str, list[float]]) -> Any:
    return lambda name, positions: np.array(rows[name])[positions]


def test_latent_dropout_keeps_one_of_the_given_counts_of_a_share_of_the_images() -> None:
    network = tokenizer_of(latent_dropout=LatentDropoutConfig(share=0.5, kept=(1, 3)))
    drawn = network.draw(
        uniform_of({"latent_dropout": [0.49, 0.49, 0.5], "kept_latents": [0.49, 0.5, 0.0]}), np.arange(3), np.arange(3)
    )
    assert drawn.of_sample[KEPT_LATENTS].tolist() == [1, 3, 5]
    assert network.prefixes == (1, 3, 5)
    assert tokenizer_of().draw(uniform_of({}), np.arange(3), np.arange(3)).of_sample == {}


def test_a_prefix_is_decoded_as_it_was_trained() -> None:
    network = tokenizer_of(latent_dropout=LatentDropoutConfig(kept=(1, 3)))
    output = network(images(), {KEPT_LATENTS: torch.tensor([3, 5])}, seeds())
    tokens_BLF = network.tokenize(images())
    trained = output.reconstruction_BCHW.clamp(-1, 1)
    torch.testing.assert_close(trained[:1], network.detokenize(tokens_BLF, 3)[:1])
    torch.testing.assert_close(trained[1:], network.detokenize(tokens_BLF)[1:])
    other = tokens_BLF.clone()
    other[:, 3:] = (other[:, 3:] + 1) % 16
    assert torch.equal(network.detokenize(other, 3), network.detokenize(tokens_BLF, 3))
    assert not torch.allclose(network.detokenize(other), network.detokenize(tokens_BLF))
    with pytest.raises(ValueError, match="keep 2: images can be decoded from 1, 3, 5 latents"):
        network.detokenize(tokens_BLF, 2)


# A linear decoder beside the decoder


def test_the_linear_decoder_learns_the_small_image_from_all_codes_and_belongs_to_no_half() -> None:
    network = tokenizer_of(linear_decoder=LinearDecoderConfig(weight=0.5, image_size=4)).train()
    output = network(images())
    codes_BX = network.quantizer(network.encode(images())).vectors_BKC.reshape(2, -1)
    made_BX = codes_BX @ network.linear_decoder.weight.T + network.linear_decoder.bias
    means_BX = images().reshape(2, 3, 4, 4, 4, 4).mean((3, 5)).reshape(2, -1)
    torch.testing.assert_close(output.losses["linear"], 0.5 * (made_BX - means_BX).square().mean())
    output.losses["linear"].backward()
    assert network.encoder.to_latent.weight.grad.abs().sum() > 0
    assert network.decoder.from_latent.weight.grad is None
    assert set(output.losses) - {"linear"} == set(tokenizer_of().train()(images()).losses)
    names = halves_of(network)
    for half in (ENCODE, DECODE):
        recorded = settings_of(network.config.model_dump(mode="json"), names, half)
        assert "linear_decoder" not in recorded


def test_of_the_first_latents_the_linear_decoder_sees_no_more_than_the_decoder() -> None:
    network = tokenizer_of(
        linear_decoder=LinearDecoderConfig(image_size=4), latent_dropout=LatentDropoutConfig(share=1, kept=(1,))
    ).train()
    losses = network(images(), {KEPT_LATENTS: torch.tensor([1, 1])}).losses
    losses["linear"].backward()
    columns_X = network.linear_decoder.weight.grad.abs().sum(0)
    width = network.config.quantizer.width
    assert columns_X[:width].sum() > 0
    assert not columns_X[width:].any()


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ({"linear_decoder": {"image_size": 5}}, "is no multiple of linear_decoder.image_size 5"),
        ({"linear_decoder": {"image_size": 4}, "target": "pixels"}, "set linear_decoder to null"),
    ],
)
def test_a_linear_decoder_that_cannot_be_is_refused(wrong: dict[str, Any], reason: str) -> None:
    pixel_decoder = stage_2().config.pixel_decoder.model_dump() if wrong.get("target") else None
    with pytest.raises(ValueError, match=reason):
        TiTokConfig(**(tokenizer_of().config.model_dump() | wrong | {"pixel_decoder": pixel_decoder}))
