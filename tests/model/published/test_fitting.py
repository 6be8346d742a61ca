"""Published parameters take their places in a network: all of them, or an error that names those that do not."""

from __future__ import annotations

import re

import pytest
import torch
from torch import Tensor, nn

from model.published.fitting import count_of, filled, fitted, listed, shape_of

NOTHING = re.compile(r"")


def published(own: str) -> str:
    return f"net.{own}"


def network() -> nn.Module:
    with torch.device("meta"):
        return nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))


def state() -> dict[str, Tensor]:
    return {published(name): torch.rand(tensor.shape) for name, tensor in network().state_dict().items()} | {
        "net.1.num_batches_tracked": torch.tensor(7)
    }


def test_all_that_does_not_fit_is_named_at_once() -> None:
    given = state()
    del given["net.0.bias"]
    given |= {"net.extra": torch.zeros(1), "net.0.weight": torch.zeros(2, 4)}
    with pytest.raises(ValueError, match=r"^it ") as error:
        fitted(network(), given, published, NOTHING, "it")
    assert str(error.value) == (
        "it misses: net.0.bias; it has parameters that are not known: net.extra; "
        "it has unexpected shapes: net.0.weight [2, 4], which should hold [2, 3]"
    )


def test_of_many_names_the_first_are_told_and_how_many_more() -> None:
    assert listed([str(n) for n in range(20)]).endswith(", 19")
    assert listed([str(n) for n in range(23)]).endswith(", 19 and 3 more")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_no_number_is_named(value: float) -> None:
    given = state()
    given["net.0.bias"][1] = value
    with pytest.raises(ValueError, match=r"has values that are infinite or not a number: net\.0\.bias$"):
        fitted(network(), given, published, NOTHING, "it")
    fitted(network(), state() | {"teacher": torch.tensor(value)}, published, re.compile(r"teacher"), "it")


def test_dimensions_of_length_one_do_not_count_and_transposed_ones_do() -> None:
    given = state()
    weight = given["net.0.weight"]
    found = fitted(network(), given | {"net.0.weight": weight[:, :, None, None]}, published, NOTHING, "it")
    assert torch.equal(found["0.weight"], weight)
    with pytest.raises(ValueError, match=r"net\.0\.weight \[3, 2\]"):
        fitted(network(), given | {"net.0.weight": weight.t()}, published, NOTHING, "it")


def test_ignored_parameters_are_matched_whole() -> None:
    given = state() | {"teacher.weight": torch.zeros(1)}
    fitted(network(), given, published, re.compile(r"teacher\..*"), "it")
    with pytest.raises(ValueError, match=r"not known: teacher\.weight"):
        fitted(network(), given, published, re.compile(r"teacher"), "it")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_floats_become_float32_and_counters_stay_whole(dtype: torch.dtype) -> None:
    given = state()
    found = fitted(network(), given | {"net.0.bias": given["net.0.bias"].to(dtype)}, published, NOTHING, "it")
    assert found["0.bias"].dtype == torch.float32
    assert torch.equal(found["0.bias"], given["net.0.bias"].to(dtype).float())
    assert found["1.num_batches_tracked"].dtype == torch.int64
    assert int(found["1.num_batches_tracked"]) == 7


def test_what_has_our_shape_and_type_is_not_copied() -> None:
    given = state()
    found = fitted(network(), given, published, NOTHING, "it")
    assert found["0.weight"].data_ptr() == given["net.0.weight"].data_ptr()


def test_a_network_that_is_filled_has_no_blank_parameter_and_is_in_eval_mode() -> None:
    module, given = network(), state()
    filled(module, given, published, NOTHING, "it")
    assert not module.training
    assert torch.equal(module(torch.ones(1, 3)), module(torch.ones(1, 3)))
    assert all(parameter.requires_grad and not parameter.is_meta for parameter in module.parameters())


def test_numbered_modules_are_counted() -> None:
    names = {"blocks.0.a": torch.zeros(1), "blocks.0.b": torch.zeros(1), "blocks.10.a": torch.zeros(1)}
    assert count_of(names | {"blocks.norm": torch.zeros(1)}, "blocks.") == 2
    assert count_of(names, "layers.") == 0


@pytest.mark.parametrize(("tensor", "words"), [(None, "misses: a"), (torch.zeros(2), r"a \[2\].*2 dimensions")])
def test_a_shape_that_sizes_are_read_from_is_checked(tensor: Tensor | None, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        shape_of({} if tensor is None else {"a": tensor}, "a", 2, "it")
    assert shape_of({"a": torch.zeros(2, 3)}, "a", 2, "it") == (2, 3)
    with pytest.raises(ValueError, match="unexpected shapes"):
        shape_of({"a": torch.zeros(2, 0)}, "a", 2, "it")
