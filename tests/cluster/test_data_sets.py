"""`foldtrain data`: what it prints and writes, and how it ends."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner, Result

from cluster.cli import app
from cluster.commands.data_sets import parse_weights
from cluster.config.run import RunConfig
from cluster.pool import tokenizing
from data_pipeline.config import DataConfig, FolderSource
from data_pipeline.errors import UsageError
from data_pipeline.ingest.ingesting import ingest
from data_pipeline.shards.manifest import TokenManifest
from data_pipeline.shards.weights import write_weights
from data_pipeline.tokens.commits import Commits
from data_pipeline.tools.verifying import verify
from model.tokenizers.imagefolder import ImageFolderTokenizer
from tests.data_pipeline.small_data import TOKENIZER, contents, jpeg, write_tokens


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


@pytest.fixture
def without_ray(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Tokenize makes its shards in this process; their names, with the folder's, as they are made."""
    made: list[str] = []

    def make(work: tokenizing.TokenizeWork, commits: Commits, *_: object) -> None:
        do = work.open(1)
        for number in commits.missing.tolist():
            commits.add(number, **do(number, lambda _images: None))
            made.append(f"{Path(work.plan.output).name[:3]}/{work.plan.shards[number].name}")

    monkeypatch.setattr(tokenizing, "ray_session", lambda _: nullcontext())
    monkeypatch.setattr(tokenizing, "require_gpus", lambda *_: None)
    monkeypatch.setattr(tokenizing, "_make", make)
    return made


def test_tokenize_makes_tokens_of_new_images_alone(tmp_path: Path, without_ray: list[str]) -> None:
    torch.manual_seed(0)
    exported = str(tmp_path / "export")
    weights = {"model": ImageFolderTokenizer(TOKENIZER).state_dict()}
    write_weights(exported, "tokenizer", TOKENIZER.model_dump(mode="json"), weights, {})
    sets = []
    for name, labels, count in (("old", ("cat", "dog"), 5), ("new", ("dog", "emu"), 3)):
        for label in labels:
            for number in range(count):
                path = tmp_path / name / label / f"{name}{number}.jpg"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(jpeg(len(path.parts) * number + len(name + label)))
        source = FolderSource(path=str(tmp_path / name))
        ingest(DataConfig(source=source, shard_samples=4), str(tmp_path / f"{name} images"), seed=0)
        sets.append(str(tmp_path / f"{name} images" / "train"))
    both = str(tmp_path / "both")
    assert run("append", *sets, "-o", both).exit_code == 0

    def tokenize(name: str, images: str, **tokens: object) -> tuple[int, list[str]]:
        given = {"images": images, "tokenizer": exported}
        record = {"run": str(tmp_path / name), "inputs": given, "tokens": {"shard_samples": 4, **tokens}}
        without_ray.clear()
        return tokenizing.tokenize(RunConfig.model_validate(record)), list(without_ray)

    assert tokenize("old run", sets[0])[0] == 10
    old = str(tmp_path / "old run" / "tokens")
    assert tokenize("run", both, reuse=[old]) == (6, ["of-/tokens-00000.tar", "of-/tokens-00001.tar"])
    assert tokenize("run", both, reuse=[old]) == (0, [])
    report = verify(str(tmp_path / "run" / "tokens"), both)
    assert report.passed, [check for check in report.checks if not check.passed]
    assert report.samples == 16
