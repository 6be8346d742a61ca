"""Text from storage is text in a terminal: no escape sequence, no markup, no line of its own."""

from __future__ import annotations

import ast
import io
import json
from pathlib import Path

import pytest
from rich.progress import TextColumn
from rich.table import Table
from rich.text import Text

import cluster
from cluster.progress.training_progress import ProgressLine
from cluster.terminal.output import console, print_error, say, say_json
from data_pipeline.text.printable import printable

HOSTILE = "a\x1b]52;c;cm0=b\x1b[2Jc\x9b31md\u202ee\u2028f\ufeffg[red]h[/red]\x7f:smile:"
SPELT = r"a\u001b]52;c;cm0=b\u001b[2Jc\u009b31md\u202ee\u2028f\ufeffg[red]h[/red]\u007f:smile:"
SEEN = "class क्षि ไก่ می‌خواهم 👩‍🔬 café"
"""Joiners and combining marks are no attack: names are written with them."""


def shown(thing: object, *, terminal: bool = True) -> str:
    """What a terminal gets, but for the colours that are ours."""
    out = console()
    out.file = io.StringIO()
    out._force_terminal = terminal
    out._color_system = None
    out.print(thing, width=500)
    return out.file.getvalue()


def table(text: str) -> Table:
    grid = Table(text, title=text, caption=text, box=None)
    grid.add_row(text)
    grid.add_row(Text(text))
    return grid


@pytest.mark.parametrize("make", [str, Text, table, lambda text: Text.assemble((text, "bold"))])
def test_whatever_is_printed_is_text(make: object) -> None:
    assert callable(make)
    for text, expected in ((HOSTILE, SPELT), (SEEN, SEEN)):
        out = shown(make(text))
        assert not set(HOSTILE) - set(SPELT) & set(out)
        if make is not table:  # whose columns are as wide as what they were given
            assert out.strip() == expected
        assert "[red]" in out or text is SEEN


def test_a_line_feed_in_a_name_begins_no_line(capsys: pytest.CaptureFixture[str]) -> None:
    say("images: a\nerror: all is lost\x1b[31m", "next")
    assert capsys.readouterr().out == "images: a\\u000aerror: all is lost\\u001b[31m\nnext\n"


@pytest.mark.parametrize("character", list("\x00\x07\x08\r\x0b\x1b\x85\u061c\u2066\ud800"))
def test_what_is_no_visible_character_is_spelt_out(character: str) -> None:
    assert printable(f"a{character}b") == f"a\\u{ord(character):04x}b"
    assert printable(f"a{character}b\n", lines=True) == f"a\\u{ord(character):04x}b\n"


def test_an_error_keeps_its_lines_and_none_passes_for_another_error(capsys: pytest.CaptureFixture[str]) -> None:
    print_error("first \x1b[1A[red]\nerror: forged\n  second\r")
    assert capsys.readouterr().err == "error: first \\u001b[1A[red]\n  error: forged\n  second\\u000d\n"


def test_json_stays_json_and_shows_nothing_hidden(capsys: pytest.CaptureFixture[str]) -> None:
    say_json({"name": HOSTILE, "seen": SEEN}, indent=1)
    text = capsys.readouterr().out
    assert json.loads(text) == {"name": HOSTILE, "seen": SEEN}
    assert SEEN in text
    assert not {"\x1b", "\x9b", "\u202e", "\x7f", "\r"} & set(text)


def test_a_bar_shows_text(capsys: pytest.CaptureFixture[str]) -> None:
    line = ProgressLine(HOSTILE, "steps")
    line.update(1, 1, f"note {HOSTILE}")
    line.say(f"said\n{HOSTILE}")
    line.close()
    out = capsys.readouterr().out
    assert out.split("\n")[:2] == [f"{SPELT}: 1/1 steps  note {SPELT}", rf"{SPELT}: said\u000a{SPELT}"]
    assert not any(column.markup for column in line._bar.columns if isinstance(column, TextColumn))


def calls(path: Path) -> set[str]:
    """Names of the functions that a file calls."""
    tree = ast.parse(path.read_text())
    return {ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}


def test_every_command_prints_through_the_terminal_s_functions() -> None:
    """`config` and `schema` print what the user wrote; `logs` passes on what a job printed.

    Processes that a scheduler starts write into its file, which no terminal shows by itself.
    """
    root = Path(cluster.__path__[0])
    free = {"commands/configs.py", "commands/jobs.py", "cli.py", "terminal/output.py"}
    free |= {"jobs/runner.py", "targets/slurm_batch.py", "targets/slurm_node.py"}
    files = [path for path in root.rglob("*.py") if "drills" not in path.parts]
    assert len(files) > 30
    found = {
        str(path.relative_to(root)): calls(path) & {"typer.echo", "print", "Console", "click.echo"} for path in files
    }
    assert {name: used for name, used in found.items() if used and name not in free} == {}
