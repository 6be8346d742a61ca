"""`foldtrain compare`, as it is typed."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from cluster.cli import app
from data_pipeline.errors import UsageError
from tests.trainer.report.evaluated import ERRORS, FID, RFID, by, of, write_run


def foldtrain(*arguments: object) -> Result:
    return CliRunner().invoke(app, list(map(str, arguments)), catch_exceptions=False, env={"COLUMNS": "300"})


def compare(*arguments: object) -> Result:
    done = foldtrain("compare", *arguments)
    assert done.exit_code == 0
    return done


def words(text: str) -> list[str]:
    return [" ".join(line.split()) for line in text.splitlines()]


@pytest.fixture
def run(tmp_path: Path) -> str:
    return write_run(tmp_path / "a", FID, RFID, *ERRORS)


def test_two_runs_that_differ_in_one_setting_may_be_compared_and_it_is_named(tmp_path: Path, run: str) -> None:
    better = of(FID, sampling={"guidance": 3})
    other = write_run(tmp_path / "b", type(FID)(**vars(better) | {"value": 11.84}), RFID)
    lines = words(compare(run, other).stdout)
    assert lines[:2] == [f"A {run}, 1.50 hours", f"B {other}, 1.50 hours"]
    assert "May be compared. What differs: sampling.guidance 2.5 → 3" in lines
    assert "FID 12.34 ± 0.07 11.84 ± 0.07 -0.50 ± 0.10" in lines  # .07 times the root of 2
    assert "rFID 4.500 4.500 +0" in lines
    assert "In A alone: squared error, first 1, squared error, first 5, squared error, first 21" in lines


def test_two_runs_that_were_measured_otherwise_may_not_be_compared(tmp_path: Path, run: str) -> None:
    other = write_run(tmp_path / "b", by(of(FID, seed=8), rounding="floor"), steps=50)
    lines = words(compare(run, other).stdout)
    said = lines.index("May not be compared. They were measured otherwise: rounding nearest → floor")
    assert lines[said + 1] == "What else differs: seed 7 → 8"
    assert "FID 12.34 ± 0.07 12.34 ± 0.07" in lines  # and no difference
    assert "generator: generator.trainer.steps 100 50" in lines


def test_a_hash_that_follows_from_a_difference_is_named_after_it(tmp_path: Path, run: str) -> None:
    other = write_run(tmp_path / "b", of(FID, weights="raw", generator="b1" * 32))
    assert "What differs: weights not set → raw; and with that generator" in compare(run, other).stdout


def test_many_runs_are_a_table_and_those_without_numbers_are_left_out(tmp_path: Path, run: str) -> None:
    other = write_run(tmp_path / "b", FID, steps=50)
    (tmp_path / "empty").mkdir()
    done = compare(run, other, tmp_path / "empty")
    lines = words(done.stdout)
    assert lines[0] == "run FID ↓ rFID ↓ squared error ↓ hours"
    assert f"{other} 12.34 ± 0.07 – – 1.50" in lines
    assert "FID: 10,000 samples, reference aaaaaaaa, rounding nearest, inception-2015" in lines
    assert "2 columns of the first positions or scales: see --csv, --json or --html" in lines
    assert f"{tmp_path}/empty has no evaluation.json: left out" in done.stderr


def test_many_columns_of_few_runs_are_shown_as_rows(tmp_path: Path) -> None:
    numbers = [type(FID)(f"metric{number}", number, 10) for number in range(1, 9)]
    lines = words(compare(*[write_run(tmp_path / name, *numbers) for name in ("a", "b", "c")]).stdout)
    assert lines[0] == f"run {tmp_path}/a {tmp_path}/b {tmp_path}/c"
    assert lines[1] == "metric1 1.000 1.000 1.000"
    assert lines[9] == "hours 1.50 1.50 1.50"


def test_a_run_can_be_compared_with_the_numbers_of_a_paper(tmp_path: Path, run: str) -> None:
    (tmp_path / "paper.json").write_text('{"numbers": [{"metric": "fid", "value": 2.6, "images": 10000}]}')
    done = compare(run, tmp_path / "paper.json")
    assert "reference.images aaaaaaaa → not set, rounding nearest → not set" in done.stdout


def test_of_very_many_settings_that_differ_some_are_shown_and_the_rest_is_counted(tmp_path: Path, run: str) -> None:
    other = write_run(tmp_path / "b", FID)
    settings = "".join(f"  setting{number}: 1\n" for number in range(42))
    (tmp_path / "b/generator/config.yaml").write_text(f"seed: 0\ngenerator:\n  trainer: {{steps: 100}}\n{settings}")
    lines = words(compare(run, other).stdout)
    assert "generator: generator.setting39 – 1" in lines
    assert "generator: generator.setting40 – 1" not in lines
    assert lines[-1] == "and 2 more settings: see --json or --html"


def test_markdown_is_all_that_is_printed(run: str) -> None:
    text = compare(run, "--markdown").stdout
    assert text.startswith("| run | FID ↓ | rFID ↓ | squared error ↓ | hours |\n| --- |")
    assert text.endswith("squared error: 100 reconstructions.\n")


def test_the_files_that_are_asked_for_are_written(tmp_path: Path, run: str) -> None:
    files = {kind: tmp_path / f"out.{kind}" for kind in ("csv", "json", "html")}
    done = compare(run, run, *(part for kind, file in files.items() for part in (f"--{kind}", file)))
    assert done.stderr.splitlines() == [f"{file} is written" for file in files.values()]
    rows = list(csv.DictReader(files["csv"].open()))
    assert [float(row["FID"]) for row in rows] == [12.34, 12.34]
    assert len(json.loads(files["json"].read_text())["comparison"]["pairs"]) == 5
    assert files["html"].read_text().startswith("<!DOCTYPE html>")


def test_a_place_without_numbers_is_refused_with_what_to_do(tmp_path: Path, run: str) -> None:
    with pytest.raises(UsageError, match=r"nothing has no evaluation.json: evaluate it"):
        foldtrain("compare", run, tmp_path / "nothing")
    with pytest.raises(UsageError, match=r"none of the 3 places"):
        foldtrain("compare", *[tmp_path / "nothing"] * 3)


def test_an_evaluation_of_an_earlier_version_is_refused_with_what_to_do(tmp_path: Path, run: str) -> None:
    (tmp_path / "old").mkdir()
    (tmp_path / "old/evaluation.json").write_text("{}")
    with pytest.raises(UsageError, match="run `foldtrain evaluate` again"):
        foldtrain("compare", run, tmp_path / "old")


def test_nothing_that_moves_the_cursor_reaches_the_terminal(tmp_path: Path, run: str) -> None:
    other = write_run(tmp_path / "b", of(FID, **{"\x1b[2J": "\x1b]0;title\x07"}))
    assert "\x1b" not in compare(run, other).stdout
    assert "\x1b" not in compare(run, other, "--markdown").stdout
