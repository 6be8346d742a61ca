"""A tokenizer's rows by name: pickled, and loaded where they are measured; refused where it is another by then."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from data_pipeline.errors import UsageError
from data_pipeline.shards.weights import Card, write_weights
from model.tokenizers.titok import TiTokTokenizer
from tests.model.small_titok import tokenizer_of
from trainer.evaluation.tokenizers.linear_probe import ProbeMeasure
from trainer.evaluation.tokenizers.perturbed_tokens import TokenPerturbation
from trainer.evaluation.tokenizers.tokenizer_measure import TokenizerMeasure
from trainer.evaluation.tokenizers.tokenizer_rows import ProbeRows, TokenizerRows

CPU = torch.device("cpu")
PIXELS = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), dtype=np.uint8)
LABELS = np.array([0, 1, 0])


def commit(folder: Path, tokenizer: TiTokTokenizer) -> Card:
    config = tokenizer.config.model_dump(mode="json")
    return write_weights(str(folder), "tokenizer", config, {"model": tokenizer.state_dict()}, {})


@pytest.fixture
def tokenizer(tmp_path: Path) -> tuple[TiTokTokenizer, Card]:
    network = tokenizer_of().eval()
    return network, commit(tmp_path, network)


def test_rows_of_a_name_are_those_of_its_tokenizer(tokenizer: tuple[TiTokTokenizer, Card], tmp_path: Path) -> None:
    network, card = tokenizer
    named = pickle.loads(pickle.dumps(TokenizerRows.of(str(tmp_path), card, "nearest", ())))
    found, expected = (each(PIXELS, LABELS, 0) for each in (named.open(CPU), TokenizerMeasure(network, CPU)))
    assert found.keys() == expected.keys()
    for name in found:
        np.testing.assert_array_equal(found[name], expected[name])
    assert named.identity()["perturbation"] is None


def test_a_perturbation_is_part_of_the_name(tokenizer: tuple[TiTokTokenizer, Card], tmp_path: Path) -> None:
    network, card = tokenizer
    strength = TokenPerturbation(1.0, 4, 7)
    named = pickle.loads(pickle.dumps(TokenizerRows.of(str(tmp_path), card, "nearest", (), perturbation=strength)))
    expected = TokenizerMeasure(network, CPU, perturbation=strength.of(network))(PIXELS, LABELS, 5)
    np.testing.assert_array_equal(named.open(CPU)(PIXELS, LABELS, 5)["tokens"], expected["tokens"])
    assert named.identity()["perturbation"] == {"alpha": 1.0, "delta": 4, "seed": 7}


def test_rows_of_a_probe_are_those_of_its_tokenizer(tokenizer: tuple[TiTokTokenizer, Card], tmp_path: Path) -> None:
    network, card = tokenizer
    named = pickle.loads(pickle.dumps(ProbeRows.of(str(tmp_path), card, pixels=False)))
    found, expected = (each(PIXELS, LABELS, 0) for each in (named.open(CPU), ProbeMeasure(network, CPU)))
    np.testing.assert_array_equal(found["branch_0"], expected["branch_0"])
    assert "pixels" not in found
    assert named.identity()["pixels"] is False


@pytest.mark.parametrize("kind", ["tokenizer", "probe"])
def test_a_tokenizer_that_was_trained_again_is_refused(
    tokenizer: tuple[TiTokTokenizer, Card], tmp_path: Path, kind: str
) -> None:
    network, card = tokenizer
    named = {
        "tokenizer": TokenizerRows.of(str(tmp_path), card, "nearest", ()),
        "probe": ProbeRows.of(str(tmp_path), card),
    }[kind]
    with torch.no_grad():
        next(network.parameters()).add_(1)
    commit(tmp_path, network)
    with pytest.raises(UsageError, match="trained again meanwhile"):
        named.open(CPU)
