"""Small valid files of every kind, by the functions that write them; in memory, so that each input begins with them."""

from __future__ import annotations

import json
import tempfile
import zlib
from pathlib import Path

import numpy as np

from data_pipeline import storage
from data_pipeline.order.ledger import DataOrder
from data_pipeline.shards.conditions import CLASS
from data_pipeline.shards.image_shards import ImageSample, finish_images, read_indexes, write_image_shard
from data_pipeline.shards.manifest import ImageManifest, TokenCommit, TokenizerRecord, TokenManifest
from data_pipeline.shards.token_shards import TokenBlock, write_token_shard
from data_pipeline.tokens.exporting import export_tokens
from data_pipeline.tokens.tokenizing import record_name
from model.config import ImageFolderConfig, VectorConfig

Files = dict[str, bytes]
"""Contents by relative name."""
CLASSES = ("cat", "dog", "owl")
TOKENIZER = ImageFolderConfig(
    image_size=16,
    patch_size=4,
    scales=(1, 2),
    quantizer=VectorConfig(codebook_size=64, code_dim=8),
    dropout_min_scales=1,
)
STEP = "generator/checkpoints/step_00000002"
RANK_FILE = "rank_0000-0a.safetensors"


def everything() -> Files:
    """A run with images, tokens, a checkpoint, records, an export and a config."""
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        _images(str(root / "images/train"))
        _tokens(str(root / "tokens"), ImageManifest.read(str(root / "images/train")).fingerprint)
        _records(root / "generator")
        _checkpoint(str(root / STEP))
        _export(str(root / "judge/export"))
        _export(str(root / "tokenizer/export"), "tokenizer", _HALVES)
        _published(root / "published")
        _config(root)
        _report(root)
        export_tokens(str(root / "tokens"), str(root / "npz"), "npz")
        return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def _images(uri: str) -> None:
    records = []
    for shard in range(2):
        samples = [ImageSample(f"c/{shard}{n}", n % 3, "jpg", bytes([n]) * (40 + n)) for n in range(3)]
        records.append(write_image_shard(uri, f"images-{shard:05d}.tar", samples, "plan"))
    finish_images(uri, read_indexes(uri, records), classes=CLASSES, split="train")


def _tokens(uri: str, source: str) -> None:
    tokenizer = TokenizerRecord(encoder="0" * 64, config=TOKENIZER.model_dump(mode="json"))
    made_by = {
        "layout": TOKENIZER.layout,
        "condition": CLASS,
        "views": ("center",),
        "image_size": 16,
        "fit": "crop",
        "tokenizer": tokenizer,
        "source": source,
    }
    draft = TokenManifest.build(samples=0, classes=CLASSES, software={}, shards=(), **made_by)
    meta = draft.model_dump(mode="json", include=set(made_by))
    records = []
    for shard in range(2):
        tokens_NWLF = np.arange(3 * 5 * 2, dtype=np.uint16).reshape(3, 1, 5, 2)
        key = np.array([f"c/{shard}{n}" for n in range(3)], "S")
        block = TokenBlock(tokens_NWLF, np.array([0, 1, 2], np.int32), key)
        records.append(write_token_shard(uri, f"tokens-{shard:05d}.tar", block, meta))
        commit = TokenCommit(shard=records[-1], made_by=meta, software={})
        storage.write_json(storage.join(uri, record_name(records[-1].name)), commit.model_dump(mode="json"))
    TokenManifest.build(samples=6, classes=CLASSES, software={}, shards=tuple(records), **made_by).write(uri)


def _lines(path: Path, records: list[dict[str, object]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


def _records(stage: Path) -> None:
    window = {"steps": 9, "window_steps": 1, "window_seconds": 1.0, "step_seconds": 1.0, "data_wait_share": 0.1}
    more = {"samples_per_second": 8.0, "eta_seconds": 3.0, "skipped_steps": 0, "checkpoint_seconds": 0.1, "loss": 0.5}
    _lines(stage / "metrics.jsonl", [{"time": 10.0 + n, "step": n, **window, **more} for n in range(1, 5)])
    start = {"time": 9.0, "event": "start", "step": 0, "began": 8.0, "workers": 1, "lost_steps": 0}
    saved = {"time": 12.0, "event": "checkpoint", "step": 2, "seconds": 0.2, "blocked_seconds": 0.1, "bytes": 99}
    spike = {"time": 13.0, "event": "spike", "step": 3, "action": "rollback", "back_to": 2, "skip": [2, 3]}
    resumed = {"time": 14.0, "event": "resume", "step": 2, "accounted": {"training": 2.0}, "last_record": 13.0}
    account = {"time": 15.0, "event": "goodput", "step": 4, "wall_seconds": 7.0, "shares": {"training": 0.5}}
    _lines(stage / "events.jsonl", [start, saved, spike, resumed, account])
    order = DataOrder(data="tokens", kind="tokens", fingerprint="0" * 64, seed=0, window=None, global_batch=2, check=0)
    segment = {"event": "segment", "first": 0, "stop": 2, "world": 1, "crc": [7], "skipped": [[1, 2]]}
    begun = {"event": "start", "step": 0, "world": 1}
    _lines(stage / "ledger.jsonl", [{"event": "order", **order.model_dump()}, begun, segment])


def _checkpoint(folder: str) -> None:
    from trainer.checkpoints.commits import commit
    from trainer.checkpoints.index import Entry, Index, TensorInfo

    data = np.arange(10, dtype=np.float32).tobytes()
    weight, bias = TensorInfo("network.w", (4, 2), "F32"), TensorInfo("network.b", (2,), "F32")
    entries = [
        Entry("master", weight, 0, 8, RANK_FILE, 0, (zlib.crc32(data[:32]),)),
        Entry("master", bias, 0, 2, RANK_FILE, 32, (zlib.crc32(data[32:]),)),
    ]
    storage.write_bytes(storage.join(folder, RANK_FILE), data)
    counts = dict.fromkeys(("skipped_steps",), 0)
    state = {
        "step": 2,
        **counts,
        "skipped_ranges": [[2, 3]],
        "metrics": {"loss": 0.5},
        "world_size": 1,
        "zero_stage": 1,
    }
    own = {"optimizer_step": 2, "skipped": 0, "loss_scale": {"value": 1.0, "applied_in_a_row": 0}}
    state |= {"trainables": {"network": own}, "exported": "network", "spikes": {"losses": [1.0], "strange": []}}
    commit(folder, Index(entries, {RANK_FILE: len(data)}, "0a").to_bytes(), state, "0a")


_HALVES = {"encode": ("body",), "decode": ("body.1", "head"), "neither": ("dropout",)}
"""Of a small classifier, which stands in for a tokenizer."""


def _export(uri: str, kind: str = "judge", halves: dict[str, tuple[str, ...]] | None = None) -> None:
    from data_pipeline.shards.weights import write_weights
    from model.classifier import Classifier
    from model.config import ClassifierConfig

    config = ClassifierConfig(image_size=8, widths=(4,), num_classes=3)
    state = Classifier(config).state_dict()
    record = config.model_dump(mode="json")
    write_weights(uri, kind, record, {"model": state}, {}, classes=CLASSES, steps=2, halves=halves)


def _published(folder: Path) -> None:
    """A published tokenizer: a checkpoint of its training that carries its options, and the same as a hub has it."""
    import argparse

    import torch
    from safetensors.torch import save_file

    from model.config import ViTConfig
    from model.published.imagefolder import published_name
    from model.tokenizers.imagefolder import ImageFolderTokenizer

    vit = ViTConfig(width=8, depth=1, heads=2)
    config = TOKENIZER.model_copy(update={"encoder": vit, "decoder": vit})
    torch.manual_seed(0)
    state = {published_name(name, config): each for name, each in ImageFolderTokenizer(config).state_dict().items()}
    state |= {"encoder.latent_tokens": state["encoder.latent_tokens"][None], "semantic_model.a": torch.zeros(1)}
    options = {"v_patch_nums": [1, 2], "share_quant_resi": 4, "vit": {"num_heads": 2}}
    record = {
        "ema": state,
        "model": state,
        "optimizer": {"state": {}},
        "args": argparse.Namespace(**options),
        "steps": 2,
    }
    folder.mkdir()
    torch.save(record, folder / "best_ckpt.pt")
    save_file({name: each.clone() for name, each in state.items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(options))


def _report(root: Path) -> None:
    evaluation = {
        "reconstruction": {"prefixes": [1, 5], "mse_of_prefixes": [0.2, 0.1], "frechet_distance": 1.5},
        "generation": {
            "frechet_distance": 2.5,
            "samples": 6,
            "class_accuracy": 0.5,
            "class_accuracy_per_class": [0.5] * 3,
        },
        "codebook_use": [[0.5, 1.0], [0.2, 0.4]],
        "class_names": CLASSES,
        "fingerprints": {"tokenizer": "ab", "generator": {"weights": "cd"}},
        "sampling": {"guidance": 2.5, "classes": None},
        "tokenizer": {"scales": [1, 2], "quantizer": {"codebook_size": 64}},
        "files": {},
    }
    storage.write_json(str(root / "evaluation.json"), evaluation)
    times = [{"stage": "train-generator", "seconds": 9.5, "items": 64, "unit": "samples"}]
    storage.write_json(str(root / "stages.json"), times)
    rates = [{"worker": "a", "host": "b", "images_per_second": 3.5}]
    progress = {"time": 10.0, "state": "running", "shards_done": 1, "shards": 3, "images_per_second": 7.0, "workers": 1}
    storage.write_json(str(root / "images/progress.json"), progress | {"eta_seconds": 5.0, "worker_rates": rates})
    storage.write_json(str(root / "images/control.json"), {"version": 1, "workers": {"min": 1, "max": 2}})
    storage.write_json(str(root / "generator/settings.json"), {"stage": "generator", "section": {}, "seed": 0})


def _config(root: Path) -> None:
    import configs

    quickstart = Path(next(iter(configs.__path__))) / "quickstart.yaml"
    (root / "base.yaml").write_bytes(quickstart.read_bytes())
    keeping = b"generator: {trainer: {keep_checkpoints: 2, keep_best: {metric: loss}}}\n"
    (root / "generator/config.yaml").write_bytes(keeping)
    (root / "config.yaml").write_bytes(b"extends: base.yaml\nrun: run\nseed: 3\ngenerator:\n  trainer: {steps: 700}\n")
