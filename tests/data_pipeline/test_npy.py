"""An .npy file is what numpy writes of numbers and byte strings; what only says so is refused, at no cost."""

from __future__ import annotations

import io
import struct
from typing import Any

import numpy as np
import pytest

from data_pipeline.text.npy import parse_npy


def written(array: Any, **options: Any) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, **options)
    return buffer.getvalue()


def with_header(text: str, body: bytes = b"", version: int = 1) -> bytes:
    form = "<H" if version == 1 else "<I"
    return b"\x93NUMPY" + bytes([version, 0]) + struct.pack(form, len(text)) + text.encode() + body


@pytest.mark.parametrize(
    "array",
    [
        np.arange(24, dtype=np.uint16).reshape(2, 3, 4),
        np.asfortranarray(np.arange(6, dtype=np.int64).reshape(2, 3)),
        np.array([b"a/b", b"longer"]),
        np.array([], np.int32),
        np.array(7),
        np.zeros((0, 5), ">f4"),
    ],
)
def test_what_numpy_writes_is_read(array: Any) -> None:
    found = parse_npy(written(array))
    assert found.dtype == array.dtype
    np.testing.assert_array_equal(found, array)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x93NUMPY",
        written(np.array([{}], dtype=object), allow_pickle=True),
        written(np.zeros(3, [("a", "<i4")])),
        written(np.array(["text"])),
        written(np.zeros(4))[:-1],
        written(np.zeros(4)) + b"x",
        with_header("{'descr': '<u2', 'fortran_order': False, 'shape': (1099511627776,), }\n"),
        with_header("{'descr': '<u2', 'fortran_order': False, 'shape': (4294967296, 4294967296), }\n"),
        with_header("{'descr': '<u2', 'fortran_order': False, 'shape': (-4,), }\n", bytes(8)),
        with_header("{'descr': '|S0', 'fortran_order': False, 'shape': (1099511627776,), }\n"),
        with_header("{'descr': '|O', 'fortran_order': False, 'shape': (1,), }\n", bytes(8)),
        with_header("{'descr': __import__('os'), 'fortran_order': False, 'shape': (1,), }\n", bytes(8)),
        with_header("(" * 4000),
        b"\x93NUMPY\x02\x00\xff\xff\xff\xff",
    ],
    ids=range(15),
)
def test_anything_else_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"\.npy"):
        parse_npy(data)
