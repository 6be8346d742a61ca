"""Is a data set right, from its bytes to its lineage? One report, one line a check; what is wrong has shard and key.

    1. each shard for itself: digest, CRC of each sample, counts, ranges, what it says made it (examining_*.py)
    2. all shards together: no key twice; of images, index.bin against the index of each shard; tokens against their
       images: the same keys and labels in the same order
    3. what lies beside the shards and belongs to none

Memory does not grow with the data set: of each shard a piece is held at a time, and its keys go to scratch disk
(key_spool.py). Every shard is read once.

`quick` reads no shard: one listing of each folder that has some is compared with the sizes in the manifest. It asks for
the manifest with its table of shards, the listing (a request for 1,000 files), quarantine.json, and index.bin if it is
small; of tokens also for the manifest and the quarantine of their images, and for config.yaml, which names them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import yaml
from pydantic import ValidationError

from data_pipeline import storage
from data_pipeline.errors import FoldtrainError, UsageError
from data_pipeline.leases.lease import FOLDER as LEASES
from data_pipeline.shards.edits import ROWS_NAME
from data_pipeline.shards.image_shards import index_name
from data_pipeline.shards.manifest import MANIFEST_NAME, ImageManifest, ShardRecord, TokenManifest, read_manifest
from data_pipeline.shards.sample_index import INDEX_NAME, holds_index
from data_pipeline.shards.shard_table import TABLE_NAME, shard_folder
from data_pipeline.shards.token_reader import TokenReader
from data_pipeline.shards.tokenizers import recorded_config
from data_pipeline.text import yaml_dialect
from data_pipeline.tokens.commits import record_name
from data_pipeline.tokens.plan import HELD_OUT
from data_pipeline.tools import examining
from data_pipeline.tools.checks import Check, Problems, Report
from data_pipeline.tools.comparing import Comparison, Images, quarantined_keys
from data_pipeline.tools.examining import Findings
from data_pipeline.tools.examining_images import examine_images
from data_pipeline.tools.examining_tokens import examine_edited, examine_tokens
from data_pipeline.tools.in_order import in_order
from data_pipeline.tools.key_spool import KeySpool
from data_pipeline.tools.surveying import AGAINST, ONCE, QUARANTINE, Survey
from data_pipeline.tools.verifying_edits import shard_problems, verify_image_edit

__all__ = ["Check", "Report", "find_images", "verify"]

THREADS = 4
"""Shards that are looked at at a time, each with some pieces in memory."""

BESIDE = (
    *(MANIFEST_NAME, TABLE_NAME, INDEX_NAME, ROWS_NAME),
    *("quarantine.json", "control.json", "progress.json", "config.yaml"),
)
"""Files of a data set beside its shards."""
OTHERS = "other files"
SMALL_BYTES = 64 * 2**20
"""An index.bin of so many bytes (some million samples) has its digest compared by `quick`, too; else its size alone."""

Manifest = ImageManifest | TokenManifest
Progress = Callable[[int, int], None]


def verify(
    uri: str, against: str | None = None, *, quick: bool = False, progress: Progress = lambda _done, _total: None
) -> Report:
    """Check a data set of images or of tokens.

    Args:
        uri: of the data set.
        against: of the images that tokens were made of; by default those of the same run, if they are there.
        quick: compare sizes and lineage, and read no shard.
        progress: called with (shards done, shards in all).

    Raises:
        UsageError: if there is no complete data set at `uri`, or none at `against`.
        DiskError: if the keys do not fit onto the scratch disk.
    """
    manifest = read_manifest(uri)
    if against and not isinstance(manifest, TokenManifest):
        raise UsageError(f"{uri} holds {manifest.kind}: only tokens can be held against images, so leave --against out")
    if isinstance(manifest, ImageManifest) and manifest.edit is not None:
        return verify_image_edit(
            uri, manifest, manifest.edit, partial(verify, quick=quick), quick=quick, progress=progress
        )
    images = None
    if isinstance(manifest, TokenManifest):
        against = against or find_images(uri, manifest)
        images = Images.read(against) if against and _has_all_samples(manifest) else None
    sizes = _Sizes(uri)
    if quick:
        checks = list(_quick_checks(uri, manifest, sizes, images, progress))
    else:
        with KeySpool(manifest.samples) as keys:
            checks = list(_full_checks(uri, manifest, sizes, images, keys, progress))
    return Report(uri, manifest.kind, manifest.fingerprint, manifest.samples, len(manifest.shards), tuple(checks))


def find_images(tokens: str, manifest: TokenManifest) -> str | None:
    """The images that tokens were made of, by the config.yaml beside them, or in the same run; None if not found."""
    folder, _, name = tokens.rstrip("/").rpartition("/")
    tokens, split = (folder, "validation") if name == HELD_OUT else (tokens.rstrip("/"), "train")
    recorded = _recorded_images(tokens)
    if recorded is not None and split != "train":
        recorded = storage.join(recorded.rpartition("/")[0], split)
    for images in (recorded, storage.join(tokens.rpartition("/")[0], "images", split)):
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


class _Sizes:
    """Bytes of the files of a data set, and of the other folders that it has shards in: a listing of each."""

    def __init__(self, uri: str) -> None:
        self._uri = uri
        self.own = storage.walk(uri)
        """By name, those of its own folder."""
        self._folders = {uri: self.own}

    def of(self, shard: ShardRecord, name: str = "") -> int | None:
        """Of a shard's tar, or of another file beside it; None if there is none."""
        folder = shard_folder(self._uri, shard.folder)
        if folder not in self._folders:
            self._folders[folder] = storage.walk(folder)
        return self._folders[folder].get(name or shard.name)


def _quick_checks(
    uri: str, manifest: Manifest, sizes: _Sizes, images: Images | None, progress: Progress
) -> Iterator[Check]:
    """What one listing and the records of the whole data set tell."""
    problems = Problems()
    for done, shard in enumerate(manifest.shards, start=1):
        found = Findings(shard.name)
        found.check_size(shard, sizes.of(shard))
        if isinstance(manifest, ImageManifest) and sizes.of(shard, index_name(shard.name)) is None:
            found.add(examining.FILES, f"its index {index_name(shard.name)} is missing")
        problems.add(examining.FILES, found.problems[examining.FILES])
        progress(done, len(manifest.shards))
    if isinstance(manifest, ImageManifest):
        problems.add(INDEX_NAME, _quick_index_problems(uri, manifest, sizes))
    _add_lineage(problems, uri, manifest, images)
    stated, quarantined, where = _quarantine(uri, manifest, images)
    _add_quarantine(problems, stated, quarantined, where)
    yield _manifest_check(manifest)
    yield problems.check(examining.FILES, _files_text(manifest))
    yield problems.check(examining.CHECKSUMS, "no shard was read (--quick): sizes and records alone")
    if isinstance(manifest, TokenManifest):
        yield problems.check(examining.LINEAGE, _lineage_text(manifest, "the manifest"))
    else:
        yield problems.check(INDEX_NAME, "as the manifest states it")
    if where:
        yield problems.check(QUARANTINE, f"{stated} images were set aside")
    yield _stray_check(manifest, sizes)


def _quick_index_problems(uri: str, manifest: ImageManifest, sizes: _Sizes) -> Iterator[str]:
    if manifest.index is None:
        return
    found, stated = sizes.own.get(INDEX_NAME), manifest.index.bytes
    if found != stated:
        yield "it is missing" if found is None else f"it has {found:,} bytes, and {stated:,} in the manifest"
    elif stated <= SMALL_BYTES and not holds_index(uri, manifest):
        yield "its sha256 is not that of the manifest"


def _full_checks(
    uri: str,
    manifest: Manifest,
    sizes: _Sizes,
    images: Images | None,
    keys: KeySpool,
    progress: Progress,
) -> Iterator[Check]:
    stated, quarantined, where = _quarantine(uri, manifest, images)
    survey = Survey(uri, manifest, keys, Comparison(images) if images else None, quarantined)
    for done, found in enumerate(_examine(uri, manifest, sizes), start=1):
        survey.add(manifest.shards[done - 1], found)
        progress(done, len(manifest.shards))
    problems = survey.finish()
    _add_lineage(problems, uri, manifest, images)
    _add_quarantine(problems, stated, quarantined, where)
    yield _manifest_check(manifest)
    for name, text in _shard_texts(manifest, keys.count).items():
        yield problems.check(name, text)
    twice = f"{survey.repeated:,} more than once, as its sets may share some" if survey.repeated else "none twice"
    yield problems.check(ONCE, f"{keys.count:,} keys, {twice}")
    if isinstance(manifest, ImageManifest):
        yield problems.check(examining.LINEAGE, "every index is about its own tar")
        yield problems.check(INDEX_NAME, "its rows are those of the shards' own indexes")
    else:
        yield problems.check(examining.LINEAGE, _lineage_text(manifest, "every shard"))
        unknown = "not compared: their images were not found; name them by --against"
        if not _has_all_samples(manifest):
            unknown = "not compared: it is made of other sets; those can be held against their images"
        yield problems.check(AGAINST, f"the keys, labels and order of {images.uri}" if images else unknown)
    if where:
        yield problems.check(QUARANTINE, f"{stated} images were set aside; none of them is in a shard")
    yield _histogram_check(survey.label_counts, manifest.classes)
    yield _stray_check(manifest, sizes)


def _examine(uri: str, manifest: Manifest, sizes: _Sizes) -> Iterator[Findings]:
    examine: Callable[[tuple[Any, int | None]], Findings]
    if isinstance(manifest, TokenManifest) and manifest.edit is not None:
        reader, shards = TokenReader(uri, manifest), enumerate(manifest.shards)
        numbered = ((number, sizes.of(shard)) for number, shard in shards)
        yield from in_order(lambda each: examine_edited(reader, *each), numbered, THREADS)
        return
    if isinstance(manifest, ImageManifest):
        examine = partial(_examine_one, examine_images, uri, manifest)
    else:
        examine = partial(_examine_one, examine_tokens, uri, manifest)
    yield from in_order(examine, ((shard, sizes.of(shard)) for shard in manifest.shards), THREADS)


def _examine_one(
    examine: Callable[..., Findings], uri: str, manifest: Manifest, shard: tuple[Any, int | None]
) -> Findings:
    return examine(uri, manifest, *shard)


def _has_all_samples(manifest: TokenManifest) -> bool:
    """Whether its samples should be all of its images."""
    return manifest.edit is None or manifest.edit.operation in {"views", "append"}


def _manifest_check(manifest: Manifest) -> Check:
    """It was read, so it is right in itself (`manifest.read_manifest`)."""
    return Check("manifest", True, f"fingerprint {manifest.fingerprint[:16]} is that of its content")


def _files_text(manifest: Manifest) -> str:
    return f"{len(manifest.shards)} shards are there, {manifest.shards.total_bytes:,} bytes in all"


def _shard_texts(manifest: Manifest, samples: int) -> dict[str, str]:
    """For each check of single shards what was found if it passed."""
    texts = {
        examining.FILES: _files_text(manifest),
        examining.CHECKSUMS: f"sha256 of {len(manifest.shards)} shards",
        examining.SAMPLES: f"CRC-32 of {samples:,} samples",
        examining.COUNTS: f"{samples:,} samples in manifest, shards and members",
    }
    if isinstance(manifest, TokenManifest):
        codes = " and ".join(f"{size:,}" for size in dict.fromkeys(manifest.layout.vocabularies))
        texts[examining.TOKENS] = f"every token is one of its fold's {codes} codes"
    return texts | {examining.LABELS: f"every label is one of {len(manifest.classes)} classes"}


def _lineage_text(manifest: TokenManifest, where: str) -> str:
    return f"tokenizer {manifest.tokenizer.encoder[:16]}, images {manifest.source[:16]}, in {where}"


def _add_lineage(problems: Problems, uri: str, manifest: Manifest, images: Images | None) -> None:
    """What the records of the whole data set say of each other."""
    if not isinstance(manifest, TokenManifest):
        return
    if manifest.edit is not None:
        try:
            parents = [(each.uri, each.manifest) for each in TokenReader(uri, manifest).parents]
            problems.add(examining.LINEAGE, shard_problems(uri, manifest, parents))
        except FoldtrainError as error:
            problems.add(examining.LINEAGE, [str(error)])
    try:
        layout = recorded_config(manifest.tokenizer.config).layout
    except ValidationError:
        layout = manifest.layout  # another program's tokenizer: its config says nothing of ours
    if layout != manifest.layout:
        text = f"the tokenizer's layout is {layout.to_json()}, the tokens' {manifest.layout.to_json()}"
        problems.add(examining.LINEAGE, [text])
    if images and images.manifest.fingerprint != manifest.source:
        found = images.manifest.fingerprint[:16]
        text = f"the tokens were made of images {manifest.source[:16]}, but {images.uri} holds {found}"
        problems.add(examining.LINEAGE, [text])


def _quarantine(uri: str, manifest: Manifest, images: Images | None) -> tuple[int, tuple[str, ...], str]:
    """How many images were set aside, their keys, and the data set that says so; the last is empty if none is known."""
    if isinstance(manifest, ImageManifest):
        return manifest.quarantined, quarantined_keys(uri), uri
    return (images.manifest.quarantined, images.quarantined, images.uri) if images else (0, (), "")


def _add_quarantine(problems: Problems, stated: int, quarantined: tuple[str, ...], where: str) -> None:
    if where and len(set(quarantined)) != stated:
        text = f"{where}/quarantine.json lists {len(set(quarantined))} images, the manifest states {stated}"
        problems.add(QUARANTINE, [text])


def _histogram_check(counts: npt.NDArray[np.int64], classes: tuple[str, ...]) -> Check:
    if not classes:
        return Check("labels", True, "there are no classes")
    empty = [name for name, count in zip(classes, counts, strict=True) if not count]
    text = f"{counts.min()} to {counts.max()} samples a class, median {np.median(counts):g}"
    if empty:
        text += f"; {len(empty)} classes have none ({', '.join(empty[:3])}{', ...' if len(empty) > 3 else ''})"
    return Check("labels", True, text)


def _stray_check(manifest: Manifest, sizes: _Sizes) -> Check:
    """Files that belong to no shard are told, and are no failure."""
    holds_tokens = isinstance(manifest, TokenManifest)
    beside = record_name if holds_tokens else index_name
    ours = {*BESIDE, *(name for shard in manifest.shards for name in (shard.name, beside(shard.name)))}
    apart = (f"{LEASES}/", f"{HELD_OUT}/") if holds_tokens else (f"{LEASES}/",)
    stray = [name for name in sizes.own if name not in ours and not name.startswith(apart)]
    text = f"{len(stray)} that belong to no shard: {', '.join(stray[:5])}{', ...' if len(stray) > 5 else ''}"
    return Check(OTHERS, True, text if stray else "none")
