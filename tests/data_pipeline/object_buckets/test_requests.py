"""obstore does what s3fs would do, in as few requests: deeds, keys and listings."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any
from urllib.parse import unquote

import fsspec
import pytest

from data_pipeline import storage
from data_pipeline.errors import CorruptShardError, FoldtrainError
from tests.data_pipeline.stub_s3 import Answer, Request, Serving, body, by_obstore, refusal

pytestmark = pytest.mark.xdist_group("stub_s3")


def test_the_first_request_to_a_bucket_is_of_s3fs_and_the_others_of_obstore(serving: Serving) -> None:
    asked = serving(body)
    for name in ("a", "a", "b"):
        assert storage.read_range(f"s3://one/{name}", 2, 3) == b"234"
    assert storage.read_range("s3://two/a", 2, 3) == b"234"
    assert [(request.path, by_obstore(request)) for request in asked] == [
        ("/one/a", False),
        ("/one/a", True),
        ("/one/b", True),
        ("/two/a", False),
    ]


def test_a_bucket_that_refuses_is_not_known_by_it(serving: Serving) -> None:
    answers = [refusal(403, "AccessDenied")]
    asked = serving(lambda request: answers.pop() if answers else body(request))
    with pytest.raises(FoldtrainError):
        storage.read_range("s3://refusing/a", 0, 1)
    for _ in range(2):
        storage.read_range("s3://refusing/a", 0, 1)
    assert [by_obstore(request) for request in asked] == [False, False, True]


def test_each_deed_is_done_by_obstore_in_one_request(serving: Serving) -> None:
    asked = serving(body)
    storage.size("s3://bucket/a")
    deeds: dict[str, Callable[[], object]] = {
        "GET": lambda: storage.read_bytes("s3://bucket/a"),
        "HEAD": lambda: storage.stat("s3://bucket/a"),
        "PUT": lambda: storage.create_bytes("s3://bucket/a", b"x"),
        "DELETE": lambda: storage.remove_file("s3://bucket/a"),
    }
    for method, deed in deeds.items():
        asked.clear()
        deed()
        assert [(request.method, by_obstore(request)) for request in asked] == [(method, True)]


def test_an_object_is_held_or_not_by_one_request(serving: Serving) -> None:
    asked = serving(body)
    storage.size("s3://bucket/a")
    for data, there in ((b"0123456789", True), (b"0123456780", False), (b"01234", False), (b"01234567890", False)):
        asked.clear()
        assert storage.holds("s3://bucket/a", data) == there
        assert len(asked) == 1


def test_an_object_that_is_too_large_is_refused_before_its_bytes_are_read(serving: Serving) -> None:
    asked = serving(lambda _: Answer(200, b"x" * 3000, pause=0.01))
    storage.size("s3://bucket/a")
    with pytest.raises(CorruptShardError, match="s3://bucket/a has more than the 2,999 bytes"):
        storage.read_bytes("s3://bucket/a", 2999)
    assert [request.method for request in asked] == ["HEAD", "GET"]


def test_a_large_object_is_read_in_pieces_behind_the_first(serving: Serving, monkeypatch: pytest.MonkeyPatch) -> None:
    data = bytes(range(200)) * 5
    monkeypatch.setattr("data_pipeline.storage.object_reads.FIRST_BYTES", 100)
    monkeypatch.setattr("data_pipeline.storage.object_reads.PIECE_BYTES", 400)
    asked = serving(lambda _: Answer(200, data))
    storage.size("s3://bucket/a")
    assert storage.read_bytes("s3://bucket/a") == data
    ranges = sorted(request.headers["range"] for request in asked if request.method == "GET")
    assert ranges == ["bytes=0-99", "bytes=100-499", "bytes=500-899", "bytes=900-999"]


def test_many_ranges_are_one_call_and_each_is_counted(serving: Serving) -> None:
    data = os.urandom(1_000_000)
    asked = serving(lambda _: Answer(200, data))
    storage.size("s3://bucket/a")
    with storage.counted() as found:
        ranges = [(900_000, 10), (0, 10), (100_000, 10), (100_500, 10)]
        assert storage.read_ranges("s3://bucket/a", ranges) == [data[at : at + n] for at, n in ranges]
    assert found == {"get": 3}
    assert len(asked) - 1 == 3


def test_of_many_ranges_one_that_fails_or_is_cut_is_read_again(serving: Serving) -> None:
    data, failed = os.urandom(1_000_000), list[str]()

    def respond(request: Request) -> Answer:
        if request.method == "GET" and not failed:
            failed.append(request.path)
            return refusal(500, "InternalError")
        return Answer(200, data)

    serving(respond)
    storage.size("s3://bucket/a")
    ranges = [(0, 10), (300_000, 10), (999_995, 10), (2_000_000, 10)]
    assert storage.read_ranges("s3://bucket/a", ranges) == [data[at : at + n] for at, n in ranges]
    assert failed


# ------------------------------------------------------------------------------------------------------------- keys


@pytest.mark.parametrize(
    ("key", "near"),
    [
        *[("a b/c", True), ("ü/é", True), ("a#1", True), ("a%20b", True), ("a+b", True), ("a?b&c=d", True)],
        *[("日本/🙂", True), ("~*'()!$,;:@=", True), ("back\\slash", True), ('"<>|^`{}[]', True)],
        *[("folder/", False), ("x//y", False), ("x/./y", False), ("x/../y", False), ("...", True), ("a/..b", True)],
        ("a?versionId=3", False),
    ],
)
def test_a_key_is_the_same_one_to_both_clients(serving: Serving, key: str, near: bool) -> None:
    asked = serving(body)
    storage.read_range("s3://bucket/first", 0, 1)
    uri = f"s3://bucket/{key}"
    storage.read_range(uri, 0, 1)
    storage.filesystem(uri).cat_file(uri, start=0, end=1)
    _, one, other = asked
    assert by_obstore(one) == near
    assert unquote(one.path) == unquote(other.path)
    assert one.path.count("?") == 0


# ---------------------------------------------------------------------------------------------------------- listings

CONTENT = (
    "<Contents><Key>{key}</Key><LastModified>2026-11-25T20:50:10.123Z</LastModified><ETag>&quot;e&quot;</ETag>"
    "<Size>{size}</Size><StorageClass>STANDARD</StorageClass><Owner><ID>1</ID></Owner></Contents>"
)
PREFIX = "<CommonPrefixes><Prefix>f/a%20b/</Prefix></CommonPrefixes>"


def listing(inside: str, truncated: str = "false") -> bytes:
    head = '<?xml version="1.0"?><ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><Name>bucket</Name>'
    return f"{head}<IsTruncated>{truncated}</IsTruncated>{inside}</ListBucketResult>".encode()


@pytest.mark.parametrize(
    "page",
    [
        listing(""),
        listing(
            "<EncodingType>url</EncodingType>" + CONTENT.format(key="f/%C3%BC%2B%231", size=5_000_000_000) + PREFIX
        ),
        listing(
            CONTENT.format(key="a &amp; b%20", size=0) + "<NextContinuationToken>t=/</NextContinuationToken>", "true"
        ),
        listing(CONTENT.format(key="x", size="")),
        listing(CONTENT.format(key="x", size=1), "perhaps"),
        listing(
            "<Contents><Key>x</Key><Size>1</Size><LastModified>Wed, 25 Nov 2026 20:50:10 GMT</LastModified></Contents>"
        ),
    ],
    ids=["empty", "encoded", "first", "no_size", "no_end", "old_date"],
)
def test_a_page_of_a_listing_is_read_as_botocore_reads_it(serving: Serving, page: bytes) -> None:
    serving(lambda _: Answer(200, page, {"Content-Type": "application/xml"}))
    ours = storage.filesystem("s3://bucket")
    theirs = fsspec.filesystem("s3", skip_instance_cache=True, config_kwargs={"retries": {"total_max_attempts": 1}})
    theirs.retries = 1

    def read(fs: Any) -> Any:
        try:
            found = fs.call_s3("list_objects_v2", Bucket="bucket")
        except (OSError, ValueError) as error:
            return type(error)
        entries = [
            {name: entry[name] for name in ("Key", "Size", "LastModified", "ETag") if name in entry}
            for entry in found.get("Contents", [])
        ]
        names = ("IsTruncated", "NextContinuationToken", "EncodingType", "CommonPrefixes")
        return entries, {name: found[name] for name in names if name in found}

    assert read(ours) == read(theirs)
