"""safetensors files tensor by tensor: nothing of the size of the file is in memory beside the tensors themselves.

The bytes are those of the safetensors library, whose `save` and `save_file` copy all tensors first.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from data_pipeline import storage

if TYPE_CHECKING:
    from torch import Tensor

_NAMES = {
    "int64": "I64",
    "float64": "F64",
    "float32": "F32",
    "int32": "I32",
    "bfloat16": "BF16",
    "float16": "F16",
    "int16": "I16",
    "int8": "I8",
    "uint8": "U8",
    "bool": "BOOL",
}
"""Of dtypes, by those that torch has, in the library's order of tensors: those with the largest elements first."""
_ALIGNED = 8
"""Bytes of which the header is a multiple."""


def write_safetensors(write: Callable[[bytes | memoryview], object], tensors: Mapping[str, Tensor]) -> str:
    """Write a file of tensors. One of them at a time is brought to the host, and made contiguous.

    Args:
        write: takes the parts of the file in their order.
        tensors: by name.

    Returns:
        The sha256 of the file.

    Raises:
        ValueError: if a tensor is of another dtype than `ITEM_BYTES` of safetensors_header.py has.
    """
    dtypes = {name: str(tensor.dtype).removeprefix("torch.") for name, tensor in tensors.items()}
    unknown = [name for name, dtype in dtypes.items() if dtype not in _NAMES]
    if unknown:
        raise ValueError(f"{unknown[0]} is of {dtypes[unknown[0]]}, which our safetensors files do not hold")
    ranks = list(_NAMES)
    order = sorted(tensors, key=lambda name: (ranks.index(dtypes[name]), name))
    header = _header(tensors, order, dtypes)
    digest = hashlib.sha256(header)
    write(header)
    for name in order:
        data = _bytes_of(tensors[name])
        digest.update(data)
        write(data)
    return digest.hexdigest()


def stream_safetensors(uri: str, tensors: Mapping[str, Tensor]) -> str:
    """Put a file of tensors at a URI, in place of what was there; on an object store by way of $TMPDIR.

    Returns:
        The sha256 of the file.

    Raises:
        ValueError: as `write_safetensors`.
    """
    digests: list[str] = []
    storage.write_stream(uri, lambda draft: digests.append(write_safetensors(draft.write, tensors)))
    return digests[0]


def _header(tensors: Mapping[str, Tensor], order: Sequence[str], dtypes: Mapping[str, str]) -> bytes:
    entries, start = {}, 0
    for name in order:
        stop = start + tensors[name].numel() * tensors[name].element_size()
        offsets = [start, stop]
        entries[name] = {"dtype": _NAMES[dtypes[name]], "shape": list(tensors[name].shape), "data_offsets": offsets}
        start = stop
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % _ALIGNED)
    return len(text).to_bytes(8, "little") + text


def _bytes_of(tensor: Tensor) -> memoryview:
    import torch

    data: memoryview = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
    return data
