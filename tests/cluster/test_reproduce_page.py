"""docs/reproduce.md: its commands are commands, with options that they have, and its options fit the recipes."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from cluster.config.loading import load_config
from tests.typed_commands import parsed

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "reproduce.md").read_text()
LINES = [
    line.strip()
    for block in re.findall(r"^ *```bash\n(.*?)^ *```", PAGE, re.MULTILINE | re.DOTALL)
    for line in block.splitlines()
]
COMMANDS = [line for line in LINES if line.startswith("foldtrain ")] + re.findall(r"`(foldtrain [^`]+)`", PAGE)
ROWS = dict(re.findall(r"^\| ((?:RAR|TiTok) [\w-]+): .*?\| `(--[^`]+)`", PAGE, re.MULTILINE))
RECIPES = {
    "RAR B": "rar-b",
    "RAR L": "rar-l",
    "RAR XL": "rar-xl",
    "RAR XXL": "rar-xxl",
    "TiTok L-32": "maskgit-titok-l-32",
    "TiTok B-64": "maskgit-titok-b-64",
    "TiTok S-128": "maskgit-titok-s-128",
}


@pytest.mark.parametrize("line", COMMANDS)
def test_a_command_takes_its_options(line: str) -> None:
    assert parsed(line)


def test_an_option_that_a_command_has_not_is_found() -> None:
    with pytest.raises(Exception, match="No such option: --images"):
        parsed("foldtrain evaluate images samples --images real")


def test_the_page_has_the_commands_from_weights_to_a_number() -> None:
    kinds = {" ".join(shlex.split(line)[1:3]) for line in COMMANDS}
    assert {"evaluate images", "evaluate tokenizer"} <= kinds
    assert {shlex.split(line)[1] for line in COMMANDS} >= {"import-weights", "sample", "compare"}


@pytest.mark.parametrize("row", RECIPES)
def test_settings_of_sampling_are_those_of_the_recipe(row: str) -> None:
    typed = parsed(f"foldtrain sample weights --out samples {ROWS[row]}")
    sampling = load_config(str(ROOT / f"configs/generator/{RECIPES[row]}.yaml"), []).sampling
    kind, _, power = typed["schedule"].partition(":")
    schedule: Any = sampling.guidance_schedule
    order: Any = sampling.order or {}

    assert typed["guidance"] == sampling.guidance
    assert (typed["temperature"] or 1) == sampling.temperature
    assert (kind, float(power or 1)) == (schedule.kind, schedule.power)
    assert typed["steps"] == order.get("steps")
    temperatures = [float(each.partition("=")[2]) for each in typed["order"] or []]
    assert temperatures == [order["choice_temperature"]][: len(temperatures)] if temperatures else not order
