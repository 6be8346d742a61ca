"""Discriminators: their published sizes, and what of a batch their verdict depends on."""

from __future__ import annotations

import itertools
from typing import TypeGuard

import pytest
import torch
import torch.nn.functional as F
from pydantic import TypeAdapter, ValidationError
from torch import Tensor, nn

from model.config import AdversarialConfig, BlurConfig, DiscriminatorConfig, PatchConfig, StyleGanConfig
from model.config.discriminators import AnyDiscriminatorConfig
from model.discriminators.blur import BlurDiscriminator
from model.discriminators.patch import PatchDiscriminator
from model.discriminators.stylegan import StyleGanDiscriminator, with_deviation
from model.families import build_discriminator
from model.layers.blur import BlurredHalf, same_padding
from model.layers.grouped_norm import GroupedBatchNorm, groups_of
from model.losses.adversarial import gradient_penalty

PUBLISHED = {
    "patch": (PatchConfig(), 2_765_633, 30 * 30),
    "blur": (BlurConfig(), 1_909_889, 16 * 16),
}
SMALL: dict[str, DiscriminatorConfig] = {
    "patch": PatchConfig(width=8, layers=2, group=2),
    "blur": BlurConfig(width=8, stages=2, norm_groups=4, grid=4),
    "stylegan": StyleGanConfig(width=16, deviation_group=2),
}


def parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


@pytest.mark.parametrize("kind", PUBLISHED)
def test_published_sizes(kind: str) -> None:
    config, count, logits = PUBLISHED[kind]
    with torch.device("meta"):
        network = build_discriminator(config, 256)
        assert network(torch.zeros(2, 3, 256, 256)).shape == (2, logits)
    assert isinstance(network, nn.Module)
    assert parameters(network) == count


def test_stylegan_has_the_parameters_of_its_layers() -> None:
    """256 -> 4 pixels, widths 64 to 512, by arithmetic: two 3x3 convolutions and a 1x1 shortcut for each halving."""
    widths = [64, 128, 256, 512, 512, 512, 512]
    blocks = sum(9 * a * a + a + 9 * a * b + b + a * b for a, b in itertools.pairwise(widths))
    last = 9 * 513 * 512 + 512
    expected = (27 * 64 + 64) + blocks + last + (512 * 16 * 512 + 512) + 513
    with torch.device("meta"):
        network = StyleGanDiscriminator(StyleGanConfig(), 256)
        assert network(torch.zeros(4, 3, 256, 256)).shape == (4, 1)
    assert parameters(network) == expected


@pytest.mark.parametrize("kind", SMALL)
@pytest.mark.parametrize("size", [32, 50])
def test_images_of_any_size_get_finite_float32_logits_and_gradients(kind: str, size: int) -> None:
    network = build_discriminator(SMALL[kind], size)
    image = torch.rand(4, 3, size, size).mul(2).sub(1).requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = network(image)
    assert logits.dtype == torch.float32
    assert logits.shape[0] == 4
    logits.square().sum().backward()
    assert isinstance(network, nn.Module)
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
    assert image.grad is not None
    assert image.grad.abs().sum() > 0


@pytest.mark.parametrize("kind", SMALL)
def test_the_gradient_to_pixels_can_be_minimized_in_turn(kind: str) -> None:
    network, image = build_discriminator(SMALL[kind], 32), torch.randn(2, 3, 32, 32, requires_grad=True)
    gradient_penalty(network(image), image).backward()
    assert isinstance(network, nn.Module)
    gradients = [each.grad for each in network.parameters() if each.grad is not None]
    assert all(each.isfinite().all() for each in gradients)
    assert any(each.abs().sum() > 0 for each in gradients)


def test_a_penalty_is_refused_where_there_is_no_second_derivative() -> None:
    AdversarialConfig.model_validate({"penalty": 10, "discriminator": {"kind": "stylegan"}})
    with pytest.raises(ValidationError, match="kind dino has no second derivative"):
        AdversarialConfig.model_validate({"penalty": 10, "discriminator": {"kind": "dino"}})


@pytest.mark.parametrize("kind", SMALL)
def test_a_verdict_depends_on_the_images_group_alone(kind: str) -> None:
    """So it does not matter how a batch is cut into micro-batches or over workers, as long as groups stay whole."""
    torch.manual_seed(0)
    network, image = build_discriminator(SMALL[kind], 32), torch.randn(4, 3, 32, 32)
    parts = torch.cat([network(image[:2]), network(image[2:])])
    torch.testing.assert_close(network(image), parts)


@pytest.mark.parametrize("kind", ["patch", "stylegan"])
def test_images_of_a_group_are_seen_together(kind: str) -> None:
    torch.manual_seed(0)
    network, image = build_discriminator(SMALL[kind], 32), torch.randn(2, 3, 32, 32)
    alone = torch.cat([network(image[:1]), network(image[1:])])
    assert (network(image) - alone).abs().max() > 1e-3 * alone.abs().max()


def test_the_first_kind_is_meant_where_none_is_given_and_others_are_refused() -> None:
    adapter: TypeAdapter[DiscriminatorConfig] = TypeAdapter(AnyDiscriminatorConfig)
    assert isinstance(adapter.validate_python({}), PatchConfig)
    assert isinstance(adapter.validate_python({"kind": "stylegan"}), StyleGanConfig)
    with pytest.raises(ValidationError, match="'patch', 'blur', 'stylegan', 'dino'"):
        adapter.validate_python({"kind": "patchgan"})


@pytest.mark.parametrize(
    ("config", "size", "reason"),
    [(PatchConfig(), 16, "need 24"), (StyleGanConfig(), 2, "4 pixels or more")],
)
def test_images_that_are_too_small_are_refused(config: DiscriminatorConfig, size: int, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        build_discriminator(config, size)


def test_the_smallest_image_of_a_patch_discriminator_has_one_logit() -> None:
    assert build_discriminator(PatchConfig(width=8), 24)(torch.zeros(1, 3, 24, 24)).shape == (1, 1)


def test_widths_that_cannot_be_grouped_are_refused() -> None:
    with pytest.raises(ValidationError, match="no multiple of norm_groups"):
        BlurConfig(width=100)


def test_patch_weights_begin_about_zero_and_gains_about_one() -> None:
    torch.manual_seed(0)
    network = PatchDiscriminator(PatchConfig(), 256)
    for layer in network.layers:
        if isinstance(layer, nn.Conv2d) and layer.weight.numel() > 10_000:
            assert abs(layer.weight.mean()) < 1e-3
            assert layer.weight.std().item() == pytest.approx(0.02, rel=0.02)
        if isinstance(layer, GroupedBatchNorm):
            assert layer.weight.mean().item() == pytest.approx(1, abs=0.01)
            assert layer.weight.std().item() == pytest.approx(0.02, rel=0.2)
            assert not layer.bias.any()


def test_only_the_inner_convolutions_of_a_patch_discriminator_are_normalized_and_have_no_bias() -> None:
    layers = list(PatchDiscriminator(PatchConfig(), 256).layers)
    convolutions = [layer for layer in layers if isinstance(layer, nn.Conv2d)]
    assert [layer.bias is not None for layer in convolutions] == [True, False, False, False, True]
    assert [layer.stride[0] for layer in convolutions] == [2, 2, 2, 1, 1]
    assert [layer.out_channels for layer in convolutions] == [64, 128, 256, 512, 1]
    assert sum(isinstance(layer, GroupedBatchNorm) for layer in layers) == 3
    assert {layer.negative_slope for layer in layers if isinstance(layer, nn.LeakyReLU)} == {0.2}


def test_channels_of_a_patch_discriminator_double_up_to_eight_times() -> None:
    with torch.device("meta"):
        layers = PatchDiscriminator(PatchConfig(layers=5, width=16), 256).layers
    assert [each.out_channels for each in layers if isinstance(each, nn.Conv2d)] == [16, 32, 64, 128, 128, 128, 1]


def test_channels_of_a_stylegan_discriminator_halve_above_32_pixels() -> None:
    with torch.device("meta"):
        blocks = [
            [each.out_channels for each in StyleGanDiscriminator(StyleGanConfig(), size).modules() if is_wide(each)]
            for size in (48, 128)
        ]
    assert blocks == [[512, 512, 512], [256, 512, 512, 512, 512]]


def is_wide(module: nn.Module) -> TypeGuard[nn.Conv2d]:
    """The convolutions that change the width: the shortcuts."""
    return isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1)


def test_stages_of_the_blur_discriminator_have_the_published_shapes() -> None:
    seen: list[tuple[int, ...]] = []
    with torch.device("meta"):
        network = BlurDiscriminator(BlurConfig())
        for layer in network.layers:
            if isinstance(layer, BlurredHalf | nn.AdaptiveMaxPool2d):
                layer.register_forward_hook(lambda _, __, out: seen.append(tuple(out.shape[1:])))
        network(torch.zeros(1, 3, 256, 256))
    assert seen == [(128, 128, 128), (256, 64, 64), (512, 32, 32), (512, 16, 16)]
    assert {layer.negative_slope for layer in network.layers if isinstance(layer, nn.LeakyReLU)} == {0.1}
    assert {layer.num_groups for layer in network.layers if isinstance(layer, nn.GroupNorm)} == {32}


def test_the_blur_discriminator_sees_images_in_zero_to_one() -> None:
    network, image = BlurDiscriminator(SMALL["blur"]), torch.rand(1, 3, 32, 32)  # type: ignore[arg-type]
    torch.testing.assert_close(network(image * 2 - 1), network.layers(image).flatten(1))


def test_a_blurred_half_is_the_binomial_filter_at_every_second_position() -> None:
    x = torch.randn(1, 2, 6, 6)
    row = torch.tensor([1.0, 3.0, 3.0, 1.0]) / 8
    padded = F.pad(x, (1, 1, 1, 1))
    expected = torch.zeros(1, 2, 3, 3)
    for i in range(3):
        for j in range(3):
            window = padded[:, :, 2 * i : 2 * i + 4, 2 * j : 2 * j + 4]
            expected[:, :, i, j] = (window * row[:, None] * row).sum((2, 3))
    torch.testing.assert_close(BlurredHalf()(x), expected)


@pytest.mark.parametrize(
    ("side", "kernel", "stride", "expected"),
    [(6, 4, 2, (1, 1)), (5, 4, 2, (1, 2)), (8, 3, 1, (1, 1)), (4, 1, 4, (0, 0))],
)
def test_same_padding(side: int, kernel: int, stride: int, expected: tuple[int, int]) -> None:
    assert same_padding(side, kernel, stride) == expected


@pytest.mark.parametrize(
    ("batch", "most", "groups"), [(16, 8, 2), (8, 8, 1), (3, 8, 1), (10, 8, 2), (11, 8, 11), (12, 5, 3), (6, 1, 6)]
)
def test_groups_are_equal_and_no_larger_than_asked(batch: int, most: int, groups: int) -> None:
    assert groups_of(batch, most) == groups


@pytest.mark.parametrize("shape", [(6, 3, 5), (6, 3, 4, 2)])
def test_batch_norm_takes_the_statistics_of_each_group(shape: tuple[int, ...]) -> None:
    x, norm = torch.randn(shape), GroupedBatchNorm(3, group=2, eps=1e-3)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    expected = []
    for part in x.split(2):
        dims = [0, *range(2, len(shape))]
        mean = part.mean(dims, keepdim=True)
        variance = (part - mean).square().mean(dims, keepdim=True)
        gain, bias = (each.view(1, 3, *[1] * (len(shape) - 2)) for each in (norm.weight, norm.bias))
        expected.append((part - mean) / (variance + 1e-3).sqrt() * gain + bias)
    torch.testing.assert_close(norm(x), torch.cat(expected))
    torch.testing.assert_close(norm.eval()(x[:2]), expected[0])


def test_the_deviation_of_a_group_is_a_further_channel() -> None:
    x = torch.randn(4, 2, 3, 3)
    out = with_deviation(x, 2)
    assert out.shape == (4, 3, 3, 3)
    torch.testing.assert_close(out[:, :2], x)
    for first in (0, 2):
        deviation = x[first : first + 2].std(0, unbiased=False).mean()
        torch.testing.assert_close(out[first : first + 2, 2], deviation.expand(2, 3, 3))


def test_images_that_are_alike_have_no_deviation_and_finite_gradients() -> None:
    x = torch.ones(2, 2, 3, 3, requires_grad=True)
    out = with_deviation(x, 2)
    assert out[:, 2].max() < 1e-3
    out.sum().backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()


def test_a_residual_block_is_the_mean_of_squares_of_branch_and_shortcut() -> None:
    block = StyleGanDiscriminator(StyleGanConfig(width=4, deviation_group=0), 8).blocks[0]
    assert isinstance(block, nn.Module)
    x = torch.randn(1, 4, 8, 8)
    half = BlurredHalf()
    conv1, conv2, shortcut = (getattr(block, name) for name in ("conv1", "conv2", "shortcut"))
    branch: Tensor = F.leaky_relu(conv2(half(F.leaky_relu(conv1(x), 0.2))), 0.2)
    torch.testing.assert_close(block(x), (branch + shortcut(half(x))) / 2**0.5)
    assert shortcut.bias is None
