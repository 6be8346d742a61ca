"""The whole path on real Ray and DeepSpeed; then each stage with its processes killed in the middle."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path

import numpy as np
import psutil
import pytest

from cluster.drills.victims import PATIENCE, Victim, run, started, wait_for
from data_pipeline.shards.token_dataset import TokenShards
from data_pipeline.shards.weights import read_weights, write_weights
from tests.cluster.drills import digests, write_config

pytestmark = [pytest.mark.drill, pytest.mark.xdist_group("drill")]

TOKENS = ("tokens-*.tar", "tokens-*.json", "shards.bin", "manifest.json")
FOLDERS = ("images", "teacher", "tokenizer", "tokens", "generator")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with small.yaml, and in run/ all that `foldtrain quickstart` makes of it, undisturbed."""
    folder = tmp_path_factory.mktemp("whole")
    run("quickstart", str(write_config(folder)))
    return folder


@pytest.fixture
def until(whole: Path, tmp_path: Path) -> object:
    """Arguments of a run of its own that has all stages before the given one."""

    def prepare(folder: str) -> tuple[str, ...]:
        for name in FOLDERS[: FOLDERS.index(folder)]:
            shutil.copytree(whole / "run" / name, tmp_path / name)
        return str(whole / "small.yaml"), f"run={tmp_path}", "tracking.wandb=off"

    return prepare


def test_the_whole_path_ends_in_samples_an_evaluation_and_a_report(whole: Path) -> None:
    result = whole / "run"
    evaluation = json.loads((result / "evaluation.json").read_text())
    assert evaluation["generation"]["samples"] == 40
    assert len(evaluation["codebook_use"]) == len(evaluation["codebook_use"][0]) == 2
    assert (result / "samples" / "grid.png").read_bytes().startswith(b"\x89PNG")
    assert "<html" in (result / "report.html").read_text()
    assert {path.name for path in (result / "tokenizer").iterdir()} >= {
        *("config.yaml", "environment.json", "lineage.json", "metrics.jsonl", "events.jsonl", "checkpoints", "export")
    }


def test_tokens_hold_every_training_image_once(whole: Path) -> None:
    tokens = TokenShards(str(whole / "run" / "tokens"))
    assert tokens.count == len(set(tokens.keys.tolist())) == 300
    assert tokens.tokens(np.arange(300)).max() < 32


def test_a_stage_that_is_finished_is_not_done_again(whole: Path) -> None:
    before = digests(whole / "run" / "tokens", *TOKENS)
    output = run("tokenize", str(whole / "small.yaml")) + run("train-tokenizer", str(whole / "small.yaml"))
    assert output.count("is finished already") == 2
    assert digests(whole / "run" / "tokens", *TOKENS) == before


def test_a_running_pool_is_scaled_and_interrupted(until, tmp_path: Path) -> None:
    arguments = until("tokens")
    with started("tokenize", *arguments, "tokens.min_workers=1", "tokens.max_workers=1") as driver:
        wait_for("a committed shard", lambda: list((tmp_path / "tokens").glob("tokens-*.json")), driver)
        (first,) = driver.workers("ShardWorker")
        first.suspend()  # it cannot be done with all shards before the second is there
        run("scale", str(tmp_path), "--workers", "2:3")
        wait_for("a word of it", lambda: "scaling to" in driver.output(), driver)
        first.resume()  # it makes the shards that it has in hand
        wait_for("a second actor", lambda: len(driver.workers("ShardWorker")) >= 2, driver)
        interrupt(driver, signal.SIGINT)
    with started("tokenize", *arguments) as driver:  # with the workers that were asked for last
        wait_for("an actor", lambda: driver.workers("ShardWorker"), driver)
        interrupt(driver, signal.SIGTERM)


def interrupt(driver: Victim, number: signal.Signals) -> None:
    """The command says that it goes on from there, and leaves no worker."""
    pool = driver.workers("ShardWorker")
    driver.send_signal(number)
    assert driver.wait(timeout=PATIENCE) == 128 + number, driver.output()
    gone, alive = psutil.wait_procs(pool, timeout=PATIENCE)
    assert (len(gone), alive) == (len(pool), [])
    assert "the same command goes on" in driver.output()


def test_a_generator_is_not_trained_on_tokens_of_another_tokenizer(whole: Path, tmp_path: Path, foldtrain) -> None:
    for name in ("images", "tokenizer", "tokens"):
        shutil.copytree(whole / "run" / name, tmp_path / name)
    export = str(tmp_path / "tokenizer" / "export")
    card, state = read_weights(export, "tokenizer")
    assert card.halves is not None
    changed = {"model": state, "ema": state | {"to_latent.bias": state["to_latent.bias"] + 1}}
    write_weights(export, "tokenizer", card.config, changed, card.lineage, halves=card.halves.names)
    done = foldtrain("train-generator", str(whole / "small.yaml"), f"run={tmp_path}")
    assert done.returncode == 2
    assert "were made by tokenizer" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_corrupt_image_shard_is_named_with_its_key(whole: Path, tmp_path: Path, foldtrain) -> None:
    shutil.copytree(whole / "run" / "images", tmp_path / "images")
    shard = next((tmp_path / "images" / "train").glob("*.tar"))
    data = bytearray(shard.read_bytes())
    data[600] ^= 0xFF
    shard.write_bytes(data)
    done = foldtrain("train-teacher", str(whole / "small.yaml"), f"run={tmp_path}")
    assert done.returncode == 2
    assert shard.name in done.stderr
    assert "sample" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_run_is_not_continued_with_other_settings(whole: Path, foldtrain) -> None:
    done = foldtrain("train-tokenizer", str(whole / "small.yaml"), "tokenizer.trainer.learning_rate=0.5")
    assert done.returncode == 2
    assert "section.trainer.learning_rate" in done.stderr
