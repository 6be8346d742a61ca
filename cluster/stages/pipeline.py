"""What each command does, and the quickstart, which does it all in order.

Every stage finds its inputs, below the run or where the config says, checks them before any work starts, and is skipped
where it is finished. A stage that would make what the run is given is not run.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence

from cluster.alerts.alerts import Alerts, alerting
from cluster.alerts.rules import Found
from cluster.config.run import RunConfig
from cluster.jobs.graph import applies
from cluster.progress.stage_records import START, record_time
from cluster.stages.inputs import held_out_to_tokenize, with_found
from cluster.stages.train_jobs import (
    check_classes,
    check_initial,
    check_makes_tokens,
    check_proxy,
    train_job,
)
from cluster.terminal.output import console, duration
from data_pipeline import storage
from data_pipeline.errors import UsageError
from data_pipeline.leases.lease import LeaseHeldError
from data_pipeline.shards import weights
from data_pipeline.shards.manifest import ImageManifest, TokenManifest
from data_pipeline.shards.token_shards import check_tokenizer
from trainer.job import TrainJob
from trainer.registry import FOLDERS, QUICKSTART, STAGES, RunStage, stage_in, stage_named


class StageStopped(Exception):  # noqa: N818 - it is no error
    """A stage ended before its end, or a pipeline after a stage, because the command was told to.

    Args:
        message: for the user.
        done: samples that the stage has worked through so far.
    """

    def __init__(self, message: str, done: int) -> None:
        super().__init__(message)
        self.done = done


Say = Callable[[str, str | None], object]
"""Told of a stage: that it begins (None), or what became of it."""

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
        return run_stages([stage.command for stage in STAGES if applies(stage, config)], config, before)
    stage = stage_named(name)
    if config.given(stage.folder):
        _say_given(stage, config)
        return False
    started = time.monotonic() - before
    with alerting(config.alerts, config.run, name, expected=(StageStopped, LeaseHeldError)) as alerts:
        try:
            config = with_found(config, stage.needs)
            done = _train(config, train_job(config, stage), alerts) if stage.trains else _WORK[name](config)
        except StageStopped as stopped:
            record_time(config.run, name, time.monotonic() - started, stopped.done)
            raise
        seconds = time.monotonic() - started
        if done:
            alerts.tell(Found("finished", f"done in {duration(seconds)}"))
    if done and stage.unit != "pages":  # the report only reads, but for its page
        record_time(config.run, name, seconds, done)
    outcome = f"done in {duration(seconds)}" if done else "is finished already"
    console().print(f"{name}: {outcome}")
    return bool(done)


def run_stages(names: Sequence[str], config: RunConfig, before: float = 0.0, say: Say = lambda *_: None) -> bool:
    """Run stages in their order, each of which is passed over if it is finished.

    Several are on one connection to Ray, whose start is recorded with the first that does something, and all that they
    need is looked for before any is run.

    Args:
        names: of stages, in the order of the registry.
        config: of the run.
        before: as for `run_stage`.
        say: called with each stage as it begins, and None; then with what became of it: done, finished, stopped or
            failed.

    Returns:
        Whether there was anything to do.
    """
    from cluster.session.ray_session import ray_session

    stages = [stage_named(name) for name in names]
    several = len(stages) > 1
    if several:
        _check_inputs(config, stages)
    entered, worked = time.monotonic() - before, False
    with ray_session(config.cluster) if several else contextlib.nullcontext():
        starting = time.monotonic() - entered
        for stage in stages:
            if _say_and_run(stage, config, 0.0 if several else before, say) and several and not worked:
                worked = True
                record_time(config.run, START, starting, 1)
            if several and stage.folder == "images":
                _check_later_stages(config)
    return worked


def _say_and_run(stage: RunStage, config: RunConfig, before: float, say: Say) -> bool:
    say(stage.command, None)
    outcome = "failed"
    try:
        worked = run_stage(stage.command, config, before)
        outcome = "done" if worked else "finished"
    except (StageStopped, SystemExit, KeyboardInterrupt):
        outcome = "stopped"
        raise
    finally:
        say(stage.command, outcome)
    return worked


def _say_given(stage: RunStage, config: RunConfig) -> None:
    """Say why a stage is not run whose product the run is given."""
    unused = f"; the section {stage.section} is not used" if stage.trains and config.section(stage.section) else ""
    given = f"inputs.{stage.folder} names what it would make, {config.given(stage.folder)}"
    console().print(f"{stage.command} is not run: {given}{unused}", markup=False)


def _check_inputs(config: RunConfig, stages: Sequence[RunStage] = STAGES) -> None:
    """Find out before anything is run whether all is there that stages are given, or make.

    Raises:
        UsageError: if not.
    """
    found = with_found(config, FOLDERS)
    for stage in stages:
        for product in stage.needs:
            maker = stage_in(product)
            if not config.has(product) and not maker.optional:
                raise UsageError(
                    f"{stage.command} needs {product}: add the section {maker.section}, or name what another run made "
                    f"as inputs.{product}; or run single stages, which need less (foldtrain --help)"
                )
    for stage in stages:
        if stage.trains:
            check_initial(config, stage)
    commands = {stage.command for stage in stages}
    if "train-tokenizer" in commands:
        check_proxy(config)
    if any("tokenizer" in stage.needs for stage in stages):
        check_makes_tokens(config)
    if config.given("tokens"):
        _check_given_tokens(found)


def _check_given_tokens(config: RunConfig) -> None:
    tokens, tokenizer = TokenManifest.read(config.product("tokens")), config.product("tokenizer")
    if not config.given("tokenizer") and not storage.exists(storage.join(tokenizer, "card.json")):
        raise UsageError(
            f"inputs.tokens names tokens of a tokenizer that was trained before, but this run would train another one "
            f"({tokenizer}): name the one that made them as inputs.tokenizer"
        )
    card = weights.read_card(tokenizer, "tokenizer")
    check_tokenizer(tokens, card)


def _check_later_stages(config: RunConfig) -> None:
    """Find out now, and not after hours of training, whether a later stage would refuse the classes of the data."""
    config = with_found(config, ["images"])
    names = ImageManifest.read(config.product("images")).classes
    for key, section in config.with_classes(len(names)).class_sections().items():
        check_classes(key, section.model.classes, names, say=False)
    wrong = [label for label in config.sampling.classes or () if label >= len(names)]
    if wrong:
        raise UsageError(f"sampling.classes: {wrong} are not among the classes of the data, 0 to {len(names) - 1}")


# ---------------------------------------------------------------------------------------------------------------- data


@_does("ingest")
def _ingest(config: RunConfig) -> int:
    from cluster.pool.ingesting import ingest

    return ingest(config)


@_does("tokenize")
def _tokenize(config: RunConfig) -> int:
    from cluster.pool.tokenizing import tokenize

    check_makes_tokens(config)
    return tokenize(config, held_out_to_tokenize(config))


# ------------------------------------------------------------------------------------------------------------ training


def _train(config: RunConfig, job: TrainJob, alerts: Alerts) -> int:
    from cluster.preflight.before_training import preflight
    from cluster.training.stage import train

    trainer = job.section.trainer
    trained = train(job, config.cluster, lambda: preflight(config, _read_from(job)), alerts)
    if trained is not None and trained.noticed:
        raise StageStopped(
            f"{job.stage}: stopped at step {trained.step} of {trainer.steps} on a termination notice; "
            "the same command goes on from there",
            trained.step * trainer.global_batch,
        )
    return trainer.steps * trainer.global_batch if trained else 0


def _read_from(job: TrainJob) -> list[str]:
    """URIs of what a stage is trained from; a pretrained network has a name instead."""
    return [uri for uri in job.inputs.values() if storage.absolute(uri) == uri]


# ------------------------------------------------------------------------------------------------------ what came of it


@_does("sample")
def _sample(config: RunConfig) -> int:
    from cluster.stages.results import sample

    check_makes_tokens(config)
    return sample(config)


@_does("evaluate")
def _evaluate(config: RunConfig) -> int:
    from cluster.stages.evaluating import evaluate

    check_makes_tokens(config)
    return evaluate(config)


@_does("report")
def _report(config: RunConfig) -> int:
    from cluster.stages.results import report

    return report(config)
