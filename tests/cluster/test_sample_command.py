"""`foldtrain sample RUN --out …`: images of chosen classes as files, and a record of all that made them."""

from __future__ import annotations

import io
import json
import pickle
import shutil
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image
from typer.testing import CliRunner, Result

from cluster.cli import app
from cluster.pool import sampling
from data_pipeline import storage
from data_pipeline.errors import UsageError
from foldtrain import Generator
from tests.cluster.random_run import write_run
from tests.trainer.stand_in_graphs import stand_in_graphs
from trainer.evaluation.samples import sample_files

pytestmark = pytest.mark.xdist_group("sample_command")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("sampled") / "run")


def sample(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["sample", *map(str, arguments)], catch_exceptions=False)


def record(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def pixels_in(folder: Path) -> np.ndarray:
    files = sorted(path for path in folder.glob("*.png") if path.stem.isdigit())
    return np.stack([np.asarray(Image.open(file)) for file in files])


def test_images_are_those_of_python_with_the_settings_of_the_run_and_what_is_typed(run: Path, tmp_path: Path) -> None:
    done = sample(run, "--out", tmp_path / "out", "--class", "lion,3-4", "--n", 7, "--temperature", 0.8, "--top-k", 9)
    assert "7 images drawn" in done.stdout
    generator = Generator.load(str(run))
    expected = generator.sample([1, 3, 4, 1, 3, 4, 1], seed=3, guidance=1.5, temperature=0.8, top_k=9, cpu_batch=4)
    np.testing.assert_array_equal(pixels_in(tmp_path / "out"), expected)


def test_bytes_are_rounded_as_is_asked_for(run: Path, tmp_path: Path) -> None:
    for rounding in ("nearest", "floor"):
        sample(run, "--out", tmp_path / rounding, "--n", 4, "--rounding", rounding)
    nearest, floor = (pixels_in(tmp_path / rounding).astype(int) for rounding in ("nearest", "floor"))
    assert set(np.unique(nearest - floor)) == {0, 1}
    assert "rounding" not in record(tmp_path / "nearest/sampling.json")["made_by"]
    assert record(tmp_path / "floor/sampling.json")["made_by"]["rounding"] == "floor"


def test_an_image_of_no_class_is_drawn_without_one(run: Path, tmp_path: Path) -> None:
    sample(run, "--out", tmp_path / "out.npz", "--class", "none,lion", "--n", 3, "--guidance", 3)
    expected = Generator.load(str(run)).sample([None, 1, None], seed=3, guidance=3, cpu_batch=4)
    with np.load(tmp_path / "out.npz") as held:
        np.testing.assert_array_equal(held["arr_0"], expected)
        assert held["arr_1"].tolist() == [-1, 1, -1]


def test_the_record_says_all_that_made_them(run: Path, tmp_path: Path) -> None:
    sample(
        *(run, "--out", tmp_path / "out", "--class", "dog", "--n", 3, "--seed", 9, "--guidance", 2.5),
        *("--guidance-schedule", "cosine:3", "--weights", "raw"),
    )
    found = record(tmp_path / "out/sampling.json")
    made_by = found["made_by"]
    assert (made_by["seed"], made_by["weights"], made_by["device"]) == (9, "raw", "cpu")
    assert made_by["sampling"]["guidance"] == 2.5
    assert made_by["sampling"]["guidance_schedule"] == {"kind": "cosine", "power": 3.0}
    card = Generator.load(str(run)).card
    assert made_by["generator"] == card.fingerprint(ema=False)
    assert found["generator"]["lineage"] == card.lineage
    assert found["class_names"] == {"2": "dog"}
    assert found["plan"]["labels"] == [{"labels": [2], "images": 3}]
    assert found["files"] == {"grid.png": storage.sha256((tmp_path / "out/grid.png").read_bytes())}
    assert found["software"]["device"] == ["cpu"]
    part = record(tmp_path / "out/parts/00000.json")
    assert part["files"]["000001.png"]["sha256"] == storage.sha256((tmp_path / "out/000001.png").read_bytes())


def test_weights_as_trained_and_their_average_draw_other_images(run: Path, tmp_path: Path) -> None:
    for weights in ("raw", "ema"):
        sample(run, "--out", tmp_path / weights, "--class", "dog", "--n", 4, "--weights", weights)
    assert not np.array_equal(pixels_in(tmp_path / "raw"), pixels_in(tmp_path / "ema"))
    sample(run, "--out", tmp_path / "own", "--class", "dog", "--n", 4)
    np.testing.assert_array_equal(pixels_in(tmp_path / "own"), pixels_in(tmp_path / "ema"))


def test_an_average_that_was_not_kept_is_refused(run: Path, tmp_path: Path) -> None:
    other = tmp_path / "run"
    shutil.copytree(run, other)
    (other / "generator/export/ema.safetensors").unlink()
    card = other / "generator/export/card.json"
    found = record(card)
    del found["files"]["ema"]
    card.write_text(json.dumps(found))
    with pytest.raises(UsageError, match="--weights ema: no moving average was kept"):
        sample(other, "--out", tmp_path / "out", "--weights", "ema")
    assert "1 image drawn" in sample(other, "--out", tmp_path / "out", "--n", 1).stdout


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sample_files, "PART_IMAGES", {"png": 4, "npz": 4, "shards": 4})
    monkeypatch.setattr("cluster.stages.drawing.PART_IMAGES", {"png": 4, "npz": 4, "shards": 4})


def test_an_npz_has_the_layout_of_adm_and_the_same_images(run: Path, tmp_path: Path, small_parts: None) -> None:
    sample(run, "--out", tmp_path / "png", "--n", 11)
    sample(run, "--out", tmp_path / "all.npz", "--n", 11)
    with np.load(tmp_path / "all.npz") as held:
        assert held.files == ["arr_0", "arr_1", "sampling.json"]
        assert held["arr_0"].dtype == np.uint8
        np.testing.assert_array_equal(held["arr_0"], pixels_in(tmp_path / "png"))
        assert held["arr_1"].tolist() == [0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 0]
    assert {path.name for path in tmp_path.glob("all*")} == {"all.npz", "all.grid.png", "all.sampling.json"}


def test_shards_are_tars_of_images_and_labels(run: Path, tmp_path: Path, small_parts: None) -> None:
    sample(run, "--out", tmp_path / "png", "--n", 6)
    sample(run, "--out", tmp_path / "tars", "--n", 6, "--format", "shards")
    names, pictures = [], []
    for path in sorted((tmp_path / "tars").glob("*.tar")):
        with tarfile.open(path) as archive:
            for member in archive:
                data = archive.extractfile(member)
                assert data is not None
                names.append(member.name)
                content = data.read()
                pictures += [np.asarray(Image.open(io.BytesIO(content)))] if member.name.endswith(".png") else []
                if member.name == "000005.cls":
                    assert content == b"0"
    assert names == [f"{number:06d}.{end}" for number in range(6) for end in ("png", "cls")]
    np.testing.assert_array_equal(np.stack(pictures), pixels_in(tmp_path / "png"))


def hashes(folder: Path) -> dict[str, str]:
    return {path.name: storage.sha256(path.read_bytes()) for path in sorted(folder.glob("*")) if path.is_file()}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["png", "npz", "shards"])
def test_a_killed_command_goes_on_and_draws_nothing_twice(
    run: Path, tmp_path: Path, small_parts: None, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    class Killed(BaseException):
        pass

    end = ".npz" if kind == "npz" else ""
    (tmp_path / "whole").mkdir()
    (tmp_path / "parts").mkdir()
    asked = (run, "--n", 14, "--format", kind, "--out")
    sample(*asked, tmp_path / f"whole/out{end}")
    made: list[int] = []
    write = sample_files.write_part

    def killed_at_the_third(plan: Any, part: int, *rest: Any) -> Any:
        if len(made) == 2:
            raise Killed
        made.append(part)
        return write(plan, part, *rest)

    monkeypatch.setattr("cluster.pool.sampling.write_part", killed_at_the_third)
    with pytest.raises(Killed):
        sample(*asked, tmp_path / f"parts/out{end}")
    monkeypatch.setattr("cluster.pool.sampling.write_part", lambda *given: made.append(given[1]) or write(*given))
    assert "6 images drawn, 14 in all" in sample(*asked, tmp_path / f"parts/out{end}").stdout
    assert made == [0, 1, 2, 3]
    where = "" if kind == "npz" else "out"
    beside = {"progress.json"}
    one, other = (hashes(tmp_path / each / where) for each in ("whole", "parts"))
    assert {k: v for k, v in one.items() if k not in beside} == {k: v for k, v in other.items() if k not in beside}
    assert len(one) > 2
    assert "is finished already" in sample(*asked, tmp_path / f"parts/out{end}").stdout
    assert made == [0, 1, 2, 3]


def test_what_a_worker_is_sent_makes_the_files_of_the_command(
    run: Path, tmp_path: Path, small_parts: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[bytes] = []
    draw_all = sampling.draw_all
    monkeypatch.setattr(
        "cluster.stages.drawing.draw_all", lambda work, *rest: sent.append(pickle.dumps(work)) or draw_all(work, *rest)
    )
    sample(run, "--out", tmp_path / "out", "--n", 10)
    assert len(sent[0]) < 10_000
    work = pickle.loads(sent[0])
    there = replace(work, plan=replace(work.plan, output=str(tmp_path / "there")))
    make, images = there.open(1), list[int]()
    for part in (2, 0, 1):
        make(part, images.append)
    assert sum(images) == 10
    pictures = {name: digest for name, digest in hashes(tmp_path / "out").items() if name[0].isdigit()}
    assert hashes(tmp_path / "there") == pictures
    other = replace(there, fingerprints=work.fingerprints | {"generator": "0" * 64})
    with pytest.raises(UsageError, match="the generator was trained again meanwhile"):
        other.open(1)


def test_cuda_graphs_draw_the_same_files_and_stand_in_no_record(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in = stand_in_graphs(monkeypatch)
    sample(run, "--out", tmp_path / "plain", "--n", 12)
    assert not stand_in.graphs
    sample(run, "--out", tmp_path / "graphs", "--n", 12, "--cuda-graphs")
    assert stand_in.graphs
    assert np.array_equal(pixels_in(tmp_path / "plain"), pixels_in(tmp_path / "graphs"))
    plain, graphs = (record(tmp_path / name / "sampling.json")["made_by"] for name in ("plain", "graphs"))
    assert plain == graphs
    assert "cuda_graphs" not in plain["sampling"]


def test_a_config_with_an_output_stands_for_its_run(run: Path, tmp_path: Path) -> None:
    config = {
        "run": str(run),
        "seed": 8,
        "inputs": {"images": "elsewhere", "tokenizer": str(run)},
        "sampling": {"temperature": 0.5, "cpu_batch": 4},
    }
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(config))
    sample(tmp_path / "run.yaml", "sampling.top_k=3", "--out", tmp_path / "out", "--n", 3, "--guidance", 0)
    made_by = record(tmp_path / "out/sampling.json")["made_by"]
    found = made_by["sampling"]
    assert (found["temperature"], found["top_k"], found["guidance"], made_by["seed"]) == (0.5, 3, 0.0, 8)


def test_a_file_that_was_lost_or_cut_is_drawn_again(run: Path, tmp_path: Path, small_parts: None) -> None:
    out = tmp_path / "out"
    sample(run, "--out", out, "--n", 12)
    before = hashes(out)
    (out / "sampling.json").unlink()
    (out / "000005.png").unlink()
    (out / "000009.png").write_bytes(b"cut")
    assert "8 images drawn, 12 in all" in sample(run, "--out", out, "--n", 12).stdout
    after = hashes(out)
    assert {**before, "progress.json": ""} == {**after, "progress.json": ""}


def test_a_folder_of_other_samples_is_refused_with_the_difference(run: Path, tmp_path: Path) -> None:
    sample(run, "--out", tmp_path / "out", "--n", 2)
    with pytest.raises(UsageError, match=r"drawn otherwise \(there -> now\):\n  made_by\.seed: 3 -> 4\n"):
        sample(run, "--out", tmp_path / "out", "--n", 2, "--seed", 4)
    with pytest.raises(UsageError, match=r"made_by\.generator"):
        sample(run, "--out", tmp_path / "out", "--n", 2, "--weights", "raw")


def test_files_of_others_are_left_alone(run: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/photo.png").write_text("x")
    with pytest.raises(UsageError, match=r"holds other files \(photo\.png, 1 in all\)"):
        sample(run, "--out", tmp_path / "mine", "--n", 2)
    (tmp_path / "mine.npz").write_text("x")
    with pytest.raises(UsageError, match=r"mine\.npz is there already"):
        sample(run, "--out", tmp_path / "mine.npz", "--n", 2)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["mine", "mine.npz", "photo.png"]


def test_a_plan_says_of_which_class_how_many(run: Path, tmp_path: Path) -> None:
    (tmp_path / "plan.txt").write_text("1 per class\n2 of lion\n")
    sample(run, "--out", tmp_path / "out.npz", "--plan", tmp_path / "plan.txt")
    with np.load(tmp_path / "out.npz") as held:
        assert held["arr_1"].tolist() == [0, 1, 2, 3, 4, 1, 1]


def test_a_reference_is_kept_in_every_image_of_any_class(run: Path, tmp_path: Path) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
    Image.fromarray(picture).save(tmp_path / "ref.png")
    asked = (run, "--n", 4, "--reference", tmp_path / "ref.png", "--keep")
    sample(*asked, "semantic", "--out", tmp_path / "semantic")
    sample(*asked, "scales:1", "--out", tmp_path / "scales")
    found = record(tmp_path / "semantic/sampling.json")
    digest = storage.sha256((tmp_path / "ref.png").read_bytes())
    kept = {"image": digest, "keep": "semantic", "fit": "crop", "kept_tokens": 5, "tokens": 10}
    assert found["made_by"]["reference"] == kept
    assert not np.array_equal(pixels_in(tmp_path / "semantic"), pixels_in(tmp_path / "scales"))
    generator = Generator.load(str(run))
    images = generator.sample(
        [0, 1, 2, 3], seed=3, guidance=1.5, cpu_batch=4, reference=Image.fromarray(picture), keep="semantic"
    )
    np.testing.assert_array_equal(pixels_in(tmp_path / "semantic"), images)
    tokens = generator.tokens([0, 1, 2], reference=picture, keep="semantic")
    assert (tokens[..., 1] == tokens[0, :, 1]).all()
    assert len(np.unique(tokens[..., 0], axis=0)) > 1


WRONG: dict[str, tuple[tuple[object, ...], str]] = {
    "no output": (("--class", "lion"), "--out is missing"),
    "a class": (("--out", "x", "--class", "lino"), "did you mean lion"),
    "a plan and classes": (("--out", "x", "--plan", "p", "--class", "lion"), "no --class and no --n beside it"),
    "no plan": (("--out", "x", "--plan", "none.txt"), "--plan: there is no file none.txt"),
    "an option": (("--out", "x", "--steps", 8), r"sampling\.order\.steps is no option of a next-scale generator"),
    "a schedule": (("--out", "x", "--guidance-schedule", "sine"), r"sampling\.guidance_schedule\.kind"),
    "a power": (("--out", "x", "--guidance-schedule", "cosine:big"), "the power behind the colon is a number"),
    "a temperature": (("--out", "x", "--temperature", 0), r"sampling\.temperature"),
    "a format": (("--out", "x", "--format", "npz"), "a file that ends in .npz is format npz"),
    "keep alone": (("--out", "x", "--keep", "detail"), "give both, or neither"),
    "a keep": (("--out", "x", "--reference", "r.png", "--keep", "latents:3"), "these tokens are grids"),
    "no checkpoints": (("--out", "x", "--checkpoint", "last"), "has no checkpoints of a generator"),
    "workers": (("--out", "x", "--workers", "0"), "--workers: "),
    "an address": (("--out", "x", "--address", "auto"), "give --workers, too"),
    "a device": (("--out", "x", "--device", "abacus"), "--device: device 'abacus' cannot be used"),
    "an override": (("sampling.top_k=3", "--out", "x"), "overrides are of a CONFIG"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_what_cannot_be_is_refused_and_nothing_is_written(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrong: str
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments, said = WRONG[wrong]
    with pytest.raises(UsageError, match=said):
        sample(run, *arguments)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("option", [("--n", 3), ("--device", "cuda"), ("--fit", "crop"), ("--gpus-per-worker", 1)])
def test_the_stage_of_a_config_takes_no_options(option: tuple[object, ...]) -> None:
    with pytest.raises(UsageError, match="--out is missing"):
        sample("package:quickstart.yaml", *option)


@pytest.mark.xdist_group("s3")
def test_samples_go_to_object_storage(run: Path, s3_uri: str, tmp_path: Path) -> None:
    sample(run, "--out", tmp_path / "out", "--n", 2)
    sample(run, "--out", f"{s3_uri}/out", "--n", 2)
    for name in ("000000.png", "000001.png", "grid.png"):
        assert storage.read_bytes(f"{s3_uri}/out/{name}") == (tmp_path / "out" / name).read_bytes()
    assert "is finished already" in sample(run, "--out", f"{s3_uri}/out", "--n", 2).stdout
