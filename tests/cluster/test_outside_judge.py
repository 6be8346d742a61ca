"""Classes of ImageNet by their names, and runs that a classifier of torchvision judges."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from cluster.stages.evaluation_inputs import judges_of
from trainer.config.feature_networks import TorchvisionNetwork
from trainer.evaluation.networks.imagenet_classes import imagenet_labels
from trainer.evaluation.networks.network_rows import Slot
from trainer.evaluation.networks.published_classifiers import categories_of

MOBILENET = TorchvisionNetwork(kind="torchvision", network="mobilenet_v2", file="/none")
SLOT = Slot("network0", MOBILENET, {"kind": "torchvision", "name": "torchvision:mobilenet_v2", "sha256": "ab"})


@pytest.fixture(scope="module")
def categories() -> tuple[str, ...]:
    return categories_of(MOBILENET)


@pytest.mark.parametrize(
    ("names", "labels"),
    [
        (["n01440764", "n01443537", "n15075141"], (0, 1, 999)),  # tench, goldfish, toilet tissue
        (["toilet tissue", "crane bird", "crane"], (999, 134, 517)),
        (["tench, Tinca tinca", "goldfish, Carassius auratus"], (0, 1)),
    ],
)
def test_classes_are_known_by_synset_by_name_and_by_all_their_words(
    categories: Sequence[str], names: list[str], labels: tuple[int, ...]
) -> None:
    assert imagenet_labels(names, categories) == labels


def test_all_classes_by_any_spelling_have_their_own_numbers(categories: Sequence[str]) -> None:
    from timm.data.imagenet_info import ImageNetInfo

    info: Any = ImageNetInfo()
    synsets = [info.index_to_label_name(label) for label in range(1000)]
    assert imagenet_labels(categories, categories) == imagenet_labels(synsets, categories) == tuple(range(1000))


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["tench", "Sneaker"], "'Sneaker' is no class"),
        (["n01440764", "tench"], "'tench' is no class"),
        (["0", "1"], "'0' is no class"),
        (["tench, Tinca tinca", "goldfish, Carassius auratus", "crane"], "'crane' is no class"),
    ],
)
def test_a_class_that_is_none_of_imagenet_is_named(categories: Sequence[str], names: list[str], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        imagenet_labels(names, categories)


def test_a_network_of_other_classes_judges_none() -> None:
    with pytest.raises(ValueError, match="its classes are 2, and not the 1,000"):
        imagenet_labels(["tench"], ["tench", "goldfish"])


def test_a_classifier_of_torchvision_judges_runs_whose_classes_it_knows() -> None:
    (judge,) = judges_of([SLOT], ["goldfish", "tench"])
    assert (judge.slot, judge.classes) == (SLOT, (1, 0))


def test_of_other_runs_a_line_says_why_it_judges_none(capsys: pytest.CaptureFixture[str]) -> None:
    assert judges_of([SLOT], ["Sneaker"]) == []
    said = " ".join(capsys.readouterr().out.split())
    assert "torchvision:mobilenet_v2: 'Sneaker' is no class of ImageNet by its synset or name, so it judges no" in said
