"""Which tokens of a reference image are kept, where the others are drawn anew.

    detail, semantic   the tokens of a branch, by its name (ImageFolder's zero-shot conditioning, arXiv 2410.01756)
    scales:3           those of the first 3 scales: the rough picture
    latents:16         the first 16 of a row of latents (TiTok)
    mask:FILE          those at the white part of a grey image, by their place in the grid of each scale

Shapes: L positions, F folds.
"""

from __future__ import annotations

import math
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from data_pipeline import storage
from data_pipeline.errors import UsageError
from model.config import TokenizerConfig
from model.config.tokenizers import GridTokenizerConfig
from model.protocols import Tokenizer
from trainer.inference.given_images import Fit
from trainer.inference.image_files import read_square

Kept = npt.NDArray[np.bool_]
_FORMS = "a branch's name, scales:N, latents:N or mask:FILE"


def kept_places(config: TokenizerConfig, keep: str, fit: Fit = "crop") -> Kept:
    """Where tokens are kept, bool [L, F].

    Args:
        config: of the tokenizer.
        keep: as above.
        fit: how a mask becomes a square.

    Raises:
        UsageError: if that means nothing for such tokens, or nothing or all would be kept; it says why.
    """
    kind, colon, value = keep.partition(":")
    if not colon:
        found = _branch(config, keep)
    elif kind == "scales":
        found = _scales(config, _number(keep, value))
    elif kind == "latents":
        found = _latents(config, _number(keep, value))
    elif kind == "mask":
        found = _mask(config, value, fit)
    else:
        raise UsageError(f"keep {keep}: give {_FORMS}")
    if found.all():
        raise UsageError(f"keep {keep} keeps every token: there is nothing to draw")
    if not found.any():
        raise UsageError(
            f"keep {keep} keeps no token: leave the reference out, or give a mask with a larger white part"
        )
    return found


def _blank(config: TokenizerConfig) -> Kept:
    return np.zeros((config.layout.positions, config.layout.folds), np.bool_)


def _number(keep: str, value: str) -> int:
    if not (value.isascii() and value.isdigit() and len(value) < 9 and int(value) > 0):
        raise UsageError(f"keep {keep}: give a whole number from 1 on behind the colon")
    return int(value)


def _branch(config: TokenizerConfig, name: str) -> Kept:
    names = config.fold_names
    if len(names) == 1:
        raise UsageError(f"keep {name}: this tokenizer has one branch, and all its tokens would be kept; give {_FORMS}")
    if name not in names:
        raise UsageError(f"keep {name}: this tokenizer's branches are {', '.join(names)}; or give {_FORMS}")
    found = _blank(config)
    found[:, names.index(name)] = True
    return found


def _scales(config: TokenizerConfig, count: int) -> Kept:
    groups = len(config.layout.groups)
    if groups == 1:
        instead = "mask:FILE" if isinstance(config, GridTokenizerConfig) else "latents:N"
        raise UsageError(f"keep scales:{count}: these tokens are of one scale; give {instead}")
    if count >= groups:
        raise UsageError(f"keep scales:{count}: of {groups} scales at most {groups - 1} leave something to draw")
    found = _blank(config)
    found[: config.layout.offsets[count]] = True
    return found


def _latents(config: TokenizerConfig, count: int) -> Kept:
    if isinstance(config, GridTokenizerConfig):
        instead = "mask:FILE" if len(config.scales) == 1 else "scales:N or mask:FILE"
        raise UsageError(f"keep latents:{count}: these tokens are grids, and no row of latents; give {instead}")
    positions = config.layout.positions
    if count >= positions:
        raise UsageError(
            f"keep latents:{count}: of {positions} latents at most {positions - 1} leave something to draw"
        )
    found = _blank(config)
    found[:count] = True
    return found


def _mask(config: TokenizerConfig, file: str, fit: Fit) -> Kept:
    if not isinstance(config, GridTokenizerConfig):
        raise UsageError(f"keep mask:{file}: no token of this tokenizer has a place in the image; give latents:N")
    if not file:
        raise UsageError("keep mask: name the file behind the colon")
    white_HW = read_square(file, config.image_size, fit)[0].mean(0).numpy() / 2 + 0.5
    cells = [mean_of_cells(white_HW, math.isqrt(group)).ravel() >= 0.5 for group in config.layout.groups]
    return np.repeat(np.concatenate(cells)[:, None], config.layout.folds, axis=1)


def mean_of_cells(image_HW: npt.NDArray[Any], side: int) -> npt.NDArray[np.float64]:
    """The mean of each cell of a grid over an image, [side, side]; pixels at borders count as far as they belong."""
    weights = [_overlap(length, side) for length in image_HW.shape]
    means: npt.NDArray[np.float64] = weights[0] @ image_HW.astype(np.float64) @ weights[1].T
    return means


def _overlap(length: int, side: int) -> npt.NDArray[np.float64]:
    """Share of each pixel in each cell, [side, length]; a row sums to one."""
    edges = np.arange(side + 1) * (length / side)
    pixels = np.arange(length)
    shared = np.minimum(edges[1:, None], pixels + 1) - np.maximum(edges[:-1, None], pixels)
    share: npt.NDArray[np.float64] = np.clip(shared, 0, None) * (side / length)
    return share


def file_digest(uri: str) -> str:
    """sha256 of a file that images follow from.

    Raises:
        UsageError: if there is none.
    """
    try:
        return storage.sha256(storage.read_bytes(uri))
    except FileNotFoundError:
        raise UsageError(f"there is no image {uri}") from None


def reference_tokens(tokenizer: Tokenizer, image: str, keep: str, fit: Fit = "crop") -> npt.NDArray[np.int64]:
    """The tokens of an image file where they are kept, and -1 elsewhere, int64 [L, F].

    Args:
        tokenizer: that made the generator's tokens.
        image: the file, at any URI.
        keep: what is kept.
        fit: how image and mask become squares.

    Raises:
        UsageError: as `kept_places`, or if there is no such image.
        FoldtrainError: if a file is no image.
    """
    kept_LF = kept_places(tokenizer.config, keep, fit)
    return kept_tokens(tokenizer, read_square(image, tokenizer.config.image_size, fit), kept_LF)


def kept_tokens(tokenizer: Tokenizer, image_BCHW: Tensor, kept_LF: Kept) -> npt.NDArray[np.int64]:
    """The tokens of one image where they are kept, and -1 elsewhere, int64 [L, F]."""
    parameter = next(cast("nn.Module", tokenizer).parameters())
    with torch.no_grad():
        tokens_LF = tokenizer.tokenize(image_BCHW.to(parameter.device))[0].cpu().numpy()
    return np.where(kept_LF, tokens_LF, -1)
