"""What the tokenizer stage decides per sample: quantizer dropout, and which codes are restarted."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist

from data_pipeline.config import ReadingConfig
from data_pipeline.order.permutations import Positions, keyed_uniform
from model.config import ImageFolderConfig, VectorConfig, ViTConfig
from model.tokenizers.grid import KEPT_MEAN, KEPT_SCALES
from model.tokenizers.imagefolder import ImageFolderTokenizer
from tests.trainer.gloo import run_gloo
from trainer.config import TokenizerLossConfig, TokenizerStageConfig, TrainerConfig
from trainer.job import TrainJob
from trainer.stages import tokenizer

SMALL = ViTConfig(width=8, depth=1, heads=2)
CONFIG = ImageFolderConfig(encoder=SMALL, decoder=SMALL, quantizer_dropout=0.1, dropout_min_scales=3)


def kept_scales(seed: int, positions: Positions) -> Positions:
    with torch.device("meta"):
        tokenizer = ImageFolderTokenizer(CONFIG)
    found: Positions = tokenizer.draw(partial(keyed_uniform, seed), positions, positions).of_sample[KEPT_SCALES]
    return found


def test_quantizer_dropout_keeps_three_to_all_scales_of_a_tenth_of_the_samples() -> None:
    kept = kept_scales(0, np.arange(200_000, dtype=np.int64))
    counts = np.bincount(kept, minlength=11) / len(kept)
    assert counts[:3].sum() == 0
    np.testing.assert_allclose(counts[3:10], 0.1 / 8, atol=0.001)  # uniform on {3..10}: an eighth each
    np.testing.assert_allclose(counts[10], 0.9 + 0.1 / 8, atol=0.003)


def test_the_share_that_keeps_a_scale_is_that_of_the_whole_step_and_not_of_a_rank() -> None:
    with torch.device("meta"):
        tokenizer = ImageFolderTokenizer(CONFIG)
    everyone = np.arange(400, dtype=np.int64)
    draws = [tokenizer.draw(partial(keyed_uniform, 0), mine, everyone) for mine in np.split(everyone, 4)]
    kept = np.concatenate([each.of_sample[KEPT_SCALES] for each in draws])
    for each in draws:
        np.testing.assert_allclose(each.of_step[KEPT_MEAN], [(kept > scale).mean() for scale in range(10)], rtol=1e-6)


def test_quantizer_dropout_is_a_function_of_the_position_alone() -> None:
    positions = np.arange(64, dtype=np.int64)
    whole = kept_scales(5, positions)
    np.testing.assert_array_equal(whole, np.concatenate([kept_scales(5, p) for p in np.split(positions, 4)]))


class NoImages:
    """A data set that is not read."""

    def __init__(self, *_: Any, **__: Any) -> None: ...


def counted(dead_code_steps: int) -> list[dict[str, Any]]:
    """The stage's counts on this rank: at first, after 5 on each rank, and when only rank 0 has restored them."""
    model = ImageFolderConfig(
        image_size=16,
        patch_size=4,
        scales=(1, 2),
        dropout_min_scales=1,
        quantizer=VectorConfig(codebook_size=8, code_dim=4),
        encoder=SMALL,
        decoder=SMALL,
    )
    loss = TokenizerLossConfig()
    trainer = TrainerConfig(steps=10, global_batch=2)
    section = TokenizerStageConfig(model=model, loss=loss, dead_code_steps=dead_code_steps, trainer=trainer)
    job = TrainJob("tokenizer", "", section, 0, "squash", ReadingConfig(), {}, {}, {})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tokenizer, "open_images", NoImages)
        patch.setattr(tokenizer, "ImageBatches", NoImages)
        stage = tokenizer.TokenizerStage(job, torch.device("cpu"))
    found = [stage.state()]
    for hits_GV in stage._codes._hits.values():
        hits_GV += 5
    found.append(stage.state())
    stage.load_state(found[-1] if dist.get_rank() == 0 else {})
    states = [*found, stage.state()]
    return [{name: tensor.numpy() for name, tensor in state.items()} for state in states]


def test_counts_of_codes_are_summed_by_all_ranks_though_one_alone_restores_them(tmp_path: Path) -> None:
    for states in run_gloo(2, tmp_path, counted, 4):
        first = "hits.quantizer.branches.0.quantizer.codebook"
        assert [sorted(state) for state in states] == [[first, "hits.quantizer.branches.1.quantizer.codebook"]] * 3
        assert [np.unique(state[first]).tolist() for state in states] == [[0], [10], [10]]
        assert states[0][first].shape == (2, 8)
    assert run_gloo(2, tmp_path, counted, 0) == [[{}] * 3] * 2
