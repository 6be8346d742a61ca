"""The small classifier: teacher and judge of the quickstart."""

from __future__ import annotations

import pytest
import torch

from model.classifier import Classifier
from model.config import ClassifierConfig

CONFIG = ClassifierConfig(image_size=32, num_classes=5, widths=(8, 12, 20), dropout=0.25)


def _classifier() -> Classifier:
    torch.manual_seed(0)
    return Classifier(CONFIG)


def test_features_have_the_last_width_and_logits_the_classes() -> None:
    classifier, image_BCHW = _classifier().eval(), torch.rand(4, 3, 32, 32) * 2 - 1
    assert classifier.features(image_BCHW).shape == (4, 20)
    assert classifier.feature_width == 20
    assert classifier(image_BCHW).shape == (4, 5)


def test_logits_are_the_linear_layer_of_the_features() -> None:
    classifier, image_BCHW = _classifier().eval(), torch.rand(4, 3, 32, 32) * 2 - 1
    assert torch.equal(classifier(image_BCHW), classifier.head(classifier.features(image_BCHW)))


def test_an_image_scores_the_same_whatever_else_is_in_the_batch() -> None:
    classifier, image_BCHW = _classifier().train(), torch.rand(4, 3, 32, 32) * 2 - 1
    torch.testing.assert_close(classifier.features(image_BCHW)[:1], classifier.features(image_BCHW[:1]))
    assert list(classifier.buffers()) == []


def test_it_learns_to_tell_bright_images_from_dark_ones() -> None:
    classifier = _classifier().train()
    optimizer = torch.optim.AdamW(classifier.parameters(), 3e-3)
    generator = torch.Generator().manual_seed(0)
    label_B = torch.arange(32) % 2
    base_BCHW = (label_B * 0.8 - 0.4)[:, None, None, None].expand(-1, 3, 32, 32)
    for step in range(30):
        image_BCHW = base_BCHW + 0.2 * torch.randn(base_BCHW.shape, generator=generator)
        loss = torch.nn.functional.cross_entropy(classifier(image_BCHW, torch.arange(32) + 32 * step), label_B)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert (classifier.eval()(base_BCHW).argmax(1) == label_B).all()


def test_dropout_is_a_function_of_each_samples_seed() -> None:
    classifier, image_BCHW, seed_B = _classifier().train(), torch.rand(4, 3, 32, 32) * 2 - 1, torch.arange(4)
    whole_BK = classifier(image_BCHW, seed_B)
    parts = [classifier(image_BCHW[i : i + 1], seed_B[i : i + 1]) for i in range(4)]
    torch.testing.assert_close(torch.cat(parts), whole_BK)
    assert not torch.allclose(classifier(image_BCHW, seed_B + 4), whole_BK)
    with pytest.raises(ValueError, match="dropout in training needs seed_B"):
        classifier(image_BCHW)
