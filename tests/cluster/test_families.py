"""A tokenizer and an order of another package go from images to samples without a line changed in foldtrain."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from data_pipeline.shards.manifest import TokenManifest
from data_pipeline.shards.token_archive import read_token_shard

ROOT = Path(__file__).parents[2]
TOY = ROOT / "tests/toy"
CODES = [7, 300, 70_000]
TRAINER = {"steps": 4, "global_batch": 8, "learning_rate": 0.01, "zero_stage": 1, "checkpoint_every": 2}


def write_config(folder: Path) -> Path:
    """Two classes of six images, dark and light, and a config of both toy kinds."""
    drawn = np.random.default_rng(0)
    for label, name in enumerate(("dark", "light")):
        (folder / "photos" / name).mkdir(parents=True)
        for number in range(6):
            pixels = drawn.integers(128 * label, 128 * label + 128, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / "photos" / name / f"{number}.png")
    config = {
        "run": "run",
        "data": {"source": {"kind": "folder", "path": "photos"}},
        "tokenizer": {
            "model": {"kind": "toy-1d", "image_size": 8},
            "loss": {},
            "dead_code_steps": 2,
            "trainer": TRAINER,
        },
        "generator": {"model": {"kind": "toy-raster"}, "trainer": TRAINER | {"ema_decay": 0.9}},
        "sampling": {"samples_per_class": 2, "batch": 4},
        "evaluation": {"samples": 4},
        "cluster": {"workers": 1},
    }
    (folder / "toy.yaml").write_text(yaml.safe_dump(config))
    return folder / "toy.yaml"


def foldtrain(folder: Path, *arguments: str, toys: bool = True) -> subprocess.CompletedProcess[str]:
    paths = [str(ROOT)] + ([str(TOY)] if toys else [])
    return subprocess.run(
        [sys.executable, "-m", "foldtrain", *arguments],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(paths), "WANDB_MODE": "disabled"},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("toy")
    write_config(folder)
    done = foldtrain(folder, "quickstart", "toy.yaml")
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def read(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text())
    return found


@pytest.mark.slow
@pytest.mark.xdist_group("families")
class TestToys:
    def test_tokens_take_as_many_bits_as_the_largest_vocabulary_needs(self, run: Path) -> None:
        manifest = TokenManifest.read(str(run / "run/tokens"))
        assert manifest.layout.to_json() == {"groups": [5], "vocabularies": CODES}
        tokens_NWLF = read_token_shard(str(run / "run/tokens"), manifest.shards[0]).tokens_NWLF
        assert (tokens_NWLF.shape, tokens_NWLF.dtype) == ((12, 1, 5, 3), "uint32")
        assert (tokens_NWLF.max(axis=(0, 1, 2)) < CODES).all()
        assert tokens_NWLF[..., 2].max() > 65_535

    def test_images_are_drawn_and_judged(self, run: Path) -> None:
        evaluation = read(run / "run/evaluation.json")
        assert evaluation["reconstruction"]["prefixes"] == [5]
        assert [len(shares) for shares in evaluation["codebook_use"]] == [1, 1, 1]
        with Image.open(run / "run/samples/grid.png") as grid:
            assert grid.width > 2 * 8
        assert (run / "run/report.html").exists()

    def test_the_generator_names_its_kind_and_layout_and_needs_no_sums(self, run: Path) -> None:
        config = read(run / "run/generator/export/card.json")["config"]
        assert config["generator"]["kind"] == "toy-raster"
        assert config["layout"] == {"groups": [5], "vocabularies": CODES}
        assert config["forcing_width"] is None

    def test_each_term_of_the_loss_is_recorded(self, run: Path) -> None:
        rows = [json.loads(line) for line in (run / "run/generator/metrics.jsonl").read_text().splitlines()]
        assert {"loss", "loss_group0_fold0", "loss_group0_fold2"} <= rows[-1].keys()

    def test_next_scale_refuses_such_tokens_with_the_reason(self, run: Path) -> None:
        model = "generator.model={kind: next-scale, depth: 1, width: 8, heads: 1}"
        done = foldtrain(
            run, "train-generator", "toy.yaml", "run=other", "inputs.tokenizer=run", "inputs.tokens=run", model
        )
        assert done.returncode == 2
        assert "predicts a scale from the sum of the scales before it" in done.stdout + done.stderr

    def test_a_teacher_is_refused_where_nothing_is_compared_with_it(self, run: Path) -> None:
        teacher = "teacher={model: {image_size: 8, widths: [4]}, trainer: {steps: 2, global_batch: 4}}"
        done = foldtrain(
            run,
            "train-tokenizer",
            "toy.yaml",
            "run=other",
            "inputs.images=run",
            teacher,
            "tokenizer.loss.semantic={weight: 1}",
        )
        assert done.returncode == 2
        assert "nothing that is compared with a teacher" in done.stdout + done.stderr

    def test_a_checkpoint_is_sampled_as_an_export_of_its_weights(self, run: Path) -> None:
        """Of a stage that need not have finished: its weights are those of the checkpoint, its card is made anew."""
        for name, which in (("export", []), ("last", ["last"]), ("four", ["4"]), ("two", ["2"])):
            chosen = [option for each in which for option in ("--checkpoint", each)]
            done = foldtrain(run, "sample", "run", "--out", f"drawn/{name}.npz", "--n", "8", "--seed", "1", *chosen)
            assert done.returncode == 0, done.stderr
        images = {path.stem: path.read_bytes() for path in (run / "drawn").glob("*.npz")}
        assert images["last"] == images["four"] == images["export"]
        assert images["two"] != images["export"]
        export, last = (read(run / f"drawn/{name}.sampling.json") for name in ("export", "last"))
        assert export["made_by"] == last["made_by"]
        assert (export["generator"]["checkpoint"], last["generator"]["checkpoint"]) == (None, 4)
        done = foldtrain(run, "sample", "run", "--out", "drawn/other", "--checkpoint", "3")
        assert done.returncode == 2
        assert "those of steps 2, 4" in " ".join(done.stderr.split())
        done = foldtrain(run, "sample", "run", "--out", "drawn/other", "--checkpoint", "best")
        assert "set generator.trainer.keep_best" in " ".join(done.stderr.split())

    def test_an_order_that_keeps_no_tokens_is_refused_a_reference(self, run: Path) -> None:
        picture = str(next((run / "photos/dark").iterdir()))
        done = foldtrain(run, "sample", "run", "--out", "kept", "--reference", picture, "--keep", "fold 2")
        assert done.returncode == 2
        assert "a toy-raster generator keeps no tokens" in " ".join(done.stderr.split())

    def test_a_run_of_a_kind_that_is_not_installed_says_which_there_are(self, run: Path) -> None:
        done = foldtrain(run, "train-generator", "toy.yaml", toys=False)
        assert done.returncode == 2
        assert "toy-raster" in done.stderr
