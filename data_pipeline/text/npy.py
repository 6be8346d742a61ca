"""Arrays of numbers and of byte strings in numpy's own format, from bytes that anybody may have written.

numpy's reader evaluates the header as Python and allocates what it says. Here the header has to have the one spelling
that numpy writes, the dtype is never an object, and the bytes have to be as many as the shape asks for.
"""

from __future__ import annotations

import math
import re
import struct
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

_MAGIC = b"\x93NUMPY"
_MOST_HEADER = 4096
"""Bytes that a header takes at most here; numpy itself writes 118 for most arrays."""
_HEADER = re.compile(
    r"\{\s*'descr':\s*'(?P<dtype>[<>=|](?:[biuf][1248]|S\d{1,5}))',\s*'fortran_order':\s*(?P<fortran>True|False),\s*"
    r"'shape':\s*\((?P<shape>|\d{1,18}L?,|\d{1,18}L?(?:,\s*\d{1,18}L?){1,31},?)\),?\s*\}\s*"
)


class NpyHeader(NamedTuple):
    """What an .npy file says of its array."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    is_fortran: bool
    """Whether its first axis, not its last, changes fastest."""
    start: int
    """Bytes of the file before the array."""

    @property
    def array_bytes(self) -> int:
        """Bytes of the array."""
        return math.prod(self.shape) * self.dtype.itemsize

    def check_bytes(self, held: int) -> None:
        """Whether the file has as many bytes behind its header as the shape asks for.

        Raises:
            ValueError: if not; it says how many.
        """
        if held != self.array_bytes or not self.dtype.itemsize:
            raise ValueError(
                f"an .npy array of shape {self.shape} and dtype {self.dtype} has {self.array_bytes} bytes, "
                f"but there are {held}"
            )


MOST_START = 12 + _MOST_HEADER
"""Bytes of a file in which its header ends."""


def parse_header(data: bytes | memoryview) -> NpyHeader:
    """The header of an .npy file from its first bytes: `MOST_START` of them, or all.

    Raises:
        ValueError: if it is none; it says why.
    """
    if len(data) < 12 or bytes(data[:6]) != _MAGIC or data[6] not in {1, 2, 3}:
        raise ValueError("it is no .npy file")
    start, form = (10, "<H") if data[6] == 1 else (12, "<I")
    (length,) = struct.unpack(form, data[8:start])
    if length > min(_MOST_HEADER, len(data) - start):
        raise ValueError(f"its .npy header should have {length} bytes")
    header = _HEADER.fullmatch(bytes(data[start : start + length]).decode("latin-1"))
    if header is None:
        raise ValueError("its .npy header is none of an array of numbers or of byte strings")
    shape = tuple(int(side.strip().rstrip("L")) for side in header["shape"].split(",") if side.strip())
    return NpyHeader(np.dtype(header["dtype"]), shape, header["fortran"] == "True", start + length)


def parse_npy(data: bytes | memoryview) -> npt.NDArray[Any]:
    """The array of an .npy file, read-only, over the same memory.

    Raises:
        ValueError: if it is none, or of another length than its shape asks for; it says why.
    """
    header = parse_header(data)
    header.check_bytes(len(data) - header.start)
    order: Any = "F" if header.is_fortran else "C"
    flat = np.frombuffer(data, header.dtype, math.prod(header.shape), offset=header.start)
    return flat.reshape(header.shape, order=order)
