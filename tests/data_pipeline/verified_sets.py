"""Complete data sets whose content is another than was made, and what verify says of them, by check."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from data_pipeline.shards.image_shards import finish_images, read_indexes
from data_pipeline.shards.manifest import ImageManifest, ImageShardRecord, TokenManifest
from data_pipeline.shards.token_archive import parse_token_shard
from data_pipeline.shards.token_shards import TokenBlock, write_token_shard
from data_pipeline.tools.verifying import Report
from tests.data_pipeline.small_data import Images


def failures(report: Report) -> dict[str, tuple[str, ...]]:
    """What is wrong, by check."""
    return {check.name: check.problems for check in report.checks if not check.passed}


def summary(report: Report, name: str) -> str:
    (check,) = [check for check in report.checks if check.name == name]
    return check.summary


def block(tokens: Path, number: int) -> TokenBlock:
    path = tokens / f"tokens-{number:05d}.tar"
    return parse_token_shard(str(path), path.read_bytes()).block


def put(tokens: Path, number: int, changed: TokenBlock, **meta: Any) -> None:
    """Commit another block as shard `number`, so that every digest and CRC is right: what is left is the content."""
    path = tokens / f"tokens-{number:05d}.tar"
    was = parse_token_shard(str(path), path.read_bytes()).meta
    record = write_token_shard(str(tokens), path.name, changed, was | meta)
    commit = tokens / f"tokens-{number:05d}.json"
    entry = json.loads(commit.read_text())
    made_by = {name: value for name, value in (was | meta).items() if name != "software"}
    commit.write_text(json.dumps(entry | {"shard": record.model_dump(), "made_by": made_by}))
    rewrite(tokens, shards=tuple(record if s.name == path.name else s for s in TokenManifest.read(str(tokens)).shards))


def rewrite(tokens: Path, **changes: Any) -> None:
    """Give the manifest other fields, and the fingerprint that belongs to them."""
    manifest = TokenManifest.read(str(tokens))
    fields = {name: getattr(manifest, name) for name in type(manifest).model_fields} | changes
    TokenManifest.build(**{name: fields[name] for name in fields if name != "fingerprint"}).write(str(tokens))


def finish(images: Images, uri: str, shards: list[ImageShardRecord]) -> None:
    """Complete a data set of some shards, with the classes of another."""
    manifest = ImageManifest.read(images.uri)
    finish_images(uri, read_indexes(uri, shards), classes=manifest.classes, split=manifest.split)
