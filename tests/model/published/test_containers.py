"""Parameters are found in every container that published files have, and what is left out is counted."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from model.published.containers import unwrap

ONE, TWO = {"a": torch.zeros(1)}, {"a": torch.ones(1)}


@pytest.mark.parametrize(
    ("record", "place"),
    [
        (ONE, ""),
        ({"model": ONE, "optimizer": {}}, "model"),
        ({"module": ONE}, "module"),
        ({"state_dict": ONE, "epoch": 3}, "state_dict"),
        ({"ema": ONE, "model": TWO, "args": object()}, "ema"),
        ({"trainer": {"var_wo_ddp": ONE, "vae_local": TWO}, "epoch": 3}, "trainer.var_wo_ddp"),
        ({"ema": {}, "model": ONE}, "model"),
        ({"ema": None, "model": ONE}, "model"),
    ],
)
def test_each_container_gives_its_state_dict(record: dict[str, Any], place: str) -> None:
    held = unwrap(record)
    assert held.tensors == ONE
    assert held.place == place


def test_the_moving_average_is_taken_unless_told_otherwise() -> None:
    record = {"model": TWO, "ema": ONE, "optimizer": {"state": {}}, "args": object()}
    assert unwrap(record).tensors == ONE
    raw = unwrap(record, weights="raw")
    assert raw.tensors == TWO
    assert raw.place == "model"
    assert raw.beside == ("ema", "optimizer", "args")


def test_a_generators_checkpoint_gives_its_tokenizer_when_asked() -> None:
    record = {"trainer": {"var_wo_ddp": ONE, "vae_local": TWO}}
    assert unwrap(record, part="tokenizer").tensors == TWO
    with pytest.raises(ValueError, match=r"its trainer holds no vae_local, the tokenizer, but \['var_wo_ddp'\]"):
        unwrap({"trainer": {"var_wo_ddp": ONE}}, part="tokenizer")


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
def test_prefixes_of_wrappers_are_taken_off_in_any_order(prefix: str) -> None:
    assert list(unwrap({f"{prefix}head.weight": torch.zeros(1), f"{prefix}b": torch.zeros(1)}).tensors) == [
        "head.weight",
        "b",
    ]


def test_a_prefix_that_not_all_names_have_is_a_name() -> None:
    names = {"module.a": torch.zeros(1), "b": torch.zeros(1)}
    assert unwrap(names).tensors.keys() == names.keys()


def test_frozen_teachers_are_dropped_and_counted() -> None:
    teachers = {"module.semantic_model.x": torch.zeros(1), "module.detail_model.y": torch.zeros(1)}
    held = unwrap({"module.a": torch.zeros(1), **teachers})
    assert list(held.tensors) == ["a"]
    assert held.teachers == 2
    with pytest.raises(ValueError, match="frozen teachers and nothing else"):
        unwrap({"semantic_model.x": torch.zeros(1)})


@pytest.mark.parametrize(
    ("record", "words"),
    [
        ({}, "not a known container"),
        ({"model": {"a": 1}}, r"not a known container.*\['a'\] in model"),
        ({"weights": {"a": torch.zeros(1)}}, r"\['weights'\] hold no tensor"),
        ({3: torch.zeros(1)}, "not a known container"),
        ({"a" * 600: torch.zeros(1)}, "not a known container"),
        ([torch.zeros(1)], "no dict, but list"),
    ],
)
def test_what_is_no_known_container_is_refused(record: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        unwrap(record)
