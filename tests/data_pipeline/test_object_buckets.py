"""obstore does what s3fs would do: at the same address, with the same credentials and keys, and in the same words."""

from __future__ import annotations

import ipaddress
import os
import signal
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from queue import SimpleQueue
from typing import Any
from urllib.parse import unquote

import fsspec
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from data_pipeline import storage
from data_pipeline.errors import CorruptShardError, FoldtrainError, StorageAwayError
from data_pipeline.storage import object_buckets, object_clients
from data_pipeline.storage.retries import patience
from tests.data_pipeline.stub_s3 import Answer, Request, Respond, refusal, stub_s3

pytestmark = pytest.mark.xdist_group("stub_s3")

Serving = Callable[[Respond], list[Request]]


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nothing of this machine's credentials."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")


@dataclass
class _Server:
    """One server for all tests, so that one client is opened; what it says changes."""

    url: str
    asked: list[Request]
    respond: Respond


@pytest.fixture(scope="module")
def server() -> Iterator[_Server]:
    server = _Server("", [], body)
    with stub_s3(lambda request: server.respond(request)) as (server.url, server.asked):
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


def body(_: Request) -> Answer:
    return Answer(200, b"0123456789")


def by_obstore(request: Request) -> bool:
    return request.headers["user-agent"].startswith("object_store")


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


# ------------------------------------------------------------------------------------------ addresses and credentials


@pytest.mark.usefixtures("new_client")
def test_a_profile_says_endpoint_region_and_keys(
    serving: Serving, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = serving(body)
    url = os.environ["AWS_ENDPOINT_URL"]
    for name in ("AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_PROFILE", "lab")
    services = f"[services mine]\ns3 =\n  endpoint_url = {url}\n"
    (tmp_path / "config").write_text(f"[profile lab]\nregion = eu-west-9\nservices = mine\n{services}")
    (tmp_path / "credentials").write_text("[lab]\naws_access_key_id = labkey\naws_secret_access_key = x\n")
    for _ in range(2):
        storage.read_range("s3://bucket/a", 0, 1)
    assert [by_obstore(request) for request in asked] == [False, True]
    assert all("Credential=labkey/" in request.headers["authorization"] for request in asked)
    assert all("/eu-west-9/s3/" in request.headers["authorization"] for request in asked)


@pytest.mark.usefixtures("new_client")
def test_the_variable_for_s3_goes_before_the_general_one(serving: Serving, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = serving(body)
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", os.environ["AWS_ENDPOINT_URL"])
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    for _ in range(2):
        assert storage.read_range("s3://bucket/a", 0, 1) == b"0"
    assert len(asked) == 2


@pytest.mark.usefixtures("new_client")
@pytest.mark.parametrize(
    ("name", "value"),
    [
        *[("AWS_SKIP_SIGNATURE", "true"), ("AWS_ENDPOINT", "http://127.0.0.1:1"), ("AWS_TOKEN", "other")],
        *[("AWS_BUCKET", "other"), ("AWS_UNSIGNED_PAYLOAD", "true"), ("AWS_S3_EXPRESS", "true")],
    ],
)
def test_variables_that_botocore_does_not_know_mean_nothing(
    serving: Serving, name: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    asked = serving(body)
    storage.read_range("s3://bucket/a", 0, 1)
    storage.write_bytes("s3://bucket/a", b"x")
    request = asked[-1]
    assert by_obstore(request)
    assert request.path == "/bucket/a"
    assert "Credential=key/" in request.headers["authorization"]
    assert "x-amz-security-token" not in request.headers
    assert len(request.headers["x-amz-content-sha256"]) == 64


@pytest.mark.usefixtures("new_client")
def test_a_bucket_that_is_read_without_credentials_is_so_by_obstore(
    serving: Serving, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = serving(body)
    fs = storage.filesystem("s3://bucket")
    monkeypatch.setattr(fs, "anon", True)
    for _ in range(2):
        storage.read_range("s3://bucket/a", 0, 1)
    assert [by_obstore(request) for request in asked] == [False, True]
    assert not any("authorization" in request.headers for request in asked)


@pytest.mark.usefixtures("new_client")
def test_a_proxy_of_the_environment_is_used_by_both(serving: Serving, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = serving(body)
    monkeypatch.setenv("http_proxy", os.environ["AWS_ENDPOINT_URL"])
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://storage.invalid")
    for _ in range(2):
        assert storage.read_range("s3://bucket/a", 0, 1) == b"0"
    assert [by_obstore(request) for request in asked] == [False, True]
    assert {request.headers["host"] for request in asked} == {"storage.invalid"}


def own_authority(folder: Path) -> tuple[Path, ssl.SSLContext]:
    """A certificate for loopback that nobody but its file vouches for, and a server's use of it."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    now, loopback = datetime.now(UTC), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([loopback]), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    public, private = folder / "authority.pem", folder / "key.pem"
    public.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    plain = serialization.NoEncryption()
    private.write_bytes(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(public, private)
    return public, context


@pytest.mark.usefixtures("new_client")
def test_an_authority_of_ones_own_is_trusted_by_both(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    public, context = own_authority(tmp_path)
    monkeypatch.setenv("AWS_CA_BUNDLE", str(public))
    with stub_s3(body, context) as (url, asked):
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        for _ in range(2):
            assert storage.read_range("s3://bucket/a", 0, 1) == b"0"
        assert [by_obstore(request) for request in asked] == [False, True]


@pytest.mark.usefixtures("new_client")
def test_what_cannot_be_carried_over_stays_with_s3fs(serving: Serving, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = serving(body)
    fs = storage.filesystem("s3://bucket")
    monkeypatch.setattr(fs, "req_kw", {"RequestPayer": "requester"})
    for _ in range(3):
        storage.read_range("s3://bucket/a", 0, 1)
    assert not any(map(by_obstore, asked))


@pytest.mark.usefixtures("new_client")
def test_a_bucket_that_moves_is_found_again(serving: Serving) -> None:
    moved: list[bool] = []

    def respond(request: Request) -> Answer:
        if moved and "/eu-west-9/" not in request.headers["authorization"]:
            return refusal(301, "PermanentRedirect", x_amz_bucket_region="eu-west-9")
        return body(request)

    asked = serving(respond)
    storage.read_range("s3://bucket/a", 0, 1)
    moved.append(True)
    for _ in range(2):
        assert storage.read_range("s3://bucket/a", 0, 1) == b"0"
    found = [("/eu-west-9/" in request.headers["authorization"], by_obstore(request)) for request in asked]
    assert found == [(False, False), (False, True), (False, False), (True, False), (True, True)]


@pytest.mark.usefixtures("new_client")
def test_credentials_that_expire_are_renewed_before_they_do(serving: Serving, monkeypatch: pytest.MonkeyPatch) -> None:
    """As of a container's or an instance's role: each answer of the role's server has keys for some minutes."""
    monkeypatch.setattr(object_buckets, "CREDENTIALS_SECONDS", 0.0)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    given: list[int] = []

    def role(_: Request) -> Answer:
        given.append(len(given))
        lifetime = timedelta(minutes=5 if len(given) < 4 else 60)  # botocore renews within the last ten
        expires = (datetime.now(UTC) + lifetime).isoformat(timespec="seconds")
        keys = f'"AccessKeyId": "K{given[-1]}", "SecretAccessKey": "s", "Token": "T{given[-1]}"'
        return Answer(200, f'{{{keys}, "Expiration": "{expires}"}}'.encode(), {"Content-Type": "application/json"})

    asked = serving(body)
    with stub_s3(role) as (url, _):
        monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", f"{url}/role")
        storage.read_range("s3://bucket/a", 0, 1)
        for _ in range(6):
            assert storage.read_range("s3://bucket/a", 0, 1) == b"0"
    used = [request.headers["authorization"].partition("Credential=")[2].partition("/")[0] for request in asked]
    tokens = [request.headers["x-amz-security-token"] for request in asked]
    assert all(map(by_obstore, asked[1:]))
    assert used[-1] == "K3"
    assert used == sorted(used)
    assert len(set(used)) > 2
    assert tokens == [key.replace("K", "T") for key in used]


@pytest.mark.usefixtures("new_client")
def test_credentials_that_end_are_told_in_the_words_of_botocore(
    serving: Serving, monkeypatch: pytest.MonkeyPatch
) -> None:
    from botocore.exceptions import CredentialRetrievalError

    serving(body)
    storage.read_range("s3://bucket/a", 0, 1)

    async def ended() -> None:
        raise CredentialRetrievalError(provider="sso", error_msg="the login has ended")

    credentials = storage.filesystem("s3://bucket").s3._request_signer._credentials
    monkeypatch.setattr(credentials, "get_frozen_credentials", ended)
    with patience(0), pytest.raises(FoldtrainError, match=r"the login has ended.*aws sso login"):
        storage.read_range("s3://bucket/a", 0, 1)


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


# --------------------------------------------------------------------------------------------------- what goes wrong


def test_a_conflict_of_the_moment_is_waited_for_and_one_with_an_object_is_not(
    serving: Serving, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tenacity.nap.time.sleep", lambda _: None)
    answers = [refusal(409, "ConditionalRequestConflict"), refusal(412, "PreconditionFailed")]

    def respond(request: Request) -> Answer:
        return answers.pop(0) if request.method == "PUT" else body(request)

    asked = serving(respond)
    storage.size("s3://bucket/a")
    assert not storage.create_bytes("s3://bucket/a", b"x")
    puts = [request for request in asked if request.method == "PUT"]
    assert [request.headers["if-none-match"] for request in puts] == ["*", "*"]
    assert len({request.headers["x-amz-meta-foldtrain-put"] for request in puts}) == 1


def test_a_create_that_met_itself_is_known_by_its_metadata(serving: Serving) -> None:
    mine: list[str] = []

    def respond(request: Request) -> Answer:
        if request.method == "PUT":
            mine.append(request.headers["x-amz-meta-foldtrain-put"])
            return refusal(412, "PreconditionFailed")
        return Answer(200, b"0123456789", {"x-amz-meta-foldtrain-put": mine[-1]} if mine else {})

    asked = serving(respond)
    storage.size("s3://bucket/a")
    assert storage.create_bytes("s3://bucket/a", b"x")
    assert [(request.method, by_obstore(request)) for request in asked[1:]] == [("PUT", True), ("HEAD", True)]


@pytest.mark.parametrize("ranges", [[(0, 5)], [(0, 5), (100_000, 5)]])
def test_a_range_of_which_only_a_part_is_sent_is_read_again(serving: Serving, ranges: list[tuple[int, int]]) -> None:
    data, short = os.urandom(200_000), list[bool]()

    def respond(request: Request) -> Answer:
        if request.headers.get("range") == "bytes=0-4" and not short:
            short.append(True)
            return Answer(206, data[:2], {"ETag": '"0"', "Content-Range": "bytes 0-1/200000"})
        return Answer(200, data)

    serving(respond)
    storage.size("s3://bucket/a")
    assert storage.read_ranges("s3://bucket/a", ranges) == [data[at : at + n] for at, n in ranges]
    assert short


@pytest.mark.parametrize("data", [b"", b"0123456789"])
def test_a_server_that_knows_no_ranges_is_read_whole_by_s3fs(serving: Serving, data: bytes) -> None:
    serving(lambda _: Answer(200, data, {"Accept-Ranges": "none"}))
    storage.size("s3://bucket/a")
    assert storage.read_bytes("s3://bucket/a") == data


def test_an_empty_object_is_read_in_one_request(serving: Serving) -> None:
    asked = serving(lambda request: Answer(200, b""))
    storage.size("s3://bucket/a")
    asked.clear()
    assert storage.read_bytes("s3://bucket/a") == b""
    assert len(asked) == 1


def test_a_body_that_is_cut_is_read_again(serving: Serving) -> None:
    cut: list[bool] = []

    def respond(request: Request) -> Answer:
        if request.method == "GET" and not cut:
            cut.append(True)
            return Answer(200, b"01234", {"Content-Length": "10", "Connection": "close"})
        return body(request)

    serving(respond)
    storage.size("s3://bucket/a")
    assert storage.read_bytes("s3://bucket/a") == b"0123456789"
    assert cut


def test_a_server_that_ends_is_named_with_what_the_system_says(
    serving: Serving, monkeypatch: pytest.MonkeyPatch
) -> None:
    serving(body)
    storage.read_range("s3://ending/a", 0, 1)
    addresses = storage.filesystem("s3://ending").session.addresses
    addresses["ending"] = addresses["ending"]._replace(url="http://127.0.0.1:1/bucket")
    with patience(0), pytest.raises(StorageAwayError, match=r"s3://ending/a: .*127\.0\.0\.1:1.*Connection refused"):
        storage.read_range("s3://ending/a", 0, 1)


def test_a_server_that_says_nothing_any_more_is_given_up(serving: Serving, monkeypatch: pytest.MonkeyPatch) -> None:
    serving(body)
    storage.read_range("s3://silent/a", 0, 1)
    monkeypatch.setattr(object_clients, "READ_SECONDS", 0.2)
    addresses = storage.filesystem("s3://silent").session.addresses
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/bucket"
        addresses["silent"] = addresses["silent"]._replace(url=url)
        with patience(0), pytest.raises(StorageAwayError, match="s3://silent/a: the server does not answer"):
            storage.read_range("s3://silent/a", 0, 1)


def test_a_signal_is_heard_while_the_main_thread_waits_and_the_next_request_does_not_wait(serving: Serving) -> None:
    serving(body)
    storage.size("s3://bucket/a")
    heard, read_again, found = threading.Event(), threading.Event(), SimpleQueue[bool]()

    def interrupt(*_: object) -> None:
        heard.set()
        raise KeyboardInterrupt

    def respond(request: Request) -> Answer:
        if request.path == "/bucket/late":
            os.kill(os.getpid(), signal.SIGUSR1)
            found.put(heard.wait(20) and read_again.wait(20))
        return body(request)

    serving(respond)
    before = signal.signal(signal.SIGUSR1, interrupt)
    try:
        with pytest.raises(KeyboardInterrupt):
            storage.read_range("s3://bucket/late", 0, 1)
        assert storage.read_range("s3://bucket/a", 3, 1) == b"3"
    finally:
        signal.signal(signal.SIGUSR1, before)
        read_again.set()
    assert found.get()


def test_a_forked_process_reads_too(serving: Serving) -> None:
    """obstore's threads are not in the child, and a request of its would wait for ever."""
    serving(body)
    for _ in range(2):
        assert storage.read_range("s3://bucket/a", 0, 1) == b"0"
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        signal.alarm(60)
        try:
            storage.read_range("s3://bucket/a", 2, 1)
            os.write(writing, storage.read_range("s3://bucket/a", 3, 1))
        finally:
            os._exit(0)
    os.close(writing)
    with open(reading, "rb") as answer:  # noqa: PTH123 - a pipe has no path
        assert answer.read() == b"3"
    os.waitpid(child, 0)
    assert storage.read_range("s3://bucket/a", 4, 1) == b"4"


def test_many_threads_share_a_bucket(serving: Serving) -> None:
    serving(body)
    with ThreadPoolExecutor(16) as pool:
        found = list(pool.map(lambda n: storage.read_range("s3://bucket/a", n % 10, 1), range(300)))
    assert found == [b"%d" % (n % 10) for n in range(300)]


def test_a_time_limit_grows_with_what_is_read_in_few_steps(serving: Serving) -> None:
    serving(body)
    for length in (1, 1, 1, 100, 2**20, 2**20 + 1, 2**24, 2**25, 2**26):
        storage.read_range("s3://limits/a", 0, length)
    bucket = storage.filesystem("s3://limits").session.buckets["limits"]
    assert sorted(bucket._stores) == pytest.approx([60 + 4**n * 2**20 / 100_000 for n in range(4)])


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
