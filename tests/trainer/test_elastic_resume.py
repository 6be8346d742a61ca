"""A checkpoint of any ZeRO stage and number of workers continues at any other as if nothing had happened.

Many pairs run in one start of the processes. `benchmarks/elastic_matrix.py` runs all of them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch

from tests.trainer.gloo import run_gloo
from tests.trainer.small_training import resumed, states, unbroken

pytestmark = pytest.mark.slow

MIDDLE, LAST = 3, 6

Place = tuple[int, int]
"""ZeRO stage and number of workers."""
SMALL: list[Place] = [(stage, world) for world in (1, 2) for stage in (0, 1, 2, 3)]
WIDE: Place = (3, 4)
FP32 = [(one, other) for one in SMALL for other in SMALL] + [
    (WIDE, WIDE),
    (WIDE, (1, 1)),
    (WIDE, (2, 2)),
    ((0, 2), WIDE),
]
BF16 = [(place, place) for place in SMALL] + [((0, 1), (3, 2)), ((3, 2), (1, 1)), ((2, 2), (0, 1))]
FP16 = [((stage, 2), (stage, 2)) for stage in (0, 1, 2, 3)] + [((0, 2), (3, 1)), ((3, 1), (1, 2))]
PAIRS = [(name, *pair) for name, pairs in (("fp32", FP32), ("bf16", BF16), ("fp16", FP16)) for pair in pairs]
Pair = tuple[str, Place, Place]
TOLERANCE = {"fp32": 1e-5, "bf16": 2e-3, "fp16": 2e-3}
"""Largest relative difference of a loss at another place, where sums have another order."""


@dataclass
class Matrix:
    """What all runs did: losses by place, and by pair."""

    folder: Path
    whole: dict[tuple[str, Place], list[float]] = field(default_factory=dict)
    again: dict[Pair, dict] = field(default_factory=dict)  # type: ignore[type-arg]

    def source(self, precision: str, place: Place) -> str:
        return str(self.folder / f"{precision}-{place[0]}x{place[1]}")

    def target(self, pair: Pair) -> str:
        return f"{self.source(*pair[:2])}-to-{pair[2][0]}x{pair[2][1]}"

    def run(self, pairs: list[Pair]) -> None:
        """All runs, in two starts for each number of workers."""
        places = sorted({(precision, place) for precision, *two in pairs for place in two})
        for world in sorted({place[1] for _, place in places}):
            here = [(precision, place) for precision, place in places if place[1] == world]
            cells = [(place[0], precision, self.source(precision, place)) for precision, place in here]
            curves = run_gloo(world, self.folder, unbroken, cells, MIDDLE, LAST)[0]
            self.whole |= dict(zip(here, curves, strict=True))
        for world in sorted({other[1] for *_, other in pairs}):
            there = [pair for pair in pairs if pair[2][1] == world]
            jobs = [(pair[2][0], pair[0], self.source(*pair[:2]), self.target(pair)) for pair in there]
            self.again |= dict(zip(there, run_gloo(world, self.folder, resumed, jobs, MIDDLE, LAST)[0], strict=True))


@pytest.fixture(scope="module")
def matrix(tmp_path_factory: pytest.TempPathFactory) -> Matrix:
    found = Matrix(tmp_path_factory.mktemp("matrix"))
    found.run(PAIRS)
    return found


def name_of(pair: Pair) -> str:
    precision, (stage, world), (other_stage, other_world) = pair
    return f"{precision}-zero{stage}x{world}-to-zero{other_stage}x{other_world}"


@pytest.mark.parametrize("pair", PAIRS, ids=name_of)
def test_what_is_loaded_is_what_was_saved_bit_for_bit(matrix: Matrix, pair: Pair) -> None:
    saved, loaded = states(matrix.source(*pair[:2]), MIDDLE), states(matrix.target(pair), MIDDLE)
    for role, tensors in saved.items():
        assert loaded[role].keys() == tensors.keys()
        assert all(torch.equal(loaded[role][name], tensor) for name, tensor in tensors.items()), role
    for name, weight in matrix.again[pair]["weights"].items():
        assert torch.equal(torch.from_numpy(weight), saved["master"][name]), name


@pytest.mark.parametrize("pair", PAIRS, ids=name_of)
def test_the_resumed_run_goes_on_like_the_unbroken_one(matrix: Matrix, pair: Pair) -> None:
    precision, here, there = pair
    losses, expected = matrix.again[pair]["losses"], matrix.whole[precision, here][MIDDLE:]
    whole, again = states(matrix.source(precision, here), LAST), states(matrix.target(pair), LAST)
    if here == there:
        assert losses == expected
        for role, tensors in whole.items():
            assert all(torch.equal(again[role][name], tensor) for name, tensor in tensors.items()), role
    else:
        tolerance = TOLERANCE[precision]
        assert losses == pytest.approx(expected, rel=tolerance)
        for role, tensors in whole.items():
            for name, tensor in tensors.items():
                torch.testing.assert_close(again[role][name], tensor, rtol=tolerance * 10, atol=tolerance / 10)
