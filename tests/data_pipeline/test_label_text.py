"""Labels as people's programs write them: with byte-order marks, in digits of other scripts."""

from __future__ import annotations

import codecs
import json
import os
from pathlib import Path

import pytest

from data_pipeline.config import WebDatasetSource
from data_pipeline.errors import UsageError
from data_pipeline.sources import open_source
from data_pipeline.sources.label_text import is_number, read_text
from data_pipeline.tokens.importing.tokens import read_classes
from tests.data_pipeline.raw_data import write_ilsvrc_validation, write_webdataset
from tests.data_pipeline.small_data import jpeg

ENCODED = {
    "plain": "n01\ncafé\n".encode(),
    "utf-8 with a mark": "n01\ncafé\n".encode("utf-8-sig"),
    "utf-16": codecs.BOM_UTF16_LE + "n01\ncafé\n".encode("utf-16-le"),
    "utf-16, big end first": codecs.BOM_UTF16_BE + "n01\ncafé\n".encode("utf-16-be"),
    "utf-32": codecs.BOM_UTF32_LE + "n01\ncafé\n".encode("utf-32-le"),
}


@pytest.mark.parametrize("name", ENCODED)
def test_a_byte_order_mark_is_no_part_of_a_text(tmp_path: Path, name: str) -> None:
    (tmp_path / "labels").write_bytes(ENCODED[name])
    assert read_text(str(tmp_path / "labels")) == "n01\ncafé\n"
    assert read_classes(str(tmp_path / "labels")) == ("n01", "café")


@pytest.mark.parametrize("name", ENCODED)
def test_a_validation_label_is_the_same_with_a_mark_and_without(tmp_path: Path, name: str) -> None:
    config = write_ilsvrc_validation(tmp_path, [("a.JPEG", jpeg(1)), ("b.JPEG", jpeg(2))], "")
    (tmp_path / "labels.txt").write_bytes(ENCODED[name])
    assert open_source(config).classes == ("café", "n01")


@pytest.mark.parametrize("data", [b"caf\xe9", codecs.BOM_UTF16_LE + b"a"], ids=["latin-1", "half a character"])
def test_what_is_no_text_is_named(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "labels").write_bytes(data)
    with pytest.raises(UsageError, match="labels is no text file"):
        read_text(str(tmp_path / "labels"))


def test_a_text_that_never_ends_is_named(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    with (tmp_path / "huge").open("wb") as file:
        file.truncate(2**40)
    for name, message in (("fifo", "fifo is a FIFO"), ("huge", f"huge has {2**40} bytes")):
        with pytest.raises(UsageError, match=message):
            read_text(str(tmp_path / name))


@pytest.mark.parametrize("text", ["0", " 7\n", "007", b"12", b" 3 "])
def test_digits_are_a_number(text: str | bytes) -> None:
    assert is_number(text)


@pytest.mark.parametrize("text", ["", " ", "²", "٣", "１", "-1", "+1", "1.0", "1e3", "0x1", "9" * 5000, b"\xb2", "1 2"])
def test_everything_else_is_none(text: str | bytes) -> None:
    assert not is_number(text)


@pytest.mark.parametrize("label", ["²", "٣", "-1", "", None, 1.0, True, [1], {"a": 1}, -1, "9" * 5000])
def test_a_label_that_is_no_number_is_named_with_its_sample(tmp_path: Path, label: object) -> None:
    files = [("x.jpg", jpeg(1)), ("x.json", json.dumps({"label": label}).encode())]
    with pytest.raises(UsageError, match=r"a\.tar: sample x has the label .*, which is no whole number from 0 on"):
        open_source(write_webdataset(tmp_path, {"a.tar": files}, label="json:label"))


def test_a_label_behind_too_many_brackets_is_named(tmp_path: Path) -> None:
    files = [("x.jpg", jpeg(1)), ("x.json", b"[" * 200_000)]
    with pytest.raises(UsageError, match=r"a\.tar: sample x has a \.json member that is not JSON"):
        open_source(write_webdataset(tmp_path, {"a.tar": files}, label="json:label"))


def test_labels_with_gaps_keep_their_numbers(tmp_path: Path) -> None:
    files = [("x.jpg", jpeg(1)), ("x.cls", b"0"), ("y.jpg", jpeg(2)), ("y.cls", b"2")]
    source = open_source(WebDatasetSource(path=write_webdataset(tmp_path, {"a.tar": files}).path))
    assert source.classes == ("0", "1", "2")
    assert [item.label for item in source.items] == [0, 2]
