"""What encodes and what decodes have fingerprints of their own: tokens outlive a decoder, and no other change."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from data_pipeline import storage
from data_pipeline.errors import CorruptShardError, UsageError
from data_pipeline.shards import weights
from data_pipeline.shards.halves import half_fingerprint, half_fingerprints, halves_of, settings_of
from data_pipeline.shards.manifest import TokenManifest
from data_pipeline.shards.token_shards import check_tokenizer
from data_pipeline.shards.weights import Card, write_weights
from data_pipeline.tokens.tokenizing import TokenPlan, load_encoder, missing
from model.tokenizers.imagefolder import ImageFolderTokenizer
from tests.data_pipeline.small_data import TOKENIZER, contents, tokenize_all

Plans = Callable[..., TokenPlan]
CONFIG = TOKENIZER.model_copy(update={"teacher_width": 5}).model_dump(mode="json")
NAMES = halves_of(ImageFolderTokenizer)
assert NAMES is not None


def network_state(seed: int = 0) -> dict[str, Tensor]:
    torch.manual_seed(seed)
    return ImageFolderTokenizer(type(TOKENIZER).model_validate(CONFIG)).state_dict()


STATE = network_state()


def changed(prefix: str) -> dict[str, Tensor]:
    """The weights with one value of one parameter moved."""
    name = next(name for name in STATE if name.startswith(prefix))
    other = STATE[name].clone()
    other.view(-1)[-1] += 1
    return STATE | {name: other}


def write(folder: Path, model: dict[str, Tensor], ema: dict[str, Tensor] | None = None, **config: Any) -> Card:
    files = {"model": model} | ({} if ema is None else {"ema": ema})
    return write_weights(str(folder), "tokenizer", CONFIG | config, files, {}, halves=NAMES)


@pytest.mark.parametrize(
    ("prefix", "halves"),
    [
        ("encoder.", {"encode"}),
        ("to_latent.", {"encode"}),
        ("quantizer.", {"encode", "decode"}),
        ("from_latent.", {"decode"}),
        ("decoder.", {"decode"}),
        ("teacher_projection.", set()),
    ],
)
def test_a_parameter_moves_the_fingerprint_of_its_own_half_alone(prefix: str, halves: set[str]) -> None:
    one, other = (half_fingerprints(CONFIG, state, NAMES) for state in (STATE, changed(prefix)))
    assert {half for half in one if one[half] != other[half]} == halves


@pytest.mark.parametrize(
    ("path", "value", "halves"),
    [
        ("image_size", 32, {"encode", "decode"}),
        ("scales", [1, 4], {"encode", "decode"}),
        ("residual_ratio", 0.25, {"encode", "decode"}),
        ("encoder.depth", 9, {"encode"}),
        ("decoder.depth", 9, {"decode"}),
        ("decoder.drop_path", 0.5, set()),
        ("encoder.drop_path", 0.5, set()),
        ("quantizer_dropout", 0.5, set()),
        ("quantizer.commitment", 0.5, set()),
        ("teacher_width", 7, set()),
    ],
)
def test_a_setting_moves_the_fingerprint_of_what_follows_from_it(path: str, value: object, halves: set[str]) -> None:
    config = json.loads(json.dumps(CONFIG))
    *above, last = path.split(".")
    (config[above[0]] if above else config)[last] = value
    one, other = (half_fingerprints(each, STATE, NAMES) for each in (CONFIG, config))
    assert {half for half in one if one[half] != other[half]} == halves


def test_a_fingerprint_is_sha256_of_settings_and_of_name_shape_type_and_bytes_of_each_parameter() -> None:
    names = {"encode": ("a.",), "decode": ("b.",), "neither": ()}
    tensors = {
        "b.x": torch.zeros(2),
        "a.y": torch.tensor(1.5),
        "a.b": torch.tensor([[1.0, -2.0]], dtype=torch.bfloat16),
    }
    found = half_fingerprint({"side": 4, "a": {"depth": 1}, "b": {"depth": 2}}, tensors, names, "encode")
    parts = [["encode", {"a": {"depth": 1}, "side": 4}], ["a.b", [1, 2], "bfloat16"], ["a.y", [], "float32"]]
    settings, first, second = (json.dumps(part, indent=1, sort_keys=True).encode() + b"\n" for part in parts)
    pair, scalar = bytes.fromhex("803f00c0"), bytes.fromhex("0000c03f")  # 1 and -2; 1.5: little-endian
    assert found == hashlib.sha256(settings + first + pair + second + scalar).hexdigest()


def test_every_parameter_and_buffer_of_a_tokenizer_is_in_a_half() -> None:
    assert NAMES is not None
    half_fingerprints(CONFIG, STATE, NAMES)
    with pytest.raises(ValueError, match=r"decoder\S+ belongs to no half of the network: name it in ENCODES"):
        half_fingerprints(CONFIG, STATE, NAMES | {"decode": ("quantizer.", "from_latent.")})


def test_a_parameter_of_no_half_is_found_before_anything_is_written(tmp_path: Path) -> None:
    write(tmp_path, STATE)
    before = contents(tmp_path)
    with pytest.raises(ValueError, match="stray belongs to no half"):
        write(tmp_path, STATE | {"stray": torch.zeros(1)})
    assert contents(tmp_path) == before


def test_a_network_that_tells_no_halves_apart_counts_whole(tmp_path: Path) -> None:
    assert halves_of(nn.Linear(1, 1)) is None
    card = write_weights(str(tmp_path), "tokenizer", CONFIG, {"model": STATE}, {})
    assert card.encoder() == card.decoder() == card.fingerprint()
    assert card.encoder_config() == CONFIG


def test_a_card_holds_what_was_written(tmp_path: Path) -> None:
    card = write(tmp_path, STATE, changed("encoder."))
    assert weights.read_card(str(tmp_path), "tokenizer") == card
    assert card.encoder(ema=False) == half_fingerprint(CONFIG, STATE, NAMES, "encode")
    assert card.encoder() == half_fingerprint(CONFIG, changed("encoder."), NAMES, "encode")
    assert set(CONFIG) - set(settings_of(CONFIG, NAMES, "encode")) == {
        *("decoder", "quantizer_dropout", "dropout_min_scales", "commitment_over_scales"),
        *("quantizer_dropout_images", "teacher_width"),
    }


@pytest.mark.parametrize("half", ["encode", "decode"])
def test_halves_that_are_not_those_of_the_weights_are_refused(tmp_path: Path, half: str) -> None:
    write(tmp_path, STATE)
    path = tmp_path / "card.json"
    record = json.loads(path.read_text())
    record["halves"]["fingerprints"]["model"][half] = "0" * 64
    path.write_text(json.dumps(record))
    with pytest.raises(CorruptShardError, match=rf"model\.safetensors: what {half}s is not what its card\.json states"):
        weights.read_weights(str(tmp_path), "tokenizer")


@pytest.fixture
def tokenized(make_plan: Plans, tmp_path: Path) -> Path:
    """Tokens of a tokenizer with a moving average, whose export lies beside them."""
    plan = make_plan("tokens", card=write(tmp_path / "export", changed("encoder."), STATE))
    tokenize_all(plan)
    return Path(plan.output)


@pytest.mark.parametrize("prefix", ["decoder.", "from_latent.", "teacher_projection."])
def test_tokens_stay_valid_with_another_decoder(tokenized: Path, make_plan: Plans, tmp_path: Path, prefix: str) -> None:
    before = contents(tokenized)
    card = write(tmp_path / "export", STATE, changed(prefix))
    check_tokenizer(TokenManifest.read(str(tokenized)), card)
    plan = make_plan("tokens", card=card)
    assert missing(plan) == []
    tokenize_all(plan)
    load_encoder(plan, str(tmp_path / "export"))
    assert contents(tokenized) == before


@pytest.mark.parametrize("prefix", ["encoder.", "to_latent.", "quantizer."])
def test_tokens_are_refused_once_what_encodes_has_moved(
    tokenized: Path, make_plan: Plans, tmp_path: Path, prefix: str
) -> None:
    """Of the moving average, which is what is used: that of the trained weights says nothing."""
    before = contents(tokenized)
    card = write(tmp_path / "export", STATE, changed(prefix))
    with pytest.raises(UsageError, match=r"the configs are equal, the weights differ\)"):
        check_tokenizer(TokenManifest.read(str(tokenized)), card)
    with pytest.raises(UsageError, match=r"tokenizer\.encoder: "):
        missing(make_plan("tokens", card=card))
    assert contents(tokenized) == before


def test_the_weights_as_trained_say_nothing_where_a_moving_average_is_used(tokenized: Path, tmp_path: Path) -> None:
    check_tokenizer(TokenManifest.read(str(tokenized)), write(tmp_path / "export", network_state(7), STATE))
    with pytest.raises(UsageError, match="the weights differ"):
        check_tokenizer(TokenManifest.read(str(tokenized)), write(tmp_path / "export", network_state(7)))


def test_tokens_are_refused_with_the_settings_of_encoding_that_differ(tokenized: Path, tmp_path: Path) -> None:
    card = write(tmp_path / "export", STATE, residual_ratio=0.25, decoder=CONFIG["decoder"] | {"layer_scale": None})
    with pytest.raises(UsageError, match=r"\(residual_ratio: 0\.5 -> 0\.25\)\. Run foldtrain tokenize"):
        check_tokenizer(TokenManifest.read(str(tokenized)), card)


def test_tokens_name_what_encodes_and_nothing_of_what_decodes(tokenized: Path, tmp_path: Path) -> None:
    manifest, card = TokenManifest.read(str(tokenized)), weights.read_card(str(tmp_path / "export"), "tokenizer")
    assert manifest.tokenizer.encoder == card.encoder() != card.fingerprint()
    assert "decoder" not in manifest.tokenizer.config
    assert storage.read_json(str(tokenized / "tokens-00000.json"))["made_by"]["tokenizer"] == {
        "encoder": card.encoder(),
        "config": card.encoder_config(),
    }
