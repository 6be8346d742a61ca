"""What the stages of a run are handed: the classes of the data, and the config as it was understood."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import pytest

from cluster.config.loading import load_config
from cluster.config.run import RunConfig
from cluster.stages import pipeline, train_jobs
from cluster.training import stage as training_stage
from data_pipeline import storage
from data_pipeline.errors import UsageError
from data_pipeline.ingest.ingesting import ingest
from tests.data_pipeline.small_data import write_photos
from trainer.config import ClassifierStageConfig
from trainer.job import TrainJob
from trainer.loop.ending import Ending

TEACHER = "teacher={model: {image_size: 16, widths: [8]}, trainer: {steps: 2, global_batch: 8}}"
Configure = Callable[..., RunConfig]


@pytest.fixture
def configure(small_config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Configure:
    """The small config of a run with images of three classes; training is only asked for."""
    monkeypatch.chdir(tmp_path)
    ingest(load_config(small_config, [f"data.source.path={write_photos(tmp_path / 'pictures', 3)}"]).data, "images", 0)
    return lambda *overrides: load_config(
        small_config, ["data.images=images", "generator.model.num_classes=null", TEACHER, *overrides]
    )


@pytest.fixture
def jobs(monkeypatch: pytest.MonkeyPatch) -> list[TrainJob]:
    """What is trained."""
    asked: list[TrainJob] = []

    def train(_config: RunConfig, job: TrainJob, *_: object) -> int:
        asked.append(job)
        return 0

    monkeypatch.setattr(pipeline, "_train", train)
    return asked


def test_the_number_of_classes_is_that_of_the_data_wherever_it_is_null(
    configure: Configure, jobs: list[TrainJob]
) -> None:
    pipeline.run_stage("train-teacher", configure())
    (job,) = jobs
    assert isinstance(job.section, ClassifierStageConfig)
    assert (job.section.model.num_classes, job.classes) == (3, ("class0", "class1", "class2"))
    assert job.settings()["section"]["model"]["num_classes"] == 3
    assert job.config["teacher"]["model"]["num_classes"] == 3
    assert job.config["generator"]["model"]["num_classes"] == 3


@pytest.mark.parametrize("stage", ["train-teacher", "train-judge", "train-tokenizer"])
def test_every_network_is_told_the_names_of_the_classes_of_its_data(
    configure: Configure, jobs: list[TrainJob], stage: str
) -> None:
    judge = "evaluation={judge: {model: {image_size: 16, widths: [8]}, trainer: {steps: 2, global_batch: 8}}}"
    alone = ["teacher=null", "tokenizer.loss={perceptual: [], semantic: null}"] if stage == "train-tokenizer" else []
    pipeline.run_stage(stage, configure(judge, *alone))
    assert jobs[0].classes == ("class0", "class1", "class2")


def test_more_classes_than_the_data_have_are_left_unused_and_that_is_said(
    configure: Configure, jobs: list[TrainJob], capsys: pytest.CaptureFixture[str]
) -> None:
    pipeline.run_stage("train-teacher", configure("teacher.model.num_classes=10"))
    assert "teacher.model.num_classes is 10, and the data have 3 classes: 7 are never used" in capsys.readouterr().out
    assert jobs[0].settings()["section"]["model"]["num_classes"] == 10
    assert len(jobs[0].classes) == 3


def test_fewer_classes_than_the_data_have_are_refused(configure: Configure, jobs: list[TrainJob]) -> None:
    with pytest.raises(UsageError, match=r"teacher\.model\.num_classes is 2, but the data have 3 .*set it to null"):
        pipeline.run_stage("train-teacher", configure("teacher.model.num_classes=2"))
    assert not jobs


def test_settings_that_a_stage_refuses_are_nowhere_on_record(
    configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[TrainJob] = []
    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "_train", lambda _config, job, *_: asked.append(job) or 0)
        pipeline.run_stage("train-teacher", configure())
    asked[0].begin()
    before = {path: path.read_bytes() for path in (tmp_path / "runs").rglob("*") if path.is_file()}
    with pytest.raises(UsageError, match=r"learning_rate: 0\.001 -> 0\.5"):
        pipeline.run_stage("train-teacher", configure("teacher.trainer.learning_rate=0.5"))
    assert {path: path.read_bytes() for path in (tmp_path / "runs").rglob("*") if path.is_file()} == before


def test_paths_of_the_recorded_config_do_not_depend_on_the_working_directory(
    configure: Configure, jobs: list[TrainJob], tmp_path: Path
) -> None:
    pipeline.run_stage("train-teacher", configure())
    assert jobs[0].config["run"] == storage.absolute(str(tmp_path / "runs/small"))
    assert jobs[0].config["data"]["images"] == storage.absolute(str(tmp_path / "images"))


def test_a_pipeline_that_is_told_to_end_does_not_go_on_to_the_next_stage(
    configure: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[str] = []

    def train(_config: RunConfig, job: TrainJob, *_: object) -> int:
        begun.append(job.stage)
        raise pipeline.StageStopped("stopped at step 3", 24)

    monkeypatch.setattr(pipeline, "_train", train)
    monkeypatch.setattr("cluster.session.ray_session.ray_session", lambda _config: nullcontext())
    with pytest.raises(pipeline.StageStopped, match="at step 3"):
        pipeline.run_stage("quickstart", configure())
    assert begun == ["teacher"]


def test_no_classes_are_learnt_where_their_number_is_0(
    configure: Configure, capsys: pytest.CaptureFixture[str]
) -> None:
    generator = configure("generator.model.num_classes=0").with_classes(3).generator
    assert generator is not None
    assert generator.model.classes == 0
    train_jobs.check_classes("generator", 0, ("cat", "dog", "emu"))
    assert "generator.model.num_classes is 0: the 3 classes of the data are not learnt" in capsys.readouterr().out


def test_a_classifier_tells_classes_apart(configure: Configure) -> None:
    with pytest.raises(UsageError, match=r"teacher\.model\.num_classes"):
        configure("teacher.model.num_classes=0")


def test_workers_are_kept_off_the_nodes_that_the_preflight_leaves_out(
    configure: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads, left_out = list[list[str]](), list[frozenset[str]]()

    def preflight(_config: RunConfig, read: list[str]) -> frozenset[str]:
        reads.append(read)
        return frozenset({"node-b"})

    class Supervises:
        def __init__(self, *given: object) -> None:
            left_out.extend(each for each in given if isinstance(each, frozenset))

        def run(self) -> tuple[Ending, int]:
            return Ending.FINISHED, 2

    monkeypatch.setattr("cluster.preflight.before_training.preflight", preflight)
    monkeypatch.setattr("cluster.training.supervision.Supervisor", Supervises)
    monkeypatch.setattr("cluster.session.head_nodes.own_node", lambda: None)
    monkeypatch.setattr("cluster.session.head_nodes.HeadNodes", object)
    for name in ("ray_session", "watch_head"):
        monkeypatch.setattr(training_stage, name, lambda *_: nullcontext())
    monkeypatch.setattr(training_stage, "require_gpus", lambda *_: None)
    pipeline.run_stage("train-teacher", configure())

    assert left_out == [frozenset({"node-b"})]
    assert reads == [[storage.absolute("images/train")]]
