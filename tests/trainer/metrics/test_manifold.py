"""Precision, recall and nearest neighbours, against points on a line, plain numpy and torch-fidelity."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from torch_fidelity.metric_prc import calculate_precision_recall_full, calculate_precision_recall_part

from trainer.metrics import manifold
from trainer.metrics.manifold import covered, nearest, precision_recall, radii


def line(*points: float) -> np.ndarray:
    return np.array(points, np.float32)[:, None]


def features(seed: int, count: int, channels: int = 16) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (rng.normal(size=(count, channels)) * rng.uniform(0.5, 1.5, channels) + seed).astype(np.float32)


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of 7 rows, so that few features fill many."""
    monkeypatch.setattr(manifold, "_MOST_ROWS", 7)


def test_a_radius_reaches_to_the_kth_nearest_other_point() -> None:
    assert radii(line(0, 1, 3, 7), neighbours=2).tolist() == [9, 4, 9, 36]


def test_precision_and_recall_are_shares_of_points_in_balls_of_the_others() -> None:
    real, generated = line(-1, 1, 4), line(3, 6, 7, 20)
    # real balls [-3, 1], [-1, 3], [1, 7]; generated ones [0, 6], [5, 7], [6, 8], [7, 33]
    found = precision_recall(real, generated, neighbours=1)
    assert found.precision == pytest.approx(3 / 4)  # 3, 6 and 7, which is on a rim
    assert found.recall == pytest.approx(2 / 3)  # 1 and 4


@pytest.mark.parametrize("neighbours", [1, 2, 3])
def test_they_are_torch_fidelitys(neighbours: int) -> None:
    real, made = features(0, 150), features(0, 170)[20:] * 0.8 + 0.3
    for calculate in (calculate_precision_recall_full, calculate_precision_recall_part):
        expected = calculate(torch.from_numpy(made).double(), torch.from_numpy(real).double(), neighbours)
        assert precision_recall(real, made, neighbours) == pytest.approx(expected, rel=1e-6)
        assert 0.1 < min(expected) < 0.9


@pytest.mark.usefixtures("small_blocks")
def test_blocks_change_nothing() -> None:
    real, made = features(0, 45), features(1, 30)
    between = np.linalg.norm(made[:, None].astype(np.float64) - real, axis=2)
    within = np.sort(np.linalg.norm(real[:, None].astype(np.float64) - real, axis=2), axis=1)
    np.testing.assert_allclose(radii(real, 3), within[:, 3] ** 2, rtol=1e-9)
    made_within = np.sort(np.linalg.norm(made[:, None].astype(np.float64) - made, axis=2), axis=1)
    precise, recalled = covered(made, real, 3)
    assert (precise == (between <= within[:, 3]).any(axis=1)).all()
    assert (recalled == (between <= made_within[:, 3, None]).any(axis=0)).all()
    assert 0 < precise.sum() < len(precise)
    index, distance = nearest(made, real, 4)
    assert (index == np.argsort(between, axis=1)[:, :4]).all()
    np.testing.assert_allclose(distance, np.sort(between, axis=1)[:, :4], rtol=1e-9)


def test_an_equal_image_is_at_distance_zero_however_far_from_the_origin_it_is() -> None:
    references = features(0, 50) + 1000
    index, distance = nearest(references[[17, 4]], references, 2)
    assert index[:, 0].tolist() == [17, 4]
    assert distance[:, 0].tolist() == [0, 0]
    assert (distance[:, 1] > 0).all()


def test_of_references_that_are_equal_the_first_comes_first() -> None:
    index, _ = nearest(line(5), line(9, 5, 5), 2)
    assert index.tolist() == [[1, 2]]


def test_memory_maps_are_read_block_by_block(tmp_path: Path) -> None:
    shape = (3000, 2048)
    stored = np.lib.format.open_memmap(tmp_path / "features.npy", "w+", np.float32, shape)
    stored[:, 0] = np.arange(len(stored))
    tracemalloc.start()
    index, _ = nearest(stored[:2048], stored, 1)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert index[:, 0].tolist() == list(range(2048))
    assert peak < 256 * 2**20


def test_the_wider_features_are_the_fewer_are_read_at_once() -> None:
    wide = np.broadcast_to(np.arange(50, dtype=np.float32)[:, None], (50, 400_000))
    tracemalloc.start()
    index, _ = nearest(wide, wide, 1)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert index[:, 0].tolist() == list(range(50))
    assert peak < 256 * 2**20


def test_too_few_images_for_their_neighbours_are_refused() -> None:
    with pytest.raises(ValueError, match="3 images have no 3 neighbours"):
        precision_recall(line(0, 1, 2), line(0, 1, 2, 3))
    with pytest.raises(ValueError, match="3 references have no 4 nearest"):
        nearest(line(0), line(0, 1, 2), 4)


def test_features_that_cannot_be_compared_are_refused() -> None:
    with pytest.raises(ValueError, match="1 and of 16 channels"):
        nearest(line(0), features(0, 5))
    with pytest.raises(ValueError, match="1 and of 16 channels"):
        covered(line(0, 1, 2, 3), features(0, 5))
    with pytest.raises(ValueError, match="not finite"):
        radii(line(0, 1, np.nan), 1)
    with pytest.raises(ValueError, match="shape"):
        radii(np.zeros(3))
