"""Numbers of sets of images against the same numbers counted on paper, whatever the parts that rows come in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from trainer.config.feature_networks import ClassifierNetwork, InceptionNetwork
from trainer.evaluation.measures import LABEL, Rows
from trainer.evaluation.naming.numbers import Number
from trainer.evaluation.networks.network_rows import Slot
from trainer.evaluation.row_files import Parts, RowPlan, StoredRows, begin, write_part
from trainer.evaluation.run_record import accuracy_record, distance_by, quality_record
from trainer.evaluation.set_numbers import (
    Judge,
    MetricOptions,
    Naming,
    Reference,
    accuracy_numbers,
    drawn_of,
    real_accuracy_number,
    set_numbers,
)
from trainer.metrics.frechet import FeatureStatistics

TEACHER = Slot("teacher", ClassifierNetwork(kind="classifier", uri="/t"), {"kind": "classifier", "sha256": "aa"})
JUDGE = Slot("judge", ClassifierNetwork(kind="classifier", uri="/j"), {"kind": "classifier", "sha256": "bb"})
INCEPTION = Slot("inception", InceptionNetwork(file="/i"), {"name": "inception-2015", "sha256": "67"}, is_fid=True)
NAMING = Naming({"generator": {"sha256": "ab"}}, "nearest")
Array = npt.NDArray[np.float64]


def stored(folder: Path, rows: Rows, batch: int = 4) -> StoredRows:
    """Rows in parts of some 512 images, of whole batches."""
    count = len(next(iter(rows.values())))
    plan = RowPlan(str(folder), {}, {}, count, batch)
    begin(plan)
    parts = Parts(plan)
    for part in range(plan.parts):
        here = slice(*plan.span(part))
        parts.add(write_part(plan, part, {name: each[here] for name, each in rows.items()}, "0" * 64, {}))
    return StoredRows(plan, parts.finish())


def features(seed: int, count: int = 700, width: int = 5) -> npt.NDArray[np.float32]:
    draw = np.random.default_rng(seed)
    return (draw.normal(size=(count, width)) @ draw.normal(size=(width, width)) + seed).astype(np.float32)


def distance_on_paper(first_ND: npt.NDArray[Any], second_ND: npt.NDArray[Any]) -> float:
    first, second = first_ND.astype(np.float64), second_ND.astype(np.float64)
    one, other = np.cov(first, rowvar=False), np.cov(second, rowvar=False)
    shift = first.mean(0) - second.mean(0)
    roots = np.sqrt(np.linalg.eigvals(one @ other).real.clip(0))  # their sum is the trace of the product's root
    return float(shift @ shift + np.trace(one + other) - 2 * roots.sum())


def by_name(numbers: list[Number]) -> dict[str, Number]:
    return {number.metric: number for number in numbers}


def test_the_distance_is_of_all_rows_from_the_reference(tmp_path: Path) -> None:
    drawn, real = features(1), features(2, 600)
    rows, others = (stored(tmp_path / name, {"teacher.features": each}) for name, each in (("a", drawn), ("b", real)))
    reference = Reference({"reference": {"images": "cc"}, "crop": {"size": 8}}, others)

    number, *_ = set_numbers([TEACHER], rows, reference, NAMING)

    assert number.metric == "frechet_distance"
    assert number.value == pytest.approx(distance_on_paper(drawn, real), rel=1e-6)
    assert number.images == 700
    assert number.measured_by == {
        "rounding": "nearest", "reference": {"images": "cc"}, "crop": {"size": 8}, "network": TEACHER.identity,
    }  # fmt: skip
    assert number.measured_of == NAMING.of


def test_the_parts_change_no_digit(tmp_path: Path) -> None:
    rows = {"teacher.features": features(1)}
    reference = Reference({}, stored(tmp_path / "real", {"teacher.features": features(2)}))

    found = {
        next(iter(set_numbers([TEACHER], stored(tmp_path / str(batch), rows, batch), reference, NAMING))).value
        for batch in (4, 7, 512, 1000)
    }

    assert len(found) == 1


def test_only_the_published_inception_gives_a_fid(tmp_path: Path) -> None:
    drawn, real = (
        {f"inception.{name}": features(seed, 64, 4) for name in ("features", "spatial", "logits")} for seed in (1, 2)
    )
    rows, reference = stored(tmp_path / "a", drawn), Reference({}, stored(tmp_path / "b", real))
    other = Slot("inception", INCEPTION.config, {"name": "inception-12345678"})

    published = [each.metric for each in set_numbers([INCEPTION], rows, reference, NAMING)]
    unknown = [each.metric for each in set_numbers([other], rows, reference, NAMING)]

    assert published == ["fid", "sfid", "inception_score", "precision", "recall"]
    assert unknown[:2] == ["frechet_distance", "spatial_frechet_distance"]


def test_published_statistics_take_the_place_of_images(tmp_path: Path) -> None:
    drawn, real = features(1), features(2)
    rows = stored(tmp_path / "a", {"inception.features": drawn, "inception.logits": drawn})
    published = FeatureStatistics(real.astype(np.float64).mean(0), np.cov(real.astype(np.float64), rowvar=False))
    reference = Reference({"reference": {"sha256": "dd"}}, None, {"features": published})

    found = by_name(list(set_numbers([INCEPTION], rows, reference, NAMING)))

    assert found["fid"].value == pytest.approx(distance_on_paper(drawn, real), rel=1e-6)
    assert found.keys() == {"fid", "inception_score"}  # nothing is near to statistics


def test_the_inception_score_on_paper(tmp_path: Path) -> None:
    """Two classes, each image sure of its own: in one split the score is 2."""
    logits = np.where(np.arange(40)[:, None] % 2 == np.arange(2), 50, -50).astype(np.float32)
    rows = stored(tmp_path, {"inception.logits": logits})

    (number,) = set_numbers([INCEPTION], rows, Reference({}), NAMING, MetricOptions(splits=1))

    assert number.value == pytest.approx(2, rel=1e-9)
    assert number.measured_by["protocol"] == {"splits": 1, "seed": 2020}


def judged(folder: Path, seen: list[int], asked: list[int]) -> StoredRows:
    logits = np.eye(3, dtype=np.float32)[seen]
    return stored(folder, {"judge.logits": logits, LABEL: np.array(asked)})


LOOKS, ASKED = [0, 1, 1, 0, 0, 2, 2], [0, 1, 2, 0, 1, 2, 0]
"""Of what is asked of class 0, 2 of 3 look so; of class 1, 1 of 2; of class 2, 1 of 2."""


def test_class_accuracy_is_the_share_of_samples_that_look_like_their_class(tmp_path: Path) -> None:
    drawn, real = judged(tmp_path / "a", LOOKS, ASKED), judged(tmp_path / "b", [0, 1, 2, 2, 0], [0, 1, 2, 0, 1])

    found = accuracy_record(drawn, real, JUDGE, 4)

    assert found["class_accuracy"] == pytest.approx(4 / 7)
    assert found["class_accuracy_per_class"] == [pytest.approx(2 / 3), 1 / 2, 1 / 2, None]
    assert found["judge_accuracy_on_real"] == pytest.approx(3 / 5)
    assert set(accuracy_record(drawn, real, None, 4).values()) == {None}


def test_an_accuracy_has_the_standard_error_of_a_share(tmp_path: Path) -> None:
    (number,) = accuracy_numbers(Judge(JUDGE), judged(tmp_path, LOOKS, ASKED), NAMING)

    assert number.value == pytest.approx(4 / 7)
    assert number.plus_minus == pytest.approx((4 / 7 * 3 / 7 / 7) ** 0.5)
    assert number.measured_by["network"] == JUDGE.identity


def test_the_record_of_a_run_takes_the_distance_of_its_own_teacher() -> None:
    numbers = [
        Number("fid", 3.0, 10, {"network": INCEPTION.identity}),
        Number("frechet_distance", 2.0, 10, {"network": TEACHER.identity}),
        Number("mse", 0.5, 10),
        Number("mse", 0.25, 10),
    ]

    assert distance_by(numbers, TEACHER) == 2.0
    assert distance_by(numbers, JUDGE) is None
    assert distance_by(numbers, None) is None
    assert quality_record(numbers) == {"mse_of_prefixes": [0.5, 0.25], "psnr_of_prefixes": [], "ssim_of_prefixes": []}


def test_what_made_samples_becomes_what_a_number_is_of() -> None:
    made_by = {
        "generator": "g",
        "weights": "ema",
        "sampling": {"guidance": 2},
        "seed": 1,
        "labels": [],
        "device": "cpu",
    }

    assert drawn_of(made_by | {"encoder": "e", "decoder": "d"}) == {
        "generator": {"sha256": "g"},
        "weights": "ema",
        "sampling": {"guidance": 2},
        "seed": 1,
        "labels": [],
        "tokenizer": {"encoder": "e", "decoder": "d"},
        "device": "cpu",
    }


def test_a_judge_is_named_with_what_it_finds_of_real_images(tmp_path: Path) -> None:
    logits = np.eye(3, dtype=np.float32)[[0, 1, 2, 2, 0]]
    real = stored(tmp_path, {"judge.logits": logits, LABEL: np.array([0, 1, 1, 2, 1])})

    number = real_accuracy_number(Judge(JUDGE), Reference({"reference": {"images": "cc"}, "crop": {"size": 8}}, real))

    assert (number.metric, number.value, number.images, number.pictures) == (
        "class_accuracy_of_real_images", 0.6, 5, "images",
    )  # fmt: skip
    assert number.plus_minus == pytest.approx((0.6 * 0.4 / 5) ** 0.5)
    assert number.measured_by == {"crop": {"size": 8}, "network": JUDGE.identity}
    assert number.measured_of == {"images": {"images": "cc"}}


def test_a_distance_has_the_deviation_of_resamples_behind_it(tmp_path: Path) -> None:
    drawn = features(1, 4000)
    rows = stored(tmp_path / "a", {"teacher.features": drawn})
    reference = Reference({}, stored(tmp_path / "b", {"teacher.features": features(2)}))

    number = by_name(list(set_numbers([TEACHER], rows, reference, NAMING, MetricOptions(resamples=40))))[
        "frechet_distance"
    ]

    parts = [distance_on_paper(each, features(2)) for each in np.split(drawn, 20)]
    assert number.plus_minus == pytest.approx(np.std(parts, ddof=1) / 20**0.5, rel=0.4)
    assert number.measured_by["protocol"] == {"standard_error": "bootstrap, 40 resamples of 20 blocks"}


def test_published_statistics_are_of_inception_alone(tmp_path: Path) -> None:
    rows = stored(tmp_path / "a", {"teacher.features": features(1)})
    published = FeatureStatistics(np.zeros(5), np.eye(5))

    assert not list(set_numbers([TEACHER], rows, Reference({}, None, {"features": published}), NAMING))


def test_an_outside_judge_has_classes_of_its_own_and_a_top_5(tmp_path: Path) -> None:
    ranks = np.array([[0, 9, 8, 7, 6, 5, 4], [9, 8, 7, 6, 5, 4, 3], [0, 9, 8, 7, 6, 5, 4], [9, 8, 7, 6, 5, 4, 3]])
    rows = stored(tmp_path, {"judge.logits": ranks.astype(np.float32), LABEL: np.array([0, 1, 1, -1])})
    judge = Judge(JUDGE, classes=(1, 4))  # label 0 is its class 1, label 1 its class 4

    found = by_name(list(accuracy_numbers(judge, rows, NAMING)))

    # Class 1 of the first is the likeliest, class 4 of the second the fifth,
    # of the third its fourth; the last is of no class.
    assert (found["class_accuracy"].value, found["class_accuracy_top5"].value) == (0.25, 0.75)


def test_of_equal_logits_the_first_class_is_the_one_that_a_judge_sees(tmp_path: Path) -> None:
    rows = stored(tmp_path, {"judge.logits": np.zeros((2, 3), np.float32), LABEL: np.array([0, 1])})
    assert Judge(JUDGE).is_right(rows).tolist() == [True, False]


def test_precision_and_recall_can_be_left_out(tmp_path: Path) -> None:
    rows = {"teacher.features": features(1, 40)}
    reference = Reference({}, stored(tmp_path / "b", rows))
    found = set_numbers(
        [TEACHER], stored(tmp_path / "a", rows), reference, NAMING, MetricOptions(precision_recall=False)
    )

    assert [number.metric for number in found] == ["frechet_distance"]


def test_the_error_of_an_inception_score_is_that_of_the_mean_of_its_splits(tmp_path: Path) -> None:
    logits = features(3, 90, 4)
    rows = stored(tmp_path, {"inception.logits": logits})

    (number,) = set_numbers([INCEPTION], rows, Reference({}), NAMING, MetricOptions(splits=3))

    p_NK = np.exp(logits.astype(np.float64))
    p_NK /= p_NK.sum(axis=1, keepdims=True)
    parts = np.split(p_NK[np.random.RandomState(2020).permutation(90)], 3)
    scores = [np.exp((each * np.log(each / each.mean(axis=0))).sum(axis=1).mean()) for each in parts]
    assert number.value == pytest.approx(np.mean(scores), rel=1e-6)
    assert number.plus_minus == pytest.approx(np.std(scores) / 3**0.5, rel=1e-6)
