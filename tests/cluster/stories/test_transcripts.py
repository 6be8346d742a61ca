"""What a page of docs tells is read as it stands, and compared with what commands print."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cluster.stories.transcripts import Command, Turn, missing, read_page

PAGE = """\
# A run

```yaml
kind: ray
```

```console
$ foldtrain submit
a
…
b
$ foldtrain jobs
```
<!-- until 3 workers -->
Text. <!-- not this -->
"""


def test_commands_come_with_their_output_and_turns_in_between(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(PAGE)
    assert read_page(page) == [
        Command("foldtrain submit", ("a", "…", "b"), 8),
        Command("foldtrain jobs", (), 12),
        Turn("until 3 workers", 14),
    ]


def test_a_block_that_begins_with_output_is_an_error(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("```console\noutput\n```\n")
    with pytest.raises(ValueError, match=r"page\.md:2"):
        read_page(page)


@pytest.mark.parametrize(
    ("expected", "printed", "lacks"),
    [
        (["a", "b"], "a\nb\n", None),
        (["a", "b"], "a\n  \t b\n", "b"),  # an empty line is a line
        (["a  b"], " a b ", None),
        (["a", "c"], "a\nb\nc\n", "c"),
        (["a", "…", "c"], "a\nb\nc\n", None),
        (["a", "…", "c"], "a\nc\n", None),
        (["…", "c"], "a\nb\nc\n", None),
        (["a", "…"], "a\nb\nc\n", None),
        (["a"], "a\nb\n", "(no more than that, but: b)"),
        (["a … c"], "a 17 c\n", None),
        (["a … c"], "a c\n", None),
        (["a … c"], "b c\n", "a … c"),
        (["a … c"], "a 17 d\n", "a … c"),
        (["a (b) …"], "a (b) 1.5\n", None),
        (["a.c"], "abc\n", "a.c"),
        (["…", "b", "…", "a"], "a\nb\n", "a"),
        (["submitted all-3fa9c1"], "submitted all-000000\n", None),
        (["submitted train-generator-3fa9c1"], "submitted tokenize-000000\n", "submitted train-generator-3fa9c1"),
    ],
)
def test_each_line_is_looked_for_after_the_one_before_it(expected: list[str], printed: str, lacks: str | None) -> None:
    assert missing(expected, printed.replace("\n  \t b", "\n\n b")) == lacks
