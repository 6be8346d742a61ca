"""What is read of published options: by a path, of a form, or an error that says which option is needed."""

from __future__ import annotations

import pytest

from model.published.options import flag, option, whole_number, whole_numbers

OPTIONS = {"vit": {"num_heads": 3}, "lfq": True, "sides": [1, 2], "name": "x", "none": []}


def test_a_path_leads_through_sections() -> None:
    assert whole_number(OPTIONS, "vit.num_heads") == 3
    assert flag(OPTIONS, "lfq") is True
    assert whole_numbers(OPTIONS, "sides") == (1, 2)
    assert option(OPTIONS, "vit.num_heads.deeper") is None


def test_what_is_absent_has_a_default_or_is_asked_for() -> None:
    assert whole_number({}, "vit.num_heads", 4) == 4
    assert flag({}, "lfq", False) is False
    with pytest.raises(ValueError, match=r"need vit\.num_heads, a whole number, which no shape tells: give a --config"):
        whole_number({}, "vit.num_heads")
    with pytest.raises(ValueError, match=r"need sides, a list of whole numbers"):
        whole_numbers({}, "sides")


@pytest.mark.parametrize("path", ["lfq", "name", "sides"])
def test_a_number_of_another_type_is_named(path: str) -> None:
    with pytest.raises(ValueError, match=rf"have {path}=.*should be a whole number"):
        whole_number(OPTIONS, path)


@pytest.mark.parametrize("path", ["name", "none", "vit"])
def test_numbers_of_another_type_are_named(path: str) -> None:
    with pytest.raises(ValueError, match=rf"have {path}=.*should be a list of whole numbers"):
        whole_numbers(OPTIONS, path)


def test_a_truth_value_is_no_number_and_no_word() -> None:
    for path in ("name", "sides"):
        with pytest.raises(ValueError, match=rf"have {path}=.*should be true or false"):
            flag(OPTIONS, path)
