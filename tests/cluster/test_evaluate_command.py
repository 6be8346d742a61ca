"""`foldtrain evaluate` of anybody's images and tokenizers, and of many settings of sampling."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from cluster.cli import app
from cluster.config.loading import load_config
from cluster.stages import sweeping
from cluster.stages.sweeping import SweepPoint, best_of, parse_sweep
from data_pipeline.errors import UsageError
from data_pipeline.shards.tokenizers import load_tokenizer
from data_pipeline.shards.weights import write_weights
from model.classifier import Classifier
from model.config import ClassifierConfig
from tests.cluster.finished_run import write_finished
from tests.cluster.random_run import write_run
from trainer.evaluation.naming.numbers import Number, read_numbers

pytestmark = pytest.mark.xdist_group("evaluate-command")
Pixels = np.ndarray[Any, np.dtype[np.uint8]]


def foldtrain(*arguments: object) -> str:
    found = CliRunner().invoke(app, [str(each) for each in arguments], catch_exceptions=False)
    assert found.exit_code == 0, found.output
    return found.output


def draw(seed: int, count: int = 70) -> Pixels:
    return np.random.default_rng(seed).integers(0, 256, (count, 16, 16, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of random weights, a classifier, two sets of images, and grey ones of three classes."""
    folder = tmp_path_factory.mktemp("evaluate")
    write_run(folder / "run")
    torch.manual_seed(0)
    config = ClassifierConfig(image_size=16, num_classes=3, widths=(8,))
    files = {"model": Classifier(config).state_dict()}
    write_weights(str(folder / "judge"), "judge", config.model_dump(mode="json"), files, {}, classes=("a", "b", "c"))
    np.savez(folder / "real.npz", arr_0=draw(0))
    np.savez(folder / "other.npz", arr_0=draw(1, 66) // 2)
    for name, count in (("grey", 60), ("more-grey", 90)):
        class_N = np.arange(count) % 3
        level_N = (90 * class_N + np.arange(count) % 7).astype(np.uint8)
        np.savez(folder / f"{name}.npz", arr_0=np.tile(level_N[:, None, None, None], (1, 16, 16, 3)), arr_1=class_N)
    return folder


def features(place: Path, pixels: Pixels) -> np.ndarray[Any, np.dtype[np.float64]]:
    """What the classifier says, by hand."""
    torch.manual_seed(0)
    network = Classifier(ClassifierConfig(image_size=16, num_classes=3, widths=(8,))).eval()
    image_NCHW = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1
    with torch.no_grad():
        found: np.ndarray[Any, np.dtype[np.float64]] = network.features(image_NCHW).double().numpy()
    return found


def distance_on_paper(first_ND: Any, second_ND: Any) -> float:
    one, other = np.cov(first_ND, rowvar=False), np.cov(second_ND, rowvar=False)
    shift = first_ND.mean(0) - second_ND.mean(0)
    return float(shift @ shift + np.trace(one + other) - 2 * np.sqrt(np.linalg.eigvals(one @ other).real.clip(0)).sum())


def test_images_are_compared_with_others(place: Path, tmp_path: Path) -> None:
    network = f"classifier:{place}/judge"
    output = foldtrain(
        *("evaluate", "images", place / "other.npz", "--reference", place / "real.npz"),
        *("--network", network, "--out", tmp_path / "out"),
    )

    number, *_ = read_numbers(str(tmp_path / "out/evaluation.json"))
    expected = distance_on_paper(features(place, draw(1, 66) // 2), features(place, draw(0)))
    assert number.metric == "frechet_distance"
    assert number.value == pytest.approx(expected, rel=1e-4)
    assert number.images == 66
    assert number.measured_by["reference"]["kind"] == "npz"
    assert "Fréchet distance (judge)" in output
    assert "Fréchet distance (judge)" in (tmp_path / "out/evaluation.html").read_text()


@pytest.mark.parametrize("drawn", ["drawn", "drawn.npz"])
def test_samples_carry_what_made_them(place: Path, tmp_path: Path, drawn: str) -> None:
    foldtrain(
        *("sample", place / "run", "--n", 20, "--seed", 5, "--guidance", 3, "--rounding", "floor"),
        *("--out", tmp_path / drawn),
    )
    foldtrain(
        *("evaluate", "images", tmp_path / drawn, "--reference", place / "real.npz"),
        *("--network", f"classifier:{place}/judge", "--out", tmp_path / "out"),
    )

    number, *_ = read_numbers(str(tmp_path / "out/evaluation.json"))
    assert number.measured_of["seed"] == 5
    assert number.measured_of["sampling"]["guidance"] == 3
    assert number.measured_of["weights"] == "ema"
    assert number.measured_by["rounding"] == "floor"
    assert "rounding" not in number.measured_of


def measure(place: Path, out: Path, *arguments: object, images: str = "real") -> tuple[Number, ...]:
    foldtrain("evaluate", "tokenizer", place / "run", "--images", place / f"{images}.npz", "--out", out, *arguments)
    return read_numbers(str(out / "evaluation.json"))


def errors_of(numbers: tuple[Number, ...]) -> dict[float | None, list[float]]:
    """Squared errors at each prefix, by alpha; None for the images' own tokens."""
    found: dict[float | None, list[float]] = {}
    for number in numbers:
        if number.metric == "mse":
            found.setdefault(number.measured_of.get("perturbation", {}).get("alpha"), []).append(number.value)
    return found


def test_a_tokenizer_is_measured_on_any_images(place: Path, tmp_path: Path) -> None:
    numbers = measure(place, tmp_path, "--network", f"classifier:{place}/judge")

    assert {each.metric for each in numbers} >= {"frechet_distance", "mse", "psnr", "ssim", "code_use", "dead_codes"}
    assert [each.measured_of["keep"] for each in numbers if each.metric == "mse"] == [1, 5]
    assert "Fréchet distance (judge) of reconstructions" in (tmp_path / "evaluation.html").read_text()


def test_tokens_are_perturbed_at_each_alpha_beside_the_images_own(place: Path, tmp_path: Path) -> None:
    numbers = measure(place, tmp_path, "--perturb", "0,1:8:3")

    perturbed = [each.measured_of["perturbation"] for each in numbers if "perturbation" in each.measured_of]
    assert {"alpha": 1.0, "delta": 8, "seed": 3} in perturbed
    errors = errors_of(numbers)
    assert errors.keys() == {None, 0.0, 1.0}
    assert errors[0.0] == errors[None]
    assert errors[1.0] != errors[None]
    assert "squared error by perturbed tokens" in (tmp_path / "perturbation.svg").read_text()


def test_a_further_part_goes_on_from_the_rows_that_are_there(place: Path, tmp_path: Path) -> None:
    measure(place, tmp_path)
    (part,) = tmp_path.glob("reconstructions-*/parts/*")
    before = part.stat().st_mtime_ns

    errors = errors_of(measure(place, tmp_path, "--perturb", "1:8"))

    assert part.stat().st_mtime_ns == before
    assert errors.keys() == {None, 1.0}


def test_the_distance_of_a_prefix_is_of_what_it_gives(place: Path, tmp_path: Path) -> None:
    numbers = measure(place, tmp_path, "--network", f"classifier:{place}/judge", "--prefixes", "--resamples", 8)

    distances = [each for each in numbers if each.metric == "frechet_distance"]
    assert [each.measured_of.get("keep") for each in distances] == [None, 1]
    protocol = {"standard_error": "bootstrap, 8 resamples of 20 blocks"}
    assert all(each.measured_by["protocol"] == protocol for each in distances)
    tokenizer, _ = load_tokenizer(f"{place}/run/tokenizer/export", torch.device("cpu"))
    image_NCHW = torch.from_numpy(draw(0)).permute(0, 3, 1, 2).float() / 127.5 - 1
    with torch.inference_mode():
        made_NCHW = tokenizer.detokenize(tokenizer.tokenize(image_NCHW), 1)
    made = ((made_NCHW.clamp(-1, 1) + 1) * 127.5 + 0.5).floor().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    expected = distance_on_paper(features(place, made), features(place, draw(0)))
    assert distances[1].value == pytest.approx(expected, rel=1e-3)


def test_probes_of_branches_and_pixels_are_trained_on_other_images(place: Path, tmp_path: Path) -> None:
    numbers = measure(place, tmp_path, "--probe", place / "more-grey.npz", images="grey")

    probes = [each for each in numbers if each.metric == "linear_probe_accuracy"]
    protocols = {each.measured_by["protocol"]["feature"]: each for each in probes}
    assert protocols.keys() == {"detail", "semantic", "pixels"}
    assert protocols["pixels"].value == 1, "classes are levels of grey"
    assert protocols["detail"].images == 60
    assert protocols["detail"].measured_by["protocol"]["training_images"] == 90
    assert protocols["detail"].measured_by["training"]["count"] == 90


def test_bits_are_compared_with_principal_components_and_jpeg(place: Path, tmp_path: Path) -> None:
    numbers = measure(place, tmp_path, "--baselines", place / "more-grey.npz", images="grey")

    found = json.loads((tmp_path / "evaluation.json").read_text())["rate_distortion"]
    tokens, components, jpeg = found["curves"]
    assert [curve["name"] for curve in found["curves"]] == ["tokenizer", "principal components", "JPEG"]
    assert [(point["bits"], point["mse"]) for point in tokens["points"]] == list(
        zip((8, 40), errors_of(numbers)[None], strict=True)
    ), "4 bits of each of two branches at one position, and at five"
    assert components["points"][0]["bits"] == 8
    assert components["points"][0]["mse"] <= (186 / 127.5 / 255 / 2) ** 2, "grey of 186 levels, at the nearest of 256"
    assert [point["budget"] for point in jpeg["points"]] == [8, 40, 80, 160], "twice and four times, too"
    assert found["networks"] == {}
    assert "principal components" in (tmp_path / "rate-distortion.svg").read_text()


def test_distances_of_prefixes_stand_beside_those_of_components_and_jpeg(place: Path, tmp_path: Path) -> None:
    by_judge = ("--network", f"classifier:{place}/judge", "--prefixes")
    numbers = measure(place, tmp_path, "--baselines", place / "more-grey.npz", *by_judge, images="grey")

    found = json.loads((tmp_path / "evaluation.json").read_text())["rate_distortion"]
    tokens, components, jpeg = ([point["distances"] for point in curve["points"]] for curve in found["curves"])
    assert found["networks"] == {"network0": "Fréchet distance (judge) of reconstructions"}
    own = {each.measured_of.get("keep"): each.value for each in numbers if each.metric == "frechet_distance"}
    assert tokens == [{"network0": own[1]}, {"network0": own[None]}]
    assert 0 <= components[-1]["network0"] < 1e-3, "grey has one component"
    assert components[-1]["network0"] < own[None]
    fits = [point["bits"] is not None for point in found["curves"][2]["points"]]
    assert [bool(each) for each in jpeg] == fits
    chart = (tmp_path / "rate-distortion.svg").read_text()
    assert "Fréchet distance (judge) of reconstructions by bits of an image" in chart


def test_text_is_read_in_reconstructions(place: Path, tmp_path: Path) -> None:
    numbers = measure(place, tmp_path, "--legibility")

    (read,) = [each.value for each in numbers if each.metric == "text_accuracy"]
    (original,) = [each.value for each in numbers if each.metric == "text_accuracy_of_originals"]
    assert read < original == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--prefixes"], "--prefixes: distances need a network"),
        (["--perturb", "0.5"], "--perturb 0.5: give ALPHA:DELTA"),
        (["--perturb", "0.5,2:8"], "alpha 2 is a share"),
        (["--perturb", "0.5:17"], "perturbation: "),
        (["--probe", "real.npz"], "image 0 has no class"),
        (["--baselines", "grey.npz"], "grey.npz: the training images are grey"),
    ],
)
def test_a_part_that_cannot_be_is_said(place: Path, tmp_path: Path, arguments: list[str], message: str) -> None:
    given = [str(place / each) if each.endswith(".npz") else each for each in arguments]
    with pytest.raises(UsageError, match=message):
        measure(place, tmp_path, *given)
    assert not (tmp_path / "evaluation.json").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--network", "inception:/no/file"], "/no/file"),
        (["--network", "oracle:x"], "--network oracle:x"),
        (["--network", "torchvision:mobilenet_v2"], "file"),
        ([], "nothing to compare images by"),
    ],
)
def test_a_network_that_cannot_be_is_said(place: Path, tmp_path: Path, arguments: list[str], message: str) -> None:
    given = ["evaluate", "images", place / "real.npz", "--reference", place / "real.npz", "--out", tmp_path, *arguments]
    with pytest.raises(UsageError, match=message):
        foldtrain(*given)
    assert not (tmp_path / "evaluation.json").exists()


def test_numbers_are_explained_or_made_not_both(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="one of the two"):
        foldtrain("evaluate", "--explain", tmp_path, "--sweep", "guidance=1:2:1")


def test_the_chain_of_a_number_is_explained(place: Path, tmp_path: Path) -> None:
    foldtrain("evaluate", "tokenizer", place / "run", "--images", place / "real.npz", "--out", tmp_path)

    output = foldtrain("evaluate", "--explain", tmp_path)

    assert "squared error" in output
    assert "encoder" in output


# -------------------------------------------------------------------------------------------------------------- sweeps


def test_a_sweep_is_all_combinations_and_ranges_have_their_ends() -> None:
    points = parse_sweep(["guidance=1:2:0.5", "top_k=0,50"])

    assert points[:3] == [
        {"guidance": 1.0, "top_k": 0},
        {"guidance": 1.0, "top_k": 50},
        {"guidance": 1.5, "top_k": 0},
    ]
    assert len(points) == 6
    assert points[-1] == {"guidance": 2.0, "top_k": 50}
    assert parse_sweep(["order.steps=8:4:-4"]) == [{"order.steps": 8.0}, {"order.steps": 4.0}]


@pytest.mark.parametrize(
    "given", [["guidance"], ["guidance=1:2:0"], ["guidance=1:2:0.3"], ["guidance=1:2"], ["a=1", "a=2"], ["a=1:9999:1"]]
)
def test_a_sweep_that_cannot_be_read_says_how_to_write_it(given: list[str]) -> None:
    with pytest.raises(UsageError, match=r"--sweep"):
        parse_sweep(given)


def test_the_best_setting_is_the_least_distance_and_the_largest_accuracy() -> None:
    values = [(1.0, 3.0, 0.5), (2.0, 2.0, 0.7), (3.0, 4.0, 0.9)]
    points = [
        SweepPoint({"guidance": at}, (Number("fid", distance, 9), Number("class_accuracy", share, 9)))
        for at, distance, share in values
    ]

    assert best_of(points) == {"FID": {"guidance": 2.0}, "class accuracy": {"guidance": 3.0}}


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_finished(tmp_path_factory.mktemp("swept"))


def test_a_sweep_goes_on_where_it_was_killed(swept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(swept, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    judge = "evaluation.judge={model: {image_size: 16, widths: [8]}, trainer: {steps: 2, global_batch: 8}}"
    config = load_config("small.yaml", ["evaluation.samples=4", judge])
    points = parse_sweep(["guidance=1:3:1"])
    drawn: list[float] = []
    load = sweeping.sampler_of

    def counted(each: Any, device: torch.device) -> Any:
        drawn.append(each.sampling.guidance)
        if len(drawn) == 3:
            raise KeyboardInterrupt
        return load(each, device)

    monkeypatch.setattr(sweeping, "sampler_of", counted)
    with pytest.raises(KeyboardInterrupt):
        sweeping.sweep(config, points)
    monkeypatch.setattr(sweeping, "drawn_numbers", _only_guidance_3)
    found = sweeping.sweep(config, points)

    assert [point.settings["guidance"] for point in found] == [1, 2, 3]
    (folder,) = (tmp_path / "runs/small/evaluation").glob("sweep-*")
    record = json.loads((folder / "sweep.json").read_text())
    assert [point["settings"] for point in record["points"]] == points
    assert record["best"]["class accuracy (judge)"] in points
    assert "best, at" in (folder / "class-accuracy--judge.svg").read_text()


def _only_guidance_3(drawn: Any, *others: Any) -> Any:
    from cluster.stages.evaluating import drawn_numbers

    assert drawn.work.config.guidance == 3, "the other settings are known"
    return drawn_numbers(drawn, *others)


def test_a_sweep_that_is_asked_for_other_metrics_is_measured_again(
    swept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(swept, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    given = ["evaluation.samples=5", f"evaluation.networks=[{{kind: classifier, uri: {tmp_path}/runs/small/judge}}]"]
    points = parse_sweep(["guidance=1"])

    with_both, without = (
        {number.metric for number in sweeping.sweep(load_config("small.yaml", [*given, *more]), points)[0].numbers}
        for more in ([], ["evaluation.precision_recall=false"])
    )

    assert with_both - without == {"precision", "recall"}
