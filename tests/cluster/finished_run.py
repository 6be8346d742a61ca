"""A finished run of random weights: images, tokenizer, tokens, generator and judge, but no sample and no evaluation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from cluster.config.loading import load_config
from data_pipeline.config import TokensConfig
from data_pipeline.ingest.ingesting import ingest
from data_pipeline.shards.image_shards import ImageShards
from data_pipeline.shards.manifest import TokenManifest
from data_pipeline.shards.weights import Card, write_weights
from data_pipeline.tokens.tokenizing import finish, load_encoder, missing, plan_tokens, tokenize_shard
from model.classifier import Classifier
from model.config import ClassifierConfig, ImageFolderConfig, NextScaleConfig, VectorConfig, ViTConfig
from model.generators.next_scale import FoldedGenerator
from model.tokenizers.imagefolder import ImageFolderTokenizer
from tests.cluster.conftest import SMALL
from tests.data_pipeline.small_data import write_photos

VIT = ViTConfig(width=16, depth=1, heads=2)
TOKENIZER = ImageFolderConfig(
    image_size=16,
    patch_size=8,
    encoder=VIT,
    decoder=VIT,
    scales=(1, 2),
    quantizer=VectorConfig(codebook_size=16, code_dim=4),
    dropout_min_scales=1,
)
GENERATOR = NextScaleConfig(num_classes=5, depth=1, width=16, heads=2)
GENERATOR_TOKENS = {"layout": TOKENIZER.layout.to_json(), "forcing_width": TOKENIZER.forcing_width}


def dump(config: Any) -> dict[str, Any]:
    found: dict[str, Any] = config.model_dump(mode="json")
    return found


def write_generator(run: Path, tokenizer: Card, classes: tuple[str, ...], seed: int = 0) -> None:
    torch.manual_seed(seed)
    generator = FoldedGenerator(GENERATOR, TOKENIZER.layout, TOKENIZER.forcing_width)
    both = {"generator": dump(GENERATOR), **GENERATOR_TOKENS}
    lineage = {"tokenizer": tokenizer.encoder(), "tokens": TokenManifest.read(str(run / "tokens")).fingerprint}
    files = {"model": generator.state_dict()}
    write_weights(str(run / "generator/export"), "generator", both, files, lineage, classes=classes, steps=2)


def write_tokenizer(run: Path, seed: int) -> Card:
    torch.manual_seed(seed)
    files = {"model": ImageFolderTokenizer(TOKENIZER).state_dict()}
    return write_weights(str(run / "tokenizer/export"), "tokenizer", dump(TOKENIZER), files, {})


def write_finished(folder: Path) -> Path:
    """A run of two classes in runs/small, whose generator has room for five; and small.yaml, its config."""
    run = folder / "runs/small"
    write_photos(folder / "pictures")
    (folder / "small.yaml").write_text(SMALL)
    config = load_config(folder / "small.yaml", [f"data.source.path={folder}/pictures"])
    ingest(config.data, str(run / "images"), 0)
    tokenizer = write_tokenizer(run, 0)
    plan = plan_tokens(str(run / "images/train"), tokenizer, TokensConfig(), str(run / "tokens"), "crop")
    encode, images = load_encoder(plan, str(run / "tokenizer/export")), ImageShards(plan.images)
    for shard in missing(plan):
        tokenize_shard(plan, shard, images, encode)
    classes = finish(plan).classes
    write_generator(run, tokenizer, classes)
    torch.manual_seed(0)
    judge = ClassifierConfig(image_size=16, num_classes=2, widths=(8,))
    files = {"model": Classifier(judge).state_dict()}
    write_weights(str(run / "judge/export"), "judge", dump(judge), files, {}, classes=classes, steps=2)
    return folder
