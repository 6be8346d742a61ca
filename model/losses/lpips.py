"""LPIPS (arXiv 1801.03924) and its shift-tolerant successor (ST-LPIPS, arXiv 2207.13686) over VGG16.

Features after the last layer of each of five stages, each position brought to length one; their squared differences,
weighted by channel, averaged over positions and summed over stages. Both are used in evaluation mode: the dropout
that others leave on in front of the weights has the same expectation and more noise.

Shapes: B batch, C channels, H = W side in pixels, L stages.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.config import LpipsConfig, ShiftTolerantConfig
from model.layers.precision import without_autocast
from model.layers.weight_files import PublishedFile, fill, read_published
from model.protocols import FeatureTeacher

STAGES = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
"""Channels of the convolutions of each stage of VGG16 (arXiv 1409.1556)."""
SMALLEST, SMALLEST_BLURRED = 16, 18
"""Pixels of a side that leave the last stage something, and that leave the last blur something to mirror."""
_SHIFT, _SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
_EPS = 1e-10

VGG16 = PublishedFile(
    "vgg16-397923af.pth", "https://download.pytorch.org/models/vgg16-397923af.pth (torchvision)", sha256="397923af"
)
HEADS = PublishedFile(
    "vgg.pth",
    "the package lpips (lpips/weights/v0.1/vgg.pth) or taming-transformers",
    md5="d507d7349b931f0638a25a48a722f98a",
)
SHIFT_TOLERANT = PublishedFile(
    "vgg_shift_tolerant.pth",
    "the package stlpips-pytorch (pip download --no-deps stlpips-pytorch; weights/vST0.0 in it)",
    sha256="44597da68f49c1837c100ff52299050f274d102eb102e5837178c79be6f0e250",
)


class Lpips(nn.Module):
    """The distance, with random weights until they are filled, frozen.

    Args:
        shift_tolerant: blur before each halving (ST-LPIPS), in place of max-pooling with stride 2 alone.
    """

    shift: Tensor
    scale: Tensor

    def __init__(self, *, shift_tolerant: bool = False) -> None:
        super().__init__()
        widths = [3, *itertools.chain.from_iterable(STAGES)]
        self.convolutions = nn.ModuleList(nn.Conv2d(a, b, 3, padding=1) for a, b in itertools.pairwise(widths))
        self.heads = nn.ParameterList(torch.rand(1, stage[-1], 1, 1) for stage in STAGES)
        self.halve = _BlurredPool() if shift_tolerant else nn.MaxPool2d(2)
        self._smallest = SMALLEST_BLURRED if shift_tolerant else SMALLEST
        for name, values in (("shift", _SHIFT), ("scale", _SCALE)):
            self.register_buffer(name, torch.tensor(values).view(1, 3, 1, 1), persistent=False)
        self.eval().requires_grad_(False)

    def forward(self, image_BCHW: Tensor, other_BCHW: Tensor) -> Tensor:
        """Images in [-1, 1] -> distances [B], float32, with gradients to both.

        Raises:
            ValueError: if the images are too small for the network.
        """
        if image_BCHW.shape[-1] < self._smallest:
            raise ValueError(f"LPIPS takes images of {self._smallest} pixels or more, not of {image_BCHW.shape[-1]}")
        pairs = zip(self.heads, self._stages(image_BCHW), self._stages(other_BCHW), strict=True)
        stages = [_distance(one_BCHW, other_BCHW, head) for head, one_BCHW, other_BCHW in pairs]
        return torch.stack(stages).sum(0)

    def _stages(self, image_BCHW: Tensor) -> Iterator[Tensor]:
        """What the last layer of each stage gives."""
        x_BCHW = (image_BCHW.float() - self.shift) / self.scale
        layers = iter(self.convolutions)
        for number, stage in enumerate(STAGES):
            x_BCHW = self.halve(x_BCHW) if number else x_BCHW
            for layer in itertools.islice(layers, len(stage)):
                x_BCHW = F.relu(layer(x_BCHW))
            yield x_BCHW


class _BlurredPool(nn.Module):
    """The largest of each 2 x 2, then every second position of a blur (arXiv 1904.11486); borders are mirrored."""

    def forward(self, x_BCHW: Tensor) -> Tensor:
        channels = x_BCHW.shape[1]
        x_BCHW = F.pad(F.max_pool2d(x_BCHW, 2, stride=1), (2, 2, 2, 2), mode="reflect")
        row = torch.arange(3, device=x_BCHW.device, dtype=x_BCHW.dtype)
        row = (2 - (row - 1).abs()) / 4
        kernel = (row[:, None] * row).expand(channels, 1, 3, 3)
        return F.conv2d(x_BCHW, kernel, stride=2, groups=channels)


def _distance(one_BCHW: Tensor, other_BCHW: Tensor, head_1C11: Tensor) -> Tensor:
    with without_autocast(one_BCHW.device):
        difference_BCHW = (_unit(one_BCHW.float()) - _unit(other_BCHW.float())).square()
        weighted_BHW: Tensor = (difference_BCHW * head_1C11).sum(1)
        return weighted_BHW.mean((1, 2))


def _unit(x_BCHW: Tensor) -> Tensor:
    # vector_norm has a gradient where all channels are 0; the root of a sum has not.
    length_B1HW: Tensor = torch.linalg.vector_norm(x_BCHW, dim=1, keepdim=True)
    return x_BCHW / (length_B1HW + _EPS)


def load_lpips(config: LpipsConfig, _: FeatureTeacher | None = None) -> Lpips:
    """LPIPS over VGG16.

    Raises:
        ValueError: if a file is not given, not there, or not what it should be.
    """
    what = "perceptual distance of kind lpips: {0}"
    trunk = read_published(config.file, VGG16, what.format("file"), verify=config.verify)
    heads = read_published(config.heads, HEADS, what.format("heads"), verify=config.verify)
    network = Lpips()
    numbers = [f"features.{number}" for number in _numbers(pools=1)]
    trunk = {name: each for name, each in trunk.items() if not name.startswith("classifier.")}
    fill(network.convolutions, trunk, VGG16.name, lambda name: _renamed(name, numbers))
    fill(network.heads, heads, HEADS.name, "lin{}.model.1.weight".format)
    return network


def load_shift_tolerant(config: ShiftTolerantConfig, _: FeatureTeacher | None = None) -> Lpips:
    """ST-LPIPS over VGG16.

    Raises:
        ValueError: if the file is not given, not there, or not what it should be.
    """
    what = "perceptual distance of kind st-lpips: file"
    state = read_published(config.file, SHIFT_TOLERANT, what, verify=config.verify)
    network = Lpips(shift_tolerant=True)
    stage_of = itertools.chain.from_iterable([at + 1] * len(stage) for at, stage in enumerate(STAGES))
    numbers = [f"net.slice{stage}.{number}" for stage, number in zip(stage_of, _numbers(pools=2), strict=True)]
    weights = {name: each for name, each in state.items() if name.startswith("net.") and not name.endswith(".filt")}
    heads = {name: each for name, each in state.items() if name.startswith("lin") and not name.startswith("lins.")}
    fill(network.convolutions, weights, SHIFT_TOLERANT.name, lambda name: _renamed(name, numbers))
    fill(network.heads, heads, SHIFT_TOLERANT.name, "lin{}.model.1.weight".format)
    return network


def _numbers(pools: int) -> Iterator[int]:
    """Where convolutions stand among all layers of the published networks: a rectifier after each, pools between."""
    number = 0
    for stage in STAGES:
        for _ in stage:
            yield number
            number += 2
        number += pools


def _renamed(name: str, numbers: list[str]) -> str:
    """From the number of a convolution to its place: 3.weight -> features.7.weight."""
    number, _, part = name.partition(".")
    return f"{numbers[int(number)]}.{part}"
