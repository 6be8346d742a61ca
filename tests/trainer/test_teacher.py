"""A teacher of timm's sees images as it was trained to: its own mean, deviation and size, whatever ours are."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from data_pipeline.errors import UsageError
from tests.model.fake_cuda import FUSED_ATTENTION, fake_gpu, gpu_rules, on_fake_gpu
from trainer.config import TeacherConfig, TrainerConfig
from trainer.evaluation.networks.teacher import Teacher, TimmTeacher, load_teacher

TRAINER = TrainerConfig(steps=1, global_batch=1)
MODELS = ["test_vit", "test_byobnet"]
"""Small models of timm's: their means and deviations differ."""


class Watched:
    """A teacher with random weights, and what its model was given."""

    def __init__(self, name: str, patch: pytest.MonkeyPatch) -> None:
        self.seen: list[Tensor] = []
        create = timm.create_model

        def create_untrained(*arguments: Any, **settings: Any) -> nn.Module:
            torch.manual_seed(0)
            model: nn.Module = create(*arguments, **settings | {"pretrained": False})
            model.register_forward_pre_hook(lambda _, inputs: self.seen.append(inputs[0]))
            self.model = model
            return model

        patch.setattr(timm, "create_model", create_untrained)
        self.teacher: Teacher = load_teacher(name, "", torch.device("cpu"))
        settings: Any = timm.data.resolve_model_data_config(self.model)
        self.mean, self.std = (torch.tensor(settings[key]).view(1, 3, 1, 1) for key in ("mean", "std"))
        self.size: int = settings["input_size"][-1]


@pytest.fixture(params=MODELS)
def watched(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Watched:
    return Watched(request.param, monkeypatch)


def test_black_grey_and_white_are_what_the_models_own_mean_and_deviation_make_of_them(watched: Watched) -> None:
    for value, unit in ((-1.0, 0.0), (0.0, 0.5), (1.0, 1.0)):
        watched.teacher.features(torch.full((1, 3, 24, 24), value))
        expected = ((unit - watched.mean) / watched.std).expand(1, 3, watched.size, watched.size)
        torch.testing.assert_close(watched.seen.pop(), expected, rtol=0, atol=1e-5)


def test_an_image_of_the_models_own_size_is_not_resized(watched: Watched) -> None:
    image = torch.rand(2, 3, watched.size, watched.size, generator=torch.Generator().manual_seed(0)) * 2 - 1
    features = watched.teacher.features(image)
    torch.testing.assert_close(watched.seen[0], ((image + 1) / 2 - watched.mean) / watched.std, rtol=0, atol=1e-5)
    assert features.shape == (2, watched.model.num_features)


def test_its_features_are_the_models_own_and_it_is_frozen(watched: Watched) -> None:
    image = torch.zeros(1, 3, watched.size, watched.size, requires_grad=True)
    features = watched.teacher.features(image)
    torch.testing.assert_close(features, watched.model(watched.seen[0]))
    assert not watched.model.training
    assert not any(parameter.requires_grad for parameter in watched.model.parameters())
    assert torch.autograd.grad(features.square().sum(), image)[0].abs().sum() > 0


def test_another_image_and_patch_size_are_what_the_model_sees(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the paper has DINOv2: its patches of 14 pixels resampled to 16, and images of 256 pixels."""
    config = TeacherConfig(timm="test_vit", image_size=64, patch_size=8, trainer=TRAINER)
    watched = Watched(str(config.network), monkeypatch)
    watched.teacher.features(torch.zeros(1, 3, 100, 100))
    assert watched.seen[0].shape == (1, 3, 64, 64)
    assert watched.model.patch_embed.proj.kernel_size == (8, 8)
    assert watched.model.pos_embed.shape[1] == 1 + 8 * 8


def test_a_teacher_of_other_sizes_is_another_teacher() -> None:
    names = [
        TeacherConfig(timm="test_vit", trainer=TRAINER, **sizes).network
        for sizes in ({}, {"image_size": 64}, {"image_size": 64, "patch_size": 8})
    ]
    assert names == ["test_vit", "test_vit?img_size=64", "test_vit?img_size=64&patch_size=8"]
    assert TeacherConfig(trainer=TRAINER).network is None


def test_sizes_that_a_model_has_not_are_refused_by_name() -> None:
    with pytest.raises(UsageError, match="test_byobnet takes no image_size or patch_size"):
        TimmTeacher("test_byobnet?patch_size=8", pretrained=False)
    with pytest.raises(UsageError, match="knows no model"):
        TimmTeacher("no_such_model?img_size=8", pretrained=False)
    with pytest.raises(ValueError, match=r"model\.image_size is the trained teacher's"):
        TeacherConfig(image_size=64, trainer=TRAINER)


def test_images_are_resized_as_the_model_was_trained(monkeypatch: pytest.MonkeyPatch) -> None:
    teacher = TimmTeacher("test_vit", pretrained=False)
    asked: list[str] = []
    resize = nn.functional.interpolate
    monkeypatch.setattr(
        nn.functional, "interpolate", lambda *a, mode, **b: asked.append(mode) or resize(*a, mode=mode, **b)
    )
    teacher.features(torch.zeros(1, 3, 24, 24))
    assert asked == [teacher.model.pretrained_cfg["interpolation"]]
    monkeypatch.setitem(teacher.model.pretrained_cfg, "interpolation", "lanczos")
    monkeypatch.setattr("trainer.evaluation.networks.teacher.timm_network", lambda *_, **__: teacher.model)
    with pytest.raises(UsageError, match="lanczos"):
        TimmTeacher("test_vit", pretrained=False)


def test_on_a_gpu_a_teacher_copies_nothing_and_waits_for_nothing() -> None:
    with fake_gpu():
        teacher = on_fake_gpu(lambda: TimmTeacher("test_vit", pretrained=False)).eval()
        image = torch.zeros(2, 3, 24, 24, device="cuda")
        with gpu_rules() as rules, torch.no_grad():
            teacher.features(image)
    assert rules.kernels <= FUSED_ATTENTION
