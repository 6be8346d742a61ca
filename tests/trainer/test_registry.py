"""The stages of a run stand in one list, and an unknown one is an error."""

from __future__ import annotations

import ast
import importlib
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from cluster.config.run import RunConfig
from cluster.stages import pipeline
from data_pipeline.config import ReadingConfig
from data_pipeline.errors import UsageError
from trainer.config import ClassifierStageConfig, TrainerConfig
from trainer.job import TrainJob
from trainer.registry import FOLDERS, STAGES, TRAINING, RunStage, stage_in, stage_named, trained_in
from trainer.stages import build_stage

ROOT = Path(__file__).parents[2]
PACKAGES = ("model", "data_pipeline", "trainer", "cluster")
NAMES = {name for stage in STAGES for name in (stage.command, stage.folder) if name}
REGISTRY = Path("trainer/registry.py")
NAMING = Path("trainer/evaluation/naming")
"""Its keys are parts of what a number is of: tokens, generator, images are among them, and are no stages."""


def names_in(nodes: list[ast.expr | None]) -> set[str]:
    return {str(node.value) for node in nodes if isinstance(node, ast.Constant) and node.value in NAMES}


def lists_of_stages(code: str) -> list[int]:
    """Lines of literals that name three stages or more, and of functions that ask for two or more of them by name."""
    found = []
    for node in ast.walk(ast.parse(code)):
        match node:
            case ast.Tuple(elts=named) | ast.List(elts=named) | ast.Set(elts=named) | ast.Dict(keys=named):
                most = 2
            case ast.FunctionDef():
                asked = [each for each in ast.walk(node) if isinstance(each, ast.Compare) and is_stage(each.left)]
                named = [each.comparators[0] for each in asked]
                named += [each.value for each in ast.walk(node) if isinstance(each, ast.MatchValue)]
                most = 1
            case _:
                continue
        if len(names_in([*named])) > most:
            found.append(node.lineno)
    return found


def is_stage(node: ast.expr) -> bool:
    name = node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""
    return name in {"stage", "name", "command", "folder", "kind"}


@pytest.mark.parametrize(
    "code",
    [
        'STAGES = ("teacher", "judge", "tokenizer")',
        'WORK = {"ingest": 1, "tokenize": 2, "train-generator": 3}',
        'Stage = Literal["images", "tokens", "generator"]',
        'def f(job):\n if job.stage == "generator": return 1\n if job.stage == "tokenizer": return 2\n return 3',
    ],
)
def test_a_second_list_would_be_found(code: str) -> None:
    assert lists_of_stages(code)


def is_asked(path: Path) -> bool:
    return "drills" not in path.parts and path != REGISTRY and NAMING not in path.parents


@pytest.mark.slow
def test_no_other_list_of_stages_stands_in_the_packages() -> None:
    """Drills, which say what they strike and write configs, are left out."""
    paths = [path.relative_to(ROOT) for package in PACKAGES for path in (ROOT / package).rglob("*.py")]
    files = {path: (ROOT / path).read_text() for path in paths if is_asked(path)}
    left_out = [*(ROOT / "cluster/drills").rglob("*.py"), *(ROOT / NAMING).rglob("*.py")]
    assert len(files) == len(paths) - 1 - len(left_out)
    assert {path: lines for path, text in files.items() if (lines := lists_of_stages(text))} == {}


@pytest.mark.parametrize("stage", TRAINING, ids=lambda stage: stage.folder)
def test_what_trains_a_stage_is_there(stage: RunStage) -> None:
    module, _, name = stage.trains.partition(":")
    trainer = getattr(importlib.import_module(module), name)
    assert all(hasattr(trainer, method) for method in ("card", "step", "state", "load_state"))


@pytest.mark.parametrize("stage", STAGES, ids=lambda stage: stage.command)
def test_every_stage_is_trained_or_done_by_a_function(stage: RunStage) -> None:
    assert bool(stage.trains) != (stage.command in pipeline._WORK)
    assert bool(stage.trains) == (stage.product == "network")


@pytest.mark.parametrize(
    "path", [path for stage in STAGES for path in (stage.section, *stage.reads, stage.place) if path]
)
def test_paths_of_the_registry_are_in_the_config(path: str) -> None:
    section: type = RunConfig
    for key in path.split("."):
        assert key in section.model_fields, path  # type: ignore[attr-defined]
        found = section.model_fields[key].annotation  # type: ignore[attr-defined]
        parts = [part for part in (found, *getattr(found, "__args__", ())) if hasattr(part, "model_fields")]
        section = parts[0] if parts else object


def test_what_a_stage_needs_another_one_before_it_makes() -> None:
    made: set[str] = set()
    for stage in STAGES:
        made |= {stage.folder}
        missing = set(stage.needs) - made
        assert not missing, stage.command
    assert len(FOLDERS) == len(set(FOLDERS))


@pytest.mark.parametrize(
    ("find", "known"), [(stage_named, "train-generator"), (stage_in, "tokens"), (trained_in, "judge")]
)
def test_an_unknown_stage_is_an_error_that_names_the_known_ones(find: Callable[[str], RunStage], known: str) -> None:
    with pytest.raises(UsageError, match=rf"'genertor' is no .*{known}"):
        find("genertor")
    assert find(known) in STAGES


def test_a_job_of_an_unknown_stage_is_no_classifier(tmp_path: Path) -> None:
    section = ClassifierStageConfig(trainer=TrainerConfig(steps=1, global_batch=8))
    job = TrainJob("genertor", str(tmp_path), section, 0, "crop", ReadingConfig(), {}, {}, {})
    with pytest.raises(UsageError, match="'genertor' is no network that is trained: there are teacher, judge"):
        build_stage(job, torch.device("cpu"))


def test_a_command_of_an_unknown_stage_is_refused_by_name() -> None:
    with pytest.raises(UsageError, match="'tokenise' is no stage: there are ingest, train-teacher"):
        pipeline.run_stage("tokenise", None)  # type: ignore[arg-type]
