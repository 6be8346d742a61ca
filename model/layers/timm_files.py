"""timm models by name, as frozen networks of features, with weights from a file or timm's hub."""

from __future__ import annotations

from typing import Any

import timm
from torch import nn

from model.layers.vision_features import VisionFeatures
from model.layers.weight_files import are_left_out, fill, local_path, read_tensors


def load_vision(network: str, file: str | None) -> VisionFeatures:
    """A timm model without a head.

    Args:
        network: its name; sizes that are not its own follow as in a URL: vit_small_patch16_224.dino?img_size=256.
        file: its weights, on a local path or file: URI; None for timm's hub.

    Raises:
        ValueError: if there is no such model, it has no such sizes, or the file is not of it.
    """
    model = _created(network, pretrained=file is None and not are_left_out())
    if file is not None and not are_left_out():
        wanted = f"{network} wants its own weights"
        state = read_tensors(local_path(file, network), wanted)
        fill(model, {name: each for name, each in state.items() if not name.startswith("head.")}, wanted)
    try:
        return VisionFeatures(model, input_size(model, network))
    except ValueError as error:
        raise ValueError(f"{network}: {error}") from None


def input_size(model: nn.Module, network: str) -> int:
    """Side of the images that a model of this name sees, in pixels: the one that was asked for, or its own."""
    settings: Any = model.pretrained_cfg
    patches: Any = getattr(model, "patch_embed", None)
    asked = patches is not None and "img_size=" in network
    return int(patches.img_size[-1] if asked else settings["input_size"][-1])


def _created(network: str, *, pretrained: bool) -> nn.Module:
    name, _, sizes = network.partition("?")
    if not timm.is_model(name):
        raise ValueError(f"{name}: timm {timm.__version__} knows no model of this name")
    try:
        given: dict[str, Any] = {
            key: int(size) for key, _, size in (part.partition("=") for part in sizes.split("&") if part)
        }
        made: nn.Module = timm.create_model(name, pretrained=pretrained, num_classes=0, **given)
    except OSError as error:
        raise ValueError(
            f"{name}: its weights cannot be had from timm's hub ({str(error).splitlines()[0]}): name a local file"
        ) from None
    except (TypeError, AssertionError, ValueError) as error:
        if not sizes:
            raise
        raise ValueError(f"{name} takes no {sizes} ({error}): leave sizes out, or name another model") from None
    return made
