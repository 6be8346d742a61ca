"""The views of an image that can be tokenized, by name. Imports no image library, so that a config is checked fast.

A view is cut from ADM's centre crop and perhaps mirrored. Shape suffixes: H height, W width, C channels.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

CORNERS_AND_CENTRE = ((0.0, 0.0), (0.0, 1.0), (1.0, 0.0), (1.0, 1.0), (0.5, 0.5))
"""Shares of the spare height and width that lie above and left of a square, in the order of torchvision's TenCrop."""


@dataclass(frozen=True)
class View:
    """One way to see an image."""

    crop: float = 1.0
    """Side of ADM's centre crop that the view is cut from, in sides of the view."""
    place: tuple[float, float] = (0.5, 0.5)
    """Where in that crop the view is, as in CORNERS_AND_CENTRE."""
    mirrored: bool = False
    """Left and right of the crop are exchanged, before the view is cut from it."""

    def crop_side(self, size: int) -> int:
        """Side of the crop that a view of `size` pixels is cut from, in pixels, rounded down as LlamaGen and RAR do."""
        return int(size * self.crop)

    def __call__(self, crop_HWC: npt.NDArray[np.uint8], size: int | None = None) -> npt.NDArray[np.uint8]:
        """The view, [size, size, C], of a crop, [crop_side(size), crop_side(size), C].

        Args:
            crop_HWC: ADM's centre crop.
            size: side of the view, in pixels; by default that of the crop.

        Raises:
            ValueError: if the crop has another side than the view needs.
        """
        size = len(crop_HWC) if size is None else size
        if len(crop_HWC) != self.crop_side(size):
            raise ValueError(f"a view of {size} pixels is cut from {self.crop_side(size)} pixels, not {len(crop_HWC)}")
        spare = len(crop_HWC) - size
        top, left = (round(spare * share) for share in self.place)
        seen_HWC = crop_HWC[:, ::-1] if self.mirrored else crop_HWC
        return seen_HWC[top : top + size, left : left + size]


def _ten_crop(name: str, crop: float) -> dict[str, View]:
    """Four corners and the centre, then those of the mirrored crop."""
    kinds = product((False, True), CORNERS_AND_CENTRE)
    return {f"{name}_{number}": View(crop, place, mirrored) for number, (mirrored, place) in enumerate(kinds)}


_TEN_CROPS = {"ten_crop": _ten_crop("ten_crop", 1.1), "ten_crop_105": _ten_crop("ten_crop_105", 1.05)}

VIEWS: dict[str, View] = {
    "center": View(),
    "center_flip": View(mirrored=True),
    **_TEN_CROPS["ten_crop"],
    **_TEN_CROPS["ten_crop_105"],
}
"""Every view by its name. The ten crops are those of LlamaGen (arXiv 2406.06525) and RAR (arXiv 2411.00776)."""

GROUPS: dict[str, tuple[str, ...]] = {name: tuple(views) for name, views in _TEN_CROPS.items()}
"""Names that stand for several views."""


def known_view(name: str) -> str:
    """The name of a view or of a group of views, as it is given.

    Raises:
        ValueError: if there is none of this name; it names the nearest.
    """
    if name not in VIEWS and name not in GROUPS:
        near = difflib.get_close_matches(name, [*GROUPS, *VIEWS], n=1, cutoff=0.6)
        hint = f"did you mean {near[0]}?" if near else f"choose from center, center_flip, {', '.join(GROUPS)}"
        raise ValueError(f"{name!r} is no view; {hint}")
    return name


def expand_views(names: Iterable[str]) -> tuple[str, ...]:
    """Names of views, with the groups among them replaced by their members.

    Raises:
        ValueError: if there is none, one is unknown, or one is there twice; it names the nearest known one.
    """
    expanded = [view for name in names for view in GROUPS.get(known_view(name), (name,))]
    if not expanded:
        raise ValueError("no view is named: name one or more, for instance center")
    twice = sorted({view for view in expanded if expanded.count(view) > 1})
    if twice:
        raise ValueError(f"{', '.join(twice)}: named twice (ten_crop and ten_crop_105 stand for ten views each)")
    return tuple(expanded)


def check_fit(fit: str, names: Iterable[str]) -> None:
    """See that views can be had of images that become squares in this way (`data.fit`).

    Raises:
        ValueError: if not; it names the view and says what to set.
    """
    larger = [name for name in names if VIEWS[name].crop != 1]
    if fit == "pad" and larger:
        raise ValueError(
            f"view {larger[0]} is cut from a crop larger than the view, which data.fit: pad does not make; "
            "take center and center_flip, or set data.fit to crop"
        )
