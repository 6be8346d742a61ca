"""Which class each image has: as it is typed, as a file plans it, and whatever part of it is asked for."""

from __future__ import annotations

import numpy as np
import pytest

from data_pipeline.errors import UsageError
from trainer.evaluation.samples.label_plan import NO_CLASS, LabelPlan, Segment, parse_classes, parse_plan, plan_of

NAMES = ("tench, Tinca tinca", "lion", "12", "dog", "cat", "bird")


@pytest.mark.parametrize(
    ("given", "labels"),
    [
        (["lion"], (1,)),
        (["lion,3,4-5"], (1, 3, 4, 5)),
        (["lion", "3"], (1, 3)),
        (["tench, Tinca tinca"], (0,)),
        (["12"], (2,)),
        (["2"], (2,)),
        (["none,lion"], (NO_CLASS, 1)),
        ([" dog , cat "], (3, 4)),
        (["lion,lion"], (1, 1)),
    ],
)
def test_classes_are_read_as_they_are_typed(given: list[str], labels: tuple[int, ...]) -> None:
    assert parse_classes(given, NAMES) == labels


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("lino", "has no class 'lino': did you mean lion?"),
        ("?", r"the first of its 6 are tench, Tinca tinca, lion"),
        ("6", "no class 6: they are 0 to 5"),
        ("4-6", "no class 6"),
        ("5-4", "5-4 is no range"),
        ("lion,", "no class ''"),
        ("٣", "no class"),
    ],
)
def test_a_class_that_there_is_not_is_named(given: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        parse_classes([given], NAMES)


def test_classes_take_turns_so_that_more_images_leave_the_first_as_they_were() -> None:
    few, many = plan_of((5, 1, 3), 4), plan_of((5, 1, 3), 9)
    assert few.between(0, 4).tolist() == [5, 1, 3, 5]
    assert many.between(0, 4).tolist() == [5, 1, 3, 5]
    assert plan_of((5, 1, 3), 2).labels == (1, 5)


def test_any_part_of_a_plan_is_a_part_of_the_whole() -> None:
    plan = LabelPlan((Segment((0, 2), 5), Segment((4,), 3), Segment((1, 0, 5), 4)))
    whole = plan.between(0, plan.images)
    assert whole.tolist() == [0, 2, 0, 2, 0, 4, 4, 4, 1, 0, 5, 1]
    for start in range(13):
        for stop in range(start, 13):
            np.testing.assert_array_equal(plan.between(start, stop), whole[start:stop])


def test_a_file_plans_so_many_of_each_class() -> None:
    plan = parse_plan("# all\n50 per class\n\n16 of lion,3-4  # more of these\n", NAMES, "p.txt")
    assert plan.segments == (Segment((0, 1, 2, 3, 4, 5), 300), Segment((1, 3, 4), 48))
    assert np.bincount(plan.between(0, plan.images)).tolist() == [50, 66, 50, 66, 66, 50]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("50 per class\n5 lions", r"p\.txt, line 2: '5 lions' is no line of a plan"),
        ("0 per class", "is no line of a plan"),
        ("5 of lino", r"p\.txt, line 1: the generator has no class 'lino'"),
        ("# nothing", "plans no image"),
        ("999999999 per class", "5,999,999,994 images: from 1 to 100,000,000"),
    ],
)
def test_a_file_that_plans_nothing_is_refused_with_its_line(text: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        parse_plan(text, NAMES, "p.txt")
