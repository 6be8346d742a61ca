"""Is a data set right, from its bytes to its lineage? One report, one line a check; what is wrong has shard and key.

    1. each shard for itself: digest, CRC of each sample, counts, ranges, what it says made it (examining.py)
    2. all shards together: no key twice; tokens against their images: the same keys and labels in the same order
    3. what lies beside the shards and belongs to none

A few shards are in memory at a time. Of each, keys and labels are kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import yaml
from pydantic import ValidationError

from data_pipeline import storage
from data_pipeline.errors import FoldtrainError, UsageError
from data_pipeline.shards.image_shards import index_name, read_index
from data_pipeline.shards.manifest import MANIFEST_NAME, ImageManifest, TokenManifest, differences, read_manifest
from data_pipeline.shards.sample_index import INDEX_NAME
from data_pipeline.shards.shard_table import TABLE_NAME
from data_pipeline.shards.tokenizers import recorded_config
from data_pipeline.text import yaml_dialect
from data_pipeline.tokens.tokenizing import record_name
from data_pipeline.tools import examining
from data_pipeline.tools.examining import EXAMINERS, Findings

THREADS = 4
"""Shards that are looked at, and so held in memory, at a time."""


BESIDE = (MANIFEST_NAME, TABLE_NAME, INDEX_NAME, "quarantine.json", "control.json", "progress.json", "config.yaml")
"""Files of a data set beside its shards."""

Keys = npt.NDArray[np.bytes_]
Labels = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Check:
    """One line of the report."""

    name: str
    passed: bool
    summary: str
    """What was found, if it passed; what was looked at, if not."""
    problems: tuple[str, ...] = ()
    """What is wrong, with shard and key."""


@dataclass(frozen=True)
class Report:
    """All that was found out about a data set."""

    uri: str
    kind: str
    fingerprint: str
    samples: int
    shards: int
    checks: tuple[Check, ...]

    @property
    def passed(self) -> bool:
        """Whether nothing is wrong."""
        return all(check.passed for check in self.checks)

    def to_json(self) -> dict[str, Any]:
        """As a record."""
        return asdict(self) | {"passed": self.passed}


@dataclass(frozen=True)
class Images:
    """The images that tokens are held against: who they are, without their bytes."""

    uri: str
    manifest: ImageManifest
    key: Keys
    label: Labels
    quarantined: tuple[str, ...]
    """Keys that were left out of the image data set."""

    @classmethod
    def read(cls, uri: str) -> Images:
        """From the indexes of the image data set at `uri`.

        Raises:
            UsageError: if it is not complete.
        """
        manifest = ImageManifest.read(uri)
        indexes = [read_index(uri, shard) for shard in manifest.shards]
        keys = np.array([key.encode() for index in indexes for key in index.key], "S")
        labels = np.array([label for index in indexes for label in index.label], np.int64)
        return cls(uri, manifest, keys, labels, quarantined_keys(uri))


def quarantined_keys(uri: str) -> tuple[str, ...]:
    """Keys of the images that ingest left out of the data set at `uri`."""
    try:
        record = storage.read_json(storage.join(uri, "quarantine.json"))
    except FileNotFoundError:
        return ()
    try:
        return tuple(str(entry["key"]) for entry in record)
    except (KeyError, TypeError) as error:
        where = storage.join(uri, "quarantine.json")
        raise UsageError(f"{where} is no list of images: restore it or run foldtrain ingest again") from error


def find_images(tokens: str, manifest: TokenManifest) -> str | None:
    """The images that tokens were made of, by the config.yaml beside them, or in the same run; None if not found."""
    run = tokens.rstrip("/").rpartition("/")[0]
    for images in (_recorded_images(tokens), storage.join(run, "images", "train")):
        try:
            if images and ImageManifest.read(images).fingerprint == manifest.source:
                return images
        except FoldtrainError:
            continue
    return None


def _recorded_images(tokens: str) -> str | None:
    try:
        config = yaml_dialect.parse(storage.read_bytes(storage.join(tokens, "config.yaml"), yaml_dialect.MOST_BYTES))
        given = (config.get("inputs") or {}).get("images")  # the shards themselves: `tokenize` has looked for them
        folder = config["data"]["images"] or storage.join(config["run"], "images")
        images = given or storage.join(folder, "train")
    except (OSError, FoldtrainError, yaml.YAMLError, KeyError, TypeError, ValueError, AttributeError):
        return None
    return images if isinstance(images, str) else None


def verify(
    uri: str,
    against: str | None = None,
    *,
    quick: bool = False,
    progress: Callable[[int, int], None] = lambda _done, _total: None,
) -> Report:
    """Check a data set of images or of tokens.

    Args:
        uri: of the data set.
        against: of the images that tokens were made of; by default those of the same run, if they are there.
        quick: read sizes, keys, labels and lineage, but no image and no token.
        progress: called with (shards done, shards in all).

    Raises:
        UsageError: if there is no complete data set at `uri`, or none at `against`.
    """
    manifest = read_manifest(uri)
    if against and not isinstance(manifest, TokenManifest):
        raise UsageError(f"{uri} holds {manifest.kind}: only tokens can be held against images, so leave --against out")
    images = None
    if isinstance(manifest, TokenManifest):
        against = against or find_images(uri, manifest)
        images = Images.read(against) if against else None
    sizes = storage.walk(uri)
    findings = _examine(uri, manifest, sizes, quick, progress)
    keys = np.concatenate([Findings("").key, *(found.key for found in findings)])
    labels = np.concatenate([Findings("").label, *(found.label for found in findings)])
    checks = [
        _manifest_check(manifest),
        *_shard_checks(manifest, findings, quick),
        _once_check(findings, keys),
        *_lineage_checks(manifest, findings, images),
        *([_against_check(images, keys, labels)] if isinstance(manifest, TokenManifest) else []),
        *_quarantine_checks(uri, manifest, keys, images),
        _histogram_check(labels, manifest.classes),
        _stray_check(manifest, sizes),
    ]
    return Report(uri, manifest.kind, manifest.fingerprint, manifest.samples, len(manifest.shards), tuple(checks))


def _examine(
    uri: str,
    manifest: ImageManifest | TokenManifest,
    sizes: dict[str, int],
    quick: bool,
    progress: Callable[[int, int], None],
) -> list[Findings]:
    examine, findings = EXAMINERS[manifest.kind], []
    with ThreadPoolExecutor(THREADS, "verify") as pool:
        waiting = [
            pool.submit(examine, uri, manifest, shard, sizes.get(shard.name), quick) for shard in manifest.shards
        ]
        for done, future in enumerate(waiting, start=1):
            findings.append(future.result())
            progress(done, len(waiting))
    return findings


def _check(name: str, summary: str, problems: Iterable[str] = ()) -> Check:
    found = tuple(problems)
    return Check(name, not found, summary, found)


def _manifest_check(manifest: ImageManifest | TokenManifest) -> Check:
    """It was read, so it is right in itself (`manifest.read_manifest`)."""
    return _check("manifest", f"fingerprint {manifest.fingerprint[:16]} is that of its content")


def _shard_checks(manifest: ImageManifest | TokenManifest, findings: list[Findings], quick: bool) -> list[Check]:
    shards, samples = len(manifest.shards), sum(len(found.key) for found in findings)
    texts = {examining.FILES: f"{shards} shards are there, {manifest.shards.total_bytes:,} bytes in all"}
    texts[examining.CHECKSUMS] = f"sha256 of {shards} shards" if not quick else "sizes and indexes alone (--quick)"
    if not quick:
        texts[examining.SAMPLES] = f"CRC-32 of {samples:,} samples"
    texts[examining.COUNTS] = f"{samples:,} samples in manifest, shards and members"
    if isinstance(manifest, TokenManifest) and not quick:
        codes = " and ".join(f"{size:,}" for size in dict.fromkeys(manifest.layout.vocabularies))
        texts[examining.TOKENS] = f"every token is one of its fold's {codes} codes"
    texts[examining.LABELS] = f"every label is one of {len(manifest.classes)} classes"
    return [_check(name, text, _problems(findings, name)) for name, text in texts.items()]


def _problems(findings: list[Findings], name: str) -> list[str]:
    return [problem for found in findings for problem in found.problems.get(name, ())]


def _once_check(findings: list[Findings], keys: Keys) -> Check:
    """No key twice, in one shard or in two."""
    unique, counts = np.unique(keys, return_counts=True)
    problems = []
    for key in unique[counts > 1]:
        where = [found.shard for found in findings for _ in range(int((found.key == key).sum()))]
        problems.append(f"sample {key.decode(errors='replace')} is there {len(where)} times: {', '.join(where)}")
    return _check("exactly once", f"{len(unique):,} keys, none twice", problems)


def _lineage_checks(
    manifest: ImageManifest | TokenManifest, findings: list[Findings], images: Images | None
) -> list[Check]:
    problems = _problems(findings, examining.LINEAGE)
    if not isinstance(manifest, TokenManifest):
        return [_check(examining.LINEAGE, "every index is about its own tar", problems)]
    made_by = manifest.tokenizer
    try:
        layout = recorded_config(made_by.config).layout
    except ValidationError:
        layout = manifest.layout  # another program's tokenizer: its config says nothing of ours
    if layout != manifest.layout:
        problems.append(f"the tokenizer's layout is {layout.to_json()}, the tokens' {manifest.layout.to_json()}")
    stated = [found for found in findings if found.made_by]
    for other in stated[1:]:
        for difference in differences(stated[0].made_by, other.made_by):
            problems.append(f"{stated[0].shard} -> {other.shard}: {difference}")
    if images and images.manifest.fingerprint != manifest.source:
        found = images.manifest.fingerprint[:16]
        problems.append(f"the tokens were made of images {manifest.source[:16]}, but {images.uri} holds {found}")
    text = f"tokenizer {made_by.encoder[:16]}, images {manifest.source[:16]}, in every shard"
    return [_check(examining.LINEAGE, text, problems)]


def _against_check(images: Images | None, keys: Keys, labels: Labels) -> Check:
    """The samples are those of the images: none missing, none extra, in the same order, with the same labels."""
    if images is None:
        return _check("against images", "not compared: their images were not found; name them by --against")
    problems = []
    missing, extra = np.setdiff1d(images.key, keys), np.setdiff1d(keys, images.key)
    for these, what in ((missing, "are missing"), (extra, "are no images of it")):
        if len(these):
            problems.append(f"{len(these)} samples {what}; the first is {these[0].decode(errors='replace')}")
    if not problems and len(keys) == len(images.key):
        moved = np.flatnonzero(keys != images.key)
        if len(moved):
            here, there = (each[moved[0]].decode(errors="replace") for each in (keys, images.key))
            problems.append(f"the order differs from sample {moved[0]} on: {here} here, {there} in the images")
        elif (labels != images.label).any():
            row = int(np.flatnonzero(labels != images.label)[0])
            name = keys[row].decode(errors="replace")
            problems.append(f"sample {name} has label {labels[row]}, its image {images.label[row]}")
    return _check("against images", f"the keys, labels and order of {images.uri}", problems)


def _quarantine_checks(
    uri: str, manifest: ImageManifest | TokenManifest, keys: Keys, images: Images | None
) -> list[Check]:
    """Images that were set aside are in no shard, and are as many as the manifest of the images says."""
    if isinstance(manifest, ImageManifest):
        stated, quarantined, where = manifest.quarantined, quarantined_keys(uri), uri
    elif images:
        stated, quarantined, where = images.manifest.quarantined, images.quarantined, images.uri
    else:
        return []
    problems = []
    if len(set(quarantined)) != stated:
        problems.append(f"{where}/quarantine.json lists {len(set(quarantined))} images, the manifest states {stated}")
    present = np.intersect1d(np.array([key.encode() for key in quarantined], "S"), keys)
    problems += [f"sample {key.decode(errors='replace')} is quarantined and there all the same" for key in present]
    return [_check("quarantine", f"{stated} images were set aside; none of them is in a shard", problems)]


def _histogram_check(labels: Labels, classes: tuple[str, ...]) -> Check:
    if not classes:
        return _check("labels", "there are no classes")
    counts = np.bincount(labels[(labels >= 0) & (labels < len(classes))], minlength=len(classes))
    empty = [name for name, count in zip(classes, counts, strict=True) if not count]
    text = f"{counts.min()} to {counts.max()} samples a class, median {np.median(counts):g}"
    if empty:
        text += f"; {len(empty)} classes have none ({', '.join(empty[:3])}{', ...' if len(empty) > 3 else ''})"
    return _check("labels", text)


def _stray_check(manifest: ImageManifest | TokenManifest, sizes: dict[str, int]) -> Check:
    """Files that belong to no shard are told, and are no failure."""
    beside = index_name if manifest.kind == "images" else record_name
    ours = {*BESIDE, *(name for shard in manifest.shards for name in (shard.name, beside(shard.name)))}
    stray = [name for name in sizes if name not in ours]
    text = f"{len(stray)} that belong to no shard: {', '.join(stray[:5])}{', ...' if len(stray) > 5 else ''}"
    return _check("other files", text if stray else "none")
