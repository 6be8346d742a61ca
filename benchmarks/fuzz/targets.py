"""What is changed, how it is made to look right, and who reads it. What the readers raise is no business of theirs."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.fuzz import binary_mutations, mutations
from benchmarks.fuzz.templates import RANK_FILE, STEP, Files
from data_pipeline import storage

Change = Callable[[random.Random, bytes], bytes]
Readers = Callable[[Path], Iterator[Callable[[], object]]]
REPAIRED = 0.8
"""Share of the inputs whose digests are made right again."""


@dataclass(frozen=True)
class Target:
    """One kind of file."""

    name: str
    file: str
    """Which is changed."""
    change: Change
    readers: Readers
    """The commands that read it, in a folder."""
    repair: Callable[[Files, str], None] = lambda _files, _name: None
    """Makes the digests right that cover the file."""
    needs: tuple[str, ...] = ("",)
    """Beginnings of the names of the files that are there."""

    def make(self, rng: random.Random, files: Files) -> Files:
        """The files of an input."""
        there = {name: data for name, data in files.items() if name.startswith(self.needs)}
        there[self.file] = self.change(rng, there[self.file])
        if rng.random() < REPAIRED:
            self.repair(there, self.file)
        return there


def _record(data: bytes) -> Any:
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        return None


def _state_fingerprint(files: Files, name: str) -> None:
    record = _record(files[name])
    if isinstance(record, dict):
        content = {key: value for key, value in record.items() if key != "fingerprint"}
        try:
            fingerprint = storage.fingerprint(content)
        except (ValueError, RecursionError):
            return
        files[name] = json.dumps({**content, "fingerprint": fingerprint}).encode()


def _state_shard(files: Files, name: str, **fields: Any) -> None:
    """Put digest and size of the first shard into the table of the shards."""
    from data_pipeline.shards.column_file import column, encode_columns, parse_columns

    table = f"{name.rpartition('/')[0]}/shards.bin"
    kind = f"table of {name.rpartition('/')[2].partition('-')[0]} shards"
    held = parse_columns(np.frombuffer(files[table], np.uint8), kind)
    arrays = {each: array.copy() for each, array in held.arrays.items()}
    for each, value in fields.items():
        arrays[each][0] = np.frombuffer(bytes.fromhex(value), np.uint8) if isinstance(value, str) else value
    columns = {each: column(array) for each, array in arrays.items()}
    files[table] = b"".join(encode_columns(kind, columns, held.texts))
    _state_table(files, table, bytes=int(arrays["bytes"].sum()))


def _state_table(files: Files, name: str, **fields: Any) -> None:
    """Put digest and size of the table of the shards into the manifest."""
    manifest = f"{name.rpartition('/')[0]}/manifest.json"
    record = json.loads(files[manifest])
    record["shards"] |= {"table_bytes": len(files[name]), "table_sha256": storage.sha256(files[name]), **fields}
    files[manifest] = json.dumps(record).encode()
    _state_fingerprint(files, manifest)


def _state_index(files: Files, name: str) -> None:
    _state_shard(files, name, index_sha256=storage.sha256(files[name]))


def _state_samples(files: Files, name: str) -> None:
    """Put digest and size of the index of the samples into the manifest."""
    manifest = f"{name.rpartition('/')[0]}/manifest.json"
    record = json.loads(files[manifest])
    record["index"] = {"bytes": len(files[name]), "sha256": storage.sha256(files[name])}
    files[manifest] = json.dumps(record).encode()
    _state_fingerprint(files, manifest)


def _state_tokens(files: Files, name: str) -> None:
    _state_shard(files, name, sha256=storage.sha256(files[name]), bytes=len(files[name]))


def _state_marker(files: Files, name: str) -> None:
    marker = json.loads(files[f"{STEP}/COMPLETE"])
    marker[name.rpartition("/")[2]] = storage.sha256(files[name])
    files[f"{STEP}/COMPLETE"] = json.dumps(marker).encode()


def _state_weights(files: Files, name: str) -> None:
    card = json.loads(files["judge/export/card.json"])
    card["files"]["model"] = storage.sha256(files[name])
    files["judge/export/card.json"] = json.dumps(card).encode()


def read_images(root: Path) -> Iterator[Callable[[], object]]:
    """verify, inspect, gc, and what training does."""
    from data_pipeline.shards.image_shards import ImageShards
    from data_pipeline.tools.inspecting import inspect_data
    from data_pipeline.tools.leftovers import find_leftovers
    from data_pipeline.tools.preflight import check_images
    from data_pipeline.tools.verifying import verify

    uri = str(root / "images/train")
    yield lambda: [ImageShards(uri).read(index) for index in range(6)]
    yield lambda: list(ImageShards(uri).scan(0, 6))
    yield lambda: show_report(verify(uri))
    yield lambda: show_inspection(inspect_data(uri))
    yield lambda: check_images(uri, every_byte=True)
    yield lambda: find_leftovers(uri)


def read_tokens(root: Path) -> Iterator[Callable[[], object]]:
    """verify, inspect, export, and what training does."""
    from data_pipeline.node.node_cache import NodeCache
    from data_pipeline.shards.token_dataset import TokenShards
    from data_pipeline.tokens.exporting import export_tokens
    from data_pipeline.tools.inspecting import inspect_data
    from data_pipeline.tools.preflight import check_tokens
    from data_pipeline.tools.verifying import verify

    uri = str(root / "tokens")
    yield lambda: TokenShards(uri, NodeCache(str(root / "cache"), 2**26)).keys.tolist()
    yield lambda: show_report(verify(uri))
    yield lambda: show_report(verify(uri, quick=True))
    yield lambda: show_inspection(inspect_data(uri))
    yield lambda: check_tokens(uri, every_byte=True)
    for name in ("webdataset", "npz"):
        yield lambda name=name: export_tokens(uri, str(root / name), name)


def read_checkpoint(root: Path) -> Iterator[Callable[[], object]]:
    """checkpoint ls, verify, export and gc, and what a start does."""
    from trainer.checkpoints.catalog import decisions_on_record, latest_step, list_checkpoints, read_state, valid_steps
    from trainer.checkpoints.exporting import export_safetensors
    from trainer.checkpoints.reader import CheckpointReader, verify
    from trainer.checkpoints.retention import Retention, all_strays, removable, strays

    checkpoints, folder = str(root / "generator/checkpoints"), str(root / STEP)
    yield lambda: CheckpointReader(folder).trainable("network")
    yield lambda: verify(checkpoints, 2)
    yield lambda: export_safetensors(checkpoints, 2, str(root / "export"), ema=False)
    yield lambda: (latest_step(checkpoints), read_state(checkpoints, 2), list_checkpoints(checkpoints))
    yield lambda: valid_steps(checkpoints, decisions_on_record(str(root / "generator")))
    yield lambda: (removable(checkpoints, Retention(1, metric="loss")), all_strays(checkpoints, strays))


def read_export(root: Path) -> Iterator[Callable[[], object]]:
    """What evaluation does."""
    import torch

    from data_pipeline.shards.weights import read_card
    from trainer.evaluation.networks.teacher import load_classifier

    uri = str(root / "judge/export")
    yield lambda: read_card(uri, "judge").fingerprint()
    yield lambda: load_classifier(uri, "judge", torch.device("cpu"))


def read_tokenizer(root: Path) -> Iterator[Callable[[], object]]:
    """What every command does that holds tokens against their tokenizer."""
    from data_pipeline.errors import UsageError
    from data_pipeline.shards.manifest import TokenManifest
    from data_pipeline.shards.token_shards import check_tokenizer
    from data_pipeline.shards.weights import read_card, read_weights

    uri = str(root / "tokenizer/export")

    def hold() -> None:
        with suppress(UsageError):  # the tokens there are of another one
            check_tokenizer(TokenManifest.read(str(root / "tokens")), read_card(uri, "tokenizer"))

    yield lambda: (card := read_card(uri, "tokenizer")) and (card.encoder(), card.decoder(), card.encoder_config())
    yield hold
    yield lambda: read_weights(uri, "tokenizer")


def read_published(root: Path) -> Iterator[Callable[[], object]]:
    """import-weights, of the file of a training script and of a hub folder, and what reads the result."""
    import torch

    from data_pipeline.shards.tokenizers import load_tokenizer
    from data_pipeline.tokens.importing.networks import Wish, import_network

    def import_file(name: str, **wishes: Any) -> None:
        out = str(root / "imported")
        import_network(str(root / "published" / name), out, Wish(**wishes))
        load_tokenizer(out, torch.device("cpu"))

    yield lambda: import_file("best_ckpt.pt")
    yield lambda: import_file("best_ckpt.pt", raw=True, kind="msvr")
    yield lambda: import_file("model.safetensors")
    yield lambda: import_file("")


def read_records(root: Path) -> Iterator[Callable[[], object]]:
    """monitor, plan, ledger audit, and what a start does."""
    from cluster.monitor.monitor_view import frame
    from cluster.monitor.watching import read_run
    from cluster.terminal.output import console
    from data_pipeline.order.ledger import is_ledger_record, read_history
    from data_pipeline.tools.auditing import stage_history
    from trainer.checkpoints.catalog import decisions_on_record
    from trainer.planning.measured import read_measured
    from trainer.records.jsonl import read_records as records_of
    from trainer.records.run_directory import RunDirectory

    stage = str(root / "generator")

    def show() -> None:
        out = console()
        with out.capture():
            out.print(frame("run", read_run(str(root), 20.0), 20.0, 120))

    def start() -> None:
        again = RunDirectory(stage, "generator", {}, 2)
        again.metrics({"time": 20.0, "step": 3})
        again.rollback(2)
        again.close()

    yield show
    yield lambda: read_measured(stage)
    yield lambda: decisions_on_record(stage)
    yield lambda: stage_history(stage)
    yield lambda: read_history("ledger", records_of(f"{stage}/ledger.jsonl", is_ledger_record))
    yield start


def read_report(root: Path) -> Iterator[Callable[[], object]]:
    """report."""
    from trainer.report import build_report, collect

    yield lambda: build_report(collect(str(root)))


def read_work(root: Path) -> Iterator[Callable[[], object]]:
    """monitor, and what a pool of workers looks at."""
    from cluster.monitor.monitor_view import frame
    from cluster.monitor.stage_readers import read_shards
    from cluster.pool.scale import read_scale
    from cluster.terminal.output import console

    uri = str(root / "images")

    def show() -> None:
        found, out = read_shards(uri, "images", 20.0), console()
        with out.capture():
            out.print(frame("run", [found] if found else [], 20.0, 120))

    yield show
    yield lambda: read_scale(uri)


def read_rule(root: Path) -> Iterator[Callable[[], object]]:
    """checkpoint gc."""
    from trainer.checkpoints.retention import recorded_rule

    yield lambda: recorded_rule(str(root / "generator"))


def read_exported(root: Path) -> Iterator[Callable[[], object]]:
    """export, once more."""
    from data_pipeline.tokens.exporting import export_tokens

    yield lambda: export_tokens(str(root / "tokens"), str(root / "npz"), "npz")


def read_config(root: Path) -> Iterator[Callable[[], object]]:
    """What every command does first."""
    from cluster.config.loading import load_config, resolved_yaml

    yield lambda: resolved_yaml(load_config(root / "config.yaml"))


def show_report(report: Any) -> None:
    """As verify prints it."""
    from cluster.monitor.data_view import show_report as show

    show(report)


def show_inspection(found: Any) -> None:
    """As inspect prints it."""
    from cluster.monitor.data_view import show_inspection as show

    show(found)


def _change_shard(rng: random.Random, data: bytes) -> bytes:
    def change(rng: random.Random, name: str, member: bytes) -> bytes:
        return (binary_mutations.change_npy if name.endswith(".npy") else mutations.change_json)(rng, member)

    return binary_mutations.change_tar(rng, data, change)


_JSON, _LINES = mutations.change_json, mutations.change_lines
_PUBLISHED, _HUB = ("published/",), "published/model.safetensors"
_IMAGES, _TOKENS, _STAGE = ("images/",), ("tokens/", "images/"), ("generator/",)

TARGETS = (
    Target("image manifest", "images/train/manifest.json", _JSON, read_images, _state_fingerprint, _IMAGES),
    Target("image index", "images/train/images-00000.index.json", _JSON, read_images, _state_index, _IMAGES),
    Target(
        "image table", "images/train/shards.bin", binary_mutations.change_columns, read_images, _state_table, _IMAGES
    ),
    Target("samples", "images/train/index.bin", binary_mutations.change_columns, read_images, _state_samples, _IMAGES),
    Target("token table", "tokens/shards.bin", binary_mutations.change_columns, read_tokens, _state_table, _TOKENS),
    Target("token manifest", "tokens/manifest.json", _JSON, read_tokens, _state_fingerprint, _TOKENS),
    Target("token archive", "tokens/tokens-00000.tar", _change_shard, read_tokens, _state_tokens, _TOKENS),
    Target("token commit", "tokens/tokens-00000.json", _JSON, read_tokens, needs=_TOKENS),
    Target("checkpoint index", f"{STEP}/index.json", _JSON, read_checkpoint, _state_marker, _STAGE),
    Target("checkpoint state", f"{STEP}/state.json", _JSON, read_checkpoint, _state_marker, _STAGE),
    Target("checkpoint marker", f"{STEP}/COMPLETE", _JSON, read_checkpoint, needs=_STAGE),
    Target("checkpoint file", f"{STEP}/{RANK_FILE}", mutations.change_bytes, read_checkpoint, needs=_STAGE),
    Target("card", "judge/export/card.json", _JSON, read_export, needs=("judge/",)),
    Target("tokenizer card", "tokenizer/export/card.json", _JSON, read_tokenizer, needs=("tokenizer/", "tokens/")),
    Target(
        "weights",
        "judge/export/model.safetensors",
        binary_mutations.change_safetensors,
        read_export,
        _state_weights,
        ("judge/",),
    ),
    Target(
        "published file", "published/best_ckpt.pt", binary_mutations.change_torch_file, read_published, needs=_PUBLISHED
    ),
    Target("published tensors", _HUB, binary_mutations.change_safetensors, read_published, needs=_PUBLISHED),
    Target("published options", "published/config.json", _JSON, read_published, needs=_PUBLISHED),
    Target("metrics lines", "generator/metrics.jsonl", _LINES, read_records, needs=_STAGE),
    Target("events lines", "generator/events.jsonl", _LINES, read_records, needs=_STAGE),
    Target("ledger lines", "generator/ledger.jsonl", _LINES, read_records, needs=_STAGE),
    Target("evaluation", "evaluation.json", _JSON, read_report),
    Target("stage times", "stages.json", _JSON, read_report),
    Target("progress", "images/progress.json", _JSON, read_work, needs=("images/",)),
    Target("control", "images/control.json", _JSON, read_work, needs=("images/",)),
    Target("settings", "generator/settings.json", _JSON, read_rule, needs=_STAGE),
    Target("stage config", "generator/config.yaml", mutations.change_yaml, read_rule, needs=_STAGE),
    Target("export record", "npz/export.json", _JSON, read_exported, needs=("tokens/", "npz/")),
    Target("export list", "npz/export-00000.json", _JSON, read_exported, needs=("tokens/", "npz/")),
    Target("config", "config.yaml", mutations.change_yaml, read_config, needs=("config.yaml", "base.yaml")),
)
