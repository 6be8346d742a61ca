"""Perceptual distances: their formulas, their files, and what is said where a file is missing or another one."""

from __future__ import annotations

import hashlib
import itertools
import math
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from pydantic import TypeAdapter, ValidationError
from safetensors.torch import save_file
from torch import Tensor, nn

from model.classifier import Classifier
from model.config import (
    ClassifierConfig,
    ConvNextConfig,
    LpipsConfig,
    PerceptualConfig,
    ShiftTolerantConfig,
    TeacherDistanceConfig,
)
from model.config.losses import AnyPerceptualConfig
from model.families import build_perceptual
from model.layers import weight_files
from model.losses import logit_distance, lpips
from model.losses.logit_distance import LogitDistance, convnext_small
from model.losses.lpips import STAGES, Lpips

TORCHVISION = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)
"""Places of VGG16's convolutions among torchvision's `features`."""
ONE, OTHER = torch.rand(2, 2, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.fixture(scope="module")
def trunk() -> nn.Module:
    """torchvision's VGG16 with random weights, without its classifier of 124 million."""
    from torchvision.models import vgg

    torch.manual_seed(0)
    layers = vgg.make_layers(vgg.cfgs["D"]).eval()
    for layer in layers:
        if isinstance(layer, nn.Conv2d):
            nn.init.normal_(layer.weight, std=math.sqrt(2 / (9 * layer.out_channels)))  # as torchvision does
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
    return layers  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def heads() -> dict[str, Tensor]:
    torch.manual_seed(1)
    return {f"lin{at}.model.1.weight": torch.rand(1, stage[-1], 1, 1) for at, stage in enumerate(STAGES)}


@pytest.fixture
def files(tmp_path: Path, trunk: nn.Module, heads: dict[str, Tensor]) -> LpipsConfig:
    state = {f"features.{name}": each for name, each in trunk.state_dict().items()}
    torch.save(state | {"classifier.0.weight": torch.zeros(1)}, tmp_path / "vgg16.pth")
    torch.save(heads, tmp_path / "heads.pth")
    return LpipsConfig(file=str(tmp_path / "vgg16.pth"), heads=f"file://{tmp_path}/heads.pth", verify=False)


def published_formula(one: Tensor, other: Tensor, trunk: nn.Module, heads: dict[str, Tensor]) -> Tensor:
    """LPIPS from its paper: torchvision's own layers up to the last rectifier before each pooling."""

    def features(image: Tensor) -> list[Tensor]:
        x = (image - torch.tensor([-0.030, -0.088, -0.188]).view(3, 1, 1)) / torch.tensor([0.458, 0.448, 0.450]).view(
            3, 1, 1
        )
        found = []
        for number, layer in enumerate(trunk.children()):
            x = layer(x)
            if number in (3, 8, 15, 22, 29):
                found.append(x / (x.square().sum(1, keepdim=True).sqrt() + 1e-10))
        return found

    total = torch.zeros(len(one))
    for at, (a, b) in enumerate(zip(features(one), features(other), strict=True)):
        total += F.conv2d((a - b).square(), heads[f"lin{at}.model.1.weight"]).mean((1, 2, 3))
    return total


@torch.no_grad()
def test_lpips_is_the_published_formula(files: LpipsConfig, trunk: nn.Module, heads: dict[str, Tensor]) -> None:
    found = build_perceptual(files)(ONE, OTHER)
    assert found.shape == (2,)
    torch.testing.assert_close(found, published_formula(ONE, OTHER, trunk, heads), rtol=1e-4, atol=1e-6)


@torch.no_grad()
def test_lpips_is_that_of_torchmetrics_with_the_published_heads(files: LpipsConfig, trunk: nn.Module) -> None:
    """Over one trunk of random weights: the published one is in no package."""
    from torchmetrics.functional.image import lpips as reference

    heads = Path(reference.__file__).parent / "lpips_models" / "vgg.pth"
    with torch.device("meta"):
        published = reference._LPIPS(pretrained=False, net="vgg", pnet_rand=True)
    layers = {f"net.slice{stage}.{name}": each for stage in range(1, 6) for name, each in trunk.state_dict().items()}
    state = {name: each for name, each in layers.items() if name in published.state_dict()}
    state |= torch.load(heads, map_location="cpu")
    published.load_state_dict(state, strict=False, assign=True)
    assert hashlib.md5(heads.read_bytes(), usedforsecurity=False).hexdigest() == lpips.HEADS.md5
    found = build_perceptual(files.model_copy(update={"heads": str(heads)}))(ONE, OTHER)
    torch.testing.assert_close(found, published(ONE, OTHER).flatten(), rtol=1e-5, atol=0)


@torch.no_grad()
def test_lpips_of_one_layer_by_hand() -> None:
    """One channel of the first stage sees red, of length one wherever there is any: heads count where it differs."""
    distance = Lpips()
    for layer in distance.convolutions:
        assert isinstance(layer, nn.Conv2d)
        layer.weight.zero_()
        assert layer.bias is not None
        layer.bias.zero_()
    for layer in distance.convolutions[:2]:
        layer.weight[0, 0, 1, 1] = 1.0
    for head in distance.heads:
        head.fill_(0.25)
    red, black = torch.ones(1, 3, 16, 16), -torch.ones(1, 3, 16, 16)
    red[..., :4, :] = -1.0  # a quarter of the positions is black in both
    assert distance(red, black).item() == pytest.approx(0.25 * 0.75)


@torch.no_grad()
def test_equal_images_have_no_distance_and_order_does_not_matter(files: LpipsConfig) -> None:
    distance = build_perceptual(files)
    torch.testing.assert_close(distance(ONE, ONE), torch.zeros(2))
    torch.testing.assert_close(distance(ONE, OTHER), distance(OTHER, ONE))


def test_the_network_is_frozen_in_evaluation_mode_and_lets_gradients_through() -> None:
    distance, image = Lpips(), ONE.clone().requires_grad_()
    assert not distance.training
    assert not any(each.requires_grad for each in distance.parameters())
    distance(image, OTHER).sum().backward()
    assert image.grad is not None
    assert image.grad.isfinite().all()
    assert image.grad.abs().sum() > 0


def test_features_that_are_all_zero_have_a_finite_gradient() -> None:
    distance, image = Lpips(), ONE.clone().requires_grad_()
    for layer in distance.convolutions:
        assert isinstance(layer, nn.Conv2d)
        layer.bias.data.fill_(-100.0)  # type: ignore[union-attr]
    distance(image, OTHER).sum().backward()
    assert image.grad is not None
    assert image.grad.isfinite().all()


@pytest.mark.parametrize(("shift_tolerant", "smallest"), [(False, 16), (True, 18)])
@torch.no_grad()
def test_images_down_to_the_smallest_are_taken(shift_tolerant: bool, smallest: int) -> None:
    distance, image = Lpips(shift_tolerant=shift_tolerant), torch.zeros(1, 3, smallest, smallest)
    assert distance(image, image).item() == 0
    with pytest.raises(ValueError, match=f"{smallest} pixels or more, not of {smallest - 1}"):
        distance(image[..., 1:, 1:], image[..., 1:, 1:])


def test_the_distance_is_float32_under_autocast() -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
        assert Lpips()(ONE, OTHER).dtype == torch.float32


def shift_tolerant_file(path: Path, network: Lpips) -> ShiftTolerantConfig:
    """As the package has it: names by slice, filters of the blurs among them."""
    places = [(1, 0), (1, 2), (2, 6), (2, 8), (3, 12), (3, 14), (3, 16)]
    places += [(4, 20), (4, 22), (4, 24), (5, 28), (5, 30), (5, 32)]
    state: dict[str, Tensor] = {"scaling_layer.shift": torch.zeros(1, 3, 1, 1), "net.slice2.5.filt": torch.zeros(1)}
    for (part, number), layer in zip(places, network.convolutions, strict=True):
        for name, each in layer.state_dict().items():
            state[f"net.slice{part}.{number}.{name}"] = each
    state |= {f"lin{at}.model.1.weight": head.detach() for at, head in enumerate(network.heads)}
    torch.save(state, path)
    return ShiftTolerantConfig(file=str(path), verify=False)


@torch.no_grad()
def test_shift_tolerant_lpips_blurs_before_it_halves(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = Lpips(shift_tolerant=True)
    loaded = build_perceptual(shift_tolerant_file(tmp_path / "st.pth", network))
    torch.testing.assert_close(loaded(ONE, OTHER), network(ONE, OTHER))
    stages = list(network._stages(ONE))
    assert [stage.shape[-1] for stage in stages] == [32, 17, 9, 5, 3]
    largest = torch.stack([stages[0][..., y : 31 + y, x : 31 + x] for y in (0, 1) for x in (0, 1)]).amax(0)
    mirrored = F.pad(largest, (2, 2, 2, 2), mode="reflect")
    row = torch.tensor([0.25, 0.5, 0.25])
    blurred = sum(
        row[y] * row[x] * mirrored[..., y : 33 + y, x : 33 + x] for y, x in itertools.product(range(3), repeat=2)
    )
    assert isinstance(blurred, Tensor)
    halved = blurred[..., ::2, ::2]
    first, second = network.convolutions[2], network.convolutions[3]
    torch.testing.assert_close(stages[1], F.relu(second(F.relu(first(halved)))), rtol=1e-4, atol=1e-5)


@pytest.mark.skipif("FOLDTRAIN_ST_LPIPS" not in os.environ, reason="FOLDTRAIN_ST_LPIPS names no file")
@torch.no_grad()
def test_shift_tolerant_lpips_with_its_published_weights() -> None:
    """Of noise, from the package stlpips-pytorch 0.0.2 (net vgg, variant shift_tolerant)."""
    distance = build_perceptual(ShiftTolerantConfig(file=os.environ["FOLDTRAIN_ST_LPIPS"]))
    torch.manual_seed(0)
    one, other = torch.rand(2, 3, 32, 32) * 2 - 1, torch.rand(2, 3, 32, 32) * 2 - 1
    torch.testing.assert_close(distance(one, other), torch.tensor([0.061569516, 0.067994989]), rtol=1e-4, atol=1e-6)


@torch.no_grad()
def test_logits_are_compared_of_images_at_224_pixels() -> None:
    torch.manual_seed(0)
    classifier = nn.Sequential(nn.Conv2d(3, 5, 32, 32), nn.Flatten())

    def logits(image: Tensor) -> Tensor:
        image = F.interpolate(image, (224, 224), mode="bilinear", antialias=True)
        mean, std = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1), torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
        out: Tensor = classifier((image / 2 + 0.5 - mean) / std)
        return out

    one, other = torch.rand(2, 2, 3, 300, 300) * 2 - 1
    expected = (logits(one) - logits(other)).square().mean(1)
    torch.testing.assert_close(LogitDistance(classifier)(one, other), expected, rtol=1e-4, atol=1e-6)


def test_convnext_is_torchvisions_and_its_file_is_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with torch.device("meta"):
        network = convnext_small()
        assert network(torch.zeros(1, 3, 224, 224)).shape == (1, 1000)
    assert sum(each.numel() for each in network.parameters()) == 50_223_688
    small = nn.Linear(2, 3)
    monkeypatch.setattr(logit_distance, "convnext_small", lambda: small)
    save_file({"weight": torch.ones(3, 2), "bias": torch.ones(3)}, tmp_path / "it.safetensors")
    found = build_perceptual(ConvNextConfig(file=str(tmp_path / "it.safetensors"), verify=False))
    assert isinstance(found, LogitDistance)
    assert found.classifier is small
    assert (small.weight == 1).all()
    assert not any(each.requires_grad for each in found.parameters())
    assert not found.training


def test_the_teacher_compares_its_features() -> None:
    teacher = Classifier(ClassifierConfig(num_classes=3, image_size=32, widths=(4, 8))).eval()
    image = ONE.clone().requires_grad_()
    distance = build_perceptual(TeacherDistanceConfig(), teacher)
    found = distance(image, OTHER)
    torch.testing.assert_close(found, (teacher.features(ONE) - teacher.features(OTHER)).square().mean(1))
    found.sum().backward()
    assert image.grad is not None
    assert image.grad.abs().sum() > 0
    assert isinstance(distance, nn.Module)
    assert not distance.state_dict()


def test_without_a_teacher_its_distance_is_refused() -> None:
    with pytest.raises(ValueError, match="this run has no teacher"):
        build_perceptual(TeacherDistanceConfig())


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (LpipsConfig(heads="x"), "file wants vgg16-397923af.pth, from https://download.pytorch.org"),
        (ShiftTolerantConfig(), "file wants vgg_shift_tolerant.pth, from the package stlpips-pytorch"),
        (ConvNextConfig(), "file wants convnext_small-0c510722.pth, from https://download.pytorch.org"),
    ],
)
def test_without_a_file_it_is_said_which_one_and_where_to_get_it(config: PerceptualConfig, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        build_perceptual(config)


def test_without_heads_it_is_said_where_to_get_them(files: LpipsConfig) -> None:
    with pytest.raises(ValueError, match=r"heads wants vgg.pth, from the package lpips"):
        build_perceptual(files.model_copy(update={"heads": None}))


def test_a_file_with_another_hash_is_refused(files: LpipsConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    checked = files.model_copy(update={"verify": True})
    with pytest.raises(ValueError, match=r"vgg16.pth is another file: its sha256 is .* should begin with 397923af"):
        build_perceptual(checked)
    paths = [weight_files.local_path(str(each), "") for each in (files.file, files.heads)]
    sha256 = hashlib.sha256(paths[0].read_bytes()).hexdigest()[:8]
    monkeypatch.setattr(lpips, "VGG16", replace(lpips.VGG16, sha256=sha256))
    with pytest.raises(ValueError, match=r"heads.pth is another file: its md5 is"):
        build_perceptual(checked)
    md5 = hashlib.md5(paths[1].read_bytes(), usedforsecurity=False).hexdigest()
    monkeypatch.setattr(lpips, "HEADS", replace(lpips.HEADS, md5=md5))
    build_perceptual(checked)


def without(name: str) -> Callable[[dict[str, Tensor]], object]:
    return lambda state: {key: each for key, each in state.items() if key != name}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (without("lin3.model.1.weight"), r"it has no lin3.model.1.weight \(1 in all\)"),
        (lambda state: state | {"lin5.model.1.weight": torch.ones(1)}, "it has, too, lin5.model.1.weight"),
        (
            lambda state: state | {"lin0.model.1.weight": torch.ones(2)},
            r"lin0.model.1.weight \[2\] for \[1, 64, 1, 1\]",
        ),
        (lambda state: [state], "holds something else than tensors by name"),
        (lambda state: state | {"lin0.model.1.weight": 3}, "holds something else than tensors by name"),
    ],
)
def test_a_file_of_other_tensors_is_refused_by_name(
    files: LpipsConfig, heads: dict[str, Tensor], change: Callable[[dict[str, Tensor]], Any], said: str, tmp_path: Path
) -> None:
    torch.save(change(heads), tmp_path / "heads.pth")
    with pytest.raises(ValueError, match=said):
        build_perceptual(files)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("none.pth", None, "none.pth cannot be read: No such file"),
        ("empty.pth", b"", "empty.pth is no file of weights"),
        ("text.pth", b"hello", "text.pth is no file of weights"),
        ("text.safetensors", b"hello", "text.safetensors is no file of weights"),
        ("none.safetensors", None, "none.safetensors cannot be read: No such file"),
        ("s3://bucket/it.pth", None, "is no local path or file: URI"),
    ],
)
@pytest.mark.parametrize("verify", [True, False])
def test_files_that_cannot_be_read_are_refused(
    tmp_path: Path, name: str, content: bytes | None, said: str, verify: bool
) -> None:
    file = name if "://" in name else str(tmp_path / name)
    if content is not None:
        Path(file).write_bytes(content)
    if verify and content is not None:
        said = "is another file"
    with pytest.raises(ValueError, match=said):
        build_perceptual(ConvNextConfig(file=file, verify=verify))


@pytest.mark.parametrize(
    ("file", "path"),
    [("/a/b c", "/a/b c"), ("a.pth", "a.pth"), ("file:///a/b%20c", "/a/b c"), ("file://localhost/a", "/a")],
)
def test_a_file_is_a_path_or_a_uri_of_this_machine(file: str, path: str) -> None:
    assert weight_files.local_path(file, "") == Path(path)


def test_a_file_of_another_machine_is_refused() -> None:
    with pytest.raises(ValueError, match="no local path or file: URI"):
        weight_files.local_path("file://elsewhere/a", "")


def test_pickled_code_is_not_run(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(tmp_path / "ran"),)

    torch.save({"weight": Evil()}, tmp_path / "evil.pth")
    with pytest.raises(ValueError, match="is no file of weights"):
        build_perceptual(ConvNextConfig(file=str(tmp_path / "evil.pth"), verify=False))
    assert not (tmp_path / "ran").exists()


def test_kinds_are_told_apart_and_others_refused() -> None:
    adapter: TypeAdapter[PerceptualConfig] = TypeAdapter(AnyPerceptualConfig)
    assert isinstance(adapter.validate_python({"kind": "teacher", "weight": 0.5}), TeacherDistanceConfig)
    assert isinstance(adapter.validate_python({"file": "a", "heads": "b"}), LpipsConfig)
    with pytest.raises(ValidationError, match="'lpips', 'st-lpips', 'convnext', 'teacher'"):
        adapter.validate_python({"kind": "vgg"})
