"""The numbers of workers that an elastic stage takes keep its global batch, and its micro batch."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.config.run import ClusterConfig
from cluster.training.elastic_sizes import largest_usable, same_micro_batch, usable_sizes
from trainer.config import TrainerConfig


def trainer(global_batch: int, micro_batch: int | None = None) -> TrainerConfig:
    return TrainerConfig(steps=1, global_batch=global_batch, micro_batch=micro_batch)


def test_only_sizes_that_divide_the_batch_are_usable() -> None:
    assert usable_sizes(trainer(24), 1, 9) == (1, 2, 3, 4, 6, 8)
    assert usable_sizes(trainer(24, micro_batch=4), 1, 9) == (1, 2, 3, 6, 8)  # at 8 the share is 3
    assert usable_sizes(trainer(7), 2, 6) == ()


def test_the_next_smaller_usable_size_is_taken() -> None:
    assert [largest_usable((2, 4, 8), possible) for possible in (0, 1, 2, 3, 7, 8, 100)] == [0, 0, 2, 2, 4, 8, 8]


@given(st.integers(1, 64), st.integers(1, 12), st.integers(0, 12))
def test_accumulation_alone_follows_the_size(global_batch: int, fewest: int, more: int) -> None:
    config = same_micro_batch(trainer(global_batch), fewest, fewest + more)
    sizes = usable_sizes(trainer(global_batch), fewest, fewest + more)
    assert usable_sizes(config, fewest, fewest + more) == sizes
    for size in sizes:
        micro, accumulation = config.split_over(size)
        assert (micro, micro * accumulation * size) == (config.micro_batch, global_batch)


def test_a_micro_batch_that_is_given_stays() -> None:
    assert same_micro_batch(trainer(24, micro_batch=2), 1, 3).micro_batch == 2


@pytest.mark.parametrize("given", ["2:6", [2, 6], (2, 6)])
def test_workers_are_a_range(given: Any) -> None:
    config = ClusterConfig.model_validate({"workers": given})
    assert (config.fewest_workers, config.most_workers, config.is_elastic) == (2, 6, True)
    assert ClusterConfig.model_validate(config.model_dump(mode="json")) == config


@pytest.mark.parametrize("given", [3, "3", "3:3", [3, 3]])
def test_workers_are_a_number(given: Any) -> None:
    config = ClusterConfig.model_validate({"workers": given})
    assert (config.workers, config.fewest_workers, config.most_workers, config.is_elastic) == (3, 3, 3, False)


@pytest.mark.parametrize("given", [0, -1, True, 1.5, "two", "0:3", "3:1", "1:2:3", [], [1, 2, 3], None, {}])
def test_other_workers_are_refused(given: Any) -> None:
    with pytest.raises(ValueError, match="MIN:MAX"):
        ClusterConfig.model_validate({"workers": given})
