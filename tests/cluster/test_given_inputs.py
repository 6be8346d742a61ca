"""A run takes images, tokens and networks from other runs, by URI, and never writes there."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from typer.testing import CliRunner

from cluster.cli import app
from cluster.config.absolute_paths import require_reachable, with_absolute_paths
from cluster.config.loading import load_config, resolved_yaml
from cluster.config.run import InputsConfig, RunConfig
from cluster.monitor.watching import read_given, read_run, require_run
from cluster.pool import tokenizing
from cluster.stages import pipeline, planning
from cluster.stages.inputs import find_product, held_out_images, with_found
from cluster.stages.pipeline import run_stage
from data_pipeline.errors import UsageError
from data_pipeline.shards.image_shards import ImageShards
from data_pipeline.shards.manifest import ImageManifest, TokenManifest
from data_pipeline.shards.weights import read_card, write_weights
from data_pipeline.tokens.tokenizing import load_encoder, tokenize_shard
from data_pipeline.tools.leftovers import find_leftovers
from data_pipeline.tools.verifying import verify
from model.classifier import Classifier
from model.config import ClassifierConfig, NextScaleConfig
from tests.cluster.test_results import finished, write_tokenizer  # noqa: F401 - finished is a fixture
from trainer.job import TrainJob
from trainer.registry import STAGES, stage_in

pytestmark = pytest.mark.xdist_group("results")

Configure = Callable[..., RunConfig]
GENERATOR = {"model": {"depth": 1, "width": 16, "heads": 2}, "trainer": {"steps": 10, "global_batch": 8}}
TOKENIZER = "tokenizer={model: {image_size: 32, patch_size: 8}, trainer: {steps: 1, global_batch: 8}}"
PRODUCTS = {"images": "images/train", "tokens": "tokens", "tokenizer": "tokenizer/export", "judge": "judge/export"}


@pytest.fixture
def first(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:  # noqa: F811
    """A finished run, runs/small, in the working directory."""
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "runs/small"


@pytest.fixture
def configure(first: Path) -> Configure:
    """The config of a second run that trains nothing but a generator, with overrides."""
    given = dict.fromkeys(("images", "tokens", "tokenizer"), "runs/small")
    Path("second.yaml").write_text(yaml.safe_dump({"run": "runs/second", "inputs": given, "generator": GENERATOR}))
    assert first.exists()
    return lambda *overrides: load_config("second.yaml", overrides)


@pytest.fixture
def jobs(monkeypatch: pytest.MonkeyPatch) -> list[TrainJob]:
    """What is trained."""
    asked: list[TrainJob] = []
    monkeypatch.setattr(pipeline, "_train", lambda _config, job, *_: asked.append(job) or 1)
    return asked


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_whatever_a_stage_makes_and_others_read_can_be_given() -> None:
    needed = {name for stage in STAGES for name in stage.needs}
    others = {"proxy", "held_out_tokens"}  # no products of a stage by themselves
    assert set(InputsConfig.model_fields) == needed | others


@pytest.mark.parametrize(("name", "place"), PRODUCTS.items())
def test_a_product_is_found_from_its_run_its_folder_and_itself(first: Path, name: str, place: str) -> None:
    product = first / place
    for uri in {first, first / name, product}:
        assert find_product(name, str(uri), f"inputs.{name}") == str(product)


def test_shards_that_a_run_has_put_elsewhere_are_found_from_the_run(first: Path, tmp_path: Path) -> None:
    shutil.move(first / "images", tmp_path / "elsewhere")
    record = {"run": str(first), "data": {"images": str(tmp_path / "elsewhere")}}
    (first / "images").mkdir()
    (first / "images/config.yaml").write_text(yaml.safe_dump(record))
    assert find_product("images", str(first), "inputs.images") == str(tmp_path / "elsewhere/train")


def test_a_missing_product_is_named_with_its_uri_and_the_remedy(first: Path) -> None:
    words = rf"inputs\.teacher is {first}, and there is no finished teacher .*foldtrain train-teacher`, or give the URI"
    with pytest.raises(UsageError, match=words):
        find_product("teacher", str(first), "inputs.teacher")
    (first / "teacher").mkdir()
    (first / "teacher/settings.json").write_text("{}")
    with pytest.raises(UsageError, match=rf"{first}/teacher is not finished .*let `foldtrain train-teacher` finish it"):
        find_product("teacher", str(first), "inputs.teacher")


def test_a_generator_trains_from_the_tokens_and_the_tokenizer_of_another_run(
    configure: Configure, first: Path, jobs: list[TrainJob]
) -> None:
    before = contents(first)
    assert run_stage("train-generator", configure())
    (job,) = jobs
    card, tokens = read_card(str(first / "tokenizer/export"), "tokenizer"), TokenManifest.read(str(first / "tokens"))
    assert job.inputs == {"tokens": str(first / "tokens"), "tokenizer": str(first / "tokenizer/export")}
    assert job.lineage == {"tokens": tokens.fingerprint, "tokenizer": card.fingerprint()}
    assert job.folder == str(first.parent / "second/generator")
    assert (job.classes, job.section.model.num_classes) == (("class0", "class1"), 2)
    assert job.config["inputs"]["tokenizer"] == str(first / "tokenizer/export")
    assert contents(first) == before


def test_the_recorded_config_loads_to_the_same_places_anywhere(
    configure: Configure, jobs: list[TrainJob], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_stage("train-generator", configure())
    (tmp_path / "recorded.yaml").write_text(yaml.safe_dump(jobs[0].config))
    recorded = load_config(tmp_path / "recorded.yaml")
    assert resolved_yaml(recorded) == resolved_yaml(load_config(tmp_path / "recorded.yaml"))
    monkeypatch.chdir("/")
    run_stage("train-generator", recorded)
    assert jobs[1].inputs == jobs[0].inputs
    assert jobs[1].settings() == jobs[0].settings()


@pytest.mark.parametrize("command", ["ingest", "train-tokenizer", "tokenize"])
def test_a_stage_that_would_make_what_is_given_is_not_run_and_says_so(
    configure: Configure, jobs: list[TrainJob], command: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert not run_stage(command, configure())
    assert " ".join(capsys.readouterr().out.split()).startswith(f"{command} is not run: inputs.")
    assert not jobs
    assert not (tmp_path / "runs/second").exists()


def test_a_section_that_is_not_used_is_said_to_be(
    configure: Configure, jobs: list[TrainJob], capsys: pytest.CaptureFixture[str]
) -> None:
    assert not run_stage("train-tokenizer", configure(TOKENIZER))
    assert "the section tokenizer is not used" in " ".join(capsys.readouterr().out.split())
    assert not jobs


def test_tokens_of_another_tokenizer_are_refused_with_the_difference(
    configure: Configure, first: Path, jobs: list[TrainJob]
) -> None:
    other = write_tokenizer(first.parent / "other", 9)
    words = rf"the tokens were made by tokenizer .* is {other.fingerprint()[:16]} \(the configs are equal, the weights"
    with pytest.raises(UsageError, match=words):
        run_stage("train-generator", configure("inputs.tokenizer=runs/other"))
    assert not jobs


def test_a_tokenizer_trains_with_the_teacher_of_another_run(
    configure: Configure, first: Path, jobs: list[TrainJob]
) -> None:
    model = ClassifierConfig(image_size=16, num_classes=2, widths=(8,))
    files = {"model": Classifier(model).state_dict()}
    card = write_weights("runs/third/teacher/export", "teacher", model.model_dump(mode="json"), files, {})
    tokenizer = {
        "model": {"image_size": 16, "patch_size": 8, "scales": [1, 2], "dropout_min_scales": 1},
        "loss": {"semantic": {"weight": 0.1}},
        "trainer": {"steps": 10, "global_batch": 8},
    }
    path, given = Path("third.yaml"), {"images": "runs/small", "teacher": "runs/third"}
    path.write_text(yaml.safe_dump({"run": "runs/fourth", "inputs": given, "tokenizer": tokenizer}))
    run_stage("train-tokenizer", load_config(path))
    assert jobs[0].inputs == {
        "images": str(first / "images/train"),
        "teacher": str(first.parent / "third/teacher/export"),
    }
    assert jobs[0].lineage["teacher"] == card.fingerprint()


@pytest.mark.slow
def test_sampling_and_evaluation_follow_what_is_given(configure: Configure, first: Path, tmp_path: Path) -> None:
    before = contents(first)
    config = configure("inputs.generator=runs/small", "inputs.judge=runs/small", "evaluation.samples=4")
    run_stage("sample", config)
    run_stage("evaluate", config)
    run_stage("report", config)
    drawn = json.loads((tmp_path / "runs/second/samples/samples.json").read_text())
    judged = json.loads((tmp_path / "runs/second/evaluation.json").read_text())
    export = str(first / "generator/export")
    assert drawn["inputs"] == {"generator": export, "tokenizer": str(first / "tokenizer/export")}
    assert drawn["fingerprints"]["generator"] == read_card(export, "generator").fingerprint()
    assert judged["inputs"]["images"] == str(first / "images/train")
    assert judged["generation"]["class_accuracy"] is not None
    assert str(first / "tokenizer/export") in (tmp_path / "runs/second/report.html").read_text()
    assert contents(first) == before


@pytest.mark.slow
def test_the_report_says_so_when_a_given_network_was_trained_again(
    configure: Configure, first: Path, tmp_path: Path
) -> None:
    config = configure("inputs.generator=runs/small", "evaluation.samples=4")
    run_stage("evaluate", config)
    write_tokenizer(first, 9)
    run_stage("report", config)
    assert "The tokenizer was trained again since it was judged" in (tmp_path / "runs/second/report.html").read_text()


def test_tokens_of_given_images_are_verified_against_them(
    configure: Configure, first: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def make(work: Any, commits: Any, *_: Any) -> None:
        encode, images = load_encoder(work.plan, work.tokenizer), ImageShards(work.plan.images)
        for number in commits.missing.tolist():
            tokenize_shard(work.plan, work.plan.shards[number], images, encode)

    monkeypatch.setattr(tokenizing, "ray_session", lambda _config: nullcontext())
    monkeypatch.setattr(tokenizing, "require_gpus", lambda *_: None)
    monkeypatch.setattr(tokenizing, "_make", make)
    run_stage("tokenize", configure("inputs.tokens=null"))
    tokens = str(tmp_path / "runs/second/tokens")
    assert TokenManifest.read(tokens).source == ImageManifest.read(str(first / "images/train")).fingerprint
    report = verify(tokens)
    assert report.passed
    assert any(str(first / "images/train") in str(check) for check in report.to_json()["checks"])


def test_validation_images_that_lie_beside_the_given_ones_are_held_out(configure: Configure, first: Path) -> None:
    config = with_found(configure(), ["images"])
    assert held_out_images(config) == str(first / "images/train")
    shutil.copytree(first / "images/train", first / "images/validation")
    assert held_out_images(config) == str(first / "images/validation")


def test_a_plan_takes_the_sizes_of_a_given_tokenizer(configure: Configure, first: Path) -> None:
    configs = planning.stage_configs(configure(), "train-generator")
    assert configs.tokenizer_model.scales == (1, 2)
    resolved, note = planning.known_classes(configure(), "train-generator")
    assert (resolved.section("generator").model.num_classes, note) == (2, None)
    assert planning.find_data(configure(), "train-generator", None).known_from == str(first / "tokens")
    with pytest.raises(UsageError, match=r"sizes of a generator .*inputs\.tokenizer is .*/nowhere"):
        planning.stage_configs(configure("inputs.tokenizer=nowhere"), "train-generator")
    with pytest.raises(UsageError, match="no tokenizer to plan: the section tokenizer is missing"):
        planning.stage_configs(configure(), "train-tokenizer")


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["inputs.tokenizer=nowhere"], r"inputs\.tokenizer is .*nowhere, and there is no finished tokenizer"),
        (["inputs.tokenizer=runs/other"], "the tokens were made by tokenizer"),
        (["generator.init_from=nowhere"], r"generator\.init_from is .*nowhere, and there is no finished generator"),
        (["generator.init_from=runs/small/judge"], "holds a 'judge'"),
        (["generator=null"], "sample needs generator|evaluate needs generator"),
        (["inputs.tokenizer=null", TOKENIZER], r"would train another .*the one that made them as inputs\.tokenizer"),
    ],
)
def test_what_a_quickstart_is_given_is_checked_before_anything_is_run(
    configure: Configure, first: Path, jobs: list[TrainJob], overrides: list[str], words: str, tmp_path: Path
) -> None:
    write_tokenizer(first.parent / "other", 9)
    teacher = "teacher={model: {image_size: 16, widths: [8]}, trainer: {steps: 2, global_batch: 8}}"
    with pytest.raises(UsageError, match=words):
        run_stage("quickstart", configure(teacher, *overrides))
    assert not jobs
    assert not (tmp_path / "runs/second").exists()


def test_a_quickstart_runs_what_is_not_given(
    configure: Configure, jobs: list[TrainJob], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cluster.session.ray_session.ray_session", lambda _config: nullcontext())
    results = [stage for stage in STAGES if stage.product != "results"]
    monkeypatch.setattr(pipeline, "STAGES", tuple(results))
    run_stage("quickstart", configure())
    assert [job.stage for job in jobs] == ["generator"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"inputs": {"tokenizer": "runs/small"}}, r"data\.source is missing.*inputs\.images"),
        ({"inputs": {"images": "runs/small"}}, r"tokenizer is missing.*inputs\.tokenizer"),
        ({"data": {"images": "elsewhere"}}, r"inputs\.images says where .*data\.images"),
        ({"tokens": {"output": "elsewhere"}}, r"inputs\.tokens says where .*tokens\.output"),
        (
            {"inputs": {"images": "a", "tokenizer": "runs/small"}, "tokens": {"output": "runs/small/mine"}},
            r"inputs\.tokenizer is runs/small and tokens\.output is runs/small/mine: what is given is never written to",
        ),
        (
            {"inputs": {"images": "runs/second/generator/x", "tokenizer": "b"}},
            r"inputs\.images is .*generator of the run is .*neither may lie in the other",
        ),
        (
            {
                "inputs": {"teacher": "t", "images": "a", "tokenizer": "b"},
                "teacher": {"timm": "vit", "trainer": {"steps": 1, "global_batch": 1}},
            },
            r"inputs\.teacher and teacher\.timm both",
        ),
    ],
)
def test_a_config_that_contradicts_itself_is_refused(configure: Configure, changes: dict[str, Any], words: str) -> None:
    base = yaml.safe_load(Path("second.yaml").read_text())
    Path("odd.yaml").write_text(yaml.safe_dump(base | changes))
    assert configure()
    with pytest.raises(UsageError, match=words):
        load_config("odd.yaml")


def test_a_run_may_lie_in_the_folder_of_the_run_that_it_takes_from(configure: Configure, first: Path) -> None:
    assert configure("run=runs/small/generators/d16").folder("generator") == "runs/small/generators/d16/generator"
    assert stage_in("generator").folder in str(first / "generator")


def test_a_stage_without_its_section_says_what_is_missing(configure: Configure) -> None:
    with pytest.raises(UsageError, match=r"no generator to train: generator is missing"):
        run_stage("train-generator", configure("generator=null"))
    with pytest.raises(UsageError, match=r"no judge to train: evaluation\.judge is missing"):
        run_stage("train-judge", configure())


@pytest.fixture
def imported(configure: Configure, tmp_path: Path) -> Configure:
    """A config with tokens that `foldtrain import llamagen` has made, and nothing else that is given."""
    for number in range(4):
        for folder, array in (("codes", np.full((1, 2, 4), number)), ("labels", np.array([number % 2]))):
            (tmp_path / f"codes/imagenet256_{folder}").mkdir(parents=True, exist_ok=True)
            np.save(tmp_path / f"codes/imagenet256_{folder}/{number}.npy", array)
    command = ["import", "llamagen", "codes", "-o", "llamagen", "--codebook-size", "16", "--tokenizer-name", "VQ-16"]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    Path("imported.yaml").write_text(
        yaml.safe_dump({"run": "runs/imported", "inputs": {"tokens": "llamagen"}, "generator": GENERATOR})
    )
    assert configure()
    return lambda *overrides: load_config("imported.yaml", overrides)


def test_a_generator_that_needs_its_tokenizer_refuses_imported_tokens_with_the_reason(
    imported: Configure, jobs: list[TrainJob]
) -> None:
    words = (
        r"inputs\.tokens: the tokens at .*llamagen were made by the tokenizer 'VQ-16' of llamagen, and this generator "
        r"predicts each scale from the sums .*Train a generator .*that learns token ids alone .*or tokenize the images"
    )
    with pytest.raises(UsageError, match=words):
        run_stage("train-generator", imported())
    assert not jobs


def test_a_generator_that_learns_ids_alone_trains_on_imported_tokens(
    imported: Configure, jobs: list[TrainJob], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(NextScaleConfig, "needs_forcing", False)
    monkeypatch.setattr(NextScaleConfig, "check_layout", lambda *_: None)
    run_stage("train-generator", imported())
    tokens = TokenManifest.read("llamagen")
    assert jobs[0].inputs == {"tokens": str(tmp_path / "llamagen")}
    assert jobs[0].lineage == {"tokens": tokens.fingerprint, "tokenizer": tokens.tokenizer.encoder}
    assert jobs[0].classes == ("0", "1")


def test_imported_tokens_are_not_taken_for_those_of_a_tokenizer_of_ours(
    imported: Configure, jobs: list[TrainJob]
) -> None:
    with pytest.raises(UsageError, match=r"imported, and made by the tokenizer 'VQ-16' of llamagen, not by this run's"):
        run_stage("train-generator", imported("inputs.tokenizer=runs/small"))
    assert not jobs


def test_tokens_of_ours_ask_for_the_tokenizer_that_made_them(configure: Configure, first: Path) -> None:
    fingerprint = read_card(str(first / "tokenizer/export"), "tokenizer").fingerprint()[:16]
    with pytest.raises(UsageError, match=rf"were made by tokenizer {fingerprint}, .*as inputs\.tokenizer"):
        run_stage("train-generator", configure("inputs.tokenizer=null"))


def test_a_generator_without_a_tokenizer_draws_no_images_and_says_so(configure: Configure) -> None:
    config = configure("inputs.tokenizer=null", "inputs.generator=runs/small")
    with pytest.raises(UsageError, match=r"only that makes images of them: name its export as inputs\.tokenizer"):
        run_stage("sample", config)


def test_a_job_finds_what_is_given_wherever_it_runs(configure: Configure, tmp_path: Path) -> None:
    config = configure("generator.init_from=runs/small")
    absolute = with_absolute_paths(config)
    assert absolute.inputs.tokens == str(tmp_path / "runs/small")
    assert absolute.section("generator").init_from == str(tmp_path / "runs/small")
    with pytest.raises(
        UsageError, match=r"inputs\.images: runs/small is a relative path, which a job on another machine"
    ):
        require_reachable(configure(f"run={tmp_path}/runs/second"))


def test_leftovers_of_a_run_are_not_looked_for_in_what_it_is_given(
    configure: Configure, first: Path, jobs: list[TrainJob], tmp_path: Path
) -> None:
    run_stage("train-generator", configure())
    jobs[0].begin()
    stray = first / "tokens/.tmp-0123-tokens-00007.tar"
    stray.write_text("")
    later = time.time() + 10**6
    assert [each.uri for each in find_leftovers(str(first), 0, clock=lambda: later)] == [str(stray)]
    assert find_leftovers(str(tmp_path / "runs/second"), 0, clock=lambda: later) == []


def test_the_monitor_shows_the_stages_of_a_run_and_where_the_rest_came_from(
    configure: Configure, first: Path, jobs: list[TrainJob], tmp_path: Path
) -> None:
    run_stage("train-generator", configure())
    jobs[0].begin()
    (tmp_path / "runs/second/generator/events.jsonl").write_text('{"event": "start", "step": 0, "time": 1.0}\n')
    require_run(str(tmp_path / "runs/second"))
    assert [view.name for view in read_run(str(tmp_path / "runs/second"), 2.0)] == ["generator"]
    done = CliRunner().invoke(app, ["monitor", str(tmp_path / "runs/second"), "--once"], catch_exceptions=False)
    assert f"tokenizer: from {first}/tokenizer/export" in done.output.replace("\n", "")
    (tmp_path / "runs/second/generator/config.yaml").write_text("[")
    assert read_given(str(tmp_path / "runs/second"), ["generator"]) == {}
