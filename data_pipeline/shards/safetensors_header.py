"""What a safetensors file says of itself, before anything of it is loaded.

8 bytes: length of the header; the header: JSON, name -> dtype, shape, data_offsets; then the data
"""

from __future__ import annotations

import math
import mmap
from itertools import pairwise
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from data_pipeline.shards.manifest import first_problem
from data_pipeline.text import json_records
from data_pipeline.text.names import Count, TensorName

MOST_HEADER = 16 * 2**20
"""Bytes of a header; a network with 1,000 tensors needs 0.1 MB."""
ITEM_BYTES = {"F64": 8, "I64": 8, "F32": 4, "I32": 4, "F16": 2, "BF16": 2, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}
"""Bytes of an element, by the names that safetensors uses."""


class _Tensor(BaseModel):
    model_config = ConfigDict(extra="forbid")

    dtype: str
    shape: tuple[Count, ...] = Field(max_length=16)
    data_offsets: tuple[Count, Count]


_TENSORS: TypeAdapter[dict[str, _Tensor]] = TypeAdapter(dict[TensorName, _Tensor])


def check_safetensors(data: bytes | mmap.mmap) -> None:
    """Whether the header fits the file: names of parameters, and ranges that follow each other up to its end.

    Raises:
        ValueError: if it does not; it says what is wrong.
    """
    length = int.from_bytes(data[:8], "little")
    if len(data) < 8 or length > min(len(data) - 8, MOST_HEADER):
        raise ValueError(f"its header should have {length} bytes")
    header: Any = json_records.parse(data[8 : 8 + length])
    if isinstance(header, dict):
        header.pop("__metadata__", None)
    try:
        tensors = _TENSORS.validate_python(header)
    except ValidationError as error:
        raise ValueError(first_problem(error)) from None
    for name, tensor in tensors.items():
        size = math.prod(tensor.shape) * ITEM_BYTES.get(tensor.dtype, 0)
        if tensor.dtype not in ITEM_BYTES or tensor.data_offsets[1] - tensor.data_offsets[0] != size:
            raise ValueError(f"{name} is no {tensor.dtype} of shape {tensor.shape} at bytes {tensor.data_offsets}")
    ranges = [(0, 0), *sorted(tensor.data_offsets for tensor in tensors.values()), (len(data) - 8 - length, 0)]
    if any(one[1] != other[0] for one, other in pairwise(ranges)):
        raise ValueError("its tensors overlap, leave a gap, or end elsewhere than the file")
