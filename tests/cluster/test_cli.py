"""The command line tells what it can do, and ends with the exit code and the words that a mistake deserves."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import typer
from PIL import Image
from typer.testing import CliRunner

from cluster.cli import app, find_cause
from cluster.commands.configs import json_schema
from cluster.config.files import packaged
from cluster.config.loading import load_config
from cluster.terminal.output import duration, sparkline
from cluster.training.failures import WorkersFailedError
from cluster.training.worker_process import Outcome
from data_pipeline.errors import FoldtrainError, UsageError
from trainer.registry import STAGES

Foldtrain = Callable[..., "subprocess.CompletedProcess[str]"]

COMMANDS = tuple(stage.command for stage in STAGES)
HEAVY = ("torch", "ray", "deepspeed", "timm", "pandas", "pyarrow")


def test_help_names_every_command(foldtrain: Foldtrain) -> None:
    done = foldtrain("--help")
    assert done.returncode == 0
    others = (
        "quickstart",
        "config",
        "schema",
        "submit",
        "jobs",
        "describe",
        "logs",
        "stop",
        "shutdown",
        "scale",
        "monitor",
        "verify",
    )
    assert [name for name in (*COMMANDS, *others) if f"│ {name} " not in done.stdout] == []


def commands() -> list[tuple[str, ...]]:
    """Every command, by the words that call it."""
    found: list[tuple[str, ...]] = []

    def collect(words: tuple[str, ...], command: Any) -> None:
        found.append(words)
        for name, below in getattr(command, "commands", {}).items():
            collect((*words, name), below)

    collect((), typer.main.get_command(app))
    return found


@pytest.mark.parametrize("words", commands(), ids=" ".join)
def test_every_command_explains_itself_at_the_short_option(words: tuple[str, ...]) -> None:
    done = CliRunner().invoke(app, [*words, "-h"])
    assert (done.exit_code, "Usage:" in done.output) == (0, True)


def test_the_version_is_that_of_the_distribution(foldtrain: Foldtrain) -> None:
    done = foldtrain("--version")
    assert (done.returncode, done.stdout) == (0, f"foldtrain {metadata.version('foldtrain')}\n")


def test_a_shell_that_asks_gets_the_commands_that_begin_so() -> None:
    asked = {"_FOLDTRAIN_COMPLETE": "complete_bash", "COMP_WORDS": "foldtrain train-", "COMP_CWORD": "1"}
    command = [str(Path(sys.executable).parent / "foldtrain")]
    done = subprocess.run(command, env={**os.environ, **asked}, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [name for name in COMMANDS if name.startswith("train-")]


def test_neither_help_nor_a_config_imports_what_is_slow(small_config: Path) -> None:
    code = (
        "import sys; from cluster import cli; from cluster.config.loading import load_config;"
        f"load_config({str(small_config)!r}, ['seed=3']); print([name for name in {HEAVY!r} if name in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_a_misspelt_override_ends_with_2_and_the_likely_key(foldtrain: Foldtrain, small_config: Path) -> None:
    done = foldtrain("train-generator", str(small_config), "generator.trainer.global_bach=64")
    assert done.returncode == 2
    assert "did you mean global_batch" in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize("stage", ["ingest", "tokenize", "train-generator"])
def test_a_missing_config_ends_a_stage_with_2(foldtrain_here: Foldtrain, stage: str) -> None:
    done = foldtrain_here(stage, "configs/nowhere.yaml")
    assert done.returncode == 2
    assert "configs/nowhere.yaml does not exist" in done.stderr
    assert "Traceback" not in done.stderr


def test_an_unknown_option_ends_with_2(foldtrain_here: Foldtrain, small_config: Path) -> None:
    assert foldtrain_here("ingest", "--fast", str(small_config)).returncode == 2


def test_a_source_that_is_not_there_ends_with_2_and_its_path(foldtrain_here: Foldtrain, small_config: Path) -> None:
    done = foldtrain_here("ingest", str(small_config), "data.source.path=no/such/folder")
    assert done.returncode == 2
    assert "no/such/folder" in done.stderr
    assert "Traceback" not in done.stderr


def test_verify_finds_a_byte_that_changed(foldtrain_here: Foldtrain, small_config: Path, tmp_path: Path) -> None:
    (tmp_path / "pictures" / "cat").mkdir(parents=True)
    Image.new("RGB", (8, 8), "red").save(tmp_path / "pictures" / "cat" / "1.png")
    ingested = foldtrain_here("ingest", str(small_config))
    assert ingested.returncode == 0
    assert "\ningest: 1 image; 1 class; 0 set aside; skipped: nothing\n" in ingested.stdout
    (images,) = {str(path.parent) for path in (tmp_path / "runs").rglob("manifest.json")}
    whole = foldtrain_here("verify", images)
    assert (whole.returncode, "1 sample of images in 1 shard matches its manifest" in whole.stdout) == (0, True)
    (shard,) = Path(images).glob("*.tar")
    data = bytearray(shard.read_bytes())
    data[600] ^= 1
    shard.write_bytes(data)
    damaged = foldtrain_here("verify", images)
    assert damaged.returncode == 1
    assert shard.name in damaged.stderr
    assert "cat/1" in damaged.stderr


def test_verify_of_anything_else_ends_with_2(foldtrain_here: Foldtrain, tmp_path: Path) -> None:
    done = foldtrain_here("verify", str(tmp_path))
    assert done.returncode == 2
    assert "no complete data set" in done.stderr


def test_config_prints_what_loads_to_the_same_config(foldtrain: Foldtrain, small_config: Path, tmp_path: Path) -> None:
    done = foldtrain("config", str(small_config), "seed=7")
    (tmp_path / "resolved.yaml").write_text(done.stdout)
    assert load_config(tmp_path / "resolved.yaml") == load_config(small_config, ["seed=7"])


def test_quickstart_without_a_config_takes_the_packaged_one(foldtrain_here: Foldtrain) -> None:
    done = foldtrain_here("quickstart", "generator.trainer.global_bach=64")
    assert done.returncode == 2
    assert packaged("quickstart.yaml") in done.stderr


def test_the_schema_describes_every_section(foldtrain_here: Foldtrain) -> None:
    schema = json.loads(foldtrain_here("schema").stdout)
    assert {"extends", "run", "data", "tokenizer", "generator", "cluster"} <= set(schema["properties"])
    trainer = schema["$defs"]["TrainerConfig"]["properties"]
    assert "Samples per optimizer step" in trainer["global_batch"]["description"]


def test_the_schema_requires_no_key_as_a_file_may_extend_another() -> None:
    assert '"required"' not in json.dumps(json_schema())


def test_an_interrupted_command_ends_with_130(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "foldtrain", "monitor", str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert str(tmp_path) in process.stdout.readline()
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (130, "")


def test_the_mistake_inside_a_ray_task_is_found() -> None:
    from ray.exceptions import RayTaskError

    error = RayTaskError("tokenize", "Traceback ...", UsageError("shard 3 is cut")).as_instanceof_cause()
    found = find_cause(error)
    assert type(found) is UsageError
    assert str(found) == "shard 3 is cut"


def test_the_mistake_inside_a_failed_training_is_found() -> None:
    worker = Outcome(error=FoldtrainError("loss is not finite"), trace="Traceback ...")
    assert str(find_cause(WorkersFailedError({1: worker}))) == "loss is not finite"


def test_the_mistake_behind_another_exception_is_found() -> None:
    error = RuntimeError("wrapped")
    error.__cause__ = UsageError("the real one")
    assert str(find_cause(error)) == "the real one"


def test_a_bug_is_nobodys_mistake() -> None:
    error = ValueError("a bug")
    error.__cause__ = error
    assert find_cause(error) is None


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0s"), (59.6, "1m 00s"), (185, "3m 05s"), (7800, "2h 10m"), (356400, "4d 03h")]
)
def test_a_duration_has_its_two_largest_units(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_a_sparkline_follows_the_values_and_skips_what_is_not_finite() -> None:
    assert sparkline([4.0, 3.0, float("nan"), 2.0, 1.0]) == "█▆▃▁"


def test_a_sparkline_keeps_its_width() -> None:
    assert len(sparkline([float(value) for value in range(1000)], width=24)) == 24
