"""Samples and evaluations: checked before anything is loaded, of classes that exist, recorded beside what they made."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cluster.config.loading import load_config
from cluster.config.run import RunConfig
from cluster.stages import evaluating, results
from data_pipeline import storage
from data_pipeline.errors import UsageError
from data_pipeline.shards.manifest import ImageManifest
from tests.cluster.finished_run import write_finished, write_generator, write_tokenizer
from trainer.evaluation.naming.numbers import read_numbers
from trainer.evaluation.tokenizers import tokenizer_record
from trainer.evaluation.tokenizers.tokenizer_record import LabelledPixels

pytestmark = pytest.mark.xdist_group("results")

JUDGE = "evaluation.judge={model: {image_size: 16, widths: [8]}, trainer: {steps: 2, global_batch: 8}}"
Configure = Callable[..., RunConfig]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_finished(tmp_path_factory.mktemp("finished"))


@pytest.fixture
def run(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "runs/small"


@pytest.fixture
def configure(run: Path) -> Configure:
    """The config of the run, with overrides."""
    assert run.exists()
    return lambda *overrides: load_config(
        "small.yaml", ["sampling.samples_per_class=2", "evaluation.samples=4", *overrides]
    )


def nothing_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*_: object) -> None:
        raise AssertionError("a network was loaded")

    monkeypatch.setattr(results.Sampler, "load", load)


def record(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_only_classes_that_the_data_had_are_drawn_and_named(configure: Configure, run: Path) -> None:
    assert results.sample(configure()) == 4
    found = record(run / "samples/samples.json")
    assert found["class_names"] == ["class0", "class1"]
    assert found["files"] == {"samples/grid.png": digest(run / "samples/grid.png")}


@pytest.mark.parametrize("label", [2, 4, 17])
def test_a_class_that_the_data_had_not_is_refused_before_anything_is_loaded(
    configure: Configure, run: Path, monkeypatch: pytest.MonkeyPatch, label: int
) -> None:
    nothing_loaded(monkeypatch)
    with pytest.raises(UsageError, match=r"sampling\.classes: .* not among the generator's classes 0 to 1"):
        results.sample(configure(f"sampling.classes=[0, {label}]"))
    assert not (run / "samples").exists()


@pytest.mark.parametrize("command", ["sample", pytest.param("evaluate", marks=pytest.mark.slow)])
def test_a_picture_is_never_beside_the_record_of_another(
    configure: Configure, run: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    def go(*overrides: str) -> None:
        config = configure(*overrides)
        results.sample(config) if command == "sample" else evaluating.evaluate(config)

    class Killed(BaseException):
        pass

    write_json = storage.write_json

    def killed(uri: str, record: object) -> None:
        if uri.endswith(where.name):
            raise Killed
        write_json(uri, record)

    where = run / ("samples/samples.json" if command == "sample" else "evaluation.json")
    go()
    assert record(where)["sampling"]["guidance"] == 2.0
    monkeypatch.setattr(storage, "write_json", killed)
    with pytest.raises(Killed):
        go("sampling.guidance=3")
    assert not where.exists()


def test_an_evaluation_judges_classes_that_exist_and_says_what_it_was_asked(configure: Configure, run: Path) -> None:
    evaluating.evaluate(configure(JUDGE, "sampling.guidance=3"))
    found = record(run / "evaluation.json")
    assert found["class_names"] == ["class0", "class1"]
    assert len(found["generation"]["class_accuracy_per_class"]) == 2
    assert found["sampling"]["guidance"] == 3
    assert found["tokenizer"] == {"groups": [1, 4], "vocabularies": [16, 16], "fold_names": ["detail", "semantic"]}
    assert found["files"] == {"samples/reconstructions.png": digest(run / "samples/reconstructions.png")}
    assert {"generator", "tokenizer", "judge", "tokens", "real_images"} <= found["fingerprints"].keys()


def test_an_evaluation_says_what_the_bits_are_worth_without_the_tokenizer(configure: Configure, run: Path) -> None:
    """2 groups of 1 and 4 positions, 2 folds of 16 codes: 8 and 40 bits, which are 1 and 5 coefficients."""
    evaluating.evaluate(configure())
    found = record(run / "evaluation.json")
    training = LabelledPixels.load(str(run / "images/train"), 16, "crop", 100)
    held_out = training.first(4)  # none are held out
    baselines = found["baselines"]
    assert [(each["bits"], each["coefficients"]) for each in baselines["components"]] == [(8, 1), (40, 5)]
    mean = training.pixels_NHWC.mean(0) / 127.5 - 1
    held_out_unit = held_out.pixels_NHWC / 127.5 - 1
    assert baselines["mean_image"] == pytest.approx(((held_out_unit - mean) ** 2).mean())
    flat = training.pixels_NHWC.reshape(len(training.label_N), -1) / 127.5 - 1
    axes = np.linalg.svd(flat - flat.mean(0), full_matrices=False)[2][:1]
    centred = held_out_unit.reshape(len(held_out_unit), -1) - flat.mean(0)
    plain = ((centred - centred @ axes.T @ axes) ** 2).mean()
    assert baselines["components"][0]["mse"] == pytest.approx(plain, rel=0.02)
    assert [len(found["reconstruction"][f"{name}_of_prefixes"]) for name in ("mse", "psnr", "ssim")] == [2, 2, 2]
    assert np.shape(found["tokens"]["perplexity_of_positions"]) == (2, 5)
    assert [each["folds"] for each in found["tokens"]["mutual_information"]] == [[0, 1]]
    assert found["probe"]["branches"].keys() == {"detail", "semantic"}
    assert found["probe"]["images"] == len(held_out.label_N)
    assert found["probe"]["training_images"] == len(training.label_N)


@pytest.mark.slow
def test_baselines_of_the_same_images_and_bits_are_not_computed_again(
    configure: Configure, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluating.evaluate(configure())
    first = record(run / "evaluation.json")["baselines"]
    calls: list[object] = []
    make = tokenizer_record.baseline_record
    monkeypatch.setattr(tokenizer_record, "baseline_record", lambda *given: calls.append(given) or make(*given))
    evaluating.evaluate(configure())
    assert record(run / "evaluation.json")["baselines"] == first
    assert not calls
    evaluating.evaluate(configure("evaluation.samples=3"))
    assert len(calls) == 1
    assert record(run / "evaluation.json")["baselines"] != first
    monkeypatch.setattr(tokenizer_record, "MOST_BYTES", 3 * 16 * 16 * 2)
    evaluating.evaluate(configure())  # two images of each set are all that memory is given for
    assert record(run / "evaluation.json")["baselines"]["training_images"] == 2
    assert record(run / "evaluation.json")["probe"]["images"] == 2
    evaluating.evaluate(configure("evaluation.baselines=false", "evaluation.probe_images=0"))
    assert [record(run / "evaluation.json")[name] for name in ("baselines", "probe")] == [None, None]


def test_a_class_of_which_no_sample_is_judged_has_no_accuracy(configure: Configure, run: Path) -> None:
    evaluating.evaluate(configure(JUDGE, "evaluation.samples=1"))
    assert record(run / "evaluation.json")["generation"]["class_accuracy_per_class"][1] is None


def test_the_size_of_the_networks_is_theirs_and_not_that_of_the_config(configure: Configure, run: Path) -> None:
    config = configure("tokenizer.model.image_size=64", "tokenizer.model.scales=[1, 2, 8]")
    evaluating.evaluate(config)
    assert record(run / "evaluation.json")["tokenizer"]["groups"] == [1, 4]


def refused(configure: Configure, run: Path, monkeypatch: pytest.MonkeyPatch, words: str, *overrides: str) -> None:
    nothing_loaded(monkeypatch)
    with pytest.raises(UsageError, match=words):
        evaluating.evaluate(configure(*overrides))
    assert not (run / "evaluation.json").exists()
    assert not (run / "samples").exists()


def test_a_judge_that_is_missing_is_found_before_anything_is_loaded(
    configure: Configure, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.rmtree(run / "judge")
    refused(configure, run, monkeypatch, "no finished judge", JUDGE)


def test_tokens_of_another_tokenizer_are_not_judged(
    configure: Configure, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_generator(run, write_tokenizer(run, 9), ("class0", "class1"))
    refused(configure, run, monkeypatch, "the tokens were made by tokenizer")


def test_real_images_of_other_classes_are_not_compared(
    configure: Configure, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = ImageManifest.read(str(run / "images/train"))
    shutil.rmtree(run / "images")
    ImageManifest.build(samples=0, classes=("class0", "dog"), split="train", shards=()).write(str(run / "images/train"))
    assert images.classes == ("class0", "class1")
    refused(configure, run, monkeypatch, r"other classes than the generator .*label 1 is 'dog' and not 'class1'")


def test_an_edited_card_that_names_more_classes_than_there_are_is_refused(
    configure: Configure, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = run / "generator/export/card.json"
    path.write_text(json.dumps(record(path) | {"classes": [f"c{n}" for n in range(6)]}))
    nothing_loaded(monkeypatch)
    with pytest.raises(UsageError, match=r"names 6 classes, but the network knows 5"):
        results.sample(configure())


def test_linear_probes_are_numbers_with_the_names_that_a_tokenizers_evaluation_gives_them(
    configure: Configure, run: Path
) -> None:
    evaluating.evaluate(configure())
    found = record(run / "evaluation.json")
    probes = [each for each in read_numbers(str(run / "evaluation.json")) if each.metric == "linear_probe_accuracy"]

    assert [each.measured_by["protocol"]["feature"] for each in probes][:2] == ["detail", "semantic"]
    assert [each.value for each in probes] == [*found["probe"]["branches"].values(), found["probe"]["pixels"]]
    images = ImageManifest.read(str(run / "images/train"))
    assert probes[0].measured_by["training"] == {"images": images.fingerprint, "count": images.samples}
    assert probes[0].measured_of["images"] == {"images": images.fingerprint, "count": 4}
    assert probes[0].plus_minus == pytest.approx((probes[0].value * (1 - probes[0].value) / 4) ** 0.5)
