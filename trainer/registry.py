"""The stages of a run, in their order. The one list of them: all else that goes through the stages follows from it.

A stage is a command, makes one product in a folder of the run, and has a section of the config. A new stage is an
entry here; what it does is a class of trainer/stages (`trains`) or a function of cluster/stages/pipeline.py. Imports no
torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from data_pipeline.errors import UsageError

QUICKSTART = "quickstart"
"""The command that runs all stages."""


@dataclass(frozen=True)
class RunStage:
    """A stage, as plain data."""

    command: str
    """What `foldtrain` calls it."""
    help: str
    """What it does, in a line."""
    product: Literal["shards", "network", "results"]
    """The kind of thing that it makes."""
    section: str = ""
    """Dotted path of its section in the config; empty if it has none."""
    folder: str = ""
    """Folder of the run that holds its product, which also names the product; empty if it has none of its own."""
    needs: tuple[str, ...] = ()
    """Products of other stages that it reads, if the config has them."""
    reads: tuple[str, ...] = ()
    """Dotted paths of the config besides its section that decide what it makes."""
    place: str = ""
    """Dotted path in the config that may put its product elsewhere than below the run; empty if there is none."""
    finished: str = ""
    """Where below its folder the finished product is: what others read of it."""
    trains: str = ""
    """`module:Class` of trainer.stages that trains it, imported when it runs; empty if it trains nothing."""
    optional: bool = False
    """Whether `quickstart` leaves it out where the config has no such section."""
    unit: Literal["images", "samples", "pages"] = "samples"
    """What it works through."""
    adds_up: bool = False
    """Whether several calls share its items, so that their numbers add up; of the others the last call counts."""


_SEEN = ("data.fit", "data.reading")
_CLASSIFIER = "trainer.stages.classifier:ClassifierStage"

STAGES = (
    RunStage(
        "ingest",
        "Raw images → image shards.",
        product="shards",
        section="data",
        folder="images",
        place="data.images",
        finished="train",
        unit="images",
        adds_up=True,
    ),
    RunStage(
        "train-teacher",
        "Train the frozen teacher, a small classifier.",
        product="network",
        section="teacher",
        folder="teacher",
        needs=("images",),
        reads=_SEEN,
        finished="export",
        trains=_CLASSIFIER,
        optional=True,
    ),
    RunStage(
        "train-judge",
        "Train the independent classifier that judges samples.",
        product="network",
        section="evaluation.judge",
        folder="judge",
        needs=("images",),
        reads=_SEEN,
        finished="export",
        trains=_CLASSIFIER,
        optional=True,
    ),
    RunStage(
        "train-tokenizer",
        "Image shards → tokenizer.",
        product="network",
        section="tokenizer",
        folder="tokenizer",
        needs=("images", "teacher"),
        reads=_SEEN,
        finished="export",
        trains="trainer.stages.tokenizer:TokenizerStage",
    ),
    RunStage(
        "tokenize",
        "Image shards and tokenizer → token shards, to disk or s3://.",
        product="shards",
        section="tokens",
        folder="tokens",
        needs=("images", "tokenizer"),
        reads=("data.fit",),
        place="tokens.output",
        unit="images",
        adds_up=True,
    ),
    RunStage(
        "train-generator",
        "Token shards → generator.",
        product="network",
        section="generator",
        folder="generator",
        needs=("tokens", "tokenizer"),
        reads=("data.reading",),
        finished="export",
        trains="trainer.stages.generator:GeneratorStage",
    ),
    RunStage(
        "evaluate",
        "Fréchet distances and class accuracy.",
        product="results",
        section="evaluation",
        needs=("images", "teacher", "judge", "tokenizer", "tokens", "generator"),
        unit="images",
    ),
    RunStage(
        "sample",
        "Draw images from the generator.",
        product="results",
        section="sampling",
        folder="samples",
        needs=("tokenizer", "generator"),
        unit="images",
    ),
    RunStage("report", "Write report.html into the run.", product="results", unit="pages"),
)

TRAINING = tuple(stage for stage in STAGES if stage.trains)
SHARDS = tuple(stage for stage in STAGES if stage.product == "shards")
FOLDERS = tuple(stage.folder for stage in STAGES if stage.folder)
"""What a run makes, each in a folder of its own."""


def stage_named(command: str) -> RunStage:
    """The stage of a command.

    Raises:
        UsageError: if there is none; it names those that there are.
    """
    return _find(command, {stage.command: stage for stage in STAGES}, "stage")


def stage_in(folder: str) -> RunStage:
    """The stage that fills a folder of the run.

    Raises:
        UsageError: if there is none; it names those that there are.
    """
    return _find(folder, {stage.folder: stage for stage in STAGES if stage.folder}, "stage's folder")


def trained_in(folder: str) -> RunStage:
    """The stage that trains the network of a folder.

    Raises:
        UsageError: if none does; it names those that there are.
    """
    return _find(folder, {stage.folder: stage for stage in TRAINING}, "network that is trained")


def value_at(record: Any, path: str) -> Any:
    """What a record, parsed from YAML or JSON, holds at a dotted path; None if it ends before.

    Raises:
        TypeError: if there is something else than a section on the way.
    """
    for key in path.split("."):
        if record is None:
            return None
        if not isinstance(record, dict):
            raise TypeError(f"{path}: no section there")
        record = record.get(key)
    return record


def _find(name: str, known: dict[str, RunStage], what: str) -> RunStage:
    if name not in known:
        raise UsageError(f"{name!r} is no {what}: there are {', '.join(known)}")
    return known[name]
