"""Names from storage are names below their folder, or they are refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from data_pipeline.text import names

BAD = (
    *("", ".", "..", "/", "/etc/passwd", "../x", "a/../b", "a/..", "a//b", "a/", "./a", "a/./b", "a\\b", "..\\x"),
    *("a\x00b", "a\nb", "a\x1b[31m", "a\x7f", "a\x9bb", "a\u2028b", "a\ud800", "x" * 2000, "é" * 1000),
)


@pytest.mark.parametrize("name", BAD)
def test_a_name_that_leads_elsewhere_or_holds_controls_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="name"):
        names.check_name(name)
    with pytest.raises(ValueError, match="name"):
        names.check_keys(["good", name, "also/good"])


def test_names_of_people_s_files_are_taken() -> None:
    good = ["a", "a.b", "a/b.c", "..a", "a..", "...", "ä/日本", "का", "a b", "-x", "a:b"]
    assert [names.check_name(name) for name in good] == good
    names.check_keys(good)
    names.check_keys([])


@given(st.lists(st.text("a./\\\n\x00é", max_size=5)))
def test_keys_are_judged_together_as_one_by_one(keys: list[str]) -> None:
    def is_bad(key: str) -> bool:
        parts = key.split("/")
        return bool({"", ".", ".."} & set(parts) or set(key) & {"\\", "\n", "\x00"})

    if any(map(is_bad, keys)):
        with pytest.raises(ValueError, match="is no name below a folder"):
            names.check_keys(keys)
    else:
        names.check_keys(keys)


@pytest.mark.parametrize(
    ("kind", "good", "bad"),
    [
        (names.ShardName, "images-00000.tar", "../images-00000.tar"),
        (names.ShardName, "tokens-123456.tar", "images-00000.tar\n"),
        (names.CheckpointFileName, "rank_0000-5f0c2a91.safetensors", "rank_0000-../../x.safetensors"),
        (names.TensorName, "encoder.blocks.0.attn_q", "encoder/../../x"),
        (names.TensorName, "a", "a..b"),
        (names.Sha256, "0" * 64, "../" + "0" * 61),
    ],
)
def test_each_kind_of_name_has_its_own_shape(kind: object, good: str, bad: str) -> None:
    shape: TypeAdapter[str] = TypeAdapter(kind)
    assert shape.validate_python(good) == good
    with pytest.raises(ValidationError):
        shape.validate_python(bad)
