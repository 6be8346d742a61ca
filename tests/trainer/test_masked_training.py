"""Masked generators in training: a step is the same on any number of workers and in any micro-batches."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from data_pipeline.config import TokensConfig
from data_pipeline.order.permutations import network_seeds
from data_pipeline.shards import weights
from data_pipeline.shards.image_shards import ImageShards
from data_pipeline.tokens.tokenizing import finish, missing, plan_tokens, tokenize_shard
from model.config.masked import MaskedConfig
from model.generators.masked import MaskedGenerator
from model.tokenizers.imagefolder import ImageFolderTokenizer
from tests.trainer import small_runs
from tests.trainer.gloo import run_gloo
from tests.trainer.test_generator_training import TOKENIZER, tokenize
from trainer.config import GeneratorStageConfig

STEPS, RATE = 3, 1e-2
BACKBONE = {"kind": "bert", "depth": 1, "width": 16, "heads": 2, "dropout": 0.1, "attention_dropout": 0.1}
MODEL = MaskedConfig.model_validate({"num_classes": small_runs.COUNT, "backbone": BACKBONE, "label_dropout": 0.0})
NAMES = ("loss", "masked_loss", "accuracy", "loss_group0_fold0", "loss_group1_fold1", "accuracy_group1_fold0")


def write_tokens(folder: Path) -> dict[str, str]:
    """Two scales of two folds: URIs of the tokens and of the tokenizer that they speak of."""
    images = small_runs.write_images(folder)
    tokenizer, tokens = str(folder / "tokenizer"), str(folder / "tokens")
    torch.manual_seed(0)
    state, config = ImageFolderTokenizer(TOKENIZER).state_dict(), TOKENIZER.model_dump(mode="json")
    card = weights.write_weights(tokenizer, "tokenizer", config, {"model": state}, {})
    plan, data = plan_tokens(images, card, TokensConfig(views=("center",)), tokens, "crop"), ImageShards(images)
    for shard in missing(plan):
        tokenize_shard(plan, shard, data, tokenize)
    finish(plan)
    return {"tokens": tokens, "tokenizer": tokenizer}


def train(folder: Path, name: str, micro_batch: int) -> None:
    inputs = write_tokens(folder) if name == "whole" else {each: str(folder / each) for each in ("tokens", "tokenizer")}
    trainer = small_runs.trainer(steps=STEPS, learning_rate=RATE, final_learning_rate=1, micro_batch=micro_batch)
    small_runs.train("generator", folder / name, GeneratorStageConfig(model=MODEL, trainer=trainer), **inputs)
    assert dist.get_world_size() == (1 if name == "whole" else 2)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    run_gloo(1, folder, train, folder, "whole", small_runs.COUNT)
    run_gloo(2, folder, train, folder, "parts", 4)
    return folder


@pytest.mark.parametrize("name", NAMES)
def test_two_workers_with_micro_batches_record_what_one_with_the_whole_batch_does(runs: Path, name: str) -> None:
    whole, parts = (small_runs.records(runs / run, name) for run in ("whole", "parts"))
    assert len(whole) == STEPS
    assert parts == pytest.approx(whole, rel=1e-4)


def test_two_workers_end_with_the_weights_of_one(runs: Path) -> None:
    whole, parts = (small_runs.exported(runs / run) for run in ("whole", "parts"))
    for name, weight in whole.items():
        torch.testing.assert_close(parts[name], weight, rtol=1e-3, atol=1e-4, msg=lambda text, of=name: f"{of}: {text}")


def test_the_mean_weight_is_that_of_the_seeds_of_the_whole_step(runs: Path) -> None:
    """Of the second step, from its positions alone."""
    network = MaskedGenerator(MODEL, TOKENIZER.layout)
    network.load_state_dict(small_runs.exported(runs / "whole"))
    positions = torch.arange(small_runs.COUNT, 2 * small_runs.COUNT).numpy()
    masked_BL = network.masked_positions(torch.from_numpy(network_seeds(small_runs.SEED, positions)))
    found = network.of_step(1, torch.from_numpy(network_seeds(small_runs.SEED, positions)))
    weight_BL = torch.where(masked_BL, 1.0, 0.1)
    assert float(found["mean_weight"]) == pytest.approx(float(weight_BL.mean()), rel=1e-5)
    shares = [float(masked_BL[:, TOKENIZER.layout.span(group)].float().mean()) for group in range(2)]
    assert found["masked_share_G"].tolist() == pytest.approx(shares, rel=1e-5)
