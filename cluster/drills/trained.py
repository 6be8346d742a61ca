"""What a training stage ended in, as far as it is no matter of time, and how two of these differ."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from cluster.drills.bucket import Bucket
from data_pipeline.record_files.layout import decode, segments_folder
from data_pipeline.shards.manifest import differences
from trainer.checkpoints.commits import COMPLETE, INDEX, STATE
from trainer.checkpoints.index import Index

_CLOCKS = re.compile(
    r"time|(window|step|eta|checkpoint)_seconds.*|data_wait_share|(samples|tokens)_per_second|mfu|goodput|.*_bytes"
)
"""Numbers of a record that another run of the same has otherwise: times, rates, and memory."""
_FOLDER = re.compile(r"checkpoints/(step_\d+)/(.+)")


@dataclass(frozen=True)
class Trained:
    """A finished stage."""

    steps: list[int]
    """Of the records of metrics.jsonl, in their order."""
    records: dict[int, dict[str, Any]]
    """Their numbers, without clocks, by step."""
    states: dict[str, dict[str, Any]]
    """What each complete checkpoint says of itself, without clocks."""
    elements: dict[str, str]
    """Of each stretch of a weight, moment or average in each complete checkpoint, the sha256."""
    exports: dict[str, str]
    """sha256 of the files of the network."""
    begun_after: frozenset[int] = frozenset()
    """Steps after which it began, as events.jsonl has them; another run of the same has others."""


def read_trained(bucket: Bucket, folder: str) -> Trained:
    """What lies in a stage's folder of a bucket."""
    records, events = (read_records(bucket, f"{folder}/{name}.jsonl") for name in ("metrics", "events"))
    states: dict[str, dict[str, Any]] = {}
    elements: dict[str, str] = {}
    for name in sorted(complete_checkpoints(bucket.stamps(folder))):
        place = f"{folder}/checkpoints/{name}"
        state = json.loads(bucket.read(f"{place}/{STATE}"))
        states[name] = state | {"metrics": without_clocks(state["metrics"])}
        elements |= {f"{name} {stretch}": digest for stretch, digest in _elements(bucket, place).items()}
    steps = [record["step"] for record in records]
    numbers = {record["step"]: without_clocks(record) for record in records}
    begun_after = frozenset(event["step"] for event in events if event["event"] in {"start", "resume"})
    return Trained(steps, numbers, states, elements, bucket.digests(f"{folder}/export"), begun_after)


def read_records(bucket: Bucket, key: str) -> list[dict[str, Any]]:
    """The records of a JSONL file of a stage."""
    segments, newest = decode(key, bucket.read(key))
    text = b"".join([*(bucket.read(f"{segments_folder(key)}/{segment.name}") for segment in segments), newest])
    return [json.loads(line) for line in text.decode().splitlines() if line]


def complete_checkpoints(names: Any) -> set[str]:
    """Of the names of objects below a stage's folder, the folders of checkpoints that have a COMPLETE."""
    found = [match for name in names if (match := _FOLDER.fullmatch(name))]
    return {match[1] for match in found if match[2] == COMPLETE}


def left_over(bucket: Bucket, folder: str) -> dict[str, int]:
    """The folders of checkpoints that hold objects of attempts that died, and how many of these.

    In a folder without COMPLETE that is all of them; in another one those that its index does not name.
    """
    names = bucket.stamps(folder)
    used = {f"{step}/{part}" for step in complete_checkpoints(names) for part in _parts(bucket, folder, step)}
    found = [match for name in names if (match := _FOLDER.fullmatch(name)) and f"{match[1]}/{match[2]}" not in used]
    return dict(Counter(match[1] for match in found))


def _parts(bucket: Bucket, folder: str, step: str) -> set[str]:
    """What a complete checkpoint consists of."""
    index = Index.from_bytes(bucket.read(f"{folder}/checkpoints/{step}/{INDEX}"))
    return {COMPLETE, INDEX, STATE, *index.files, *(f"{name.partition('.')[0]}.json" for name in index.files)}


def without_clocks(record: dict[str, Any]) -> dict[str, Any]:
    """The numbers of a record that follow from the config alone."""
    return {name: value for name, value in record.items() if not _CLOCKS.fullmatch(name)}


def _elements(bucket: Bucket, place: str) -> dict[str, str]:
    """sha256 of each entry of a checkpoint's index, whatever the file is called."""
    index = Index.from_bytes(bucket.read(f"{place}/{INDEX}"))
    files = {name: bucket.read(f"{place}/{name}") for name in index.files}
    found = {}
    for entry in index.entries:
        data = files[entry.file][entry.offset : entry.offset + entry.bytes]
        found[f"{entry.key} to {entry.stop}"] = hashlib.sha256(data).hexdigest()
    return found


def unlike(found: Trained, expected: Trained) -> Iterator[str]:
    """What is not bit for bit as it should be, a line each."""
    if found.steps != expected.steps:
        missing = sorted(set(expected.steps) - set(found.steps))
        yield f"metrics.jsonl has {len(found.steps)} records instead of {len(expected.steps)}; missing: {missing}"
    common = [step for step in expected.steps if step in found.records]
    different = [step for step in common if found.records[step] != expected.records[step]]
    if different:
        first = different[0]
        what = "; ".join(differences(expected.records[first], found.records[first]))
        yield f"{len(different)} records of metrics.jsonl differ, the first at step {first}: {what}"
    for line in differences(expected.states, found.states):
        yield f"state.json: {line}"
    for name, ours, theirs in (
        ("checkpoints", found.elements, expected.elements),
        ("exports", found.exports, expected.exports),
    ):
        wrong = sorted(key for key in ours.keys() | theirs.keys() if ours.get(key) != theirs.get(key))
        if wrong:
            yield f"{name}: {len(wrong)} of {len(theirs)} differ, the first: {wrong[0]}"
