"""A place in a config is what its writer meant, in one spelling, or it is refused with the way to write it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from data_pipeline import storage
from data_pipeline.errors import UsageError
from data_pipeline.storage.places import INPUT, OUTPUT, PlaceRules, place, rules_of
from model.config.losses import LpipsConfig

DISK = PlaceRules(written=True, local=True)
PACKAGED = PlaceRules(embedded=True)


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        *[("S3://b/X/", "s3://b/X"), ("s3://b/", "s3://b"), ("s3a://b/x", "s3a://b/x"), ("s3://b/k#1", "s3://b/k#1")],
        *[("file:///data/x/", "/data/x"), ("FILE://localhost/data", "/data"), ("/", "/"), ("a//b/", "a/b")],
        *[("../data", "../data"), ("run:1", "run:1"), ("@pics", "@pics"), ("my #1 run", "my #1 run"), ("2012", "2012")],
        *[("./~x", "./~x"), ("a$b", "a$b"), ("t/s-{000..146}.tar", "t/s-{000..146}.tar"), ("./s3:/x", "./s3:/x")],
        *[("t/s-{{00..01},05}.tar", "t/s-{{00..01},05}.tar"), ("https://h/a//b?c=//d", "https://h/a//b?c=//d")],
    ],
)
def test_a_place_has_one_spelling(text: str, meant: str) -> None:
    assert INPUT(text) == meant


def test_a_tilde_is_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert (OUTPUT("~/r"), OUTPUT("~")) == (f"{tmp_path}/r", str(tmp_path))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        *[("", "is empty"), ("  ", "is empty"), (" a", "a blank"), ("a\n", "control character"), ("a\0", r"\x00")],
        *[("s3://", "names no bucket: write s3://bucket/folder"), ("s3:///x", "write s3://bucket/x")],
        *[("s3:/b/x", "write s3://b/x"), ("s3:b", "write s3://b"), ("S3:/b", "write s3://b"), ("file:/x", "file:///x")],
        *[("gs:/b", "write gs://b"), ("what:/x", "./what:/x"), ("C:\\x", "neither"), ("file://x/y", "file:///x/y")],
        *[
            ("local:///x", "no kind of storage"),
            ("http://", "write http://host/folder"),
            ("foo://b/x", "foo:// is no kind of storage"),
            ("gs://b/x", "pip install 'gcsfs'"),
        ],
        *[("az://c/x", "pip install 'adlfs'"), ("sftp://h/x", "pip install 'paramiko'")],
        *[("${HOME}/r", "$HOME"), ("$HOME/r", "$HOME"), ("a/$B", "$B"), ("s3://${BUCKET}/r", "$BUCKET")],
        *[("{{ RUN }}", "a template"), ("s3://b/{{run.id}}", "{{run.id}}"), ("{% if x %}", "a template")],
        *[("s3://b//x", "s3://b/x?"), ("s3://b/a//c", "s3://b/a/c?"), ("s3://b/../x", ".."), ("s3://b/./x", ".")],
        *[("s3://my bucket/x", "no name of a bucket"), ("~nobody-here/x", "no home folder ~nobody-here")],
        *[("a/" + "x" * 256, "255"), ("s3://b/" + "x/" * 600, "1024"), ("x/" * 3000, "4095"), ("caf\udce9", "UTF-8")],
        *[("zip://a.zip::s3://b/c", "inside other storage")],
    ],
)
def test_what_would_be_taken_for_something_else_is_refused(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=re.escape(said)):
        INPUT(text)


def test_a_packaged_file_is_named_as_one() -> None:
    assert PACKAGED("embedded:x/y.gz") == "embedded:x/y.gz"


def test_a_password_in_a_uri_is_refused_and_not_repeated() -> None:
    with pytest.raises(ValueError, match="password") as caught:
        INPUT("s3://KEY:hunter2@bucket/x")
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("text", ["http://h/x", "https://h/x", "github://h/x"])
def test_what_cannot_be_written_is_no_place_for_a_run(text: str) -> None:
    with pytest.raises(ValueError, match="can only be read"):
        OUTPUT(text)


def test_a_written_place_leaves_room_for_the_names_below_it() -> None:
    assert INPUT("s3://b/" + "x/" * 500)
    with pytest.raises(ValueError, match="at most 824"):
        OUTPUT("s3://b/" + "x/" * 500)


@pytest.mark.parametrize("text", ["s3://b/x", "https://h/x"])
def test_a_cache_is_on_this_machine(text: str) -> None:
    with pytest.raises(ValueError, match="not on this machine"):
        DISK(text)


@pytest.mark.parametrize("text", ["s3:/b/x", "gs:b", "file:/x"])
def test_half_a_uri_reaches_no_disk_from_an_argument_either(text: str) -> None:
    with pytest.raises(UsageError, match="neither a URI nor a path"):
        storage.exists(text)


def test_an_argument_is_named_in_the_refusal() -> None:
    with pytest.raises(UsageError, match="'': is empty"):
        place("")


@pytest.mark.parametrize("folder", ["tars", "s3://bucket/tars"])
def test_a_pattern_may_be_longer_than_the_names_it_stands_for(folder: str) -> None:
    pattern = f"{folder}/{{{','.join(f'n{number:08}' for number in range(1000))}}}.tar"
    assert INPUT(pattern) == pattern


def test_a_file_of_weights_is_a_place_on_this_machine() -> None:
    field = LpipsConfig.model_fields["file"]
    assert rules_of(field.annotation, field.metadata) == PlaceRules(local=True)
