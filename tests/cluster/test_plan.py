"""`foldtrain plan`: what it prints, in words and as JSON, and how it refuses."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from cluster.cli import app
from cluster.config.files import packaged
from cluster.config.loading import load_config
from cluster.stages import planning
from data_pipeline import storage
from data_pipeline.errors import UsageError
from data_pipeline.shards.manifest import ImageManifest

pytestmark = pytest.mark.xdist_group("plan")  # networks are traced once in a process

QUICKSTART = packaged("quickstart.yaml")
TWO_GPUS = ("--device", "H100", "--nodes", "1", "--gpus-per-node", "2")
"""Tests that ask for no other devices share a trace."""
RECIPES = Path(QUICKSTART).parent / "imagefolder"


def plan(*arguments: str) -> dict[str, Any]:
    result = CliRunner().invoke(app, ["plan", QUICKSTART, "run=nowhere", *arguments, "--json"], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads(result.stdout)
    return found


@pytest.mark.slow
def test_the_quickstart_is_planned_as_a_command_without_ray() -> None:
    code = (
        "import sys; from typer.testing import CliRunner; from cluster.cli import app\n"
        f"result = CliRunner().invoke(app, ['plan', {QUICKSTART!r}], catch_exceptions=False)\n"
        "print(result.output); sys.exit(result.exit_code or 10 * ('ray' in sys.modules or 'deepspeed' in sys.modules))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout + found.stderr
    assert "cannot tell" in found.stdout
    assert "checkpoint snapshot" in found.stdout


@pytest.mark.parametrize(
    "stage",
    ["train-teacher", "train-judge", pytest.param("train-tokenizer", marks=pytest.mark.slow), "train-generator"],
)
def test_every_stage_that_trains_is_predicted(stage: str) -> None:
    found = plan("--stage", stage, *TWO_GPUS)
    assert found["time"]["predicted"] is True
    assert [part["phase"] for part in found["time"]["phases"]] == ["forward", "backward", "update", "communication"]
    assert (found["time"]["mfu"], found["device"]) == (None, "H100")


def test_a_prediction_is_labelled_in_words_and_says_what_it_takes_of_the_peaks() -> None:
    arguments = [*TWO_GPUS, "--matmul-share", "0.5", "--memory-share", "0.7"]
    words = CliRunner().invoke(app, ["plan", QUICKSTART, *arguments], env={"COLUMNS": "200"}).output
    assert "step, predicted" in words
    assert "0.5 x 989.4 TFLOP/s in 16 bits" in words
    assert "0.7 x 3.35 TB/s" in words
    assert "MFU" not in words


def test_memory_parts_add_up_to_the_sum() -> None:
    found = plan("--device", "A10", "--gpus-per-node", "2", "--nodes", "1")
    assert found["fit"]["needed"] - sum(found["memory"]["device"].values()) == 1_500_000_000
    assert found["fit"]["fits"] is True


def test_samples_give_epochs_and_reads() -> None:
    found = plan(*TWO_GPUS, "--samples", "9600")
    generator = load_config(QUICKSTART).generator
    assert generator is not None
    trainer = generator.trainer
    assert found["epochs"] == pytest.approx(trainer.steps * trainer.global_batch / 9600)
    assert found["reading"]["bytes"] > 0


@pytest.mark.slow
def test_without_a_manifest_and_samples_nothing_is_made_up() -> None:
    found = plan()
    assert (found["epochs"], found["reading"]) == (None, None)


@pytest.mark.slow
def test_the_number_of_classes_is_that_of_the_data_and_is_said_to_be_assumed_before_they_are_there(
    tmp_path: Path,
) -> None:
    assumed, given = plan("generator.model.num_classes=null"), plan("generator.model.num_classes=1000")
    assert assumed["note"] == "the data are not there yet: generator.model.num_classes is taken to be 1000"
    assert (assumed["parameters"], given["note"]) == (given["parameters"], None)
    ImageManifest.build(samples=0, classes=("a", "b"), split="train", shards=()).write(str(tmp_path / "train"))
    known, two = plan(f"data.images={tmp_path}"), plan("generator.model.num_classes=2")
    assert (known["parameters"], known["note"]) == (two["parameters"], None)
    assert two["parameters"] < given["parameters"]


def test_an_unknown_device_is_noted() -> None:
    found = plan("--device", "Abacus 3000", "--nodes", "1", "--gpus-per-node", "2")
    assert "Abacus 3000 is not in the table" in found["note"]
    assert found["time"]["hours"] is None


def test_the_most_that_distances_may_add_to_a_training_is_said() -> None:
    asked = [
        "generator.validation.distance={samples: 64, every: 150, most_seconds: 90}",
        "generator.trainer.steps=1000",
    ]
    config = load_config(QUICKSTART, asked)
    assert planning.note_of(config, "train-generator", None, None) == (
        "generator.validation.distance is not counted: 7 distances, for each of which all workers wait some 90 s at "
        "most, 10m 30s in all"
    )
    assert planning.note_of(config, "train-tokenizer", None, None) is None


def test_a_measured_run_stands_beside_its_plan(tmp_path: Path) -> None:
    folder = tmp_path / "generator"
    folder.mkdir()
    record = {"step": 50, "step_seconds": 0.25, "samples_per_second": 256.0, "skipped_steps": 0}
    (folder / "metrics.jsonl").write_text(json.dumps(record) + "\n")
    found = plan("--measured", str(tmp_path))
    assert found["measured"]["step_seconds"] == 0.25
    assert found["time"]["samples_per_second"] == 256.0  # what was measured is taken where nothing is given
    words = CliRunner().invoke(app, ["plan", QUICKSTART, "--measured", str(tmp_path), "--throughput", "200"])
    assert "after the run" in words.output


def test_a_batch_that_does_not_divide_is_refused() -> None:
    with pytest.raises(UsageError, match="no multiple of the 24 workers"):
        plan("--nodes", "3")


_ODD = [
    *[
        ("--throughput", "inf"),
        ("--throughput", "nan"),
        ("--matmul-share", "nan"),
        ("--bandwidth", "inf"),
        ("--mtbf-hours", "nan"),
    ],
    *[("--price", "inf"), ("--nodes", "99999999999"), ("--samples", "99999999999999999999"), ("--host-memory", "nan")],
]


@pytest.mark.parametrize("option", [("--matmul-share", "1.5"), ("--throughput", "0"), ("--bandwidth", "0"), *_ODD])
def test_a_figure_that_cannot_be_is_refused(option: tuple[str, str]) -> None:
    result = CliRunner().invoke(app, ["plan", QUICKSTART, *option])
    assert result.exit_code == 2
    assert option[0] in result.output


@pytest.mark.parametrize("depth", [16, 17, 20, 24, 30])
@pytest.mark.parametrize("gpus", [8, 64, 512])
def test_every_generator_goes_with_every_cluster(tmp_path: Path, depth: int, gpus: int) -> None:
    files = [str(RECIPES / f"generator-d{depth}.yaml"), str(RECIPES / f"gpus-{gpus}.yaml")]
    (tmp_path / "both.yaml").write_text(f"extends: {json.dumps(files)}\n")
    config = load_config(tmp_path / "both.yaml")
    assert config.generator.model.width == 64 * depth
    assert config.cluster.workers == gpus
    config.generator.trainer.split_over(gpus)
    config.tokenizer.trainer.split_over(gpus)


def sizes(*arguments: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = plan(*arguments)["sizes"]  # type: ignore[assignment]
    return found


@pytest.mark.slow
def test_several_sizes_are_planned_at_once_with_the_price_of_a_targets_nodes(tmp_path: Path) -> None:
    target = tmp_path / "big.yaml"
    target.write_text("kind: ray\naddress: http://head:8265\ngpus_per_node: 2\ndevice: H100 SXM\nprice_per_hour: 30\n")
    found = sizes("--workers", "2,1,4,5", "--target", str(target), "cluster.gpus_per_worker=1")
    assert [(each["workers"], each["nodes"]) for each in found] == [(1, 1), (2, 1), (4, 2), (5, 3)]
    assert found[0]["hours"] > found[1]["hours"] > 0
    assert found[2]["price"] == pytest.approx(found[2]["hours"] * 2 * 30)
    assert "do not fill nodes of 2" in found[3]["known_from"]


@pytest.mark.slow
def test_several_sizes_take_the_rate_of_the_run_itself_where_it_has_one(tmp_path: Path) -> None:
    folder = tmp_path / "generator"
    folder.mkdir()
    (folder / "events.jsonl").write_text('{"event": "start", "step": 0, "workers": 2}\n')
    (folder / "metrics.jsonl").write_text('{"step": 5, "samples_per_second": 10.0}\n')
    found = sizes("--workers", "2,4", f"run={tmp_path}")
    assert [each["samples_per_second"] for each in found] == pytest.approx([10.0, 20.0])
    assert found[0]["known_from"].endswith("measured in this run with 2 workers")
    assert "communication is not counted" in found[1]["known_from"]


@pytest.mark.parametrize("more", [(), ("--workers", "1,2")], ids=["one size", "several"])
def test_a_bucket_that_does_not_answer_is_asked_once_and_the_plan_says_what_it_goes_by(
    monkeypatch: pytest.MonkeyPatch, more: tuple[str, ...]
) -> None:
    monkeypatch.setattr(planning, "_silent", {})
    monkeypatch.setattr(planning, "_ASK_SECONDS", 0.0)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "none")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    given = [f"inputs.{name}=s3://closed/run" for name in ("images", "tokens", "tokenizer")]
    before = storage.requests().total()
    found = plan("run=s3://closed/own", *given, *more)
    assert storage.requests().total() - before == 1
    assert "inputs.tokenizer, s3://closed/run, cannot be read from here: its sizes are those of" in found["note"]


@pytest.mark.parametrize("text", ["", "0", "8,", "a", "-1", "8;16", ",".join(map(str, range(1, 18)))])
def test_sizes_that_make_no_sense_are_refused(text: str) -> None:
    result = CliRunner().invoke(app, ["plan", QUICKSTART, "--workers", text])
    assert result.exit_code == 2
