"""What a data set holds, in numbers and pictures."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline.errors import CorruptShardError, UsageError
from data_pipeline.shards.manifest import TokenManifest
from data_pipeline.shards.token_archive import read_token_shard
from data_pipeline.shards.weights import write_weights
from data_pipeline.tokens.tokenizing import TokenPlan
from data_pipeline.tools.inspecting import decoded_samples, inspect_data, perplexity, reconstructed_samples
from model.tokenizers.imagefolder import ImageFolderTokenizer
from tests.data_pipeline.small_data import TOKENIZER, Images, flip_byte, tokenize_all


def all_tokens(tokens: Path) -> np.ndarray:
    shards = TokenManifest.read(str(tokens)).shards
    return np.concatenate([read_token_shard(str(tokens), shard).tokens_NWLF for shard in shards])


def test_the_schema_of_images_says_what_they_are(images: Images) -> None:
    schema = inspect_data(images.uri).schema
    assert (schema["kind"], schema["samples"], schema["shards"], schema["classes"]) == ("images", 20, 3, 2)
    assert schema["bytes"] == sum(path.stat().st_size for path in images.folder.glob("*.tar"))


def test_the_schema_of_tokens_says_what_made_them(tokens: Path) -> None:
    schema, manifest = inspect_data(str(tokens)).schema, TokenManifest.read(str(tokens))
    assert schema["layout"] == {"groups": [1, 4, 16], "vocabularies": [64, 64]}
    assert schema["views"] == ["center", "center_flip"]
    assert schema["tokenizer"]["encoder"] == manifest.tokenizer.encoder
    assert schema["source"] == manifest.source
    assert "torch" in schema["software"]


def test_the_first_samples_are_listed_with_label_and_class(images: Images, tokens: Path) -> None:
    of_images, of_tokens = inspect_data(images.uri, 9).samples, inspect_data(str(tokens), 9).samples
    assert of_images == of_tokens
    assert len(of_images) == 9
    assert all(sample["class"] == f"class{sample['label']}" for sample in of_images)
    assert all(sample["key"].startswith(sample["class"]) for sample in of_images)


def test_labels_are_counted_by_class(tokens: Path) -> None:
    assert inspect_data(str(tokens)).label_counts == {"class0": 10, "class1": 10}


def test_codebook_use_is_that_of_each_fold_and_group(tokens: Path) -> None:
    found = inspect_data(str(tokens))
    tokens_NWLF = all_tokens(tokens)
    assert found.codebook_samples == 20
    assert [(use.fold, use.group, use.positions) for use in found.codebook] == [
        (branch, scale, side) for branch in range(2) for scale, side in enumerate((1, 4, 16))
    ]
    last = tokens_NWLF[:, :, 5:21, 1]
    assert found.codebook[-1].share == len(np.unique(last)) / 64
    assert found.codebook[-1].perplexity == pytest.approx(perplexity(np.bincount(last.ravel(), minlength=64)))


def test_a_limit_ends_counting_with_the_shard_that_reaches_it(tokens: Path) -> None:
    assert inspect_data(str(tokens), limit=9).codebook_samples == 16


@given(st.integers(1, 500), st.integers(1, 9))
def test_perplexity_of_evenly_used_codes_is_their_number(codes: int, each: int) -> None:
    counts = np.array([each] * codes + [0] * 3)
    assert math.isclose(perplexity(counts), codes, rel_tol=1e-9)


def test_nothing_has_no_perplexity() -> None:
    assert perplexity(np.zeros(4, np.int64)) == 0


def test_images_are_decoded_to_squares_of_one_size(images: Images) -> None:
    pixels = decoded_samples(images.uri, 5)
    assert (pixels.shape, pixels.dtype) == ((5, 20, 20, 3), np.uint8)
    assert len(np.unique(pixels)) > 50


def test_tokens_are_drawn_through_the_tokenizer_that_made_them(images: Images, make_plan, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    torch.manual_seed(0)
    network = ImageFolderTokenizer(TOKENIZER).eval()
    export = str(tmp_path / "export")
    card = write_weights(export, "tokenizer", TOKENIZER.model_dump(mode="json"), {"model": network.state_dict()}, {})
    plan: TokenPlan = make_plan("other", card=card)
    tokenize_all(plan)
    found = reconstructed_samples(plan.output, export, 10)
    tokens_NLF = all_tokens(Path(plan.output))[:10, 0].astype(np.int64)
    with torch.inference_mode():
        wanted = network.detokenize(torch.from_numpy(tokens_NLF)).numpy()
    assert found.shape == (10, 3, 16, 16)
    np.testing.assert_allclose(found, wanted, atol=1e-6)


def test_another_tokenizer_is_refused(tokens: Path, tmp_path: Path) -> None:
    state = ImageFolderTokenizer(TOKENIZER).state_dict()
    write_weights(str(tmp_path / "export"), "tokenizer", TOKENIZER.model_dump(mode="json"), {"model": state}, {})
    with pytest.raises(UsageError, match="the weights differ"):
        reconstructed_samples(str(tokens), str(tmp_path / "export"), 4)


def test_a_damaged_shard_is_named_with_its_key(tokens: Path) -> None:
    flip_byte(tokens / "tokens-00000.tar", 800)
    with pytest.raises(CorruptShardError, match=r"tokens-00000\.tar: sample class\d/photo_\d is corrupt"):
        inspect_data(str(tokens))


def test_the_findings_are_a_record(tokens: Path) -> None:
    record = json.loads(json.dumps(inspect_data(str(tokens)).to_json()))
    assert {"schema", "samples", "label_counts", "codebook", "codebook_samples"} == set(record)
