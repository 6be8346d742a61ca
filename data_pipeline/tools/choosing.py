"""Which samples of a set a subset holds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from data_pipeline.errors import UsageError
from data_pipeline.order.feistel import Permutation
from data_pipeline.tools.parents import Numbers, Reader, columns_of


@dataclass(frozen=True)
class Choice:
    """Which samples of a set a subset holds; what is given holds all at once, in the order of the fields."""

    classes: tuple[str, ...] = ()
    """Of these classes."""
    keys: tuple[str, ...] = ()
    """With these keys."""
    share: float | None = None
    """This share of what is left, drawn by `seed`; a larger share with the same seed holds the smaller one."""
    seed: int = 0
    first: int | None = None
    """The first so many of what is left. Shards are in shuffled order, so these are of all classes."""

    def asked(self) -> dict[str, str]:
        """As a record."""
        found: dict[str, Any] = {"classes": ", ".join(self.classes), "keys": len(self.keys) or ""}
        found |= {"share": "" if self.share is None else f"{self.share:g}, seed {self.seed}"}
        found |= {"first": "" if self.first is None else self.first}
        return {name: str(value)[:1000] for name, value in found.items() if value != ""}


def chosen_samples(parent: Reader, choice: Choice, progress: Callable[[int, int], object]) -> Numbers:
    """Their numbers, in the order of the set.

    Args:
        parent: the set.
        choice: which samples.
        progress: called with (shards read, shards in all), where keys or classes are chosen by.

    Raises:
        UsageError: if the set has no such class or key.
    """
    chosen = np.arange(parent.manifest.samples)
    if choice.classes or choice.keys:
        chosen = _by_columns(parent, choice, progress)
    if choice.share is not None and len(chosen):
        count = round(choice.share * len(chosen))
        drawn = Permutation(choice.seed, "subset", len(chosen)).permute(np.arange(count))
        chosen = chosen[np.sort(drawn)]
    return chosen if choice.first is None else chosen[: choice.first]


def _by_columns(parent: Reader, choice: Choice, progress: Callable[[int, int], object]) -> Numbers:
    names = parent.manifest.classes
    unknown = next((name for name in choice.classes if name not in names), None)
    if unknown is not None:
        raise UsageError(f"{parent.uri} has no class {unknown!r}; it has {', '.join(names[:5])}, ...")
    labels = np.array([label for label, name in enumerate(names) if name in choice.classes], np.int32)
    wanted = np.unique(np.array([key.encode() for key in choice.keys] or [b""], "S"))
    parts, start, found = [], 0, 0
    for number, columns in enumerate(columns_of(parent), start=1):
        mask = np.ones(len(columns.key), bool)
        if choice.keys:
            mask = np.isin(columns.key, wanted)
            found += int(mask.sum())
        if choice.classes:
            mask &= np.isin(columns.condition, labels)
        parts.append(np.flatnonzero(mask) + start)
        start += len(columns.key)
        progress(number, len(parent.manifest.shards))
    if choice.keys and found < len(wanted):
        every = np.concatenate([columns.key for columns in columns_of(parent)])
        missing = np.setdiff1d(wanted, every)
        raise UsageError(
            f"{parent.uri} has no sample {missing[0].decode(errors='replace')!r} ({len(missing)} of {len(wanted)} keys "
            "are not there): correct the list"
        )
    return np.concatenate(parts) if parts else np.empty(0, np.int64)
