"""`evaluation.memorization`: the nearest training images of samples, measured, named and pictured."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cluster.config.loading import load_config
from cluster.stages.evaluating import evaluate
from cluster.stages.evaluation_inputs import open_slots_of
from cluster.stages.measuring import Measuring
from cluster.stages.memorization import Samples, memorization, memorization_network
from data_pipeline.errors import UsageError
from tests.cluster.finished_run import write_finished
from trainer.config.evaluation import MemorizationConfig
from trainer.config.feature_networks import ClassifierNetwork
from trainer.evaluation.naming.numbers import read_numbers
from trainer.evaluation.networks.network_rows import NetworkRows, Slot
from trainer.evaluation.set_numbers import Naming
from trainer.evaluation.sets import NpzSet, ShardSet
from trainer.report import build_report, collect

pytestmark = pytest.mark.xdist_group("memorization")

CPU = torch.device("cpu")
JUDGE = "evaluation.judge={model: {image_size: 16, widths: [8]}, trainer: {steps: 2, global_batch: 8}}"
ASKED = "evaluation.memorization={samples: 3, shown: 2, network: judge}"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of random weights that holds its images out, too."""
    folder = write_finished(tmp_path_factory.mktemp("memorization"))
    shutil.copytree(folder / "runs/small/images/train", folder / "runs/small/images/validation")
    return folder


@pytest.fixture
def run(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "runs/small"


def judge_of(run: Path) -> Slot:
    (slot,) = open_slots_of({"judge": ClassifierNetwork(kind="classifier", uri=str(run / "judge/export"))}, CPU)
    return slot


def test_a_planted_copy_of_a_training_image_is_found_and_pictured(run: Path, tmp_path: Path) -> None:
    from PIL import Image

    training = ShardSet.of(str(run / "images/train"), 16, "crop", None)
    copied, _ = training.open(CPU).read(5, 6)
    pixels = np.random.default_rng(0).integers(0, 256, (4, 16, 16, 3), dtype=np.uint8)
    pixels[2] = copied[0]
    np.savez(tmp_path / "drawn.npz", arr_0=pixels)
    drawn, slot, measuring = (
        NpzSet.of(str(tmp_path / "drawn.npz")),
        judge_of(run),
        Measuring(str(tmp_path / "rows"), CPU),
    )
    rows = measuring.rows("samples", drawn, NetworkRows((slot,)))
    samples = Samples(drawn.open(CPU), rows, Naming({"generator": {"sha256": "ab"}}, "floor"))
    held_out = training, measuring.rows("real", training, NetworkRows((slot,)))

    found = memorization(MemorizationConfig(shown=1, network="judge"), slot, measuring, samples, held_out, training)

    assert found.record["closest"] == [{"sample": 2, "training_image": 5, "distance": 0.0}]
    assert found.number.value == 0.25  # of four samples, one is as near as a held-out image, which are copies here
    assert found.number.measured_by["reference"] == {"images": training.fingerprint, "count": training.count}
    assert found.number.measured_by["rounding"] == "floor"
    sheet = np.asarray(Image.open(io.BytesIO(found.png)))
    big = copied[0].repeat(6, axis=0).repeat(6, axis=1)
    places = [x for x in range(sheet.shape[1] - 96) if any(is_at(sheet, big, y, x) for y in range(len(sheet) - 96))]
    assert len(places) == 2  # the sample, and its nearest training image


def is_at(sheet: Any, picture: Any, y: int, x: int) -> bool:
    return bool((sheet[y, x] == picture[0, 0]).all() and (sheet[y : y + 96, x : x + 96] == picture).all())


@pytest.mark.slow
def test_an_evaluation_names_the_share_and_the_report_shows_it(run: Path) -> None:
    config = load_config("small.yaml", ["evaluation.samples=4", "data.validation_samples=4", JUDGE, ASKED])
    evaluate(config)

    number = next(each for each in read_numbers(str(run / "evaluation.json")) if each.metric == "memorized_share")
    assert (number.images, number.measured_by["network"]["name"]) == (3, "judge")
    assert number.measured_of["generator"]
    record = json.loads((run / "evaluation.json").read_text())
    assert record["memorization"]["share"] == number.value
    assert len(record["memorization"]["closest"]) == 2
    html = build_report(collect(str(run)))
    assert "Nearest training images" in html
    assert "Share of images by distance from their nearest training image" in html
    assert "share of samples near a training image (judge)" in html


def test_without_held_out_images_it_is_refused(run: Path) -> None:
    config = load_config("small.yaml", [ASKED])
    with pytest.raises(UsageError, match=r"evaluation\.memorization: the run holds no images out"):
        memorization_network(config, [judge_of(run)], is_held_out=False)


def test_a_network_that_is_not_there_is_named_with_those_that_are(run: Path) -> None:
    config = load_config("small.yaml", ["evaluation.memorization={network: inception}"])
    with pytest.raises(UsageError, match=r"memorization\.network: inception is no network .*judge"):
        memorization_network(config, [judge_of(run)], is_held_out=True)
