"""What each command does, and the quickstart, which does it all in order.

Every stage finds its inputs below the run, checks them before any work starts, and is skipped where it is finished.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from cluster.config.absolute_paths import with_absolute_paths
from cluster.config.run import RunConfig
from cluster.progress.stage_records import record_time
from cluster.terminal.output import console, duration
from data_pipeline import storage
from data_pipeline.errors import UsageError
from data_pipeline.shards import weights
from data_pipeline.shards.manifest import ImageManifest
from data_pipeline.shards.token_shards import check_tokenizer
from data_pipeline.tools.preflight import check_images, check_tokens
from trainer.config import ClassifierStageConfig
from trainer.job import StageSection, TrainJob


class StageStopped(Exception):  # noqa: N818 - it is no error
    """A stage ended before its end, or a pipeline after a stage, because the command was told to.

    Args:
        message: for the user.
        done: samples that the stage has worked through so far.
    """

    def __init__(self, message: str, done: int) -> None:
        super().__init__(message)
        self.done = done


QUICKSTART = (
    "ingest",
    "train-teacher",
    "train-judge",
    "train-tokenizer",
    "tokenize",
    "train-generator",
    "evaluate",
    "sample",
    "report",
)


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
    if name == "quickstart":
        return _quickstart(config, before)
    stages: dict[str, Callable[[RunConfig], int]] = {
        "ingest": _ingest,
        "train-teacher": _train_teacher,
        "train-judge": _train_judge,
        "train-tokenizer": _train_tokenizer,
        "tokenize": _tokenize,
        "train-generator": _train_generator,
        "sample": _sample,
        "evaluate": _evaluate,
        "report": _report,
    }
    started = time.monotonic() - before
    try:
        done = stages[name](config)
    except StageStopped as stopped:
        record_time(config.run, name, time.monotonic() - started, stopped.done)
        raise
    seconds = time.monotonic() - started
    if done and name != "report":  # which only reads, but for its page
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
        for name in QUICKSTART:
            if _applies(name, config) and run_stage(name, config) and not worked:
                worked = True
                record_time(config.run, "start", starting, 1)
            if name == "ingest":
                _check_later_stages(config)
    return worked


def _check_later_stages(config: RunConfig) -> None:
    """Find out now, and not after hours of training, whether a later stage would refuse the classes of the data."""
    names = ImageManifest.read(_images(config)).classes
    sections = {"teacher": config.teacher, "evaluation.judge": config.evaluation.judge, "generator": config.generator}
    for key, section in sections.items():
        if section is not None:
            _check_classes(key, section.model.with_classes(len(names)).classes, names, say=False)
    wrong = [label for label in config.sampling.classes or () if label >= len(names)]
    if wrong:
        raise UsageError(f"sampling.classes: {wrong} are not among the classes of the data, 0 to {len(names) - 1}")


def _applies(name: str, config: RunConfig) -> bool:
    """Whether a stage has anything to do in this config."""
    if name == "train-teacher":
        return config.teacher is not None and config.teacher.timm is None
    return name != "train-judge" or config.evaluation.judge is not None


def _folder(config: RunConfig, *parts: str) -> str:
    return storage.absolute(storage.join(config.folder(parts[0]), *parts[1:]))


def _images(config: RunConfig) -> str:
    return _folder(config, "images", "train")


def _held_out(config: RunConfig) -> str:
    """Real images that nothing was trained on, or the training images where none were held out."""
    held_out = config.data.validation_samples or config.data.validation_source is not None
    return _folder(config, "images", "validation") if held_out else _images(config)


# ---------------------------------------------------------------------------------------------------------------- data


def _ingest(config: RunConfig) -> int:
    from cluster.pool.ingesting import ingest

    return ingest(config)


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
        *(stage, _folder(config, stage), section, config.seed, data.fit, data.reading, inputs, lineage, record),
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


def _train_teacher(config: RunConfig) -> int:
    if config.teacher is None or config.teacher.timm:
        raise UsageError("this config has no teacher to train: teacher is null, or teacher.timm names a pretrained one")
    return _train_classifier(config, "teacher", lambda known: known.teacher)


def _train_judge(config: RunConfig) -> int:
    if config.evaluation.judge is None:
        raise UsageError("this config has no judge to train: evaluation.judge is null")
    return _train_classifier(config, "judge", lambda known: known.evaluation.judge)


def _train_classifier(
    config: RunConfig, stage: str, section_of: Callable[[RunConfig], ClassifierStageConfig | None]
) -> int:
    images = check_images(_images(config))
    config = config.with_classes(len(images.classes))
    section = section_of(config)
    assert section is not None
    _check_classes("evaluation.judge" if stage == "judge" else stage, section.model.classes, images.classes)
    inputs, lineage = {"images": _images(config)}, {"images": images.fingerprint}
    return _train(config, _job(config, stage, section, inputs, lineage, images.classes))


def _check_classes(section: str, known: int, names: Sequence[str], *, say: bool = True) -> None:
    key, present = f"{section}.model.num_classes", len(names)
    if present > known:
        raise UsageError(f"{key} is {known}, but the data have {present} classes: set it to null, which takes theirs")
    if present < known and say:
        console().print(f"{key} is {known}, and the data have {present} classes: {known - present} are never used")


def _train_tokenizer(config: RunConfig) -> int:
    images = check_images(_images(config))
    config = config.with_classes(len(images.classes))
    inputs, lineage = {"images": _images(config)}, {"images": images.fingerprint}
    if config.teacher is not None:
        inputs["teacher"] = _folder(config, "teacher", "export")
        if config.teacher.timm:
            inputs["teacher_timm"] = lineage["teacher"] = config.teacher.timm
        else:
            lineage["teacher"] = weights.read_card(inputs["teacher"], "teacher").fingerprint()
    return _train(config, _job(config, "tokenizer", config.tokenizer, inputs, lineage))


def _train_generator(config: RunConfig) -> int:
    inputs = {"tokens": _folder(config, "tokens"), "tokenizer": _folder(config, "tokenizer", "export")}
    card = weights.read_card(inputs["tokenizer"], "tokenizer")
    tokens = check_tokens(inputs["tokens"])
    check_tokenizer(tokens, card.fingerprint(), card.config)
    config = config.with_classes(len(tokens.classes))
    _check_classes("generator", config.generator.model.classes, tokens.classes)
    lineage = {"tokens": tokens.fingerprint, "tokenizer": card.fingerprint()}
    return _train(config, _job(config, "generator", config.generator, inputs, lineage, tokens.classes))


# ------------------------------------------------------------------------------------------------------ what came of it


def _sample(config: RunConfig) -> int:
    from cluster.stages.results import sample

    return sample(config)


def _evaluate(config: RunConfig) -> int:
    from cluster.stages.results import evaluate

    return evaluate(config, _held_out(config))


def _report(config: RunConfig) -> int:
    from cluster.stages.results import report

    return report(config)
