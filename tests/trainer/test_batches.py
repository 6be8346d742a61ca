"""Typed batches: what is cut, what is not, and that images become the same numbers as before."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from data_pipeline.images.transforms import to_model
from trainer.engine.batches import Batch, normalized
from trainer.engine.scalars import Scalars


@dataclass(frozen=True, kw_only=True)
class Samples(Batch):
    tokens_BLF: Tensor
    mean_S: Tensor


def samples(count: int) -> Samples:
    return Samples(
        index_B=np.arange(count),
        tokens_BLF=torch.arange(count * 6).view(count, 3, 2),
        mean_S=torch.ones(3),
    )


@given(st.sampled_from([1, 2, 4, 8]))
def test_rows_are_cut_in_order_and_what_is_of_the_global_batch_stays_whole(parts: int) -> None:
    whole = samples(8)
    cut = whole.split(parts)
    assert len(cut) == parts
    assert torch.equal(torch.cat([each.tokens_BLF for each in cut]), whole.tokens_BLF)
    assert np.concatenate([each.index_B for each in cut if each.index_B is not None]).tolist() == list(range(8))
    assert all(torch.equal(each.mean_S, whole.mean_S) and each.seed_B is None for each in cut)


def test_a_batch_that_cannot_be_cut_evenly_is_refused() -> None:
    with pytest.raises(ValueError, match="6 samples cannot be cut into 4 equal micro-batches"):
        samples(6).split(4)


def test_tensors_travel_and_numbers_of_samples_stay_on_the_host() -> None:
    there = samples(2).to(torch.device("meta"))
    assert there.tokens_BLF.device.type == there.mean_S.device.type == "meta"
    assert isinstance(there.index_B, np.ndarray)


def test_bytes_become_the_numbers_of_the_data_pipeline_bit_for_bit() -> None:
    pixels_BHWC = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1).repeat(3, axis=3)
    pixels_BCHW = torch.from_numpy(np.ascontiguousarray(pixels_BHWC.transpose(0, 3, 1, 2)))
    expected = to_model(pixels_BHWC)
    assert np.array_equal(normalized(pixels_BCHW).numpy(), expected)
    assert (expected.min(), expected.max()) == (-1.0, 1.0)


def test_scalars_add_up_by_name_to_the_mean_over_micro_batches() -> None:
    parts = [
        Scalars.of({"loss": torch.tensor(loss), "hits": torch.tensor(hits)}, 2) for loss, hits in ((1.0, 3), (2.0, 5))
    ]
    total = parts[0] + parts[1]
    assert {name: float(value) for name, value in total.items()} == {"loss": 1.5, "hits": 4.0}
    both = total | Scalars.of({"critic": torch.tensor(7.0)})
    assert (list(both), both.values_N.tolist()) == (["loss", "hits", "critic"], [1.5, 4.0, 7.0])
    with pytest.raises(KeyError):
        both["other"]
