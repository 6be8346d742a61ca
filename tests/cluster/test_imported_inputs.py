"""Imported weights are an input as any other: of tokenize, of training, and of sampling."""

from __future__ import annotations

import io
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from data_pipeline.config import TokensConfig
from data_pipeline.shards.image_shards import ImageSample, ImageShards, finish_images, read_indexes, write_image_shard
from data_pipeline.shards.token_archive import read_token_shard
from data_pipeline.shards.tokenizers import tokenizer_config
from data_pipeline.shards.weights import read_card
from data_pipeline.tokens.importing.networks import Wish, import_network
from data_pipeline.tokens.plan import plan_tokens
from data_pipeline.tokens.tokenizing import finish, load_encoder, missing, tokenize_shard
from model.families import build_tokenizer
from trainer.inference import load_generator, load_tokenizer
from trainer.inference.fidelity import photograph_like
from trainer.job import INITIAL, TrainJob
from trainer.stages.initial import load_initial

PARITY = Path(__file__).parents[1] / "parity"


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> str:
    output = str(tmp_path_factory.mktemp("imported") / "tokenizer")
    import_network(str(PARITY / "msvr4p3/state.safetensors"), output)
    return output


def test_tokenize_makes_its_tokens(tokenizer: str, tmp_path: Path) -> None:
    uri, out = str(tmp_path / "images"), str(tmp_path / "tokens")
    pictures = [photograph_like(40), photograph_like(300)]
    samples = []
    for number, picture in enumerate(pictures):
        data = io.BytesIO()
        picture.save(data, "PNG")
        samples.append(ImageSample(f"c/{number}", 0, "png", data.getvalue()))
    record = write_image_shard(uri, "images-00000.tar", samples, "plan")
    finish_images(uri, read_indexes(uri, [record]), classes=("c",), split="train")
    plan = plan_tokens(uri, read_card(tokenizer, "tokenizer"), TokensConfig(), out, "crop")
    encode = load_encoder(plan, tokenizer)
    for shard in missing(plan):
        tokenize_shard(plan, shard, ImageShards(uri), encode)
    manifest = finish(plan)
    assert manifest.tokenizer.encoder == read_card(tokenizer, "tokenizer").encoder()
    [shard_record] = manifest.shards
    tokens_NWLF = read_token_shard(out, shard_record).tokens_NWLF
    assert np.array_equal(tokens_NWLF[:, 0], load_tokenizer(tokenizer).encode(pictures))


def test_training_starts_from_its_weights(tokenizer: str, tmp_path: Path) -> None:
    card = read_card(tokenizer, "tokenizer")
    network = cast("torch.nn.Module", build_tokenizer(tokenizer_config(tokenizer, card)))
    lineage, place = {INITIAL: card.fingerprint()}, str(tmp_path / "checkpoints")
    section = SimpleNamespace(init_except=None)
    job: Any = SimpleNamespace(
        inputs={INITIAL: tokenizer}, lineage=lineage, stage="tokenizer", checkpoints=place, section=section
    )
    load_initial(cast("TrainJob", job), network, card.config)
    published = load_file(PARITY / "msvr4p3/state.safetensors")
    weight = network.state_dict()["encoder.trunk.blocks.0.mlp.fc1.weight"]
    assert torch.equal(weight, published["encoder.model.blocks.0.mlp.fc1.weight"])
    image_BCHW = torch.zeros(1, 3, 256, 256)
    output = network.train()(image_BCHW, {}, torch.zeros(1, dtype=torch.int64))
    sum(output.losses.values(), start=output.reconstruction_BCHW.square().mean()).backward()
    gradients = [parameter.grad for parameter in network.parameters() if parameter.grad is not None]
    assert len(gradients) > 50
    assert all(bool(gradient.isfinite().all()) for gradient in gradients)


def test_a_generator_draws_with_it(tokenizer: str, tmp_path: Path) -> None:
    output = str(tmp_path / "generator")
    import_network(str(PARITY / "var_msvr4p3/state.safetensors"), output, Wish(tokenizer=tokenizer))
    generator = load_generator(output, tokenizer=tokenizer)
    assert len(generator.class_names) == json.loads((PARITY / "var_msvr4p3/config.json").read_text())["num_classes"]
    one = generator.sample([3, 7], seed=1)
    assert one.shape == (2, 256, 256, 3)
    assert np.array_equal(generator.sample([3, 7], seed=1), one)
    assert not np.array_equal(generator.sample([3, 8], seed=1)[1], one[1])
