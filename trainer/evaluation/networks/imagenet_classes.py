"""Which class of ImageNet a class of a run is, for networks that others trained on ImageNet."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any


def imagenet_labels(names: Sequence[str], categories: Sequence[str]) -> tuple[int, ...]:
    """The class of a network, 0 to 999, of each class of a run.

    All classes are spelt in one way, to the letter: by their synsets (n01440764), by torchvision's names (tench), or by
    all of their words (tench, Tinca tinca). Synsets and words are timm's, in the order that all networks of ImageNet
    have. Two classes have the word crane alone, which then names neither.

    Args:
        names: of the run's classes.
        categories: names of the network's classes, as torchvision's weights have them in their `meta`.

    Raises:
        ValueError: if a class is none of ImageNet's; it names the first.
    """
    from timm.data.imagenet_info import ImageNetInfo

    info: Any = ImageNetInfo()
    labels = range(info.num_classes())
    if len(categories) != len(labels):
        raise ValueError(f"its classes are {len(categories):,}, and not the 1,000 of ImageNet")
    synsets, words = map(info.index_to_label_name, labels), map(info.index_to_description, labels)
    spellings = [_labels(list(spelt)) for spelt in (synsets, categories, words)]
    nearest = max(spellings, key=lambda spelling: sum(name in spelling for name in names))
    missing = next((name for name in names if name not in nearest), None)
    if missing is not None:
        raise ValueError(f"{missing!r} is no class of ImageNet by its synset or name")
    return tuple(nearest[name] for name in names)


def _labels(spelt: Sequence[str]) -> dict[str, int]:
    """The label of each name that only one class has."""
    times = Counter(spelt)
    return {name: label for label, name in enumerate(spelt) if times[name] == 1}
