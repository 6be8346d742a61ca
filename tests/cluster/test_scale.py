"""`scale` leaves numbers of workers where a running stage reads them, and nothing else."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cluster.cli import app
from cluster.commands import runs
from cluster.config.loading import load_config
from cluster.jobs.places import remember
from cluster.pool.scale import (
    clear_scale,
    parse_workers,
    read_asked,
    read_scale,
    running_stage,
    stage_folder,
    write_scale,
)
from cluster.progress.stage_records import record_config
from data_pipeline import storage
from data_pipeline.errors import UsageError
from data_pipeline.leases.lease import only_driver
from tests.cluster.web.runs_to_watch import write_job, write_training


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run whose tokenize has begun."""
    (tmp_path / "tokens").mkdir()
    (tmp_path / "tokens" / "progress.json").write_text("{}")
    return tmp_path


def test_what_is_written_is_read(tmp_path: Path) -> None:
    write_scale(str(tmp_path), 2, 7)
    assert read_scale(str(tmp_path)) == (2, 7)


def test_what_was_asked_for_is_forgotten_with_the_run(tmp_path: Path) -> None:
    write_scale(str(tmp_path), 2, 7)
    clear_scale(str(tmp_path))
    clear_scale(str(tmp_path))
    assert read_scale(str(tmp_path)) is None


def test_the_first_spelling_of_the_file_is_still_read(tmp_path: Path) -> None:
    (tmp_path / "control.json").write_text('{"version": 1, "tokenize": {"workers": 3}}')
    assert read_scale(str(tmp_path)) == (3, 3)


@pytest.mark.parametrize(("text", "numbers"), [("4", (4, 4)), ("2:8", (2, 8)), ("5:5", (5, 5))])
def test_a_number_or_the_fewest_and_the_most_may_be_typed(text: str, numbers: tuple[int, int]) -> None:
    assert parse_workers(text) == numbers


def test_nothing_was_asked_for_where_there_is_no_file(tmp_path: Path) -> None:
    assert read_scale(str(tmp_path)) is None


@pytest.mark.parametrize("text", ["0", "-1", "two", "1.5", "", "1:", ":4", "1:2:3", "0:4", "９", "9" * 5000])
def test_a_number_of_workers_that_makes_no_sense_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="give a whole number from 1"):
        parse_workers(text)


def test_the_fewest_are_not_more_than_the_most() -> None:
    with pytest.raises(UsageError, match="the fewest are more than the most"):
        parse_workers("8:2")


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
        '{"version": 1, "workers": {"min": 3}}',
        '{"version": 1, "workers": {"min": 3, "max": 2}}',
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
    config = load_config(small_config, [f"tokens.output={tokens}", f"run={tmp_path / 'run'}"])
    record_config(config, "tokens")
    path = tmp_path / "run" / "tokens" / "config.yaml"
    assert {stage_folder(str(named), "tokenize") for named in (tmp_path / "run", path, tokens)} == {str(tokens)}


def test_shards_that_an_override_put_elsewhere_are_found_from_the_config(small_config: Path, tmp_path: Path) -> None:
    run = f"run={tmp_path / 'run'}"
    small_config.write_text(f"{small_config.read_text().replace('run: runs/small', f'run: {tmp_path}/run')}")
    record_config(load_config(small_config, [run, f"tokens.output={tmp_path}/elsewhere"]), "tokens")
    assert stage_folder(str(small_config), "tokenize") == f"{tmp_path}/elsewhere"


def test_the_command_scales_a_run(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs.scale(str(run), "3")
    assert read_scale(str(run / "tokens")) == (3, 3)
    assert "3 workers are asked for; they join, or leave after the shard in hand" in capsys.readouterr().out


def test_the_stage_that_is_at_work_is_scaled(run: Path) -> None:
    (run / "images").mkdir()
    (run / "images" / "progress.json").write_text('{"state": "finished"}')
    assert running_stage(str(run), None) == ("tokenize", str(run / "tokens"))
    (run / "images" / "progress.json").write_text('{"state": "running"}')
    (run / "tokens" / "progress.json").write_text('{"state": "finished"}')
    assert running_stage(str(run), None) == ("ingest", str(run / "images"))


def test_two_stages_at_work_are_told_apart_by_name(run: Path) -> None:
    (run / "images").mkdir()
    (run / "images" / "progress.json").write_text("{}")
    with pytest.raises(UsageError, match="say which with --stage"):
        running_stage(str(run), None)
    assert running_stage(str(run), "ingest") == ("ingest", str(run / "images"))


def test_a_run_where_nothing_has_begun_is_left_alone(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"ingest or tokenize or .* has not begun"):
        runs.scale(str(tmp_path), "3")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("state", ["stopped", "failed"])
def test_a_tokenize_that_has_ended_is_left_alone(run: Path, state: str) -> None:
    (run / "tokens" / "progress.json").write_text(f'{{"state": "{state}"}}')
    with pytest.raises(UsageError, match=r"is not at work any more; start it again, with .*max_workers"):
        runs.scale(str(run), "3")
    assert read_scale(str(run / "tokens")) is None


def test_a_finished_tokenize_is_left_alone(run: Path) -> None:
    (run / "tokens" / "manifest.json").write_text("{}")
    with pytest.raises(UsageError, match="is complete"):
        runs.scale(str(run), "3")
    assert read_scale(str(run / "tokens")) is None


def test_a_training_at_work_is_scaled_in_its_own_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "generator"
    folder.mkdir()
    (folder / "settings.json").write_text("{}")
    with only_driver(str(folder), "training of generator"):
        for named in (tmp_path, folder):
            assert running_stage(str(named), "train-generator") == ("train-generator", str(folder))
        assert running_stage(str(tmp_path), None) == ("train-generator", str(folder))
        runs.scale(str(tmp_path), "2:4")
    assert read_scale(str(folder)) == (2, 4)
    assert "2 to 4 workers are asked for; from a checkpoint on" in capsys.readouterr().out


def save(*arguments: str) -> tuple[int, str]:
    done = CliRunner().invoke(app, ["checkpoint", "save", *arguments])
    return done.exit_code, str(done.exception) if isinstance(done.exception, UsageError) else done.output


def test_a_training_at_work_is_asked_for_a_checkpoint_by_its_run_its_folder_and_its_config(
    tmp_path: Path, small_config: Path
) -> None:
    small_config.write_text(small_config.read_text().replace("run: runs/small", f"run: {tmp_path}"))
    folder = tmp_path / "generator"
    (tmp_path / "tokenizer").mkdir()
    for name in ("generator", "tokenizer"):
        storage.write_bytes(f"{tmp_path}/{name}/settings.json", b"{}")
    write_scale(str(folder), 2, 4)
    seen: list[float | None] = [None]
    with only_driver(str(folder), "training of generator"):
        for named in (tmp_path, folder, small_config):
            code, said = save(str(named))
            assert (code, "asked generator for a checkpoint" in said) == (0, True), said
            seen.append(read_asked(str(folder)).checkpoint)
    assert read_scale(str(folder)) == (2, 4)
    assert len({*seen}) == 4, "each asks anew"
    assert not (tmp_path / "tokenizer" / "control.json").exists(), "it is not at work"


def test_where_several_train_one_is_asked_by_its_name_and_all_without(tmp_path: Path) -> None:
    folders = [str(tmp_path / name) for name in ("teacher", "judge")]
    with only_driver(folders[0], "training of teacher"), only_driver(folders[1], "training of judge"):
        assert "asked judge for a checkpoint" in save(str(tmp_path), "--stage", "train-judge")[1]
        assert not (tmp_path / "teacher" / "control.json").exists()
        assert "asked teacher, judge for a checkpoint" in save(str(tmp_path))[1]
    assert read_asked(folders[0]).checkpoint


@pytest.mark.parametrize(
    ("stage", "why"),
    [
        ([], "nothing trains there now"),
        (["--stage", "train-generator"], "train-generator is not at work"),
        (["--stage", "tokenize"], "tokenize: choose from train-teacher"),
    ],
)
def test_where_nothing_trains_no_checkpoint_is_asked_for(tmp_path: Path, stage: list[str], why: str) -> None:
    write_training(str(tmp_path), "generator", count=2, steps=2)
    code, said = save(str(tmp_path), *stage)
    assert (code != 0, why in said) == (True, True), said
    assert not (tmp_path / "generator" / "control.json").exists()


def test_a_checkpoint_is_asked_for_by_a_jobs_id(tmp_path: Path) -> None:
    write_job(str(tmp_path), "generator-3fa9c1", node="n1", text=b"")
    remember(str(tmp_path), "generator-3fa9c1")
    with only_driver(str(tmp_path / "generator"), "training of generator"):
        assert "asked generator for a checkpoint" in save("generator-3fa9c1")[1]
    write_job(str(tmp_path), "generator-3fa9c2", node="n1", text=b"", status="succeeded")
    remember(str(tmp_path), "generator-3fa9c2")
    assert "generator-3fa9c2 is not at work: succeeded" in save("generator-3fa9c2")[1]


def test_a_training_that_has_ended_is_started_again_with_other_workers(tmp_path: Path) -> None:
    (tmp_path / "generator").mkdir()
    (tmp_path / "generator" / "settings.json").write_text("{}")
    with pytest.raises(
        UsageError, match=r"train-generator is not at work any more; start it again, with cluster\.workers"
    ):
        running_stage(str(tmp_path), None)
    (tmp_path / "generator" / "export").mkdir()
    (tmp_path / "generator" / "export" / "card.json").write_text("{}")
    with pytest.raises(UsageError, match="train-generator is complete"):
        running_stage(str(tmp_path), "train-generator")


def test_samples_at_work_are_scaled(tmp_path: Path) -> None:
    (tmp_path / "samples").mkdir()
    (tmp_path / "samples" / "progress.json").write_text("{}")
    assert running_stage(str(tmp_path), None) == ("sample", str(tmp_path / "samples"))
    assert running_stage(str(tmp_path / "samples"), "sample") == ("sample", str(tmp_path / "samples"))


def test_what_else_is_asked_of_a_stage_stays_in_the_file(tmp_path: Path) -> None:
    path = tmp_path / "control.json"
    path.write_text('{"version": 1, "stop": "now"}')
    assert read_scale(str(tmp_path)) is None
    write_scale(str(tmp_path), 2, 7)
    assert read_scale(str(tmp_path)) == (2, 7)
    clear_scale(str(tmp_path))
    assert json.loads(path.read_text()) == {"version": 1, "stop": "now"}
