"""The views of an image that can be tokenized, by name. Imports no image library, so that a config is checked fast.

    center, center_flip              ADM's centre crop, and its mirror image
    ten_crop_0 ... ten_crop_9        cut from a centre crop 1.1 times as large; ten_crop_105_0 ... from one of 1.05
    random_0, random_1, ...          ADM's random crop; random_0_seed_7 is drawn from seed 7, and not from 0
    random_var_0, random_var_1, ...  VAR's random crop, on which ImageFolder's generators are trained
    random_0_flip, ...               the mirror image of random_0

What is random about a view follows from its name and the image's key alone, so that it is the same image after image
sets are joined, cut or tokenized anew. Shape suffixes: H height, W width, C channels.
"""

from __future__ import annotations

import difflib
import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, ValidationError

from data_pipeline.images.crop_kinds import ADM_RANDOM, VAR_RANDOM, AnyCrop
from model.config import Section

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


MOST_RANDOM, MOST_SEED = 1_000, 2**63 - 1
"""Random views of an image, and their largest seed."""

_RANDOM = re.compile(r"random(_var)?_(0|[1-9][0-9]{0,2})(?:_seed_([1-9][0-9]{0,18}))?(_flip)?")
_CROPS: dict[Literal["adm", "var"], AnyCrop] = {"adm": ADM_RANDOM, "var": VAR_RANDOM}


@dataclass(frozen=True)
class RandomView:
    """A random crop of an image, the same one whenever it is asked for."""

    crop: AnyCrop
    number: int
    """Views of the same seed differ by it."""
    seed: int = 0
    mirrored: bool = False
    """Left and right of the crop are exchanged."""

    def draws(self, key: bytes, names: Sequence[str]) -> tuple[float, ...]:
        """Uniform numbers of [0, 1) by their names, for an image of this key; the mirror image has the same.

        Raises:
            ValueError: if the key is empty.
        """
        if not key:
            raise ValueError("a random view follows from the key of its image, and this image has none")
        return tuple(_uniform(key, f"{self.seed} {self.number} {name}") for name in names)


def _uniform(key: bytes, stream: str) -> float:
    digest = hashlib.blake2b(key, digest_size=8, key=stream.encode()).digest()
    return (int.from_bytes(digest, "little") >> 11) * 2.0**-53


class RandomViews(Section):
    """Some random views of an image."""

    random: int = Field(gt=0, le=MOST_RANDOM)
    """How many."""
    seed: int = Field(0, ge=0, le=MOST_SEED)
    """That they are drawn from."""
    flip: bool = False
    """Take the mirror image of each, too."""
    crop: Literal["adm", "var"] = "adm"
    """Whose random crop: ADM's, or VAR's (short side 1.125 times the crop, Lanczos)."""

    @property
    def names(self) -> tuple[str, ...]:
        """Of the views: each crop's, and then their mirror images'."""
        var = "_var" if self.crop == "var" else ""
        plain = [f"random{var}_{number}" + f"_seed_{self.seed}" * (self.seed > 0) for number in range(self.random)]
        return (*plain, *(f"{name}_flip" for name in plain * self.flip))


def view_of(name: str) -> View | RandomView:
    """The view of this name.

    Raises:
        ValueError: if there is none of this name; it names the nearest.
    """
    match = _RANDOM.fullmatch(name)
    if match and int(match[3] or 0) <= MOST_SEED:
        return RandomView(_CROPS["var" if match[1] else "adm"], int(match[2]), int(match[3] or 0), bool(match[4]))
    return VIEWS[known_view(name)]


def named_views(item: Any) -> list[Any]:
    """Names of views behind an entry of the config: `{random: 3, seed: 7}` stands for three, a name for itself.

    Raises:
        ValueError: if a section has wrong keys or values.
    """
    if not isinstance(item, dict):
        return [item]
    try:
        return list(RandomViews.model_validate(item).names)
    except ValidationError as error:
        wrong = "; ".join(f"{'.'.join(map(str, each['loc']))}: {each['msg'].lower()}" for each in error.errors())
        example = "{random: 4, seed: 7, flip: false, crop: adm}"
        raise ValueError(f"{item} stands for no random views ({wrong}); an example is {example}") from error


def known_view(name: str) -> str:
    """The name of a view or of a group of views, as it is given.

    Raises:
        ValueError: if there is none of this name; it names the nearest.
    """
    match = _RANDOM.fullmatch(name)
    if name not in VIEWS and name not in GROUPS and not (match and int(match[3] or 0) <= MOST_SEED):
        near = difflib.get_close_matches(name, [*GROUPS, *VIEWS, "random_0", "random_var_0"], n=1, cutoff=0.6)
        known = f"center, center_flip, {', '.join(GROUPS)}, random_0, random_var_0"
        hint = f"did you mean {near[0]}?" if near else f"choose from {known}"
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
    cut = [name for name in names if view_of(name) not in (VIEWS["center"], VIEWS["center_flip"])]
    if fit == "pad" and cut:
        raise ValueError(
            f"view {cut[0]} is cut from a crop larger than the view, which data.fit: pad does not make; "
            "take center and center_flip, or set data.fit to crop"
        )
