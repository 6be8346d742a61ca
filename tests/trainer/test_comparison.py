"""Two numbers may be compared if they are measured in the same way. What differs is named, and nothing else."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from trainer.evaluation.naming.comparison import compare, pair, paths
from trainer.evaluation.naming.numbers import Number

BY = {
    "reference": {"images": "aa" * 32, "count": 10_000, "uri": "runs/a/images"},
    "crop": {"fit": "crop", "size": 256},
    "rounding": "nearest",
    "network": {"kind": "inception", "name": "inception-2015", "sha256": "67" * 32},
    "protocol": {"splits": 10},
}
OF = {
    "generator": {"sha256": "bb" * 32, "step": 4000},
    "weights": "ema",
    "sampling": {"guidance": 2.5, "temperature": 1.0},
    "seed": 7,
    "labels": [{"labels": [0, 1], "images": 50_000}],
    "tokenizer": {"encoder": "cc" * 32, "decoder": "dd" * 32},
    "tokens": "ee" * 32,
}
FID = Number("fid", 2.61, 50_000, BY, OF, 0.03)


def by(number: Number = FID, **changes: Any) -> Number:
    return replace(number, measured_by=number.measured_by | changes)


def of(number: Number = FID, **changes: Any) -> Number:
    return replace(number, measured_of=number.measured_of | changes)


def test_the_same_numbers_may_be_compared_and_differ_in_nothing() -> None:
    found = compare(FID, FID)
    assert found.is_comparable
    assert (found.method, found.subject) == ((), ())


@pytest.mark.parametrize(
    ("other", "path", "values"),
    [
        pytest.param(
            by(reference=BY["reference"] | {"images": "ab" * 32}),  # type: ignore[operator]
            "reference.images",
            ("aa" * 32, "ab" * 32),
            id="reference",
        ),
        pytest.param(by(crop={"fit": "pad", "size": 256}), "crop.fit", ("crop", "pad"), id="crop"),
        pytest.param(
            by(network={"kind": "inception", "name": "inception-2015", "sha256": "68" * 32}),
            "network.sha256",
            ("67" * 32, "68" * 32),
            id="evaluator",
        ),
        pytest.param(by(rounding="floor"), "rounding", ("nearest", "floor"), id="rounding"),
        pytest.param(by(protocol={"splits": 1}), "protocol.splits", (10, 1), id="protocol"),
        pytest.param(replace(FID, images=10_000), "images", (50_000, 10_000), id="number of images"),
        pytest.param(replace(FID, metric="sfid"), "metric", ("fid", "sfid"), id="metric"),
        pytest.param(by(lens={"kind": "wide"}), "lens.kind", (None, "wide"), id="a key that is not known"),
    ],
)
def test_numbers_that_are_measured_otherwise_may_not_be_compared(
    other: Number, path: str, values: tuple[Any, Any]
) -> None:
    found = compare(FID, other)
    assert not found.is_comparable
    (difference,) = found.method
    assert (difference.path, (difference.first, difference.second)) == (path, values)
    assert found.subject == ()


@pytest.mark.parametrize(
    ("other", "path", "values"),
    [
        pytest.param(of(sampling={"guidance": 3, "temperature": 1}), "sampling.guidance", (2.5, 3), id="guidance"),
        pytest.param(of(seed=8), "seed", (7, 8), id="seed"),
        pytest.param(of(weights="raw"), "weights", ("ema", "raw"), id="moving average or raw weights"),
        pytest.param(
            of(tokenizer={"encoder": "cc" * 32, "decoder": "d0" * 32}),
            "tokenizer.decoder",
            ("dd" * 32, "d0" * 32),
            id="tokenizer",
        ),
        pytest.param(of(generator={"sha256": "bb" * 32, "step": 5000}), "generator.step", (4000, 5000), id="step"),
        pytest.param(
            of(labels=[{"labels": [0, 1, 2], "images": 50_000}]), "labels.0.labels", ([0, 1], [0, 1, 2]), id="labels"
        ),
        pytest.param(of(keep=5), "keep", (None, 5), id="positions kept"),
        pytest.param(of(perturbation={"alpha": 0.5}), "perturbation.alpha", (None, 0.5), id="perturbation"),
        pytest.param(of(lucky=True), "lucky", (None, True), id="a key that is not known"),
    ],
)
def test_numbers_of_other_things_may_be_compared_and_what_is_compared_is_named(
    other: Number, path: str, values: tuple[Any, Any]
) -> None:
    found = compare(FID, other)
    assert found.is_comparable
    (difference,) = found.subject
    assert (difference.path, (difference.first, difference.second)) == (path, values)


def test_where_images_lie_does_not_matter() -> None:
    assert compare(FID, by(reference=BY["reference"] | {"uri": "s3://b/images"})).method == ()  # type: ignore[operator]


def test_what_is_null_is_as_what_is_not_there_and_true_is_not_one() -> None:
    assert compare(FID, of(keep=None, perturbation={})).subject == ()
    assert paths(compare(of(flag=1), of(flag=True)).subject) == ["flag"]


@pytest.mark.parametrize(
    ("changes", "cause", "follows"),
    [
        ({"seed": 8, "samples": "99" * 32}, "seed", "samples"),
        ({"weights": "raw", "generator": {"sha256": "b1" * 32, "step": 4000}}, "weights", "generator.sha256"),
        ({"encoder": "c1" * 32, "tokens": "e1" * 32}, "encoder", "tokens"),
    ],
)
def test_a_hash_that_follows_from_something_else_that_differs_is_no_finding_of_its_own(
    changes: dict[str, Any], cause: str, follows: str
) -> None:
    found = compare(
        of(samples="98" * 32, encoder="c0" * 32), of(of(samples="98" * 32), **{"encoder": "c0" * 32} | changes)
    )
    assert paths(found.subject) == [cause]
    assert [(each.path, each.follows_from) for each in found.subject if each.follows_from] == [(follows, (cause,))]


def test_what_is_no_hash_follows_from_nothing() -> None:
    changed = of(tokens="e1" * 32, generator={"sha256": "b1" * 32, "step": 5000})
    assert paths(compare(FID, changed).subject) == ["generator.step", "tokens"]


def test_a_hash_that_nothing_explains_is_a_finding() -> None:
    assert paths(compare(FID, of(tokens="e1" * 32)).subject) == ["tokens"]
    both = of(seed=8, generator={"sha256": "b1" * 32, "step": 4000})
    assert paths(compare(FID, both).subject) == ["generator.sha256", "seed"]


def test_a_difference_has_the_error_of_independent_numbers() -> None:
    found = compare(replace(FID, value=2.0, plus_minus=0.3), replace(FID, value=1.0, plus_minus=0.4))
    assert found.difference == -1.0
    assert found.plus_minus == pytest.approx(0.5)
    assert compare(FID, replace(FID, plus_minus=None)).plus_minus is None


# ------------------------------------------------------------------------------------------------- of two evaluations


REBUILT = replace(FID, measured_of={"tokenizer": OF["tokenizer"]})


def test_numbers_are_paired_by_metric_kind_of_images_network_and_positions() -> None:
    def errors(value: float) -> list[Number]:
        return [Number("mse", value + keep, 100, {}, {"tokenizer": "cc" * 32, "keep": keep}) for keep in (1, 5, 21)]

    teacher = by(replace(FID, metric="frechet_distance"), network={"name": "teacher"})
    judge = by(replace(FID, metric="frechet_distance"), network={"name": "judge"})
    first, second = (
        [FID, REBUILT, teacher, judge, *errors(0)],
        [*errors(0.5)[::-1], judge, teacher, REBUILT, of(seed=8)],
    )
    found = pair(first, second)
    assert [each.first for each in found.compared] == first
    assert all(each.is_comparable for each in found.compared)
    assert {(*paths(each.subject),) for each in found.compared} == {(), ("seed",)}
    assert (found.only_first, found.only_second) == ((), ())


def test_numbers_of_one_metric_that_are_measured_otherwise_are_paired_all_the_same() -> None:
    (found,) = pair([FID], [by(rounding="floor")]).compared
    assert paths(found.method) == ["rounding"]


def test_a_number_whose_question_the_other_answers_is_not_taken_by_one_that_is_only_like_it() -> None:
    floor = by(rounding="floor")
    found = pair([floor, FID], [FID])
    assert [each.first for each in found.compared] == [FID]
    assert found.only_first == (floor,)


def test_of_a_sweep_the_number_with_the_same_settings_is_the_partner() -> None:
    def sweep(guidance: float, seed: int) -> Number:
        return of(sampling={"guidance": guidance}, seed=seed)

    found = pair([sweep(1, 7), sweep(2, 7), sweep(3, 7)], [sweep(3, 8), sweep(1, 8)])
    assert [paths(each.subject) for each in found.compared] == [["seed"], ["seed"]]
    assert found.only_first == (sweep(2, 7),)


def test_numbers_of_metrics_that_one_evaluation_does_not_have_stay_alone() -> None:
    found = pair([FID], [replace(FID, metric="recall")])
    assert (found.compared, found.only_first, found.only_second) == ((), (FID,), (replace(FID, metric="recall"),))


def test_numbers_of_another_branch_or_scale_are_no_pair() -> None:
    def use(branch: str, scale: int, **more: Any) -> Number:
        protocol = {"branch": branch, "scale": scale} | more
        return Number("code_use", 0.5, 10, {"protocol": protocol}, {"tokenizer": "cc" * 32})

    found = pair([use("detail", 1), use("detail", 2)], [use("semantic", 2), use("detail", 2, least=0.1)])
    assert [paths(each.method) for each in found.compared] == [["protocol.least"]]
    assert (found.only_first, found.only_second) == ((use("detail", 1),), (use("semantic", 2),))


def test_a_number_that_does_not_say_what_it_is_of_is_compared_with_that_of_samples() -> None:
    bare = Number("fid", 2.0, 50_000)
    found = pair([REBUILT, FID], [bare])
    assert [(each.first, each.second) for each in found.compared] == [(FID, bare)]
