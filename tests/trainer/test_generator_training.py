"""A generator's training hides the labels that it should, and weighs every token alike: against plain arithmetic."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from data_pipeline.config import TokensConfig
from data_pipeline.order.permutations import SampleOrder, keyed_uniform
from data_pipeline.shards import weights
from data_pipeline.shards.image_shards import ImageShards
from data_pipeline.tokens.tokenizing import finish, missing, plan_tokens, tokenize_shard
from model.config import ImageFolderConfig, NextScaleConfig, VectorConfig, ViTConfig
from model.generators.next_scale import FoldedGenerator
from model.tokenizers.imagefolder import ImageFolderTokenizer
from tests.trainer import small_runs
from tests.trainer.gloo import run_gloo
from trainer.config import GeneratorStageConfig

VIT = ViTConfig(width=8, depth=1, heads=2)
TOKENIZER = ImageFolderConfig(
    image_size=small_runs.SIZE,
    patch_size=4,
    scales=(1, 2),
    dropout_min_scales=1,
    shared_residual_convs=1,
    quantizer=VectorConfig(codebook_size=64, code_dim=4),
    encoder=VIT,
    decoder=VIT,
)
HIDDEN_SHARE, RATE, DECAY = 0.4, 1e-3, 0.5
NULL = small_runs.COUNT + 2
"""Of the class table: two of its rows are of classes that the data have not."""
MODEL = NextScaleConfig(num_classes=NULL, depth=2, width=16, heads=2, label_dropout=HIDDEN_SHARE)
NOT_DECAYED = {"start_embed", "position_embed", "level_embed"}


def tokens_of(label: int) -> np.ndarray:
    """The tokens of the image of a class."""
    shape = (TOKENIZER.layout.positions, TOKENIZER.layout.folds)
    return np.random.default_rng(label).integers(0, TOKENIZER.quantizer.vocabulary, shape)


def tokenize(image_BCHW: np.ndarray) -> np.ndarray:
    """A tokenizer that knows each image, and gives the tokens of its class."""
    distances = np.square(image_BCHW[:, None] - small_runs.images().numpy()).sum((2, 3, 4))
    return np.stack([tokens_of(label) for label in distances.argmin(1)]).astype(np.uint16)


def section(model: NextScaleConfig = MODEL, **changes: Any) -> GeneratorStageConfig:
    return GeneratorStageConfig(model=model, trainer=small_runs.trainer(final_learning_rate=1, **changes))


def train_all(folder: Path) -> None:
    images = small_runs.write_images(folder)
    tokenizer, tokens = str(folder / "tokenizer"), str(folder / "tokens")
    torch.manual_seed(0)
    state, config = ImageFolderTokenizer(TOKENIZER).state_dict(), TOKENIZER.model_dump(mode="json")
    card = weights.write_weights(tokenizer, "tokenizer", config, {"model": state}, {})
    plan, data = plan_tokens(images, card, TokensConfig(views=("center",)), tokens, "crop"), ImageShards(images)
    for shard in missing(plan):
        tokenize_shard(plan, shard, data, tokenize)
    finish(plan)
    inputs = {"tokens": tokens, "tokenizer": tokenizer}
    seen = section(MODEL.model_copy(update={"label_dropout": 0.0}), learning_rate=RATE)
    small_runs.train("generator", folder / "start", section(learning_rate=small_runs.NO_STEP), **inputs)
    small_runs.train("generator", folder / "one", section(learning_rate=RATE), **inputs)
    small_runs.train("generator", folder / "decayed", section(learning_rate=RATE, weight_decay=DECAY), **inputs)
    small_runs.train("generator", folder / "seen", seen, **inputs)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    run_gloo(1, folder, train_all, folder)
    return folder


def hidden_labels(runs: Path) -> set[int]:
    """The classes whose only image stands in the first step at a position that hides its label."""
    labels = ImageShards(str(runs / "images" / "train")).labels
    position_B = np.arange(small_runs.COUNT, dtype=np.int64)
    index_B = SampleOrder(small_runs.SEED, (small_runs.COUNT,)).indices(position_B)
    hidden_B = keyed_uniform(small_runs.SEED, "label_dropout", position_B) < HIDDEN_SHARE
    return set(labels[index_B[hidden_B]].tolist())


def moved_rows(runs: Path, name: str) -> set[int]:
    """The rows of the class table that a step of training has moved."""
    before, after = (small_runs.exported(runs / each)["class_embed.weight"] for each in ("start", name))
    return set((before != after).any(1).nonzero().flatten().tolist())


def test_a_hidden_label_trains_the_row_of_no_class_in_place_of_its_own(runs: Path) -> None:
    hidden = hidden_labels(runs)
    assert 0 < len(hidden) < small_runs.COUNT
    assert moved_rows(runs, "one") == set(range(small_runs.COUNT)) - hidden | {NULL}


def test_without_dropout_every_label_is_seen_and_no_class_is_not_trained(runs: Path) -> None:
    assert moved_rows(runs, "seen") == set(range(small_runs.COUNT))


def plain_losses(network: FoldedGenerator, state: dict[str, Tensor], hidden: set[int]) -> np.ndarray:
    """Minus the log of the probability of each true token, [samples, positions, folds]."""
    label_B = torch.tensor([NULL if label in hidden else label for label in range(small_runs.COUNT)])
    tokens_BLF = torch.from_numpy(np.stack([tokens_of(label) for label in range(small_runs.COUNT)]))
    with torch.no_grad():
        probability = network(label_B, first_scale(state, tokens_BLF)).double().softmax(-1)
    return -torch.log(probability.gather(-1, tokens_BLF[..., None])[..., 0]).numpy()


def first_scale(state: dict[str, Tensor], tokens_BLF: Tensor) -> Tensor:
    """What the generator sees at the four positions of the second scale: the code of the first, through its conv."""
    branches = []
    for branch in range(2):
        name = f"quantizer.branches.{branch}"
        code_BCHW = state[f"{name}.quantizer.codebook"][tokens_BLF[:, 0, branch]][:, :, None, None].expand(-1, -1, 2, 2)
        conv = (state[f"{name}.residual_convs.0.{part}"] for part in ("weight", "bias"))
        branches.append((code_BCHW + torch.nn.functional.conv2d(code_BCHW, *conv, padding=1)) / 2)
    return torch.cat(branches, 1).flatten(2).transpose(1, 2)


@pytest.fixture(scope="module")
def losses(runs: Path) -> np.ndarray:
    network = FoldedGenerator(MODEL, TOKENIZER.layout, TOKENIZER.forcing_width)
    network.load_state_dict(small_runs.exported(runs / "start"))
    _, state = weights.read_weights(str(runs / "tokenizer"), "tokenizer")
    return plain_losses(network, state, hidden_labels(runs))


def test_the_loss_is_the_mean_over_samples_positions_and_folds(runs: Path, losses: np.ndarray) -> None:
    assert small_runs.records(runs / "start", "loss") == [pytest.approx(losses.mean(), rel=1e-6)]


@pytest.mark.parametrize("branch", [0, 1])
@pytest.mark.parametrize(("scale", "positions"), [(0, slice(0, 1)), (1, slice(1, 5))])
def test_the_losses_of_scales_and_branches_are_recorded_apart(
    runs: Path, losses: np.ndarray, scale: int, positions: slice, branch: int
) -> None:
    (recorded,) = small_runs.records(runs / "start", f"loss_group{scale}_fold{branch}")
    assert recorded == pytest.approx(losses[:, positions, branch].mean(), rel=1e-6)


def test_decay_takes_its_share_of_layers_weights_and_of_nothing_else(runs: Path) -> None:
    """The first step moves every weight by the same with decay and without; what is left is the decay's."""
    start, one, decayed = (small_runs.exported(runs / name) for name in ("start", "one", "decayed"))
    spared = {name for name in start if torch.equal(one[name], decayed[name])}
    assert {name for name in spared if start[name].ndim > 1} == NOT_DECAYED
    assert {name for name in start if start[name].ndim < 2} <= spared
    for name in start.keys() - spared:
        torch.testing.assert_close(one[name] - decayed[name], RATE * DECAY * start[name], rtol=1e-3, atol=1e-7)


def test_the_card_of_a_trained_generator_names_the_classes_of_its_data(runs: Path) -> None:
    assert weights.read_card(str(runs / "one" / "export"), "generator").classes == small_runs.CLASSES
