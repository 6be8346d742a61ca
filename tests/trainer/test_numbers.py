"""A number carries its name: as a record, as hashes of how and of what, and as a line of text."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from data_pipeline.errors import UsageError
from trainer.evaluation.naming.metric_names import title
from trainer.evaluation.naming.number_names import full_name, rounded
from trainer.evaluation.naming.numbers import MOST_NUMBERS, Number, leaves, numbers_file, read_numbers

HASH = "3f2a91c0" + "0" * 56
FID = Number(
    "fid",
    2.6123,
    50_000,
    {
        "reference": {"images": HASH, "uri": "s3://bucket/images"},
        "crop": {"fit": "crop", "size": 256},
        "rounding": "nearest",
        "network": {"kind": "inception", "name": "inception-2015", "sha256": "6726825d" + "1" * 56},
    },
    {
        "generator": {"sha256": "8d1c22e9" + "2" * 56, "step": 4000},
        "weights": "ema",
        "sampling": {"guidance": 2.5, "temperature": 1.0, "top_k": 0, "batch": 100},
        "seed": 7,
    },
    0.031,
)


def by(number: Number, **changes: Any) -> Number:
    return replace(number, measured_by=number.measured_by | changes)


def of(number: Number, **changes: Any) -> Number:
    return replace(number, measured_of=number.measured_of | changes)


def written(folder: Path, record: Any) -> str:
    (folder / "evaluation.json").write_text(json.dumps(record))
    return str(folder / "evaluation.json")


# ---------------------------------------------------------------------------------------------------------------- names


def test_the_full_name_is_a_line_that_can_stand_below_a_table() -> None:
    assert full_name(FID) == (
        "FID 2.61 ± 0.03 (50,000 samples, reference 3f2a91c0, crop 256 px, rounding nearest, inception-2015; "
        "generator 8d1c22e9 at step 4,000, EMA weights, guidance 2.5, seed 7)"
    )


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [
        (2.6123, 0.031, "2.61 ± 0.03"),
        (2.6123, None, "2.612"),
        (250.4, 3.9, "250 ± 4"),
        (12345.678, None, "12,346"),
        (0.00001234, None, "1.234e-05"),
        (0.0001, None, "0.0001000"),
        (999_999.0, None, "999,999"),
        (1_000_000.0, None, "1.000e+06"),
        (-0.5, None, "-0.5000"),
        (2.5, 2e-12, "2.500000000000 ± 0.000000000002"),
        (2.5, 2e-13, "2.5 ± 2e-13"),
        (3e12, 2.0, "3e+12 ± 2"),
        (0.5, 0.0, "0.5000"),
        (0.0, None, "0"),
        (2.5, 2e-30, "2.5 ± 2e-30"),
    ],
)
def test_a_value_is_shown_to_the_first_digit_of_its_error_or_to_four(
    value: float, error: float | None, text: str
) -> None:
    assert rounded(value, error) == text


def test_a_distance_in_other_features_is_never_called_fid() -> None:
    teacher = {"kind": "classifier", "name": "teacher", "sha256": HASH}
    assert title(by(FID, network=teacher)) == "Fréchet distance (teacher)"
    assert title(by(replace(FID, metric="frechet_distance"), network=teacher)) == "Fréchet distance (teacher)"
    assert title(by(replace(FID, metric="sfid"), network=teacher)) == "Fréchet distance of spatial features (teacher)"
    assert title(by(replace(FID, metric="precision"), network={"kind": "timm"})) == "precision (timm)"


@pytest.mark.parametrize(
    ("metric", "called"),
    [
        ("fid", "FID"),
        ("sfid", "sFID"),
        ("inception_score", "IS"),
        ("precision", "precision"),
        ("class_accuracy", "class accuracy"),
        ("mse", "squared error"),
        ("something_new", "something new"),
    ],
)
def test_metrics_have_the_names_of_the_field(metric: str, called: str) -> None:
    assert title(replace(FID, metric=metric)) == called


def test_the_inception_score_of_another_network_carries_its_name() -> None:
    assert title(by(replace(FID, metric="inception_score"), network={"name": "timm:x"})) == "IS (timm:x)"


@pytest.mark.parametrize(
    ("metric", "protocol", "called"),
    [
        ("code_use", {"branch": "detail", "scale": 3, "least_share_of_mean_hits": 0.08}, "code use of detail, scale 3"),
        ("dead_codes", {"branch": "detail"}, "dead codes of detail"),
        ("linear_probe_accuracy", {"feature": "pixels", "penalty": 0.1}, "linear probe of pixels"),
        ("text_accuracy", {"size": 12, "seed": 0}, "text accuracy, 12 px"),
    ],
)
def test_what_is_of_a_part_says_of_which(metric: str, protocol: dict[str, Any], called: str) -> None:
    number = Number(metric, 0.5, 10, {"protocol": protocol}, {"tokenizer": HASH})
    assert title(number) == called
    how = {"least_share_of_mean_hits": "least share of mean hits 0.08", "penalty": "penalty 0.1", "seed": "seed 0"}
    words = ["10 reconstructions", *(how[key] for key in protocol if key in how)]
    assert full_name(number) == f"{called} 0.5000 ({', '.join(words)}; tokenizer 3f2a91c0)"


def test_the_title_tells_samples_from_reconstructions() -> None:
    rebuilt = replace(FID, measured_of={"tokenizer": {"encoder": HASH, "decoder": HASH}})
    assert title(rebuilt) == "rFID"
    assert title(of(rebuilt, perturbation={"alpha": 0.5, "delta": 100})) == "pFID"
    assert title(replace(rebuilt, metric="recall")) == "recall of reconstructions"
    assert full_name(rebuilt).endswith("; tokenizer 3f2a91c0)")
    assert "50,000 reconstructions" in full_name(rebuilt)
    assert "50,000 images" in full_name(replace(FID, measured_of={}))


def test_a_network_that_is_not_the_published_one_is_named_with_its_hash() -> None:
    assert ", timm:resnet18 3f2a91c0;" in full_name(by(FID, network={"name": "timm:resnet18", "sha256": HASH}))


def test_what_is_not_known_is_shown_with_its_path() -> None:
    name = full_name(by(of(FID, augmentation={"flip": True}), lens=HASH, protocol={"splits": 10}))
    assert "inception-2015, splits 10, lens 3f2a91c0;" in name
    assert name.endswith("seed 7, augmentation.flip true)")


def test_every_key_may_be_absent_or_plain_text() -> None:
    assert full_name(Number("mse", 0.1, 1)) == "squared error 0.1000 (1 image)"
    plain = Number("mse", 0.1, 2, {"reference": HASH, "network": "vgg", "crop": "none"}, {"tokenizer": HASH, "keep": 5})
    assert full_name(plain) == (
        "squared error 0.1000 (2 reconstructions, reference 3f2a91c0, crop none, network vgg; tokenizer 3f2a91c0, "
        "first 5 positions)"
    )


def test_a_set_of_images_is_named_by_its_hash_its_kind_and_its_size() -> None:
    adm, shards = {"kind": "npz", "sha256": HASH, "count": 10_000}, {"kind": "shards", "sha256": HASH}
    assert ", reference 3f2a91c0 (npz) of 10,000 images, crop" in full_name(by(FID, reference=adm))
    assert full_name(of(FID, images=shards | {"crop": {"size": 8}})).endswith(", images 3f2a91c0, images.crop.size 8)")


def test_settings_of_sampling_that_do_nothing_are_left_out_and_all_others_are_not() -> None:
    idle = {"guidance": 0, "temperature": 1, "top_k": 0, "top_p": 1.0, "precision": "fp32", "batch": 3, "cpu_batch": 4}
    acting = {"temperature": 0.9, "top_k": 1, "top_p": 0.5, "precision": "bf16", "order": {"steps": 8}}
    assert "EMA weights, guidance 0, seed 7)" in full_name(of(FID, sampling=idle))
    words = "temperature 0.9, top k 1, top p 0.5, precision bf16, order.steps 8, seed 7)"
    assert full_name(of(FID, sampling=acting)).endswith(words)


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("0123456789abcdef", "01234567"),
        ("0123456789abcde", "0123456789abcde"),
        ("0123456789abcdeg", "0123456789abcdeg"),
        ("x" * 60, "x" * 60),
        ("x" * 61, "x" * 59 + "…"),
        (0.1 + 0.2, "0.3"),
        (False, "false"),
        ([1, 2], "[1, 2]"),
    ],
)
def test_hashes_and_long_values_are_cut(value: Any, shown: str) -> None:
    assert full_name(Number("mse", 1.0, 1, {"lens": value})) == f"squared error 1.000 (1 image, lens {shown})"


def test_a_crop_of_which_only_a_part_is_known_is_shown_by_its_keys() -> None:
    assert "crop.size 256" in full_name(by(FID, crop={"size": 256}))
    assert "pad 64 px, crop.edge 2" in full_name(by(FID, crop={"fit": "pad", "size": 64, "edge": 2}))
    assert ", center crop 8 px," in full_name(by(FID, crop={"fit": "crop", "size": 8, "crop": {"kind": "center"}}))


def test_labels_are_named_by_the_hash_of_their_plan() -> None:
    plans = [[{"labels": list(range(1000)), "images": images}] for images in (50_000, 50_001)]
    first, second = (full_name(of(FID, labels=plan)).rpartition(", ")[2] for plan in plans)
    assert len(first) == len("labels 12345678)")
    assert first != second


def test_a_name_holds_no_control_characters() -> None:
    assert "\x1b" not in full_name(by(FID, network={"name": "\x1b[2J"}, **{"\x1b]0;": 1}))


# --------------------------------------------------------------------------------------------------------------- hashes


def test_hashes_are_those_of_what_is_compared() -> None:
    moved = by(FID, reference={"images": HASH, "uri": "/elsewhere"}, note=None, protocol={})
    assert moved.method == FID.method
    assert by(FID, rounding="floor").method != FID.method
    assert by(FID, rounding="floor").subject == FID.subject
    assert of(FID, seed=8).subject != FID.subject
    assert of(FID, seed=7.0).subject == FID.subject
    assert len(FID.method) == len(FID.subject) == 8


def test_leaves_are_values_by_dotted_path() -> None:
    record = {
        "a": {"b": 1.0, "uri": "x"},
        "plan": [{"labels": [1, 2], "images": 4}],
        "none": None,
        "empty": [],
        "t": True,
    }
    assert leaves(record) == {"a.b": 1, "plan.0.labels": [1, 2], "plan.0.images": 4, "t": True}


# -------------------------------------------------------------------------------------------------------------- reading


def test_numbers_are_read_as_they_were_written(tmp_path: Path) -> None:
    bare = Number("mse", 0.1, 3)
    assert read_numbers(written(tmp_path, {"numbers": [FID.to_json(), bare.to_json()]})) == (FID, bare)


def test_of_a_number_written_by_hand_only_metric_value_and_images_are_needed(tmp_path: Path) -> None:
    uri = written(tmp_path, {"numbers": [{"metric": "fid", "value": 2, "images": 50000}]})
    assert read_numbers(uri) == (Number("fid", 2, 50_000),)


def test_a_place_is_a_run_or_a_file() -> None:
    assert numbers_file("s3://bucket/runs/a") == "s3://bucket/runs/a/evaluation.json"
    assert numbers_file("paper.json") == "paper.json"


@pytest.mark.parametrize(
    ("record", "said"),
    [
        ({}, 'no list "numbers"'),
        ([FID.to_json()], 'no list "numbers"'),
        ({"numbers": [], "version": 2}, "version 2, but version 1 is needed: update foldtrain"),
        ({"numbers": [FID.to_json() | {"value": None}]}, "numbers.0 (fid) is no number: value: "),
        ({"numbers": [FID.to_json() | {"value": True}]}, "numbers.0 (fid) is no number: value: "),
        ({"numbers": [FID.to_json() | {"plus_minus": -1.0}]}, "plus_minus: "),
        ({"numbers": [FID.to_json() | {"images": -1}]}, "images: "),
        ({"numbers": [FID.to_json() | {"metric": "<b>fid"}]}, "metric: "),
        ({"numbers": [FID.to_json() | {"surprise": 1}]}, "surprise: "),
        ({"numbers": [1]}, "numbers.0 is no number"),
        ({"numbers": [{}] * (MOST_NUMBERS + 1)}, "2,001 numbers"),
    ],
)
def test_what_is_no_list_of_numbers_is_refused_with_file_number_and_key(tmp_path: Path, record: Any, said: str) -> None:
    uri = written(tmp_path, record)
    with pytest.raises(UsageError) as error:
        read_numbers(uri)
    assert said in str(error.value)
    assert uri in str(error.value)


def test_a_value_that_is_not_finite_is_no_record(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"numbers": [{"metric": "fid", "value": NaN, "images": 1}]}')
    with pytest.raises(UsageError, match="is not valid JSON"):
        read_numbers(str(tmp_path / "a.json"))
