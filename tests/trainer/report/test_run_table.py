"""Runs as a table: a column holds only numbers that may be compared."""

from __future__ import annotations

import csv
import io

from tests.trainer.report.evaluated import ERRORS, FID, RFID, by, of, run_of
from trainer.evaluation.naming.comparison import pair
from trainer.evaluation.naming.numbers import Number
from trainer.report.run_table import table_of
from trainer.report.settings import DifferingSetting, differing_settings, dotted
from trainer.report.table_files import cells, csv_text, json_record, markdown_text


def shown(*runs: object) -> list[list[str]]:
    table = table_of(runs)  # type: ignore[arg-type]
    return [cells(row, table.columns, has_hours=table.has_hours) for row in table.rows]


def test_numbers_of_the_same_metric_and_method_share_a_column() -> None:
    table = table_of([run_of("a", FID, RFID), run_of("b", RFID, of(FID, seed=8))])
    assert [column.heading for column in table.columns] == ["FID ↓", "rFID ↓"]
    assert shown(run_of("a", FID, RFID), run_of("b", RFID)) == [
        ["runs/a", "12.34 ± 0.07", "4.500"],
        ["runs/b", "–", "4.500"],
    ]


def test_numbers_of_another_method_have_a_column_of_their_own_with_its_hash() -> None:
    floor = by(FID, rounding="floor")
    table = table_of([run_of("a", FID), run_of("b", floor)])
    assert [column.title for column in table.columns] == [f"FID [{FID.method}]", f"FID [{floor.method}]"]
    assert [sorted(row.numbers) == [column.key] for row, column in zip(table.rows, table.columns, strict=True)] == [
        True
    ] * 2
    assert [method.rpartition("rounding ")[2].partition(",")[0] for _, method in table.methods(table.columns)] == [
        "nearest",
        "floor",
    ]


def test_numbers_of_fewer_images_have_a_column_of_their_own_with_their_count() -> None:
    few = Number(**vars(FID) | {"images": 1000})
    titles = [column.title for column in table_of([run_of("a", FID), run_of("b", few)]).columns]
    assert titles == ["FID [10,000]", "FID [1,000]"]


def test_what_is_of_all_positions_shares_a_column_whatever_their_number() -> None:
    latents = tuple(Number("mse", 0.2, 100, {}, {"tokenizer": "dd" * 32, "keep": keep}) for keep in (1, 32))
    table = table_of([run_of("a", *ERRORS), run_of("b", *latents)])
    (main,) = table.main_columns
    assert [row.numbers[main.key].measured_of["keep"] for row in table.rows] == [21, 32]
    assert [column.title for column in table.columns] == [
        "squared error, first 1",
        "squared error, first 5",
        "squared error",
    ]


def test_what_does_not_say_how_many_positions_were_kept_is_of_all() -> None:
    whole = Number("mse", 0.01, 100, {}, {"tokenizer": "cc" * 32})
    titles = [column.title for column in table_of([run_of("a", *ERRORS, whole)]).columns]
    assert titles == [*(f"squared error, first {keep}" for keep in (1, 5, 21)), "squared error"]


def test_of_what_is_measured_at_each_scale_the_last_of_each_run_and_branch_is_a_main_column() -> None:
    def uses(branch: str, scales: int) -> list[Number]:
        protocols = [{"branch": branch, "scale": scale} for scale in range(1, scales + 1)]
        return [Number("code_use", 0.5, 10, {"protocol": each}, {"tokenizer": "cc" * 32}) for each in protocols]

    table = table_of([run_of("a", *uses("detail", 12), *uses("semantic", 2)), run_of("b", *uses("detail", 2))])
    assert [column.title for column in table.main_columns] == [
        "code use of detail, scale 2",
        "code use of detail, scale 12",
        "code use of semantic, scale 2",
    ]
    assert len(table.columns) == 14


def test_perturbed_reconstructions_have_columns_of_their_own() -> None:
    perturbed = [of(RFID, perturbation={"alpha": alpha}) for alpha in (0.5, 1.0)]
    titles = [column.title for column in table_of([run_of("a", RFID, *perturbed)]).columns]
    assert titles == ["rFID", "pFID, alpha 0.5", "pFID, alpha 1"]


def test_a_sweep_has_a_row_for_each_of_its_settings() -> None:
    sweep = [of(FID, sampling={"guidance": guidance}, samples=str(guidance) * 16) for guidance in (1, 2)]
    run = run_of("a", *sweep, RFID, hours={"train-generator": 2.0})
    assert shown(run) == [
        ["runs/a", "–", "4.500", "2.00"],
        ["runs/a, guidance 1", "12.34 ± 0.07", "–", ""],
        ["runs/a, guidance 2", "12.34 ± 0.07", "–", ""],
    ]


def test_no_number_is_lost_where_two_have_the_same_name() -> None:
    again = [Number(**vars(FID) | {"value": value}) for value in (13.0, 14.0)]
    assert [row[:2] for row in shown(run_of("a", FID, *again))] == [
        ["runs/a", "12.34 ± 0.07"],
        ["runs/a, (2)", "13.00 ± 0.07"],
        ["runs/a, (3)", "14.00 ± 0.07"],
    ]


def test_hours_are_those_of_all_stages() -> None:
    runs = [run_of("a", FID, hours={"train-tokenizer": 0.5, "train-generator": 1.0}), run_of("b", FID)]
    assert [row[-1] for row in shown(*runs)] == ["1.50", ""]
    assert shown(run_of("b", FID)) == [["runs/b", "12.34 ± 0.07"]]


def test_a_csv_has_every_digit_and_the_error_of_each_number() -> None:
    text = csv_text(table_of([run_of("a, b", FID, *ERRORS, hours={"sample": 0.25})]))
    assert "\r" not in text
    head, row = csv.reader(io.StringIO(text))
    found = dict(zip(head, row, strict=True))
    assert (found["run"], found["hours"]) == ("runs/a, b", "0.25")
    assert (found["FID"], found["FID ±"]) == ("12.34", "0.07")
    assert (float(found["squared error"]), found["squared error ±"]) == (0.1 / 21, "")
    assert float(found["squared error, first 1"]) == 0.1


def test_markdown_is_a_table_with_the_methods_below_it() -> None:
    lines = markdown_text(table_of([run_of("a_1|b", FID, *ERRORS)])).splitlines()
    assert lines[:3] == [
        "| run | FID ↓ | squared error ↓ |",
        "| --- | ---: | ---: |",
        r"| runs/a\_1\|b | 12.34 ± 0.07 | 0.004762 |",
    ]
    assert lines[4] == "FID: 10,000 samples, reference aaaaaaaa, rounding nearest, inception-2015."


def test_json_has_the_full_name_of_each_number_and_the_comparison_of_two_runs() -> None:
    runs = [run_of("a", FID, settings={("generator", "seed"): "0"}), run_of("b", of(FID, seed=8), RFID)]
    record = json_record(runs, pair(runs[0].numbers, runs[1].numbers))
    assert record["runs"][0]["numbers"][0]["name"].startswith("FID 12.34 ± 0.07 (10,000 samples, reference aaaaaaaa")
    (found,) = record["comparison"]["pairs"]
    assert found["may_be_compared"]
    assert found["measured_of"] == [{"path": "seed", "first": 7, "second": 8}]
    assert [each["name"][:4] for each in record["comparison"]["only_second"]] == ["rFID"]
    assert record["settings"] == [{"stage": "generator", "name": "seed", "values": ["0", None]}]


# ------------------------------------------------------------------------------------------------------------- settings


def test_settings_are_values_by_dotted_name() -> None:
    record = {"generator": {"trainer": {"steps": 5}, "order": {}, "scales": [1, 2]}, "\x1b": None}
    assert dict(dotted(record)) == {
        "generator.trainer.steps": "5",
        "generator.order": "{}",
        "generator.scales": "[1, 2]",
        "\\u001b": "None",
    }


def test_settings_that_differ_are_named_with_the_value_of_each_run() -> None:
    first = {("tokenizer", "seed"): "0", ("generator", "depth"): "6", ("tokenizer", "only"): "x"}
    second = {("generator", "depth"): "8", ("tokenizer", "seed"): "0"}
    assert differing_settings([first, second]) == [
        DifferingSetting("tokenizer", "only", ("x", None)),
        DifferingSetting("generator", "depth", ("6", "8")),
    ]
