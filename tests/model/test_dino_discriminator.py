"""The discriminator over a frozen network's features, and spectral normalization."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import pytest
import timm
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from safetensors.torch import save_file
from torch import Tensor, nn

from model.classifier import Classifier
from model.config import ClassifierConfig, DinoConfig
from model.discriminators.dino import DinoDiscriminator
from model.families import build_discriminator
from model.layers.crops import crops
from model.layers.grouped_norm import GroupedBatchNorm
from model.layers.random_numbers import uniform
from model.layers.spectral_norm import SpectralConv1d
from model.layers.timm_files import load_vision
from model.layers.vision_features import VisionFeatures, tap_depths

SIZES = "img_size=32&patch_size=8&embed_dim=16&depth=4&num_heads=2"
TINY = f"vit_tiny_patch16_224?{SIZES}"


def tiny() -> VisionFeatures:
    torch.manual_seed(0)
    sizes = {key: int(size) for key, size in (part.split("=") for part in SIZES.split("&"))}
    return VisionFeatures(timm.create_model("vit_tiny_patch16_224", num_classes=0, **sizes), 32).eval()


def dino(size: int = 32, **settings: object) -> DinoDiscriminator:
    network = tiny()
    return DinoDiscriminator(DinoConfig.model_validate({"group": 2, "taps": 3, **settings}), size, network)


def test_published_sizes() -> None:
    with torch.device("meta"):
        network = VisionFeatures(timm.create_model("vit_small_patch16_224.dino", num_classes=0), 224)
        discriminator = build_discriminator(DinoConfig(), 256, network)
        assert discriminator(torch.zeros(2, 3, 256, 256), torch.zeros(2, dtype=torch.int64)).shape == (2, 5 * 196)
    assert isinstance(discriminator, nn.Module)
    assert sum(each.numel() for each in discriminator.parameters()) == 7_386_245


@pytest.mark.parametrize(
    ("blocks", "count", "depths"), [(12, 5, [0, 3, 6, 9, 12]), (2, 5, [0, 1, 2]), (4, 1, [4]), (3, 2, [0, 3])]
)
def test_features_are_taken_before_the_first_block_and_evenly_after(blocks: int, count: int, depths: list[int]) -> None:
    assert tap_depths(blocks, count) == depths


def test_features_of_a_transformer_are_patches_with_the_class_token_added() -> None:
    network, image = tiny(), torch.rand(2, 3, 32, 32) * 2 - 1
    model = network.model
    x = (image + 1) / 2
    x = (x - torch.tensor(model.pretrained_cfg["mean"]).view(3, 1, 1)) / 0.5
    tokens = model.patch_embed(x)
    tokens = torch.cat([model.cls_token.expand(2, -1, -1), tokens], dim=1) + model.pos_embed
    expected = [tokens]
    for block in model.blocks:
        expected.append(block(expected[-1]))
    maps = network.maps(image, 3)
    assert len(maps) == len(network.map_widths(3)) == 3
    for found, depth in zip(maps, (0, 2, 4), strict=True):
        torch.testing.assert_close(found, (expected[depth][:, 1:] + expected[depth][:, :1]).transpose(1, 2))
    last = model.norm(expected[-1])
    torch.testing.assert_close(network.patch_features(image), last[:, 1:].mean(1))
    torch.testing.assert_close(network.features(image), last[:, 0])


def test_other_networks_give_their_last_maps() -> None:
    model = timm.create_model("resnet18", num_classes=0)
    network = VisionFeatures(model, 64).eval()
    maps = network.maps(torch.zeros(2, 3, 64, 64), 2)
    assert [tuple(each.shape) for each in maps] == [(2, 256, 16), (2, 512, 4)]
    assert network.map_widths(2) == [256, 512]
    torch.testing.assert_close(network.patch_features(torch.zeros(2, 3, 64, 64)), maps[-1].mean(-1))


def test_networks_whose_channels_come_last_give_the_mean_of_their_positions() -> None:
    class Last(nn.Module):
        num_features = 5
        pretrained_cfg: ClassVar[dict[str, object]] = {"mean": (0.5,) * 3, "std": (0.5,) * 3}

        def forward_features(self, image: Tensor) -> Tensor:
            return image[:, :1, ::16, ::16].movedim(1, 3).expand(-1, -1, -1, 5) * torch.arange(5.0)

    image = torch.rand(2, 3, 32, 32) * 2 - 1
    expected = image[:, 0, ::16, ::16].mean((1, 2))[:, None] * torch.arange(5.0)
    torch.testing.assert_close(VisionFeatures(Last(), 32).patch_features(image), expected)


def test_it_judges_by_the_classifier_of_a_run_too() -> None:
    teacher = Classifier(ClassifierConfig(num_classes=3, image_size=16, widths=(4, 8)))
    network = build_discriminator(DinoConfig(group=2, kernel=5), 16, teacher)
    image = torch.rand(2, 3, 16, 16, requires_grad=True)
    logits = network(image)
    assert logits.shape == (2, 8 * 8 + 4 * 4)
    logits.sum().backward()
    assert image.grad is not None
    assert image.grad.abs().sum() > 0
    assert all(each.grad is None and not each.requires_grad for each in teacher.parameters())
    torch.testing.assert_close(teacher.maps(image, 5)[-1].mean(-1), teacher.patch_features(image))


def test_a_head_is_a_layer_a_residual_layer_over_the_ring_and_a_logit() -> None:
    network = dino(kernel=3)
    head, x = network.heads[0], torch.randn(2, 16, 16)

    def layer(x: Tensor, part: nn.Module) -> Tensor:
        convolution, norm, _ = part.children()
        weight = convolution.weight / torch.linalg.matrix_norm(convolution.weight.flatten(1), 2)
        x = torch.cat([x[..., -1:], x, x[..., :1]], -1) if weight.shape[-1] == 3 else x
        x = F.conv1d(x, weight, convolution.bias)
        mean, variance = x.mean((0, 2), keepdim=True), x.var((0, 2), unbiased=False, keepdim=True)
        return F.leaky_relu((x - mean) / (variance + 1e-6).sqrt() * norm.weight[:, None] + norm.bias[:, None], 0.2)

    for module in head.modules():
        if isinstance(module, SpectralConv1d):
            settle(module)
        if isinstance(module, GroupedBatchNorm):
            nn.init.normal_(module.weight)
            nn.init.normal_(module.bias)
    first = layer(x, head.first)
    second = (layer(first, head.second) + first) / 2**0.5
    last = head.to_logit
    expected = F.conv1d(second, last.weight / last.weight.norm(), last.bias)[:, 0]
    torch.testing.assert_close(head(x), expected, rtol=1e-4, atol=1e-5)


def settle(layer: SpectralConv1d) -> None:
    """Power iteration until it stands still."""
    for _ in range(200):
        layer._norm()
        layer.before_O.copy_(layer.left_O)


def test_the_frozen_network_is_neither_trained_nor_saved_nor_switched() -> None:
    network = dino()
    network.train()
    assert not network.frozen.training
    assert not any(each.requires_grad for each in network.frozen.parameters())
    assert all(name.startswith("heads.") for name in network.state_dict())
    assert all(name.startswith("heads.") for name, _ in network.named_parameters())


def test_its_own_network_moves_with_it_and_the_runs_does_not(tmp_path: Path) -> None:
    file = tmp_path / "weights.safetensors"
    save_file(tiny().model.state_dict(), file)
    own = DinoDiscriminator(DinoConfig(network=TINY, file=str(file), taps=2), 32).to(torch.float64)
    assert {each.dtype for each in own.frozen.parameters()} == {torch.float64}
    shared = dino().to(torch.float64)
    assert {each.dtype for each in shared.frozen.parameters()} == {torch.float32}


def test_weights_come_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "weights.pth"
    state = tiny().model.state_dict()
    torch.save(state | {"head.weight": torch.zeros(2)}, file)
    found = load_vision(TINY, f"file://{file}")
    assert found.size == 32
    torch.testing.assert_close(found.model.state_dict(), state)


def test_a_file_of_another_network_is_refused_by_name(tmp_path: Path) -> None:
    file = tmp_path / "weights.pth"
    state = tiny().model.state_dict()
    del state["norm.weight"]
    torch.save(state, file)
    with pytest.raises(ValueError, match=r"it has no norm.weight \(1 in all\)"):
        load_vision(TINY, str(file))


@pytest.mark.parametrize(
    ("network", "reason"),
    [("vit_of_nobody", "knows no model of this name"), ("resnet18?patch_size=3", "takes no patch_size=3")],
)
def test_networks_that_are_not_there_are_refused(network: str, reason: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=reason):
        load_vision(network, str(tmp_path / "none.pth"))


def test_without_network_it_is_said_that_a_file_would_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def away(*_: object, **__: object) -> None:
        raise FileNotFoundError("cannot find the requested files in the local cache")

    monkeypatch.setattr(timm, "create_model", away)
    with pytest.raises(ValueError, match=r"timm's hub \(cannot find .*: name a local file"):
        load_vision("vit_small_patch16_224.dino", None)


def test_without_a_teacher_there_is_nothing_to_judge_by() -> None:
    with pytest.raises(ValueError, match="this run has no teacher"):
        build_discriminator(DinoConfig(), 32)


@pytest.mark.parametrize(("settings", "reason"), [({"kernel": 4}, "even"), ({"file": "x"}, "the teacher's")])
def test_settings_that_contradict_are_refused(settings: dict[str, object], reason: str) -> None:
    with pytest.raises(ValidationError, match=reason):
        DinoConfig.model_validate(settings)


def test_larger_images_are_cropped_or_made_smaller_by_their_own_seeds() -> None:
    network = dino(40).train()
    image, seed = torch.randn(64, 3, 40, 40), torch.arange(64)
    view = network._view(image, 32, seed)
    chance, top, left = uniform(seed, 3)
    small = F.adaptive_avg_pool2d(image, 32)
    for i in range(64):
        if chance[i] < 0.5:
            row, column = int(top[i] * 9), int(left[i] * 9)
            torch.testing.assert_close(view[i], image[i, :, row : row + 32, column : column + 32])
        else:
            torch.testing.assert_close(view[i], small[i])
    assert 16 < int((chance < 0.5).sum()) < 48
    assert {int(row * 9) for row in top} == set(range(9))
    torch.testing.assert_close(view[5:9], network._view(image[5:9], 32, seed[5:9]))


def test_nothing_is_drawn_where_nothing_is_to_be() -> None:
    image = torch.randn(2, 3, 40, 40)
    small = F.adaptive_avg_pool2d(image, 32)
    torch.testing.assert_close(dino(40).eval()._view(image, 32, None), small)
    torch.testing.assert_close(dino(40, random_crop=0)._view(image, 32, None), small)
    with pytest.raises(ValueError, match="need seed_B"):
        dino(40).train()(image)
    assert dino(40).train()._view(image[..., :32, :32], 32, None).shape[-1] == 32


def test_smaller_images_are_made_larger() -> None:
    network, image = dino(16), torch.randn(2, 3, 16, 16)
    larger = F.interpolate(image, size=(32, 32), mode="bicubic", antialias=True)
    torch.testing.assert_close(network(image), network(larger))


def test_crops_are_at_each_images_own_place_and_carry_gradients() -> None:
    image = torch.arange(2 * 25.0).view(2, 1, 5, 5).requires_grad_()
    part = crops(image, torch.tensor([0, 2]), torch.tensor([1, 3]), 2)
    torch.testing.assert_close(part, torch.stack([image[0, :, 0:2, 1:3], image[1, :, 2:4, 3:5]]))
    part.sum().backward()
    assert image.grad is not None
    assert image.grad.sum() == 8


@pytest.mark.parametrize("norm", ["batch", "group"])
def test_logits_are_float32_and_every_weight_gets_a_gradient(norm: str) -> None:
    network, image = dino(norm=norm).train(), torch.randn(4, 3, 32, 32, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = network(image)
    assert logits.dtype == torch.float32
    logits.square().sum().backward()
    assert all(each.grad is not None for each in network.parameters())
    assert image.grad is not None
    assert image.grad.abs().sum() > 0


def test_normalization_by_channels_does_not_mix_images() -> None:
    network, image = dino(norm="group"), torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(network(image), torch.cat([network(image[:1]), network(image[1:])]))
    assert not torch.allclose(dino()(image), torch.cat([dino()(image[:1]), dino()(image[1:])]), atol=1e-3)


def test_a_weight_is_divided_by_its_largest_singular_value() -> None:
    torch.manual_seed(0)
    layer, x = SpectralConv1d(6, 5, 3).train(), torch.randn(2, 6, 7)
    settle(layer)
    largest = torch.linalg.matrix_norm(layer.weight.flatten(1), 2)
    torch.testing.assert_close(layer._norm(), largest)
    ring = torch.cat([x[..., -1:], x, x[..., :1]], dim=-1)
    torch.testing.assert_close(layer(x), F.conv1d(ring, layer.weight / largest, layer.bias))
    (gradient,) = torch.autograd.grad(layer._norm(), layer.weight)
    (expected,) = torch.autograd.grad(largest, layer.weight)
    torch.testing.assert_close(gradient, expected, rtol=1e-3, atol=1e-5)


def test_iteration_goes_on_with_each_new_weight_and_stands_still_with_the_same() -> None:
    torch.manual_seed(0)
    layer, x = SpectralConv1d(32, 32).train(), torch.randn(1, 32, 4)
    first = layer(x)
    state = {name: each.clone() for name, each in layer.state_dict().items()}
    for _ in range(3):
        torch.testing.assert_close(layer(x), first, rtol=0, atol=0)
    torch.testing.assert_close(layer.state_dict(), state, rtol=0, atol=0)
    with torch.no_grad():
        layer.weight.add_(0.1 * torch.randn_like(layer.weight))
    weight = layer.weight.detach().flatten(1)
    right = F.normalize(weight.t() @ state["left_O"], dim=0)
    left = F.normalize(weight @ right, dim=0)
    torch.testing.assert_close(layer._norm(), left @ weight @ right)
    torch.testing.assert_close(layer.left_O, left)
    torch.testing.assert_close(layer.before_O, state["left_O"])


def test_the_first_estimate_is_near_already_and_evaluation_keeps_it() -> None:
    torch.manual_seed(0)
    layer = SpectralConv1d(32, 32).eval()
    before = layer.left_O.clone()
    assert layer._norm().item() == pytest.approx(torch.linalg.matrix_norm(layer.weight.flatten(1), 2).item(), rel=0.03)
    torch.testing.assert_close(layer.left_O, before)


@pytest.mark.parametrize("length", [1, 3, 4, 9])
def test_positions_are_a_ring_however_few(length: int) -> None:
    layer, x = SpectralConv1d(1, 1, 9).eval(), torch.randn(1, 1, length)
    weight = (layer.weight / layer._norm()).flatten()
    expected = torch.stack([sum(weight[k] * x[0, 0, (i + k - 4) % length] for k in range(9)) for i in range(length)])  # type: ignore[misc]
    torch.testing.assert_close(layer(x)[0, 0], expected + layer.bias)


def test_the_estimate_is_in_the_checkpoint() -> None:
    layer = SpectralConv1d(3, 3).train()
    assert {"left_O", "before_O"} <= layer.state_dict().keys()
