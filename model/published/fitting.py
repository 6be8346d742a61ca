"""Published parameters, put into a network of ours: by name, with every one of them accounted for."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

MOST_NAMES = 20
"""Names that a message lists of each sort of problem."""


def fitted(
    network: nn.Module,
    state: Mapping[str, Tensor],
    name_of: Callable[[str], str],
    ignored: re.Pattern[str],
    what: str,
) -> dict[str, Tensor]:
    """The published parameters by our names, in our shapes and dtypes: what `load_state_dict(..., assign=True)` takes.

    A tensor of the right shape and dtype is not copied, so that a file that is mapped into memory is not read twice.

    Args:
        network: made on the meta device or with memory; only names, shapes and dtypes of its state are read.
        state: the published parameters by their published names.
        name_of: our name of a parameter or buffer -> its published name.
        ignored: published names that have no place in ours (matched whole).
        what: is loaded, for messages: "the published tokenizer".

    Raises:
        ValueError: if a parameter is missing, left over, of another shape, or not finite; dimensions of length one,
            which 1x1 convolutions and batched parameters carry, do not count. All are named, of each sort up to
            MOST_NAMES.
    """
    kept = {name: tensor for name, tensor in state.items() if not ignored.fullmatch(name)}
    own = network.state_dict()
    names = {name: name_of(name) for name in own}
    problems = {
        "misses": sorted(set(names.values()) - kept.keys()),
        "has parameters that are not known": sorted(kept.keys() - set(names.values())),
        "has unexpected shapes": [
            f"{published} {list(kept[published].shape)}, which should hold {list(own[name].shape)}"
            for name, published in names.items()
            if published in kept and _core(kept[published].shape) != _core(own[name].shape)
        ],
        "has values that are infinite or not a number": [
            published
            for published in names.values()
            if published in kept and not bool(kept[published].isfinite().all())
        ],
    }
    found = [f"{problem}: {listed(names_of)}" for problem, names_of in problems.items() if names_of]
    if found:
        raise ValueError(f"{what} {'; it '.join(found)}")
    return {name: _as(kept[published], own[name]) for name, published in names.items()}


def filled(
    network: nn.Module,
    state: Mapping[str, Tensor],
    name_of: Callable[[str], str],
    ignored: re.Pattern[str],
    what: str,
) -> None:
    """Give a network that was made on the meta device its published parameters (`fitted`), and put it in eval mode.

    Buffers that are not in a state dict have to be made with memory by the network itself.
    """
    network.load_state_dict(fitted(network, state, name_of, ignored, what), assign=True)
    network.requires_grad_(True).eval()


def shape_of(state: Mapping[str, Tensor], name: str, dimensions: int, what: str) -> tuple[int, ...]:
    """The shape of a parameter that sizes are read from.

    Args:
        state: the published parameters.
        name: of one, as published.
        dimensions: that it has.
        what: is loaded, for messages.

    Raises:
        ValueError: if it is missing, or has other dimensions.
    """
    if name not in state:
        raise ValueError(f"{what} misses: {name}")
    shape = tuple(state[name].shape)
    if len(shape) != dimensions or not all(shape):
        raise ValueError(
            f"{what} has unexpected shapes: {name} {list(shape)}, which should have {dimensions} dimensions"
        )
    return shape


def count_of(state: Mapping[str, Tensor], prefix: str) -> int:
    """How many numbered modules there are below a prefix ("blocks." for blocks.0.…, blocks.1.…); 0 for none.

    No number is taken on trust: those that are there have to be 0, 1, 2, … or `fitted` names what is missing.
    """
    found = {name[len(prefix) :].partition(".")[0] for name in state if name.startswith(prefix)}
    return sum(number.isdecimal() for number in found)


def listed(names: list[str]) -> str:
    """Names for a message: the first MOST_NAMES, and how many more there are."""
    more = len(names) - MOST_NAMES
    return ", ".join(names[:MOST_NAMES]) + (f" and {more} more" if more > 0 else "")


def _as(tensor: Tensor, own: Tensor) -> Tensor:
    """A published tensor in the shape and dtype of ours; a float is a float32, whatever it was stored as."""
    dtype = torch.float32 if own.is_floating_point() else own.dtype
    return tensor.detach().to(dtype).reshape(own.shape).contiguous()


def _core(shape: torch.Size) -> list[int]:
    """A shape without dimensions of length one."""
    return [length for length in shape if length > 1]
