"""docs/fidelity.md says of each row what is done, and names tests that are there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROWS = [
    [cell.strip() for cell in line.strip().strip("|").split("|")]
    for line in (ROOT / "docs" / "fidelity.md").read_text().splitlines()
    if line.startswith("| ") and not line.startswith("| trap")
]
NAMED = sorted({name for row in ROWS for name in re.findall(r"`([a-z_/]+\.py(?:::\w+)?)`", row[3])})


@pytest.mark.parametrize("name", NAMED)
def test_a_test_that_is_named_is_there(name: str) -> None:
    path, _, test = name.partition("::")
    text = (ROOT / "tests" / path).read_text()
    assert not test or f"def {test}(" in text


def test_each_row_says_what_is_done_and_why_where_it_is_something_else() -> None:
    assert len(ROWS) > 60
    for trap, here, what, tests in ROWS:
        assert here in {"followed", "by an option", "otherwise"}, trap
        assert what or here == "followed", trap
        assert here == "followed" or what, trap
        assert tests or here == "otherwise" or "buffers" in what, trap
