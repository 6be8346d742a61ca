"""Losses and discriminators on a GPU that is not there: no copies, no waiting, products in bf16 where they may be."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import cast

import pytest
import timm
import torch
from torch import Tensor, nn

from model.classifier import Classifier
from model.config import (
    AugmentConfig,
    BlurConfig,
    ClassifierConfig,
    DinoConfig,
    DiscriminatorConfig,
    PatchConfig,
    StyleGanConfig,
)
from model.discriminators.augmentation import augment
from model.discriminators.dino import DinoDiscriminator
from model.families import build_discriminator
from model.layers.vision_features import VisionFeatures
from model.losses.adversarial import adaptive_weight, discriminator_loss, generator_loss
from model.losses.contrastive import contrastive_loss
from model.losses.lecam import averages_of_step, lecam_loss
from model.losses.logit_distance import LogitDistance
from model.losses.lpips import Lpips
from model.losses.perturbation import perturbed_tokens
from model.losses.teacher_distance import TeacherDistance
from model.losses.tokens import logits_cross_entropy
from model.protocols import FeatureTeacher
from tests.model.fake_cuda import GpuRules, fake_gpu, gpu_rules, on_fake_gpu

FLOAT32 = {"blurred", "nearest_codes", "contrastive_loss"}
"""The functions whose products are float32 in any case."""
B, SIDE = 4, 32
TEACHER = ClassifierConfig(num_classes=5, image_size=16, widths=(8, 16))


def images() -> Tensor:
    return torch.zeros(B, 3, SIDE, SIDE, device="cuda")


def longs(*shape: int) -> Tensor:
    return torch.zeros(*shape, dtype=torch.int64, device="cuda")


def judge(config: DiscriminatorConfig) -> Callable[[], object]:
    network = on_fake_gpu(lambda: cast("nn.Module", build_discriminator(config, SIDE))).train()
    return lambda: discriminator_loss(network(images(), longs(B)), network(images(), longs(B)))


def classifier() -> Classifier:
    return on_fake_gpu(lambda: Classifier(TEACHER)).eval()


def transformer() -> VisionFeatures:
    sizes = {"img_size": 16, "patch_size": 4, "embed_dim": 16, "depth": 2, "num_heads": 2}
    make = partial(timm.create_model, "vit_tiny_patch16_224", num_classes=0, **sizes)
    return on_fake_gpu(lambda: VisionFeatures(make(), 16)).eval()


def judge_by(teacher: FeatureTeacher) -> Callable[[], object]:
    network = on_fake_gpu(lambda: cast("nn.Module", DinoDiscriminator(DinoConfig(group=2), SIDE, teacher))).train()
    return lambda: (generator_loss(network(images(), longs(B))), teacher.patch_features(images()))


def compare_features() -> Callable[[], object]:
    teacher = classifier()
    return compare(lambda: TeacherDistance(teacher))


def compare(make: Callable[[], nn.Module]) -> Callable[[], object]:
    network = on_fake_gpu(make)
    return lambda: network(images(), images())


def regularize() -> Callable[[], object]:
    def run() -> object:
        with torch.autocast("cuda", enabled=False):
            logits, averages = torch.zeros(B, 9, device="cuda"), torch.zeros(2, device="cuda")
            used, left = averages_of_step(averages, torch.stack([logits.mean(), logits.mean()]))
            return lecam_loss(logits, logits, used), left, adaptive_weight(averages[0], averages[1])

    return run


def change_images() -> Callable[[], object]:
    fires = torch.ones(3, dtype=torch.bool, device="cuda")
    return lambda: augment(images(), longs(B), fires, AugmentConfig(), blur=0.5)


def change_codes() -> Callable[[], object]:
    codes, chosen = torch.zeros(50, 8, device="cuda"), torch.ones(B, dtype=torch.bool, device="cuda")
    return lambda: perturbed_tokens(longs(B, 7), codes, longs(B), chosen, torch.zeros(5, device="cuda"))


def compare_with_images_left_out() -> Callable[[], object]:
    side, kept = torch.zeros(B, 8, device="cuda"), torch.ones(B, dtype=torch.bool, device="cuda")
    return lambda: contrastive_loss(side, side, 2.0, normalize=True, kept_N=kept)


WORK: dict[str, Callable[[], Callable[[], object]]] = {
    "patch": lambda: judge(PatchConfig(width=8, layers=2, group=2)),
    "blur": lambda: judge(BlurConfig(width=8, stages=2, norm_groups=4, grid=4)),
    "stylegan": lambda: judge(StyleGanConfig(width=16, deviation_group=2)),
    "dino": lambda: judge_by(transformer()),
    "dino over a classifier": lambda: judge_by(classifier()),
    "teacher": compare_features,
    "lpips": lambda: compare(Lpips),
    "st-lpips": lambda: compare(lambda: Lpips(shift_tolerant=True)),
    "convnext": lambda: compare(lambda: LogitDistance(nn.Sequential(nn.Conv2d(3, 5, 32, 32), nn.Flatten()))),
    "augment": change_images,
    "perturb": change_codes,
    "contrast": compare_with_images_left_out,
}
NO_PRODUCTS: dict[str, Callable[[], Callable[[], object]]] = {
    "lecam": regularize,
    "proxy": lambda: lambda: logits_cross_entropy(torch.zeros(9, 5, device="cuda"), longs(9), 10),
}


@cache
def record(name: str) -> GpuRules:
    """The rules' record of a pass with warm caches."""
    with fake_gpu():
        run = (WORK | NO_PRODUCTS)[name]()
        run()
        with gpu_rules() as rules:
            run()
    return rules


@pytest.mark.parametrize("name", [*WORK, *NO_PRODUCTS])
def test_nothing_waits_for_the_gpu_or_leaves_it(name: str) -> None:
    assert record(name).products or name in NO_PRODUCTS, "nothing was multiplied"


@pytest.mark.parametrize("name", [*WORK, *NO_PRODUCTS])
def test_products_are_bf16_where_they_need_not_be_float32(name: str) -> None:
    wide = {where for (where, dtype) in record(name).products if dtype == torch.float32}
    assert wide <= FLOAT32, wide - FLOAT32
