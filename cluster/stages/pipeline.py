"""What each command does, and the quickstart, which does it all in order.

Every stage finds its inputs below the run, checks them before any work starts, and is skipped where it is finished.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from cluster.config.absolute_paths import with_absolute_paths
from cluster.config.run import RunConfig
from cluster.progress.stage_records import START, record_time
from cluster.terminal.output import console, duration
from data_pipeline import storage
from data_pipeline.errors import UsageError
from data_pipeline.shards import weights
from data_pipeline.shards.manifest import ImageManifest
from data_pipeline.shards.token_shards import check_tokenizer
from data_pipeline.tools.preflight import check_images, check_tokens
from trainer.config import TeacherConfig
from trainer.job import StageSection, TrainJob
from trainer.registry import QUICKSTART, STAGES, RunStage, stage_named


class StageStopped(Exception):  # noqa: N818 - it is no error
    """A stage ended before its end, or a pipeline after a stage, because the command was told to.

    Args:
        message: for the user.
        done: samples that the stage has worked through so far.
    """

    def __init__(self, message: str, done: int) -> None:
        super().__init__(message)
        self.done = done


Work = Callable[[RunConfig], int]
"""Does a stage, and returns what it worked through; 0 if it was finished already."""

_WORK: dict[str, Work] = {}
"""What each stage does that trains nothing."""


def _does(command: str) -> Callable[[Work], Work]:
    """Say which stage a function does."""

    def add(work: Work) -> Work:
        _WORK[stage_named(command).command] = work
        return work

    return add


def run_stage(name: str, config: RunConfig, before: float = 0.0) -> bool:
    """Run one stage of a run, or "quickstart" for all of them.

    Args:
        name: of the stage.
        config: of the run.
        before: seconds that have passed since the command was entered, which count as a part of the stage.

    Returns:
        Whether there was anything to do.

    Raises:
        FoldtrainError: if something that the user can mend is wrong.
        StageStopped: if training ended on a termination notice.
    """
    if name == QUICKSTART:
        return _quickstart(config, before)
    stage = stage_named(name)
    started = time.monotonic() - before
    try:
        done = _train_stage(config, stage) if stage.trains else _WORK[name](config)
    except StageStopped as stopped:
        record_time(config.run, name, time.monotonic() - started, stopped.done)
        raise
    seconds = time.monotonic() - started
    if done and stage.unit != "pages":  # the report only reads, but for its page
        record_time(config.run, name, seconds, done)
    outcome = f"done in {duration(seconds)}" if done else "is finished already"
    console().print(f"{name}: {outcome}")
    return bool(done)


def _quickstart(config: RunConfig, before: float) -> bool:
    """All stages, on one connection to Ray. Its start is recorded with the first that does something."""
    from cluster.session.ray_session import ray_session

    entered, worked = time.monotonic() - before, False
    with ray_session(config.cluster):
        starting = time.monotonic() - entered
        for stage in STAGES:
            if _applies(stage, config) and run_stage(stage.command, config) and not worked:
                worked = True
                record_time(config.run, START, starting, 1)
            if stage.folder == "images":
                _check_later_stages(config)
    return worked


def _check_later_stages(config: RunConfig) -> None:
    """Find out now, and not after hours of training, whether a later stage would refuse the classes of the data."""
    names = ImageManifest.read(_images(config)).classes
    for key, section in config.with_classes(len(names)).class_sections().items():
        _check_classes(key, section.model.classes, names, say=False)
    wrong = [label for label in config.sampling.classes or () if label >= len(names)]
    if wrong:
        raise UsageError(f"sampling.classes: {wrong} are not among the classes of the data, 0 to {len(names) - 1}")


def _applies(stage: RunStage, config: RunConfig) -> bool:
    """Whether a stage has anything to do in this config."""
    section = config.section(stage.section) if stage.optional else None
    return not stage.optional or (section is not None and not _is_pretrained(section))


def _is_pretrained(section: Any) -> bool:
    """Whether a section names a network with published weights, in place of one to train."""
    return isinstance(section, TeacherConfig) and section.timm is not None


def _folder(config: RunConfig, *parts: str) -> str:
    return storage.absolute(storage.join(config.folder(parts[0]), *parts[1:]))


def _images(config: RunConfig) -> str:
    return _folder(config, "images", "train")


def _held_out(config: RunConfig) -> str:
    """Real images that nothing was trained on, or the training images where none were held out."""
    held_out = config.data.validation_samples or config.data.validation_source is not None
    return _folder(config, "images", "validation") if held_out else _images(config)


# ---------------------------------------------------------------------------------------------------------------- data


@_does("ingest")
def _ingest(config: RunConfig) -> int:
    from cluster.pool.ingesting import ingest

    return ingest(config)


@_does("tokenize")
def _tokenize(config: RunConfig) -> int:
    from cluster.pool.tokenizing import tokenize

    return tokenize(config)


# ------------------------------------------------------------------------------------------------------------ training


def _job(
    config: RunConfig,
    stage: str,
    section: StageSection,
    inputs: dict[str, str],
    lineage: dict[str, str],
    classes: Sequence[str] = (),
) -> TrainJob:
    record = with_absolute_paths(config).model_dump(mode="json")
    data = config.data
    return TrainJob(
        stage=stage,
        folder=_folder(config, stage),
        section=section,
        seed=config.seed,
        fit=data.fit,
        reading=data.reading,
        inputs=inputs,
        lineage=lineage,
        config=record,
        classes=tuple(classes),
        tracking=config.tracking,
        peak_tflops=config.cluster.peak_tflops,
        accept_changes=config.accept_changes,
    )


def _train(config: RunConfig, job: TrainJob) -> int:
    from cluster.training.stage import train

    trainer = job.section.trainer
    trained = train(job, config.cluster)
    if trained is not None and trained.noticed:
        raise StageStopped(
            f"{job.stage}: stopped at step {trained.step} of {trainer.steps} on a termination notice; "
            "the same command goes on from there",
            trained.step * trainer.global_batch,
        )
    return trainer.steps * trainer.global_batch if trained else 0


def _train_stage(config: RunConfig, stage: RunStage) -> int:
    """Find and check what a network is trained from, and train it."""
    section = config.section(stage.section)
    if section is None or _is_pretrained(section):
        reason = f"{stage.section} is null" if section is None else f"{stage.section}.timm names a pretrained one"
        raise UsageError(f"this config has no {stage.folder} to train: {reason}")
    inputs, lineage, classes = (_token_inputs if "tokens" in stage.needs else _image_inputs)(config, stage)
    config = config.with_classes(len(classes))
    section = config.section(stage.section)
    knows_classes = stage.section in config.class_sections()
    if knows_classes:
        _check_classes(stage.section, section.model.classes, classes)
    return _train(config, _job(config, stage.folder, section, inputs, lineage, classes if knows_classes else ()))


_Inputs = tuple[dict[str, str], dict[str, str], tuple[str, ...]]
"""URIs of what a stage is trained from, their fingerprints, and the names of the classes."""


def _image_inputs(config: RunConfig, stage: RunStage) -> _Inputs:
    images = check_images(_images(config))
    inputs, lineage = {"images": _images(config)}, {"images": images.fingerprint}
    if "teacher" in stage.needs and config.teacher is not None:
        inputs["teacher"] = _folder(config, "teacher", "export")
        if config.teacher.timm:
            inputs["teacher_timm"] = lineage["teacher"] = config.teacher.timm
        else:
            lineage["teacher"] = weights.read_card(inputs["teacher"], "teacher").fingerprint()
    return inputs, lineage, images.classes


def _token_inputs(config: RunConfig, _stage: RunStage) -> _Inputs:
    inputs = {"tokens": _folder(config, "tokens"), "tokenizer": _folder(config, "tokenizer", "export")}
    card = weights.read_card(inputs["tokenizer"], "tokenizer")
    tokens = check_tokens(inputs["tokens"])
    check_tokenizer(tokens, card.fingerprint(), card.config)
    return inputs, {"tokens": tokens.fingerprint, "tokenizer": card.fingerprint()}, tokens.classes


def _check_classes(section: str, known: int, names: Sequence[str], *, say: bool = True) -> None:
    key, present = f"{section}.model.num_classes", len(names)
    if present > known:
        raise UsageError(f"{key} is {known}, but the data have {present} classes: set it to null, which takes theirs")
    if present < known and say:
        console().print(f"{key} is {known}, and the data have {present} classes: {known - present} are never used")


# ------------------------------------------------------------------------------------------------------ what came of it


@_does("sample")
def _sample(config: RunConfig) -> int:
    from cluster.stages.results import sample

    return sample(config)


@_does("evaluate")
def _evaluate(config: RunConfig) -> int:
    from cluster.stages.results import evaluate

    return evaluate(config, _held_out(config))


@_does("report")
def _report(config: RunConfig) -> int:
    from cluster.stages.results import report

    return report(config)
