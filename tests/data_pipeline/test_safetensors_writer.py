"""safetensors files written tensor by tensor: the library's own bytes, and no copy of the whole."""

from __future__ import annotations

import hashlib
import tracemalloc
from pathlib import Path
from uuid import uuid4

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load, save

from data_pipeline import storage
from data_pipeline.shards.safetensors_header import ITEM_BYTES, check_safetensors
from data_pipeline.shards.safetensors_writer import _NAMES, stream_safetensors, write_safetensors

DTYPES = [getattr(torch, name) for name in _NAMES]


def written(tensors: dict[str, torch.Tensor]) -> tuple[bytes, str]:
    parts: list[bytes] = []
    digest = write_safetensors(lambda part: parts.append(bytes(part)), tensors)
    return b"".join(parts), digest


@given(
    st.dictionaries(
        st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12).filter("__metadata__".__ne__),
        st.tuples(st.sampled_from(DTYPES), st.lists(st.integers(0, 3), max_size=3)),
        max_size=8,
    )
)
def test_the_bytes_are_those_of_the_library(drawn: dict[str, tuple[torch.dtype, list[int]]]) -> None:
    tensors = {name: torch.randint(0, 2, shape).to(dtype) for name, (dtype, shape) in drawn.items()}
    data, digest = written(tensors)
    assert data == save(tensors)
    assert digest == hashlib.sha256(data).hexdigest()


def test_all_dtypes_that_are_read_are_written() -> None:
    assert set(_NAMES.values()) == set(ITEM_BYTES)
    data, _ = written({str(dtype): torch.ones(2, 3).to(dtype) for dtype in DTYPES})
    check_safetensors(data)
    assert all(tensor.shape == (2, 3) and bool(tensor.to(torch.float64).eq(1).all()) for tensor in load(data).values())


def test_views_and_parameters_are_written_as_they_look() -> None:
    base = torch.arange(12.0).view(3, 4)
    data, _ = written({"turned": base.T, "row": base[1], "trained": torch.nn.Parameter(base[:, 1])})
    found = load(data)
    assert torch.equal(found["turned"], base.T)
    assert torch.equal(found["row"], base[1])
    assert torch.equal(found["trained"], base[:, 1])


def test_a_dtype_without_a_name_is_refused_before_anything_is_written() -> None:
    parts: list[object] = []
    with pytest.raises(ValueError, match="wave is of complex64"):
        write_safetensors(parts.append, {"a": torch.ones(1), "wave": torch.ones(1, dtype=torch.complex64)})
    assert parts == []


@pytest.mark.parametrize("remote", [False, True])
def test_a_file_at_a_uri_is_whole_and_its_digest_is_told(tmp_path: Path, remote: bool) -> None:
    uri = f"memory://{uuid4().hex}/model.safetensors" if remote else str(tmp_path / "model.safetensors")
    tensors = {"a": torch.arange(5), "b": torch.ones(2, 2)}
    digest = stream_safetensors(uri, tensors)
    data = storage.read_bytes(uri)
    assert data == save(tensors)
    assert digest == storage.sha256(data)


def test_what_is_in_memory_beside_the_tensors_is_no_copy_of_them(tmp_path: Path) -> None:
    tensors = {f"layer{number}": torch.zeros(2**18) for number in range(32)}  # 32 MB in all
    tracemalloc.start()  # of what Python holds: bytes, not tensors
    try:
        stream_safetensors(str(tmp_path / "model.safetensors"), tensors)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 2 * 2**20
