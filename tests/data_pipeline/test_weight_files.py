"""Files of weights are found at a URI, told apart by their content, hashed, and their options read."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from data_pipeline import storage
from data_pipeline.errors import UsageError
from data_pipeline.tokens.importing.weight_files import find_weights, open_weights, read_options

TENSORS = {"a": torch.arange(4.0), "b.c": torch.ones(2, 3, dtype=torch.float16)}


@pytest.mark.parametrize(
    ("name", "is_torch"),
    [("a.safetensors", False), ("a.pt", False), ("a.pt", True), ("a.bin", True), ("weights", True), ("weights", False)],
)
def test_the_content_tells_the_format_and_not_the_name(tmp_path: Path, name: str, is_torch: bool) -> None:
    path = tmp_path / name
    if is_torch:
        torch.save(TENSORS, path)
    else:
        save_file(TENSORS, path)
    with open_weights(str(path)) as held:
        assert isinstance(held.record, dict)
        assert all(torch.equal(held.record[each], tensor) for each, tensor in TENSORS.items())
        assert held.sha256 == storage.sha256(path.read_bytes())
        assert held.size == path.stat().st_size
        assert held.options == {}


def test_a_torch_file_that_is_named_as_safetensors_is_refused(tmp_path: Path) -> None:
    torch.save(TENSORS, tmp_path / "a.pt")
    (tmp_path / "a.pt").rename(tmp_path / "a.safetensors")
    with (
        pytest.raises(UsageError, match=r"named as a safetensors file: name it \.pt"),
        open_weights(str(tmp_path / "a.safetensors")),
    ):
        pass


def test_options_in_the_file_are_found(tmp_path: Path) -> None:
    torch.save({"model": TENSORS, "args": argparse.Namespace(sides=[1, 2])}, tmp_path / "a.pt")
    with open_weights(str(tmp_path / "a.pt")) as held:
        assert held.options == {"sides": [1, 2]}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "there is no file .*: give a file of published weights, or its folder"),
        (b"", "bare pickle, or empty"),
        (b"\x80\x02}q\x00.", r"bare pickle, or empty: files from before torch 1\.6"),
        (b"hello, world. hello", "neither a safetensors file nor one of torch"),
        (b"PK\x03\x04" + bytes(30), "no archive of torch"),
        ((400).to_bytes(8, "little") + b"{}", "header should have 400 bytes"),
        (
            (62).to_bytes(8, "little")
            + json.dumps({"a": {"dtype": "F32", "shape": [9], "data_offsets": [0, 4]}}).encode()
            + bytes(4),
            "cannot be read as weights",
        ),
    ],
)
def test_what_is_no_file_of_weights_is_named_with_the_reason(tmp_path: Path, content: bytes | None, words: str) -> None:
    path = tmp_path / "a.pt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UsageError, match=rf"a\.pt.*{words}|{words}"), open_weights(str(path)):
        pass


@pytest.mark.xdist_group("s3")
def test_a_file_in_object_storage_is_copied_and_its_tensors_outlive_the_copy(
    s3_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    torch.save({"ema": TENSORS, "model": {}}, tmp_path / "a.pt")
    data = (tmp_path / "a.pt").read_bytes()
    (tmp_path / "a.pt").unlink()
    uri = storage.join(s3_uri, "hub/pytorch_model.bin")
    storage.write_bytes(uri, data)
    assert find_weights(storage.join(s3_uri, "hub")) == uri
    with open_weights(uri) as held:
        assert held.sha256 == storage.sha256(data)
        assert isinstance(held.record, dict)
        tensors = held.record["ema"]
    assert not list(tmp_path.iterdir())
    assert torch.equal(tensors["a"], TENSORS["a"])


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["config.json", "model.safetensors"], "model.safetensors"),
        (["model.safetensors", "pytorch_model.bin", "x.pt"], "model.safetensors"),
        (["pytorch_model.bin", "training.pt"], "pytorch_model.bin"),
        (["README.md", "best_ckpt.pt"], "best_ckpt.pt"),
    ],
)
def test_a_folder_means_its_file_of_weights(tmp_path: Path, names: list[str], expected: str) -> None:
    for name in names:
        (tmp_path / name).write_bytes(b"x")
    assert find_weights(f"{tmp_path}/") == str(tmp_path / expected)


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["README.md"], r"holds no file of weights \(\.safetensors, \.bin"),
        (["a.pt", "b.pt"], r"holds several files of weights \(a\.pt, b\.pt\): name the one"),
        (["model-1.safetensors", "model.safetensors.index.json"], "in several parts"),
    ],
)
def test_a_folder_without_one_file_of_weights_is_refused(tmp_path: Path, names: list[str], words: str) -> None:
    for name in names:
        (tmp_path / name).write_bytes(b"x")
    with pytest.raises(UsageError, match=words):
        find_weights(str(tmp_path))


@pytest.mark.parametrize(
    ("name", "text"), [("a.json", '{"vit": {"num_heads": 3}}'), ("a.yaml", "vit:\n  num_heads: 3\n")]
)
def test_options_are_json_or_yaml(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    assert read_options(str(tmp_path / name)) == {"vit": {"num_heads": 3}}


@pytest.mark.parametrize(("name", "text"), [("a.json", "[]"), ("a.yaml", "- 1"), ("a.yaml", "a: *b"), ("a.json", "{")])
def test_what_holds_no_options_is_named(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(UsageError, match=rf"{name}.*(holds no options, but list|is no YAML|is not valid JSON)"):
        read_options(str(tmp_path / name))
