"""What all imports share: a source of foreign tokens becomes token shards, which are committed one by one.

    1. open: a source lists its input, so that the number of samples and its fingerprint are known
    2. the plan follows from that; shards that are committed already are kept
    3. a shard: the source reads its samples; they are checked and committed, the tar first, then its record
    4. manifest.json, from the records

Which tokenizer made the tokens is what the caller says: the record says that they were imported.
Shape suffixes: N samples, W views, L positions, F folds.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from data_pipeline import storage
from data_pipeline.errors import UsageError
from data_pipeline.images.views import GROUPS
from data_pipeline.shards.conditions import CLASS
from data_pipeline.shards.manifest import ShardRecord, TokenCommit, TokenizerRecord, TokenManifest
from data_pipeline.shards.token_archive import read_columns
from data_pipeline.shards.token_shards import TokenBlock, first_outside, write_token_shard
from data_pipeline.sources.label_text import read_text
from data_pipeline.text.names import MOST_CLASS_CHARACTERS
from data_pipeline.tokens.commits import read_records, record_name
from model.layout import TokenLayout

MOST_CODES = 2**32
"""Codes that uint32 can tell apart."""
MOST_CLASSES = 65536
"""Classes that are numbered by themselves, if their names are not given."""
SHARD_TOKENS = 2**25
"""Tokens that are read at a time, and so the most of a shard."""
SOFTWARE = ("foldtrain", "numpy")
VIEWS_BY_COUNT = {2: ("center", "center_flip"), 10: GROUPS["ten_crop"]}
"""What those scripts make when they make so many views: the crop and its mirror image, or ten crops."""
FIT = "imported"
"""How images became squares is not known."""


@dataclass(frozen=True)
class Foreign:
    """What the caller says about the tokens; nothing in the input does."""

    codebook_size: int
    grid: int | None = None
    """Side of the token grid; None takes the square root of the input's length."""
    tokenizer_name: str = "unknown"
    """Which tokenizer made them, in the caller's words."""
    image_size: int | None = None
    """Side of the images in pixels; None takes 16 for each token, as both tokenizers have it."""


class ForeignTokens(Protocol):
    """Tokens of another program, in the order of its files."""

    program: str
    """Its name."""
    name: str
    """Where they are, for messages."""
    samples: int
    views: int
    length: int
    """Tokens of one view."""

    def fingerprint(self) -> str:
        """sha256 of the listing of the input."""

    def read(self, start: int, stop: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], list[str]]:
        """Tokens [N, W, L], labels [N] and keys of samples `start` to `stop`.

        Raises:
            UsageError: if one is not what it should be; it names the file or the line.
        """

    def where(self, sample: int) -> str:
        """The file or the line of a sample, for messages."""


@dataclass(frozen=True)
class ImportPlan:
    """All that decides the bytes of the imported data set."""

    source: ForeignTokens
    output: str
    layout: TokenLayout
    views: tuple[str, ...]
    image_size: int
    tokenizer: TokenizerRecord
    fingerprint: str
    """Of the source."""
    shard_samples: int

    def made_by(self) -> dict[str, Any]:
        """What every token follows from, as tokenized shards have it."""
        return {
            "tokenizer": self.tokenizer.model_dump(mode="json"),
            "layout": self.layout.to_json(),
            "condition": CLASS.model_dump(mode="json"),
            "views": list(self.views),
            "image_size": self.image_size,
            "fit": FIT,
            "source": self.fingerprint,
            "shard_samples": self.shard_samples,
        }

    def shards(self) -> list[tuple[str, int, int]]:
        """Name, first sample and end of each shard."""
        starts = range(0, self.source.samples, self.shard_samples)
        return [
            (f"tokens-{number:05d}.tar", start, min(start + self.shard_samples, self.source.samples))
            for number, start in enumerate(starts)
        ]


def plan_import(source: ForeignTokens, foreign: Foreign, output: str, shard_samples: int | None = None) -> ImportPlan:
    """Decide what the imported data set is.

    Args:
        source: the tokens.
        foreign: what the caller says about them.
        output: URI of the data set.
        shard_samples: images in a shard; by default as many as SHARD_TOKENS allow.

    Raises:
        UsageError: if the codebook is too large, or the tokens of an image form no square.
    """
    if not 1 < foreign.codebook_size <= MOST_CODES:
        raise UsageError(f"--codebook-size {foreign.codebook_size}: 2 to {MOST_CODES} are possible")
    grid = foreign.grid or round(source.length**0.5)
    if grid * grid != source.length:
        wanted = f"--grid {foreign.grid} asks for {grid * grid}" if foreign.grid else "that is no square"
        raise UsageError(f"{source.name}: {source.where(0)} has {source.length} tokens a view; {wanted}")
    record = {
        "imported": source.program,
        "name": foreign.tokenizer_name,
        "codebook_size": foreign.codebook_size,
        "grid": grid,
    }
    return ImportPlan(
        source=source,
        output=output,
        layout=TokenLayout((grid * grid,), (foreign.codebook_size,)),
        views=VIEWS_BY_COUNT.get(source.views) or tuple(f"imported_{number}" for number in range(source.views)),
        image_size=foreign.image_size or 16 * grid,
        tokenizer=TokenizerRecord(encoder=storage.fingerprint(record), config=record),
        fingerprint=source.fingerprint(),
        shard_samples=shard_samples or max(1, SHARD_TOKENS // (source.views * source.length)),
    )


def import_tokens(
    plan: ImportPlan,
    classes: tuple[str, ...] | None = None,
    progress: Callable[[int, int], None] = lambda _done, _total: None,
) -> TokenManifest:
    """Write the shards that are missing, then the manifest.

    Args:
        plan: of the import.
        classes: names by label; None names the classes that occur, and those below them, by their numbers.
        progress: called with (samples done, samples in all).

    Raises:
        UsageError: if the input is not what it should be, or the output holds other tokens.
    """
    records, committed = [], _committed(plan)
    for name, start, stop in plan.shards():
        records.append(committed.get(name) or _write(plan, name, start, stop, classes))
        progress(stop, plan.source.samples)
    if classes is None:
        most = max(int(read_columns(plan.output, record).condition.max()) for record in records)
        classes = tuple(str(label) for label in range(most + 1))
    manifest = TokenManifest.build(
        samples=plan.source.samples,
        classes=classes,
        layout=plan.layout,
        views=plan.views,
        image_size=plan.image_size,
        fit=FIT,
        tokenizer=plan.tokenizer,
        source=plan.fingerprint,
        software={name: [version(name)] for name in SOFTWARE},
        shards=tuple(records),
    )
    manifest.write(plan.output)
    return manifest


def _committed(plan: ImportPlan) -> dict[str, ShardRecord]:
    """The shards that are complete, by name."""
    sizes = storage.walk(plan.output)
    names = [record_name(name) for name, _, _ in plan.shards() if record_name(name) in sizes]
    commits = (commit for _, commit in read_records(plan.output, sizes, names, plan.made_by(), "--output"))
    return {commit.shard.name: commit.shard for commit in commits if sizes.get(commit.shard.name) == commit.shard.bytes}


def _write(plan: ImportPlan, name: str, start: int, stop: int, classes: tuple[str, ...] | None) -> ShardRecord:
    block = _block(plan, start, stop, classes)
    software = {package: version(package) for package in SOFTWARE}
    record = write_token_shard(plan.output, name, block, plan.made_by() | {"software": software})
    commit = TokenCommit(shard=record, made_by=plan.made_by(), software=software)
    storage.write_json(storage.join(plan.output, record_name(name)), commit.model_dump(mode="json"))
    return record


def _block(plan: ImportPlan, start: int, stop: int, classes: tuple[str, ...] | None) -> TokenBlock:
    """Samples `start` to `stop`, once tokens and labels are found to be in range."""
    tokens_NWL, label_N, keys = plan.source.read(start, stop)
    outside = first_outside(tokens_NWL[..., None], plan.layout)
    if outside is not None:
        row, fold, token = outside
        most = plan.layout.vocabularies[fold] - 1
        raise UsageError(f"{plan.source.where(start + row)}: token {token} is outside 0 to {most}")
    limit = len(classes) if classes is not None else MOST_CLASSES
    bad = np.flatnonzero((label_N < 0) | (label_N >= limit))
    if len(bad):
        label = label_N[bad[0]]
        raise UsageError(f"{plan.source.where(start + int(bad[0]))}: class {label} is outside 0 to {limit - 1}")
    key = np.array([name.encode() for name in keys], "S")
    return TokenBlock(tokens_NWL.astype(plan.layout.dtype)[..., None], label_N.astype(np.int32), key)


def read_classes(path: str) -> tuple[str, ...]:
    """Class names, one a line.

    Raises:
        UsageError: if the file is missing or empty.
    """
    try:
        names = read_text(path).splitlines()
    except FileNotFoundError as error:
        raise UsageError(f"--classes {path} cannot be read ({error}): give a text file with a name per line") from error
    if not names:
        raise UsageError(f"--classes {path} is empty: give a name per line")
    long = next((line for line, name in enumerate(names, start=1) if len(name) > MOST_CLASS_CHARACTERS), None)
    if long is not None:
        raise UsageError(f"--classes {path}: line {long} is longer than {MOST_CLASS_CHARACTERS} characters")
    return tuple(names)
