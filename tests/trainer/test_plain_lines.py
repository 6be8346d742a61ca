"""Lines that are parsed together say what they say one by one, or nothing is said of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from data_pipeline.text.json_records import MOST_LINE_BYTES, parse_lines
from trainer.records import columns
from trainer.records.columns import MOST_NAMES, Columns
from trainer.records.jsonl import JsonlWriter
from trainer.records.plain_lines import plain_columns
from trainer.records.record_shapes import is_metrics


def every(_name: str) -> bool:
    return True


def one_by_one(text: bytes) -> tuple[Columns, list[int]]:
    found = parse_lines(text, is_metrics)
    return columns.from_records(found.records), found.left_out


def same(one: Columns, other: Columns) -> bool:
    return one.keys() == other.keys() and all(np.array_equal(one[name], other[name], equal_nan=True) for name in one)


def record(step: int) -> dict[str, Any]:
    """As a stage writes them: numbers of all sizes, some that are missing now and then, none, and a text."""
    base = {"time": 1.7e9 + step / 3, "step": step, "loss": 1 / (step + 1), "note": "x", "big": 2**53 + step}
    window = {"window_steps": 1, "window_seconds": 0.25, "data_wait_share": None if step % 5 else 0.1}
    small = {"learning_rate": 0.00012345678901234567 * (step + 1), "tiny": 1.5e-300, "large": 1e22}
    return base | small | (window if step % 3 else {}) | ({"late": step * 1.5} if step > 70 else {})


def test_what_a_writer_writes_is_read_together_and_is_the_same(tmp_path: Path) -> None:
    writer = JsonlWriter(str(tmp_path / "metrics.jsonl"), keep=[])
    for step in range(200):
        writer.write(record(step) | ({"loss": float("nan")} if step == 9 else {}))
    writer.close()
    text = (tmp_path / "metrics.jsonl").read_bytes()
    found = plain_columns(text, every)
    assert found is not None
    assert same(found, one_by_one(text)[0])
    assert np.isnan(found["loss"][9])
    assert found["big"][3] == float(2**53 + 3)
    assert np.isnan(found["late"][:71]).all()
    assert "note" not in found


def test_only_what_is_wanted_is_kept_and_what_says_when_a_step_was() -> None:
    text = b"".join(json.dumps(record(step)).encode() + b"\n" for step in range(9))
    found = plain_columns(text, lambda name: name == "loss")
    assert found is not None
    assert same(found, columns.from_records(parse_lines(text).records, lambda name: name == "loss"))


GOOD = b'{"step": 1, "loss": 0.5}\n'
ODD = {
    "a key twice": b'{"step": 2, "loss": 1, "loss": 2}\n',
    "a key twice and one with a blank": b'{"step" : 2, "loss": 1, "loss": 2}\n',
    "not a number": b'{"step": 2, "loss": NaN}\n',
    "infinity": b'{"step": 2, "loss": -Infinity}\n',
    "beyond a float": b'{"step": 2, "loss": 1e999}\n',
    "beyond a float, another way": b'{"step": 2, "loss": 1E+0400}\n',
    "beyond 64 bits": b'{"step": 2, "loss": 123456789012345678901}\n',
    "beyond 64 bits beside a long fraction": b'{"step": 2, "x": 123456789012345678901, "y": 0.00012345678901234567}\n',
    "64 bits": b'{"step": 2, "loss": 18446744073709551615}\n',
    "nested": b'{"step": 2, "loss": {"a": 1}}\n',
    "a list": b'{"step": 2, "loss": [1]}\n',
    "half a pair": b'{"step": 2, "loss": "\\ud800"}\n',
    "an escaped quote": b'{"step": 2, "note": "\\"loss\\": 3"}\n',
    "a byte order mark": b'\xef\xbb\xbf{"step": 2, "loss": 1}\n',
    "no text": b'{"step": 2, "note": "\xff"}\n',
    "two objects": b'{"step": 2, "loss": 1},{"step": 3, "loss": 1}\n7\n',
    "halves of an object": b'{"step": 2, "loss": 1\n"x": 2}\n{"step": 3},{"step": 4}\n',
    "a string over two lines": b'{"step": 2, "note": "a}\n{b": 1}\n',
    "a step that is true": b'{"step": true, "loss": 1}\n',
    "a step that is no whole number": b'{"step": 2.0, "loss": 1}\n',
    "a step that is too large": b'{"step": 9007199254740992, "loss": 1}\n',
    "a step below zero": b'{"step": -1, "loss": 1}\n',
    "no step": b'{"loss": 1}\n',
    "a text where a number belongs": b'{"step": 2, "loss": "1"}\n',
    "truth where a number belongs": b'{"step": 2, "loss": true}\n',
    "a window without a time": b'{"step": 2, "window_steps": 1, "window_seconds": 0.5}\n',
    "a window whose time is none": b'{"step": 2, "time": null, "window_steps": 1, "window_seconds": 0.5}\n',
    "a text and a number": b'{"step": 2, "x": "a"}\n{"step": 3, "x": 4}\n',
    "none and a number": b'{"step": 2, "x": null}\n{"step": 3, "x": 4}\n',
    "truth and a number": b'{"step": 2, "x": true}\n{"step": 3, "x": 4}\n',
    "a blank line": b"\n  \n",
    "blanks": b' {"step": 2, "loss": 1} \r\n',
    "a torn last line": b'{"step": 2, "lo',
    "a last line without its end": b'{"step": 2, "loss": 1}',
    "a number": b"7\n",
    "nothing": b"",
    "a line that is too long": b'{"step": 2, "note": "' + b"x" * MOST_LINE_BYTES + b'"}\n',
    "more names than are kept": json.dumps({"step": 2} | {f"n{i}": i for i in range(MOST_NAMES)}).encode() + b"\n",
}


@pytest.mark.parametrize("odd", ODD.values(), ids=ODD.keys())
def test_whatever_a_line_holds_it_is_read_as_if_it_stood_alone(odd: bytes) -> None:
    text = GOOD + odd
    numbers, left_out = one_by_one(text)
    found = plain_columns(text, every)
    assert found is None or (same(found, numbers) and not left_out)


VALUES = (
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.sampled_from(["", "a", '"', "{", "é"])
)
NAMES = st.sampled_from(["step", "time", "loss", "x", "window_steps", "window_seconds", "e400", ":"])


@given(
    st.lists(st.dictionaries(NAMES, VALUES) | st.builds(record, st.integers(0, 200)), max_size=5),
    st.binary(max_size=3),
    st.integers(0, 400),
)
@example([{"step": 1, "loss": 2.0}, {"step": 2}], b"}\n{", 20)
def test_no_bytes_make_them_say_anything_else(records: list[dict[str, Any]], noise: bytes, at: int) -> None:
    text = b"".join(json.dumps(each).encode() + b"\n" for each in records)
    text = text[:at] + noise + text[at + len(noise) :]
    numbers, left_out = one_by_one(text)
    found = plain_columns(text, every)
    assert found is None or (same(found, numbers) and not left_out)
