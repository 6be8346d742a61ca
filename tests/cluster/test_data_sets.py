"""`foldtrain data`: what it prints and writes, and how it ends."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from cluster.cli import app
from cluster.commands.data_sets import parse_weights
from data_pipeline.errors import UsageError
from data_pipeline.shards.manifest import TokenManifest
from tests.data_pipeline.small_data import contents, write_tokens


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["data", *arguments])


@pytest.fixture
def one(tmp_path: Path) -> str:
    return write_tokens(tmp_path / "one", (5, 4, 3))


@pytest.fixture
def other(tmp_path: Path) -> str:
    return write_tokens(tmp_path / "other", (6, 2), prefix="another")


def test_a_dry_run_says_what_it_would_come_to_and_writes_nothing(tmp_path: Path, one: str, other: str) -> None:
    before, output = contents(tmp_path), str(tmp_path / "both")
    told = run("append", one, other, "-o", output, "--dry-run")
    assert told.exit_code == 0, told.exception
    assert "12 + 8 = 20 samples, 2 classes" in told.output
    assert contents(tmp_path) == before
    made = run("append", one, other, "-o", output)
    assert made.output.replace("is a set", "would be a set") == told.output
    assert TokenManifest.read(output).samples == 20
    assert "was already a set" in run("append", one, other, "-o", output).output


def test_a_subset_is_chosen_by_a_file_of_keys_and_by_classes(tmp_path: Path, one: str) -> None:
    (tmp_path / "keys.txt").write_text("sample/0\n\nsample/1\nsample/xx10\n")
    told = run("subset", one, "-o", str(tmp_path / "few"), "--keys", str(tmp_path / "keys.txt"), "--class", "cat")
    assert told.exit_code == 0, told.exception
    assert "2 of 12 samples, in 2 of 3 shards" in told.output


def test_a_mix_says_how_often_each_sample_is_seen(tmp_path: Path, one: str, other: str) -> None:
    told = run("mix", f"{one}=1", f"{other}=1.25", "-o", str(tmp_path / "mixed"))
    assert f"{one}: 12 of its 12 samples in an epoch, each once" in told.output
    assert f"{other}: 10 of its 8 samples in an epoch, each 1 or 2 times (1.25 on average)" in told.output
    assert "22 samples in an epoch" in told.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["subset", "{one}", "-o", "x"], "say which samples"),
        (["subset", "{one}", "-o", "x", "--keys", "{one}/none"], "it is no text file"),
        (["mix", "{one}", "{one}=2", "-o", "x"], "is no URI=WEIGHT"),
        (["append", "{one}", "-o", "x"], "1 data set is given"),
        (["views", "{one}", "{one}/nowhere", "-o", "x"], "holds no complete data set"),
    ],
)
def test_what_cannot_be_is_refused(one: str, arguments: list[str], message: str) -> None:
    result = run(*(each.format(one=one) for each in arguments))
    assert isinstance(result.exception, UsageError)
    assert message in str(result.exception)


def test_weights_are_numbers_above_zero() -> None:
    assert parse_weights(["s3://a/b=c=0.5", "x=2"]) == {"s3://a/b=c": 0.5, "x": 2.0}
    for wrong in ("a=0", "a=-1", "a=nan", "a=inf", "=1", "a"):
        with pytest.raises(UsageError, match="is no URI=WEIGHT"):
            parse_weights([wrong])
    with pytest.raises(UsageError, match="is given twice"):
        parse_weights(["a=1", "a=2"])
