"""torch.compile finds one graph in a step of sampling, and one serves all steps: places are numbers, not constants."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

from model.config import NextTokenConfig
from model.config.random_order import RandomOrderConfig
from model.generators import next_token_sampling, random_order_sampling
from model.generators.next_token import NextTokenGenerator
from model.generators.random_order import RandomOrderGenerator
from model.layout import TokenLayout

LAYOUT, B = TokenLayout((16,), (11, 7)), 2
SIZES = {"num_classes": 5, "depth": 2, "width": 32, "heads": 2}
LABEL = torch.zeros(B, dtype=torch.int64)


@pytest.fixture(autouse=True)
def _nothing_compiled() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def next_token() -> Callable[[Tensor | None], Tensor]:
    network = NextTokenGenerator(NextTokenConfig.model_validate(SIZES), LAYOUT).eval()
    return next_token_sampling.Slots(network, LABEL, guided=True).read


def random_order() -> Callable[[Tensor | None], Tensor]:
    network = RandomOrderGenerator(RandomOrderConfig.model_validate(SIZES), LAYOUT).eval()
    order = torch.arange(16).expand(B, -1)
    return random_order_sampling.Slots(network, LABEL, order, guided=True).read


@pytest.mark.slow
@pytest.mark.parametrize("made", [next_token, random_order])
def test_a_step_is_one_graph_and_all_steps_after_the_second_share_one(
    made: Callable[[], Callable[[Tensor | None], Tensor]],
) -> None:
    counter = CompileCounterWithBackend("eager")
    step = torch.compile(made(), backend=counter, fullgraph=True)
    tokens = torch.zeros(B, 2, dtype=torch.int64)
    with torch.no_grad():
        step(None)
        frames = []
        for _ in range(8):
            step(tokens)
            frames.append(counter.frame_count)
    assert frames[1] == frames[-1] <= 3, frames
