"""What storage refuses is told with the place, the server's own words and a remedy; what passes is waited for."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from data_pipeline import storage
from data_pipeline.errors import FoldtrainError, StorageAwayError, UsageError
from data_pipeline.storage import object_clients, object_reads
from data_pipeline.storage import retries as storage_retries
from data_pipeline.storage.retries import patience
from tests.data_pipeline.stub_s3 import Answer, Request, Respond, page, refusal, stub_s3

pytestmark = pytest.mark.xdist_group("stub_s3")

Serving = Callable[[Respond], list[Request]]


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nothing of this machine's credentials, and a process that never reached any storage."""
    for name in ("AWS_ENDPOINT_URL_S3", "AWS_PROFILE", "AWS_REGION", "AWS_DEFAULT_REGION", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setattr(storage_retries, "_answered", set())
    monkeypatch.setattr(storage_retries, "_served", set())


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds between tries, which no test waits for."""
    found: list[float] = []
    monkeypatch.setattr("tenacity.nap.time.sleep", found.append)
    return found


@dataclass
class _Server:
    """One server for all tests, so that one client is opened; what it says changes."""

    url: str
    asked: list[Request]
    respond: Respond | None = None


@pytest.fixture(scope="module")
def server() -> Iterator[_Server]:
    server = _Server("", [])

    def respond(request: Request) -> Answer:
        assert server.respond is not None
        return server.respond(request)

    with stub_s3(respond) as (server.url, server.asked):
        yield server


@pytest.fixture
def serving(server: _Server, monkeypatch: pytest.MonkeyPatch) -> Serving:
    """Has the server answer as it is told; gives the list of what it is asked."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", server.url)

    def start(respond: Respond) -> list[Request]:
        server.respond = respond
        server.asked.clear()
        return server.asked

    return start


@pytest.fixture
def new_client() -> Iterator[None]:
    """The client is opened in this test, and in no other: it reads the environment once."""
    object_clients._open.cache_clear()
    yield
    object_clients._open.cache_clear()


def always(answer: Answer) -> Respond:
    return lambda request: Answer(answer.status) if request.method == "HEAD" else answer


DEEDS: dict[str, Callable[[str], object]] = {
    "read": storage.read_bytes,
    "range": lambda uri: storage.read_range(uri, 0, 500),
    "exists": storage.exists,
    "size": storage.size,
    "list": storage.list_names,
    "walk": storage.walk,
    "write": lambda uri: storage.write_bytes(uri, b"x"),
    "create": lambda uri: storage.create_bytes(uri, b"x"),
    "remove": storage.remove_tree,
    "uploads": storage.unfinished_uploads,
}


@pytest.mark.parametrize("deed", DEEDS)
@pytest.mark.parametrize(
    ("status", "code", "remedy"),
    [
        (403, "AccessDenied", "s3:PutObject"),
        (404, "NoSuchBucket", "create it"),
        (403, "SignatureDoesNotMatch", "AWS_SECRET_ACCESS_KEY"),
        (400, "SomethingNew", "Check the URI"),
    ],
)
def test_each_refusal_is_told_whatever_was_done(
    serving: Serving, deed: str, status: int, code: str, remedy: str
) -> None:
    serving(always(refusal(status, code)))
    with pytest.raises(FoldtrainError) as caught:
        DEEDS[deed]("s3://bucket/folder/object")
    message = str(caught.value)
    assert message.startswith("s3://bucket/folder/object: The server's own words.")
    assert f"({code}, HTTP {status})" in message
    assert remedy in message


@pytest.mark.parametrize("deed", DEEDS)
def test_what_the_server_was_asked_is_what_is_counted(serving: Serving, deed: str, waits: list[float]) -> None:
    kinds = {"GET": {"get", "list"}, "HEAD": {"head"}, "PUT": {"put"}, "DELETE": {"delete"}, "POST": {"delete"}}
    asked = serving(always(refusal(500, "InternalError")))
    with patience(20), storage.counted() as found, pytest.raises(StorageAwayError):
        DEEDS[deed]("s3://bucket/folder/object")
    assert found.total() == len(asked) > 1
    assert all(found.keys() & kinds[request.method] for request in asked)


@pytest.mark.parametrize("deed", ["exists", "list", "walk"])
def test_a_bucket_itself_is_refused_as_its_objects_are(serving: Serving, deed: str) -> None:
    serving(always(refusal(403, "InvalidAccessKeyId")))
    with pytest.raises(FoldtrainError, match=r"does not take these credentials.*AWS_ACCESS_KEY_ID"):
        DEEDS[deed]("s3://bucket")


@pytest.mark.parametrize(
    ("answer", "remedy"),
    [
        (refusal(301, "PermanentRedirect", x_amz_bucket_region="eu-west-9"), "AWS_REGION=eu-west-9"),
        (refusal(301, "PermanentRedirect"), "set AWS_REGION, or AWS_ENDPOINT_URL"),
        (refusal(400, "KeyTooLongError"), "a shorter place"),
        (refusal(400, "EntityTooLarge"), "shard_bytes"),
        (refusal(507, "XMinioStorageFull"), "is full"),
        (refusal(403, "QuotaExceeded"), "is full"),
    ],
)
def test_a_refused_write_says_what_to_do(serving: Serving, answer: Answer, remedy: str) -> None:
    serving(always(answer))
    with patience(0), pytest.raises(FoldtrainError, match=remedy):
        storage.write_bytes("s3://bucket/object", b"x")


def test_what_a_server_says_is_one_line_without_control_characters(serving: Serving) -> None:
    serving(always(refusal(403, "AccessDenied", "no\n&#10;" + "x" * 1000)))
    with pytest.raises(FoldtrainError) as caught:
        storage.write_bytes("s3://bucket/object", b"x")
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 800


def test_a_missing_object_stays_a_missing_file(serving: Serving) -> None:
    serving(always(refusal(404, "NoSuchKey")))
    with pytest.raises(FileNotFoundError):
        storage.read_bytes("s3://bucket/object")


@pytest.mark.usefixtures("new_client")
def test_no_credentials_at_all_are_told(serving: Serving, monkeypatch: pytest.MonkeyPatch) -> None:
    serving(always(page([])))
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(FoldtrainError, match="There are no credentials: set AWS_ACCESS_KEY_ID"):
        storage.exists("s3://bucket/object")


@pytest.mark.usefixtures("new_client")
def test_a_profile_that_is_not_there_is_told(serving: Serving, monkeypatch: pytest.MonkeyPatch) -> None:
    serving(always(page([])))
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    with pytest.raises(FoldtrainError, match=r"nobody.*AWS_PROFILE"):
        storage.exists("s3://bucket/object")


@pytest.mark.parametrize("value", ["127.0.0.1:9000", "localhost", "s3://host"])
def test_an_endpoint_without_a_scheme_is_named_with_its_variable(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", value)
    with pytest.raises(UsageError, match=f"AWS_ENDPOINT_URL is '{value}': write it with its scheme"):
        storage.exists("s3://bucket/object")


@pytest.mark.parametrize("value", ["http://", "http://host:port"])
def test_an_endpoint_that_is_none_is_named(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", value)
    with patience(0), pytest.raises(FoldtrainError, match="Mend AWS_ENDPOINT_URL"):
        storage.exists("s3://bucket/object")


@pytest.mark.parametrize(
    ("uri", "said"),
    [
        ("S3://bucket/x", "write s3://bucket/x"),
        ("s3://", "names no bucket"),
        *((f"{scheme}://bucket/x", "pip install 'gcsfs'") for scheme in ("gs", "gcs")),
        *((f"{scheme}://bucket/x", "pip install 'adlfs'") for scheme in ("az", "abfs", "abfss")),
        ("foo://bucket/x", "no kind of storage"),
    ],
)
def test_a_uri_from_an_argument_is_checked_too(uri: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        storage.exists(uri)


@pytest.mark.parametrize(
    ("deed", "uri"),
    [(deed, uri) for deed in ("exists", "list", "walk") for uri in ("s3://bucket", "s3://bucket/folder")]
    + [("read", "s3://bucket/folder")],
)
def test_a_dead_server_is_given_up_within_the_first_patience(
    deed: str, uri: str, waits: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    with pytest.raises(StorageAwayError, match=r"127\.0\.0\.1:1"):
        DEEDS[deed](uri)
    assert 0 < sum(waits) <= storage_retries.FIRST_CONTACT_PATIENCE


def write_credentials(folder: Path, key: str) -> None:
    (folder / "credentials").write_text(f"[default]\naws_access_key_id = {key}\naws_secret_access_key = secret\n")


@pytest.fixture
def credentials_in_a_file(new_client: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setattr(object_clients, "RENEWAL_SECONDS", 0.0)
    write_credentials(tmp_path, "old")
    return tmp_path


@pytest.mark.parametrize(
    ("deed", "status", "code"),
    [
        *[("read", 400, "ExpiredToken"), ("write", 400, "ExpiredToken"), ("list", 400, "TokenRefreshRequired")],
        *[("exists", 403, "RequestTimeTooSkewed")],
    ],
)
def test_refreshed_keys_are_picked_up(
    serving: Serving, credentials_in_a_file: Path, waits: list[float], status: int, code: str, deed: str
) -> None:
    def respond(request: Request) -> Answer:
        if "Credential=old/" in request.headers.get("authorization", ""):
            write_credentials(credentials_in_a_file, "new")  # as a renewal does, meanwhile
            return always(refusal(status, code))(request)
        body = b"" if request.method == "PUT" else b"x"
        return page(["object"]) if "list-type" in request.query else Answer(200, body, {"ETag": '"0"'})

    asked = serving(respond)
    DEEDS[deed]("s3://bucket/object")
    assert "Credential=new/" in asked[-1].headers["authorization"]


def test_keys_that_are_rotated_while_a_command_works_are_picked_up(
    serving: Serving, credentials_in_a_file: Path, waits: list[float]
) -> None:
    rotated: list[bool] = []

    def respond(request: Request) -> Answer:
        if rotated and "Credential=old/" in request.headers.get("authorization", ""):
            write_credentials(credentials_in_a_file, "new")
            return always(refusal(403, "InvalidAccessKeyId"))(request)
        return page(["object"])

    serving(respond)
    assert storage.list_names("s3://bucket") == ["object"]
    rotated.append(True)
    assert storage.list_names("s3://bucket") == ["object"]


def test_keys_that_stay_expired_are_told_with_what_renews_them(serving: Serving, waits: list[float]) -> None:
    serving(always(refusal(400, "ExpiredToken")))
    with pytest.raises(FoldtrainError, match=r"\(ExpiredToken, HTTP 400\).*aws sso login"):
        storage.write_bytes("s3://bucket/object", b"x")
    assert sum(waits) <= storage_retries.FIRST_CONTACT_PATIENCE


def endless_same(request: Request) -> Answer:
    return page(["folder/a"], token="again")


def endless_tokens(request: Request) -> Answer:
    return page(["folder/a"], token=f"{request.query.get('continuation-token', '')}1")


def endless_empty(request: Request) -> Answer:
    return page([], token=f"{int(request.query.get('continuation-token', '0')) + 1}")


def no_token(request: Request) -> Answer:
    body = b"<ListBucketResult><IsTruncated>true</IsTruncated></ListBucketResult>"
    return Answer(200, body, {"Content-Type": "application/xml"})


@pytest.mark.parametrize("respond", [endless_same, endless_tokens, endless_empty, no_token])
def test_a_listing_without_an_end_is_given_up(
    serving: Serving, respond: Respond, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("data_pipeline.storage.object_listing.MOST_EMPTY_PAGES", 20)
    serving(respond)
    with pytest.raises(FoldtrainError, match=r"s3://bucket/folder: the server's listing does not come to an end"):
        storage.walk("s3://bucket/folder")


def test_a_listing_of_many_pages_is_read_to_its_end(serving: Serving) -> None:
    def respond(request: Request) -> Answer:
        at = int(request.query.get("continuation-token", "0"))
        return page([f"folder/{at}"], token=str(at + 1) if at < 5 else None)

    serving(respond)
    assert list(storage.walk("s3://bucket/folder")) == ["0", "1", "2", "3", "4", "5"]


@pytest.mark.parametrize("deed", ["range", "list", "exists"])
def test_a_server_that_sends_a_byte_at_a_time_is_given_up(
    serving: Serving, deed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(object_reads, "ANSWER_SECONDS", 0.3)
    monkeypatch.setattr(object_reads, "SLOWEST_BYTES", 1e9)

    def respond(request: Request) -> Answer:
        if request.method == "HEAD":
            return Answer(404)
        return Answer(200, b"x" * 500, {"Content-Type": "application/xml"}, pause=0.05)

    serving(respond)
    with patience(0), pytest.raises(StorageAwayError, match=r"s3://bucket/object: the server .* a few bytes at a time"):
        DEEDS[deed]("s3://bucket/object")


@pytest.mark.usefixtures("new_client")
@pytest.mark.parametrize(("chosen", "sent"), [("when_required", False), ("when_supported", True)])
def test_parts_carry_checksums_unless_they_were_switched_off(
    serving: Serving, chosen: str, sent: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_REQUEST_CHECKSUM_CALCULATION", chosen)
    monkeypatch.setattr("data_pipeline.storage.object_writes.PART_BYTES", 100_000)

    def respond(request: Request) -> Answer:
        if request.method == "POST" and "uploads" in request.query:
            body = b"<InitiateMultipartUploadResult><UploadId>u</UploadId></InitiateMultipartUploadResult>"
            return Answer(200, body, {"Content-Type": "application/xml"})
        if request.method == "POST":
            body = b"<CompleteMultipartUploadResult><ETag>e</ETag></CompleteMultipartUploadResult>"
            return Answer(200, body, {"Content-Type": "application/xml"})
        return Answer(200, b"", {"ETag": '"e"'})

    asked = serving(respond)
    storage.write_bytes("s3://bucket/object", b"x" * 250_000)
    found = [name for request in asked for name in request.headers if "checksum" in name or "trailer" in name]
    assert bool(found) == sent


@pytest.mark.parametrize("deed", ["exists", "size", "read"])
def test_a_web_server_that_is_away_is_not_taken_for_one_without_the_file(
    deed: str, waits: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FOLDTRAIN_STORAGE_PATIENCE", "3")
    with pytest.raises(StorageAwayError, match=r"http://127\.0\.0\.1:1/x"):
        DEEDS[deed]("http://127.0.0.1:1/x")


@pytest.mark.parametrize("deed", ["exists", "size", "read"])
def test_a_web_server_that_refuses_is_told(deed: str, server: _Server) -> None:
    server.respond = lambda _: Answer(403)
    with pytest.raises(FoldtrainError, match="403"):
        DEEDS[deed](f"{server.url}/x")


def test_a_file_on_a_web_server_is_read(server: _Server) -> None:
    server.respond = lambda request: Answer(200 if request.path == "/x" else 404, b"body")
    assert storage.exists(f"{server.url}/x")
    assert not storage.exists(f"{server.url}/y")
    assert storage.size(f"{server.url}/x") == 4


def test_a_silent_server_costs_the_first_patience_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage_retries, "FIRST_CONTACT_PATIENCE", 1.0)
    monkeypatch.setattr(object_reads, "FIRST_CONTACT_PATIENCE", 1.0)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{silent.getsockname()[1]}")
        with pytest.raises(StorageAwayError, match="s3://bucket/object"):
            storage.exists("s3://bucket/object")
        silent.setblocking(False)
        with contextlib.suppress(BlockingIOError):  # on a busy machine the client may not have come so far
            silent.accept()
        with pytest.raises(BlockingIOError):
            silent.accept()  # it was asked once


class _ReadOnly:
    def pipe_file(self, uri: str, data: bytes) -> None:
        raise NotImplementedError


def test_a_store_that_can_only_be_read_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage.files, "filesystem", lambda _: _ReadOnly())
    with pytest.raises(FoldtrainError, match=r"zip://x: .*can only be read"):
        storage.write_bytes("zip://x", b"x")


class _LibraryError(Exception):
    """An error of a library that is told by none of Python's classes."""

    __module__ = "somestore.client"


class _Odd:
    def __init__(self, error: Exception) -> None:
        self.error = error

    def info(self, uri: str) -> None:
        raise self.error


def test_what_another_library_raises_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage.files, "filesystem", lambda _: _Odd(_LibraryError("no such host")))
    with pytest.raises(FoldtrainError, match=r"gs://bucket/x: no such host\. Check the URI"):
        storage.exists("gs://bucket/x")


def test_a_bug_is_not_told_as_a_refusal_of_storage(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage.files, "filesystem", lambda _: _Odd(AttributeError("typo")))
    with pytest.raises(AttributeError):
        storage.exists("gs://bucket/x")


def test_the_server_in_a_uri_reaches_its_filesystem(waits: list[float]) -> None:
    with pytest.raises(StorageAwayError, match=r"ftp://127\.0\.0\.1:1/x: .*Connection refused"):
        storage.exists("ftp://127.0.0.1:1/x")


@pytest.mark.slow
def test_the_log_of_what_is_tried_again_has_no_control_characters(
    serving: Serving, waits: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    serving(always(refusal(503, "SlowDown", "slow&#10;down")))
    with patience(20), pytest.raises(StorageAwayError):
        storage.list_names("s3://bucket/folder")
    assert [record.getMessage().partition(";")[0] for record in caplog.records] == [
        "s3://bucket/folder: slow down (SlowDown, HTTP 503)"
    ]
