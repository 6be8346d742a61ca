"""Networks of timm and torchvision that others trained, as a `FeatureNetwork`.

Images are resized to the network's own size and normalized as it was trained, and never cropped: what is measured has
been cropped before.

Shapes: B images, C channels, H, W sides, D width of the features, K classes.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from data_pipeline import storage
from data_pipeline.errors import UsageError
from model.layers.timm_files import input_size
from model.layers.vision_features import VisionFeatures
from trainer.config.feature_networks import TimmNetwork, TorchvisionNetwork
from trainer.evaluation.networks.teacher import timm_network
from trainer.evaluation.networks.weight_bytes import load_strictly, parse_weights, read_file, state_sha256


class TimmFeatures:
    """A model of timm: what its head is fed, and what its head says where it has one.

    Raises:
        UsageError: if there is no such model, or its weights are not there or are of another.
    """

    is_fid = False

    def __init__(self, config: TimmNetwork, device: torch.device) -> None:
        self.name = f"timm:{config.network}"
        pretrained = config.file is None
        model = timm_network(config.network, pretrained=pretrained, head=True, setting="evaluation.networks: timm")
        if config.file is None:
            self.sha256 = state_sha256(model)
        else:
            self.sha256 = _fill(model, config.file, f"weights of timm's {config.network} are wanted")
        try:
            vision = VisionFeatures(model, input_size(model, config.network))
        except ValueError as error:
            raise UsageError(f"{self.name}: {error}") from None
        self.vision = vision.to(device).eval().requires_grad_(False)

    def identity(self) -> dict[str, Any]:
        """Kind, name, and sha256 of the file, or of the weights where they are timm's hub's."""
        return {"kind": "timm", "name": self.name, "sha256": self.sha256}

    @torch.inference_mode()
    def __call__(self, pixels_BCHW: Tensor) -> dict[str, Tensor]:
        """uint8 -> features [B, D], and logits [B, K] where it has a head; float32."""
        model: Any = self.vision.model
        maps = model.forward_features(self.vision.seen(pixels_BCHW.float().div_(127.5).sub_(1)))
        found = {"features": model.forward_head(maps, pre_logits=True).float()}
        if model.num_classes:
            found["logits"] = model.forward_head(maps).float()
        return found


class TorchvisionFeatures:
    """A classifier of torchvision: what its last linear layer is fed, and what that says.

    Raises:
        UsageError: if there is no such classifier, or its weights are not there or are of another.
    """

    is_fid = False

    def __init__(self, config: TorchvisionNetwork, device: torch.device) -> None:
        from torchvision import models

        self.name = f"torchvision:{config.network}"
        if config.network not in models.list_models(module=models):
            raise UsageError(f"{self.name}: torchvision has no classifier of this name: see torchvision.models")
        network: nn.Module = models.get_model(config.network, weights=None)
        self.sha256 = _fill(network, config.file, f"weights of torchvision's {config.network} are wanted")
        preset = models.get_model_weights(config.network).DEFAULT.transforms()
        self.size, self.mode = preset.crop_size[0], preset.interpolation.value
        self._mean, self._std = (
            torch.tensor(values, device=device).view(1, 3, 1, 1) for values in (preset.mean, preset.std)
        )
        self._last = _last_linear(network, self.name)
        self.network = network.to(device).eval().requires_grad_(False)

    def identity(self) -> dict[str, Any]:
        """Kind, name, and sha256 of the file."""
        return {"kind": "torchvision", "name": self.name, "sha256": self.sha256}

    @torch.inference_mode()
    def __call__(self, pixels_BCHW: Tensor) -> dict[str, Tensor]:
        """uint8 -> features [B, D] and logits [B, K], float32."""
        image_BCHW, size = pixels_BCHW.float().div_(255), (self.size, self.size)
        if tuple(image_BCHW.shape[2:]) != size:
            image_BCHW = F.interpolate(image_BCHW, size=size, mode=self.mode, antialias=True)
        fed: list[Tensor] = []
        hook = self._last.register_forward_pre_hook(lambda _module, inputs: fed.append(inputs[0]))
        try:
            logits_BK = self.network((image_BCHW - self._mean) / self._std)
        finally:
            hook.remove()
        return {"features": fed[0].float(), "logits": logits_BK.float()}


def categories_of(config: TorchvisionNetwork) -> tuple[str, ...]:
    """Names of the classes of a classifier of torchvision, as its published weights have them."""
    from torchvision import models

    return tuple(models.get_model_weights(config.network).DEFAULT.meta["categories"])


def _fill(network: nn.Module, file: str, wanted: str) -> str:
    """Fill a network from a file; returns its sha256."""
    data = read_file(file, wanted)
    load_strictly(network, parse_weights(file, data, wanted), file, wanted)
    return storage.sha256(data)


def _last_linear(network: nn.Module, name: str) -> nn.Linear:
    found = [each for each in network.modules() if isinstance(each, nn.Linear)]
    if not found:
        raise UsageError(f"{name} ends in no linear layer, so there is nothing to call its features: name another")
    return found[-1]
