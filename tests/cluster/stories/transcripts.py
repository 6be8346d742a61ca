"""A page of docs that tells of a run: commands and what they print, and what happens between them.

    ```console
    $ foldtrain scale s3://lab/smoke --workers 3
    s3://lab/smoke/tokens: 3 workers are asked for; …
    ```
    <!-- until 3 workers -->

A line "…" stands for any lines, and "…" within a line for any text or none; ids of jobs are any ids. Comments of one
line are what no reader has to see: what is waited for, and what befalls the cluster.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ANY = "…"
_JOB = re.compile(r"\b([a-z]+(?:-[a-z]+)*)-[0-9a-f]{6}\b")
_COMMENT = re.compile(r"<!-- (.+) -->")


@dataclass(frozen=True)
class Command:
    """A command, and what it prints."""

    words: str
    output: tuple[str, ...]
    line: int
    """Of the page."""


@dataclass(frozen=True)
class Turn:
    """What happens, or is waited for."""

    words: str
    line: int


def read_page(page: Path) -> list[Command | Turn]:
    """What a page tells, in its order.

    Raises:
        ValueError: if a console's block does not begin with a command.
    """
    found: list[Command | Turn] = []
    block: list[tuple[int, str]] | None = None
    for number, line in enumerate(page.read_text().splitlines(), start=1):
        if line == "```console":
            block = []
        elif line == "```" and block is not None:
            found += _commands(page, block)
            block = None
        elif block is not None:
            block.append((number, line))
        elif comment := _COMMENT.fullmatch(line):
            found.append(Turn(comment[1], number))
    return found


def _commands(page: Path, block: Sequence[tuple[int, str]]) -> list[Command]:
    found: list[Command] = []
    for number, line in block:
        if line.startswith("$ "):
            found.append(Command(line.removeprefix("$ "), (), number))
        elif not found:
            raise ValueError(f"{page}:{number}: a console's block begins with `$ COMMAND`")
        else:
            last = found.pop()
            found.append(Command(last.words, (*last.output, line), last.line))
    return found


def missing(expected: Sequence[str], printed: str) -> str | None:
    """The first line that is not printed where it should be; None if all are.

    Args:
        expected: lines of a page.
        printed: by its command.
    """
    left = [_plain(line) for line in printed.splitlines()]
    may_skip = False
    for line in expected:
        if line.strip() == ANY:
            may_skip = True
            continue
        pattern = re.compile(".*".join(re.escape(part.strip()) for part in _plain(line).split(ANY)))
        fits = [place for place, each in enumerate(left) if pattern.fullmatch(each)]
        if not fits or (fits[0] > 0 and not may_skip):
            return line
        left, may_skip = left[fits[0] + 1 :], False
    return None if may_skip or not left else f"(no more than that, but: {left[0]})"


def _plain(line: str) -> str:
    """A line with single spaces, and without the number of a job."""
    return _JOB.sub(r"\1-ID", " ".join(line.split()))
