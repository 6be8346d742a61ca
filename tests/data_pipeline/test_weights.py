"""A card and weights that anybody may have written: one network, or an error that names the file."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import BaseModel, ConfigDict
from torch import nn

from data_pipeline import storage
from data_pipeline.errors import CorruptShardError, UsageError
from data_pipeline.shards import weights
from data_pipeline.shards.safetensors_header import check_safetensors


class Sizes(BaseModel):
    """The config of the small network here."""

    model_config = ConfigDict(extra="forbid")
    width: int


def make(width: int = 4) -> nn.Linear:
    return nn.Linear(width, 2)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    weights.write_weights(str(tmp_path), "thing", {"width": 4}, {"model": make().state_dict()}, {})
    return tmp_path


def change(folder: Path, **changes: Any) -> None:
    path = folder / "card.json"
    path.write_text(json.dumps({**json.loads(path.read_bytes()), **changes}))


def put(folder: Path, data: bytes) -> None:
    """Other weights, with their digest in the card."""
    (folder / "model.safetensors").write_bytes(data)
    change(folder, files={"model": storage.sha256(data)})


def file(header: object, body: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + body


def tensor(**changes: Any) -> dict[str, Any]:
    return {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]} | changes


def test_what_was_written_is_read(folder: Path) -> None:
    card, state = weights.read_weights(str(folder), "thing")
    config = weights.read_config(str(folder), card, Sizes)
    network = weights.restore(str(folder), state, lambda: make(config.width))
    assert torch.equal(network.weight, state["weight"])


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"files": {}}, "there is no model"),
        ({"files": {"model": "../x"}}, "files.model"),
        ({"files": {"model": "0" * 64, "../x": "0" * 64}}, "files"),
        ({"files": ["model"]}, "files"),
        ({"config": []}, "config"),
        ({"lineage": None}, "lineage"),
        ({"classes": [7]}, "classes"),
        ({"classes": None}, "classes"),
        ({"halves": {"names": {}, "fingerprints": {}}}, "its halves are of other files"),
        ({"halves": {"names": {"more": []}, "fingerprints": {}}}, "halves.names"),
        ({"halves": {"names": {}, "fingerprints": {"model": {"encode": "0" * 64}}}}, "each file has a fingerprint"),
        ({"halves": {"names": {}, "fingerprints": {"model": {"encode": "x"}}}}, "halves.fingerprints"),
        ({"halves": {"names": {"encode": ["x"] * 65}, "fingerprints": {}}}, "halves.names"),
        ({"classes": ["x" * 5000]}, "classes"),
        ({"steps": -1}, "steps"),
        ({"steps": True}, "steps"),
        ({"more": 1}, "more"),
        ({"kind": ["thing"]}, "is needed here"),
    ],
)
def test_a_card_that_cannot_be_is_named(folder: Path, changes: dict[str, Any], reason: str) -> None:
    change(folder, **changes)
    with pytest.raises(UsageError, match=rf"card\.json.*{reason}"):
        weights.read_card(str(folder), "thing")


@pytest.mark.parametrize(("version", "stated"), [(1, "version 1"), (3, "version 3"), (None, "no version")])
def test_a_card_of_another_version_is_refused_by_name(folder: Path, version: object, stated: str) -> None:
    change(folder, version=version)
    remedy = "update foldtrain" if version == 3 else "train it anew in another run"
    with pytest.raises(UsageError, match=rf"card\.json is the card of a thing of {stated}, but version 2 .*: {remedy}"):
        weights.read_card(str(folder), "thing")


@pytest.mark.parametrize("data", [b"[]", b"7", b"null", b"[" * 100_000, b""], ids=lambda data: repr(data[:9]))
def test_a_file_that_is_no_card_is_named(folder: Path, data: bytes) -> None:
    (folder / "card.json").write_bytes(data)
    with pytest.raises(UsageError, match=r"card\.json"):
        weights.read_card(str(folder), "thing")


@pytest.mark.parametrize("config", [{}, {"width": "wide"}, {"width": 4, "more": 1}])
def test_a_config_that_cannot_be_is_named(folder: Path, config: dict[str, Any]) -> None:
    change(folder, config=config)
    with pytest.raises(UsageError, match=r"card\.json has a config that cannot be \((width|more)"):
        weights.read_config(str(folder), weights.read_card(str(folder), "thing"), Sizes)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x00" * 7,
        file({}, length=2**60),
        file({}, length=2**63 + 1),
        file(b"[" * 100_000),
        file([]),
        file({"w": tensor()}),
        file({"w": tensor()}, bytes(9)),
        file({"w": tensor(shape=[2**40])}, bytes(8)),
        file({"w": tensor(shape=[-2])}, bytes(8)),
        file({"w": tensor(dtype="O")}, bytes(8)),
        file({"w": tensor(data_offsets=[8, 0])}, bytes(8)),
        file({"w": tensor(data_offsets=[-8, 0])}, bytes(8)),
        file({"w": tensor(), "v": tensor()}, bytes(8)),
        file({"w": tensor(), "v": tensor(data_offsets=[4, 12])}, bytes(12)),
        file({"w": tensor(), "v": tensor(data_offsets=[12, 20])}, bytes(20)),
        file({"a/../../b": tensor()}, bytes(8)),
        file(b'{"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}, "w": {}}', bytes(8)),
        file({"__metadata__": {"a": "b"}, "w": {}}, bytes(8)),
    ],
    ids=range(19),
)
def test_weights_whose_header_cannot_be_are_named_before_anything_is_loaded(folder: Path, data: bytes) -> None:
    put(folder, data)
    with pytest.raises(CorruptShardError, match=r"model\.safetensors is no safetensors file"):
        weights.read_weights(str(folder), "thing")


def test_headers_of_the_library_are_taken() -> None:
    check_safetensors(
        file({"__metadata__": {"format": "pt"}, "w": tensor(), "v.x": tensor(data_offsets=[8, 16])}, bytes(16))
    )
    check_safetensors(file({"e": tensor(shape=[0], data_offsets=[0, 0]), "w": tensor()}, bytes(8)))


def test_a_network_that_the_weights_are_not_of_is_refused_before_it_takes_memory(folder: Path) -> None:
    state = weights.read_weights(str(folder), "thing")[1]
    with pytest.raises(CorruptShardError, match=r"weight is \(2, 4\), the config needs \(2, 1099511627776\)"):
        weights.restore(str(folder), state, lambda: make(2**40))
    with pytest.raises(CorruptShardError, match="bias is missing, the config needs"):
        weights.restore(str(folder), {"weight": state["weight"]}, make)
    with pytest.raises(CorruptShardError, match="describes no network"):
        weights.restore(str(folder), state, lambda: make(-4))


def test_weights_that_are_gone_are_named(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    with pytest.raises(CorruptShardError, match=r"model\.safetensors is missing"):
        weights.read_weights(str(folder), "thing")
