"""A teacher of timm's sees images as it was trained to: its own mean, deviation and size, whatever ours are."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from trainer.evaluation.teacher import Teacher, load_teacher

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
