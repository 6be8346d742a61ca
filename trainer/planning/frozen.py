"""What a stage runs without training it: the tokenizer's teacher, the generator's quantizer."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from model.config import ImageFolderConfig
from trainer.config import TeacherConfig, TokenizerLossConfig
from trainer.planning.activations import classifier_activations
from trainer.planning.flops import classifier_forward
from trainer.planning.shapes import classifier_weights, count

FP32 = 4


@dataclass(frozen=True)
class Frozen:
    """A network that is only run."""

    bytes: int = 0
    """Its weights, float32."""
    flops: int = 0
    """Operations per sample."""
    activations: int = 0
    """Bytes per sample that backward needs, where a loss looks at an image through it."""


def frozen_teacher(teacher: TeacherConfig | None, loss: TokenizerLossConfig) -> Frozen:
    """The tokenizer's teacher: it sees each image; with a feature loss each reconstruction too, with gradients."""
    if teacher is None or not (loss.semantic or loss.feature):
        return Frozen()
    if teacher.network is not None:
        once = _timm_teacher(teacher.network, teacher.image_size)
    else:
        parameters = count(classifier_weights(teacher.model))
        kept = classifier_activations(teacher.model)
        once = Frozen(parameters * FP32, sum(classifier_forward(teacher.model)), kept.blocks)
    # Forward twice, and backward to the image alone, which costs as much as forward.
    return Frozen(once.bytes, once.flops * (3 if loss.feature else 1), once.activations if loss.feature else 0)


@lru_cache(maxsize=8)
def _timm_teacher(name: str, image_size: int | None) -> Frozen:
    """A timm model on one image of the size that it sees, on the meta device: nothing is computed or loaded."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from trainer.evaluation.teacher import timm_network

    with torch.device("meta"):
        network = timm_network(name, pretrained=False).eval().requires_grad_(requires_grad=False)
        settings: Any = network.pretrained_cfg
        side = image_size or settings["input_size"][-1]
        image = torch.empty(1, 3, side, side, requires_grad=True)
    kept: dict[int, int] = {}
    weights = {parameter.untyped_storage()._cdata for parameter in network.parameters()}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in weights:
            kept[storage._cdata] = storage.nbytes()
        return tensor

    held = []
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), FlopCounterMode(display=False) as flops:
        held.append(network(image))  # alive until the sum is taken, so that no storage's number comes twice
    parameters = sum(parameter.numel() for parameter in network.parameters())
    return Frozen(parameters * FP32, flops.get_total_flops(), sum(kept.values()))


def frozen_quantizer(tokenizer: ImageFolderConfig) -> Frozen:
    """The quantizer, which turns tokens into the generator's input. Its operations are in `generator_flops`."""
    convs = tokenizer.shared_residual_convs or len(tokenizer.scales)
    dim = tokenizer.code_dim
    parameters = tokenizer.branches * (tokenizer.codebook_size * dim + convs * (9 * dim * dim + dim))
    return Frozen(parameters * FP32)
