"""Counts in messages."""

from __future__ import annotations

import pytest

from data_pipeline.text.counted import counted


@pytest.mark.parametrize(
    ("count", "words", "text"),
    [
        (0, ("worker",), "0 workers"),
        (1, ("worker",), "1 worker"),
        (2, ("worker",), "2 workers"),
        (1_281_167, ("image",), "1,281,167 images"),
        (1.0, ("CPU",), "1 CPU"),
        (0.5, ("CPU",), "0.5 CPUs"),
        (1, ("class", "classes"), "1 class"),
        (3, ("class", "classes"), "3 classes"),
        (1, ("node leaves", "nodes leave"), "1 node leaves"),
        (2, ("node leaves", "nodes leave"), "2 nodes leave"),
    ],
)
def test_one_is_one_and_several_are_several(count: float, words: tuple[str, ...], text: str) -> None:
    assert counted(count, *words) == text
