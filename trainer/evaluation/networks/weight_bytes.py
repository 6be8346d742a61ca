"""Weights of published networks, from a file at any URI, whose sha256 becomes part of a number's name."""

from __future__ import annotations

import io
import pickle
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from data_pipeline import storage
from data_pipeline.errors import UsageError
from data_pipeline.shards.safetensors_header import check_safetensors

MOST_BYTES = 8 * 2**30
"""Of such a file."""


def read_file(uri: str, wanted: str) -> bytes:
    """Its bytes.

    Args:
        uri: of the file.
        wanted: what it should be and who publishes it, for messages.

    Raises:
        UsageError: if it is not there, or too large.
    """
    try:
        return storage.read_bytes(uri, MOST_BYTES)
    except FileNotFoundError:
        raise UsageError(f"{uri} is not there: {wanted}. Nothing is fetched: download it, and name the file") from None


def parse_weights(uri: str, data: bytes, wanted: str) -> dict[str, Tensor]:
    """The state dict in a file of torch.save, or of safetensors by its name.

    Raises:
        UsageError: if it is something else than tensors by name.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        if uri.endswith(".safetensors"):
            check_safetensors(data)
            found: Any = load(data)
        else:
            found = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, SafetensorError, ValueError, KeyError) as error:
        said = (str(error) or type(error).__name__).splitlines()[0][:200]
        raise UsageError(f"{uri} is no file of weights ({said}): {wanted}") from None
    if not isinstance(found, Mapping) or not all(isinstance(each, Tensor) for each in found.values()):
        raise UsageError(f"{uri} holds something else than tensors by name: {wanted}")
    assert isinstance(found, dict)  # as it is, since a state dict of torch carries its versions along
    return found


def load_strictly(network: torch.nn.Module, state: dict[str, Tensor], uri: str, wanted: str) -> None:
    """Fill a network.

    Raises:
        UsageError: if a tensor is missing, left over or of another shape.
    """
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        problems = " ".join(line.strip() for line in str(error).splitlines()[1:])
        raise UsageError(f"{uri} has the weights of another network ({problems[:300]}): {wanted}") from None


def state_sha256(network: torch.nn.Module) -> str:
    """Of weights that came from no file."""
    from safetensors.torch import save

    return storage.sha256(save({name: each.contiguous() for name, each in network.state_dict().items()}))
