"""A stage is on record once it has accepted what it was asked, and never before; commands that read write nothing."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import pytest
import torch

from cluster.config.loading import load_config
from cluster.config.run import RunConfig
from cluster.pool import tokenizing
from cluster.progress.stage_records import record_config, record_time, recorded_folder
from cluster.session import ray_session
from cluster.stages import pipeline
from cluster.stages.pipeline import run_stage
from data_pipeline.errors import FoldtrainError
from data_pipeline.shards.weights import write_weights
from tests.data_pipeline.small_data import write_photos
from trainer.registry import stage_named

Configure = Callable[..., RunConfig]


@pytest.fixture
def configure(small_config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Configure:
    """The small config, with overrides, in a working directory with pictures."""
    monkeypatch.chdir(tmp_path)
    write_photos(tmp_path / "pictures")
    return lambda *overrides: load_config(small_config, overrides)


def files(folder: Path) -> dict[str, bytes]:
    """Everything below a folder, folders too."""
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else b"" for p in sorted(folder.rglob("*"))}


def test_ingest_records_what_it_was_asked_beside_its_shards(configure: Configure, tmp_path: Path) -> None:
    run_stage("ingest", configure("data.validation_samples=4"))
    recorded = load_config(tmp_path / "runs/small/images/config.yaml")
    assert recorded.data.validation_samples == 4
    assert recorded.run == str(tmp_path / "runs/small")
    assert not (tmp_path / "runs/small/config.yaml").exists()


def test_a_finished_stage_keeps_the_record_of_its_work(configure: Configure, tmp_path: Path) -> None:
    run_stage("ingest", configure())
    before = files(tmp_path / "runs")
    run_stage("ingest", configure("generator.trainer.steps=77"))
    assert files(tmp_path / "runs") == before


@pytest.mark.parametrize(
    ("stage", "override"),
    [
        ("ingest", "seed=5"),
        ("ingest", "data.source.path=nowhere"),
        ("tokenize", "seed=5"),
        ("train-teacher", "seed=5"),
        ("train-judge", "seed=5"),
        ("train-tokenizer", "data.images=nowhere"),
        ("train-generator", "seed=5"),
        ("train-generator", "tokens.output=nowhere"),
        ("sample", "sampling.classes=[17]"),
        ("evaluate", "evaluation.samples=7"),
        ("report", "seed=5"),
    ],
)
def test_what_is_refused_is_nowhere_on_record(configure: Configure, tmp_path: Path, stage: str, override: str) -> None:
    run_stage("ingest", configure())
    before = files(tmp_path)
    with pytest.raises(FoldtrainError):
        run_stage(stage, configure(override))
    assert files(tmp_path) == before


@pytest.mark.parametrize(
    "stage", ["ingest", "tokenize", "train-tokenizer", "train-generator", "sample", "evaluate", "report"]
)
def test_a_wrong_path_makes_no_run(configure: Configure, tmp_path: Path, stage: str) -> None:
    before = files(tmp_path)
    with pytest.raises(FoldtrainError):
        run_stage(stage, configure("run=mistyped", "data.source.path=nowhere"))
    assert files(tmp_path) == before


@pytest.fixture
def tokenizer(configure: Configure) -> None:
    """Images and a tokenizer, whose weights nobody looks at."""
    config = configure()
    run_stage("ingest", config)
    model, files = config.tokenizer.model.model_dump(mode="json"), {"model": {"weight": torch.zeros(1)}}
    write_weights("runs/small/tokenizer/export", "tokenizer", model, files, {})


@pytest.mark.usefixtures("tokenizer")
def test_a_pool_that_gets_no_workers_leaves_nothing(
    configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    @contextmanager
    def no_ray(_config: object) -> Iterator[None]:
        raise FoldtrainError("cluster.address is wrong")
        yield

    monkeypatch.setattr(tokenizing, "ray_session", no_ray)
    before = files(tmp_path)
    with pytest.raises(FoldtrainError, match=r"cluster\.address"):
        run_stage("tokenize", configure())
    assert files(tmp_path) == before


@pytest.mark.usefixtures("tokenizer")
def test_what_tokenize_was_asked_is_on_record_before_its_first_shard(
    configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Began(Exception):  # noqa: N818 - the pool is at work
        pass

    def make_shards(*_: object) -> None:
        assert load_config(tmp_path / "runs/small/tokens/config.yaml").tokens.batch == 7
        raise Began

    monkeypatch.setattr(tokenizing, "ray_session", lambda _config: nullcontext())
    monkeypatch.setattr(tokenizing, "make_shards", make_shards)
    with pytest.raises(Began):
        run_stage("tokenize", configure("tokens.batch=7"))


def test_shards_that_go_elsewhere_are_found_from_the_run(configure: Configure, tmp_path: Path) -> None:
    config = configure("data.images=elsewhere/images", "tokens.output=elsewhere/tokens")
    record_config(config, "images")
    record_config(config, "tokens")
    assert recorded_folder("runs/small", "images") == str(tmp_path / "elsewhere/images")
    assert recorded_folder("runs/small", "tokens") == str(tmp_path / "elsewhere/tokens")
    assert (tmp_path / "elsewhere/tokens/config.yaml").read_bytes() == Path(
        "runs/small/tokens/config.yaml"
    ).read_bytes()


def test_a_run_says_where_images_are_that_another_run_has_made(configure: Configure, tmp_path: Path) -> None:
    run_stage("ingest", configure("data.images=shared"))
    shared = files(tmp_path / "shared")
    run_stage("ingest", configure("data.images=shared", "run=runs/second"))
    assert recorded_folder("runs/second", "images") == str(tmp_path / "shared")
    assert files(tmp_path / "shared") == shared


@pytest.mark.parametrize("text", [None, "", "tokens: 3", "tokens: {output: null}", "[", "[" * 5000])
def test_without_a_record_that_says_otherwise_shards_are_in_the_run(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "tokens").mkdir()
        (tmp_path / "tokens/config.yaml").write_text(text)
    assert recorded_folder(str(tmp_path), "tokens") == f"{tmp_path}/tokens"


def times(run: Path) -> list[tuple[str, float, int]]:
    return [(e["stage"], e["seconds"], e["items"]) for e in json.loads((run / "stages.json").read_text())]


def test_the_times_of_a_stage_that_was_interrupted_add_up(tmp_path: Path) -> None:
    for seconds, items in ((10.0, 300), (5.0, 200)):
        record_time(str(tmp_path), "tokenize", seconds, items)
        record_time(str(tmp_path), "train-generator", seconds, 500)
        record_time(str(tmp_path), "sample", seconds, 20)
    expected = [("tokenize", 15.0, 500), ("train-generator", 15.0, 500), ("sample", 5.0, 20)]
    assert times(tmp_path) == expected


def test_the_time_since_the_command_was_entered_counts(configure: Configure, tmp_path: Path) -> None:
    run_stage("ingest", configure(), 1000.0)
    ((stage, seconds, _),) = times(tmp_path / "runs/small")
    assert (stage, seconds > 1000) == ("ingest", True)


def test_the_start_of_a_command_of_several_stages_counts_once_they_have_begun(
    configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline, "STAGES", (stage_named("ingest"),) * 2)
    monkeypatch.setattr(ray_session, "ray_session", lambda _config: nullcontext())
    with pytest.raises(FoldtrainError):
        run_stage("quickstart", configure("data.source.path=nowhere"), 1000.0)
    assert not (tmp_path / "runs").exists()
    run_stage("quickstart", configure(), 1000.0)
    (ingest, start) = times(tmp_path / "runs/small")
    assert (start[0], start[1] > 1000, ingest[1] < 1000) == ("start", True, True)


@pytest.mark.parametrize("override", ["sampling.classes=[0, 17]", "generator.model.num_classes=1"])
def test_classes_that_a_late_stage_would_refuse_are_refused_before_any_training(
    configure: Configure, monkeypatch: pytest.MonkeyPatch, override: str
) -> None:
    monkeypatch.setattr(pipeline, "STAGES", (stage_named("ingest"), stage_named("train-tokenizer")))
    monkeypatch.setattr(pipeline, "_train", lambda _config, job, *_: pytest.fail(f"{job.stage} is trained"))
    monkeypatch.setattr(ray_session, "ray_session", lambda _config: nullcontext())
    with pytest.raises(FoldtrainError, match=override.partition("=")[0]):
        run_stage("quickstart", configure(override))


def test_a_list_of_times_that_was_edited_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "stages.json").write_text("{}")
    with pytest.raises(FoldtrainError, match=r"stages\.json"):
        record_time(str(tmp_path), "sample", 1.0, 1)
