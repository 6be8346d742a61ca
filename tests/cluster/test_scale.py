"""`scale` leaves a number of workers where a running tokenize reads it, and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster.commands import runs
from cluster.config_loading import load_config, resolved_yaml
from cluster.scale import parse_workers, read_scale, tokens_folder, write_scale
from data_pipeline.errors import UsageError


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run whose tokenize has begun."""
    (tmp_path / "tokens").mkdir()
    (tmp_path / "tokens" / "progress.json").write_text("{}")
    return tmp_path


def test_what_is_written_is_read(tmp_path: Path) -> None:
    write_scale(str(tmp_path), 7)
    assert read_scale(str(tmp_path)) == 7


def test_nothing_was_asked_for_where_there_is_no_file(tmp_path: Path) -> None:
    assert read_scale(str(tmp_path)) is None


@pytest.mark.parametrize("text", ["0", "-1", "two", "1.5", "", "1:4", "９", "9" * 5000])
def test_a_number_of_workers_that_makes_no_sense_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="give a whole number from 1"):
        parse_workers(text)


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        '{"version": 1}',
        '{"version": 2, "tokenize": {"workers": 3}}',
        '{"version": 1, "tokenize": {"workers": "3"}}',
        '{"version": 1, "tokenize": {"workers": true}}',
        '{"version": 1, "tokenize": {"workers": 0}}',
    ],
)
def test_a_file_that_says_something_else_is_refused_by_name(tmp_path: Path, text: str) -> None:
    (tmp_path / "control.json").write_text(text)
    with pytest.raises(UsageError, match=r"control\.json"):
        read_scale(str(tmp_path))


def test_a_run_its_config_and_its_tokens_mean_the_same_folder(small_config: Path, tmp_path: Path) -> None:
    tokens = tmp_path / "elsewhere"
    tokens.mkdir()
    (tokens / "progress.json").write_text("{}")
    (tmp_path / "run").mkdir()
    config = load_config(small_config, [f"tokens.output={tokens}", f"run={tmp_path / 'run'}"])
    path = tmp_path / "run" / "config.yaml"
    path.write_text(resolved_yaml(config))
    assert {tokens_folder(str(named)) for named in (tmp_path / "run", path, tokens)} == {str(tokens)}


def test_the_command_scales_a_run(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs.scale(str(run), "3", None)
    assert read_scale(str(run / "tokens")) == 3
    assert "3 workers from the next shard on" in capsys.readouterr().out


def test_a_run_that_has_not_begun_to_tokenize_is_left_alone(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="tokenize has not begun"):
        runs.scale(str(tmp_path), "3", None)
    assert list(tmp_path.iterdir()) == []


def test_a_finished_tokenize_is_left_alone(run: Path) -> None:
    (run / "tokens" / "manifest.json").write_text("{}")
    with pytest.raises(UsageError, match="is complete"):
        runs.scale(str(run), "3", None)
    assert read_scale(str(run / "tokens")) is None
