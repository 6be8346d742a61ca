"""Storage behind a network and a server that fail: the right bytes in the end, and never a wrong answer."""

from __future__ import annotations

import base64
import hashlib
import random
import socket
import threading
import tracemalloc
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

from cluster.drills.fault_proxy import Fault, FaultProxy, Rule
from cluster.drills.s3_server import BUCKET, S3Server
from data_pipeline import storage
from data_pipeline.errors import FoldtrainError, StorageAwayError, UsageError
from data_pipeline.storage import object_clients, object_writes, pacing
from data_pipeline.storage.outside_errors import is_transient
from data_pipeline.storage.retries import ShortReadError, patience
from tests.conftest import S3

pytestmark = pytest.mark.xdist_group("s3")

Behind = Callable[..., AbstractContextManager[FaultProxy]]


BOTH = pytest.mark.parametrize("behind", ["s3fs", "obstore"], indirect=True)
"""The first requests to a bucket go by the one client, and the others by the other."""


@pytest.fixture
def behind(request: pytest.FixtureRequest, s3: S3, monkeypatch: pytest.MonkeyPatch) -> Behind:
    """Puts a proxy between this process and the S3 server, through which the bucket was reached before."""

    @contextmanager
    def proxied(
        rule: Rule | None = None, share_503: float = 0.0, share_cut: float = 0.0, target: str = s3.endpoint
    ) -> Iterator[FaultProxy]:
        with FaultProxy(target, 7, share_503, share_cut, rule) as proxy, monkeypatch.context() as patched:
            patched.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
            if getattr(request, "param", "obstore") == "obstore":
                proxy.faulty = False
                storage.list_names(f"s3://{BUCKET}/nothing")
                proxy.faulty = True
                proxy.counts.clear()
            yield proxy
        pacing._pacer.cache_clear()  # the pace that this test was slowed to is no other test's

    return proxied


def once(fault: Fault, method: str, part: str = "") -> Rule:
    """Fail the first request with this method, and this text in its path or headers."""
    left = [fault]

    def rule(found: str, path: str, headers: dict[str, str]) -> Fault | None:
        hit = found == method and part in f"{path} {headers}"
        return left.pop() if hit and left else None

    return rule


@BOTH
def test_a_write_that_nobody_answers_is_tried_again(
    behind: Behind, s3_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(object_writes, "WRITE_SECONDS", 1.0)
    with behind(once(Fault.SILENCE, "PUT")) as proxy:
        storage.write_bytes(f"{s3_uri}/a", b"body")
        assert proxy.counts[Fault.SILENCE] == 1
        assert storage.read_bytes(f"{s3_uri}/a") == b"body"


def test_a_hundred_objects_survive_slow_downs_and_cuts(behind: Behind, s3_uri: str) -> None:
    source = random.Random(3)
    objects = {f"{n % 7}/{n:03}": source.randbytes(source.choice([0, 1, 300, 20_000, 300_000])) for n in range(100)}

    def write(item: tuple[str, bytes]) -> None:
        name, data = item
        if name.endswith(("0", "5")):
            assert storage.create_bytes(f"{s3_uri}/{name}", data)
        else:
            storage.write_bytes(f"{s3_uri}/{name}", data)

    with behind(share_503=0.2, share_cut=0.1) as proxy, ThreadPoolExecutor(8) as pool:
        list(pool.map(write, objects.items()))
        assert storage.walk(s3_uri) == {name: len(data) for name, data in sorted(objects.items())}
        assert (
            dict(zip(objects, pool.map(lambda n: storage.read_bytes(f"{s3_uri}/{n}"), objects), strict=True)) == objects
        )
        assert storage.list_names(s3_uri) == [str(n) for n in range(7)]
        assert not any(pool.map(lambda name: storage.create_bytes(f"{s3_uri}/{name}", b"other"), list(objects)[:20]))
        assert all(proxy.counts[fault] > 5 for fault in (Fault.SLOW_DOWN, Fault.CUT_REQUEST, Fault.CUT_RESPONSE))
        storage.remove_tree(s3_uri)
        assert storage.walk(s3_uri) == {}


@pytest.mark.slow
def test_objects_that_were_accepted_outlive_a_killed_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    objects = {f"s3://{BUCKET}/{n}": bytes([n]) * 10_000 for n in range(60)}
    server = S3Server(tmp_path / "weed").start()
    try:
        for name, value in server.environment().items():
            monkeypatch.setenv(name, value)
        half = threading.Semaphore(0)

        def write(item: tuple[str, bytes]) -> None:
            storage.write_bytes(*item)
            half.release()

        with ThreadPoolExecutor(4) as pool:
            writes = [pool.submit(write, item) for item in objects.items()]
            for _ in range(20):
                half.acquire()
            server.restart()
            for done in writes:
                done.result()
        assert {uri: storage.read_bytes(uri) for uri in objects} == objects
    finally:
        server.kill()


@pytest.mark.parametrize("kind", ["local", "s3"])
def test_of_six_who_create_at_once_one_wins(kind: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    folder = str(tmp_path) if kind == "local" else str(request.getfixturevalue("s3_uri"))
    with ThreadPoolExecutor(6) as pool:
        for n in range(4):
            gate = threading.Barrier(6)

            def create(who: int, uri: str = f"{folder}/{n}", gate: threading.Barrier = gate) -> bool:
                gate.wait()
                return storage.create_bytes(uri, b"winner %d" % who)

            won = list(pool.map(create, range(6)))
            assert won.count(True) == 1
            assert storage.read_bytes(f"{folder}/{n}") == b"winner %d" % won.index(True)
    assert set(storage.entries(folder)) == {str(n) for n in range(4)}


@BOTH
def test_a_create_whose_answer_was_lost_was_ours(behind: Behind, s3_uri: str) -> None:
    with behind(once(Fault.CUT_RESPONSE, "PUT")) as proxy:
        assert storage.create_bytes(f"{s3_uri}/lease", b"mine")
        assert proxy.counts[Fault.CUT_RESPONSE] == 1


def test_equal_bytes_are_created_once(s3_uri: str) -> None:
    assert storage.create_bytes(f"{s3_uri}/shard", b"same")
    assert not storage.create_bytes(f"{s3_uri}/shard", b"same")


@BOTH
def test_a_create_that_failed_once_does_not_claim_anothers_object(behind: Behind, s3_uri: str) -> None:
    storage.write_bytes(f"{s3_uri}/lease", b"theirs")
    with behind(once(Fault.CUT_RESPONSE, "PUT")) as proxy:
        assert not storage.create_bytes(f"{s3_uri}/lease", b"mine")
        assert proxy.counts[Fault.CUT_RESPONSE] == 1
    assert storage.read_bytes(f"{s3_uri}/lease") == b"theirs"


@BOTH
def test_a_store_without_conditional_put_creates_what_is_not_there(behind: Behind, s3_uri: str) -> None:
    def refuse(method: str, path: str, headers: dict[str, str]) -> Fault | None:
        return Fault.NOT_IMPLEMENTED if "if-none-match" in headers else None

    with behind(refuse) as proxy:
        assert storage.create_bytes(f"{s3_uri}/shard", b"first")
        assert not storage.create_bytes(f"{s3_uri}/shard", b"second")
        assert storage.read_bytes(f"{s3_uri}/shard") == b"first"
        storage.commit_bytes(f"{s3_uri}/shard", b"second")
        assert storage.read_bytes(f"{s3_uri}/shard") == b"second"
        assert proxy.counts[Fault.NOT_IMPLEMENTED] == 3


def puts(proxy_log: list[str]) -> Rule:
    def rule(method: str, path: str, headers: dict[str, str]) -> Fault | None:
        if method == "PUT":
            sums = [headers.get(f"x-amz-checksum-{kind}", "") for kind in ("crc32", "sha256")]
            proxy_log.append("".join(sums))
        return None

    return rule


def test_a_commit_writes_nothing_where_the_bytes_are_there(behind: Behind, s3_uri: str) -> None:
    log: list[str] = []
    with behind(puts(log)):
        storage.commit_bytes(f"{s3_uri}/shard", b"bytes of the plan")
        storage.commit_bytes(f"{s3_uri}/shard", b"bytes of the plan")
        storage.commit_bytes(f"{s3_uri}/shard", b"other bytes")
    assert storage.read_bytes(f"{s3_uri}/shard") == b"other bytes"
    assert len(log) == 4  # three conditional ones, and the one that replaces


@pytest.mark.parametrize(
    ("behind", "checksum"),
    [
        ("s3fs", base64.b64encode(zlib.crc32(b"123456789").to_bytes(4, "big"))),
        ("obstore", base64.b64encode(hashlib.sha256(b"123456789").digest())),
    ],
    indirect=["behind"],
)
def test_writes_carry_a_checksum(behind: Behind, s3_uri: str, checksum: bytes) -> None:
    log: list[str] = []
    with behind(puts(log)):
        storage.write_bytes(f"{s3_uri}/object", b"123456789")
    assert log == [checksum.decode()]


@BOTH
def test_bytes_that_were_damaged_on_their_way_are_sent_again(behind: Behind, s3_uri: str) -> None:
    with behind(once(Fault.DAMAGE, "PUT")) as proxy:
        storage.write_bytes(f"{s3_uri}/object", b"123456789")
        assert proxy.counts[Fault.DAMAGE] == 1
    assert storage.read_bytes(f"{s3_uri}/object") == b"123456789"


def test_a_large_object_goes_up_in_parts_and_only_what_was_cut_is_sent_again(behind: Behind, s3_uri: str) -> None:
    data = random.Random(5).randbytes(70 * 2**20)
    sent: list[str] = []
    cut = once(Fault.CUT_REQUEST, "PUT", "partNumber=2")

    def rule(method: str, path: str, headers: dict[str, str]) -> Fault | None:
        if method == "PUT" and "partNumber=" in path:
            sent.append(path.rsplit("partNumber=")[1].split("&")[0])
        return cut(method, path, headers)

    with behind(rule):
        storage.write_bytes(f"{s3_uri}/large", data)
    assert sorted(sent) == ["1", "2", "2"]
    assert storage.holds(f"{s3_uri}/large", data)


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> bytes:
    """An object of three parts, of the least size that S3 allows."""
    monkeypatch.setattr(object_writes, "PART_BYTES", 5 * 2**20)
    return random.Random(6).randbytes(11 * 2**20)


def unfinished(uri: str) -> list[str]:
    answer = storage.filesystem(uri).call_s3("list_multipart_uploads", Bucket=BUCKET)
    return [upload["Key"] for upload in answer.get("Uploads", []) if upload["Key"] in uri]


def test_an_upload_whose_last_answer_was_lost_is_there(behind: Behind, s3_uri: str, small_parts: bytes) -> None:
    with behind(once(Fault.CUT_RESPONSE, "POST", "uploadId=")):
        storage.write_bytes(f"{s3_uri}/large", small_parts)
    with behind(once(Fault.CUT_RESPONSE, "POST", "uploadId=")):
        assert storage.create_bytes(f"{s3_uri}/created", small_parts)
    assert storage.read_bytes(f"{s3_uri}/large") == storage.read_bytes(f"{s3_uri}/created") == small_parts


def test_memory_that_a_view_shows_goes_up_without_a_copy_of_the_whole(
    s3_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(object_writes, "VIEW_PART_BYTES", 5 * 2**20)
    monkeypatch.setattr(object_writes, "PARTS_AT_ONCE", 2)
    memory = bytearray(random.Random(7).randbytes(46 * 2**20))
    tracemalloc.start()
    try:
        storage.write_bytes(f"{s3_uri}/view", memoryview(memory))
        assert tracemalloc.get_traced_memory()[1] < len(memory)
    finally:
        tracemalloc.stop()
    assert storage.read_bytes(f"{s3_uri}/view") == memory
    assert storage.holds(f"{s3_uri}/view", memoryview(memory))
    memory[-1] ^= 0xFF
    assert not storage.holds(f"{s3_uri}/view", memoryview(memory))


def test_an_upload_in_parts_creates_only_what_is_not_there(s3_uri: str, small_parts: bytes) -> None:
    storage.write_bytes(f"{s3_uri}/large", b"theirs")
    assert not storage.create_bytes(f"{s3_uri}/large", small_parts)
    assert storage.read_bytes(f"{s3_uri}/large") == b"theirs"
    assert unfinished(f"{s3_uri}/large") == []


def test_an_upload_that_fails_gives_its_parts_back(
    behind: Behind, s3_uri: str, small_parts: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(method: str, path: str, headers: dict[str, str]) -> Fault | None:
        return Fault.SLOW_DOWN if "partNumber=3" in path else None

    monkeypatch.setenv("FOLDTRAIN_STORAGE_PATIENCE", "0")
    with behind(fail), pytest.raises(FoldtrainError, match=rf"{s3_uri}/large"):
        storage.write_bytes(f"{s3_uri}/large", small_parts)
    assert unfinished(f"{s3_uri}/large") == []
    assert not storage.exists(f"{s3_uri}/large")


def test_a_large_object_is_read_in_pieces(s3_uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("data_pipeline.storage.object_reads.PIECE_BYTES", 1000)
    data = random.Random(8).randbytes(3500)
    storage.write_bytes(f"{s3_uri}/object", data)
    assert storage.read_bytes(f"{s3_uri}/object") == data


@BOTH
def test_a_file_is_read_through_cuts(behind: Behind, s3_uri: str) -> None:
    data = random.Random(9).randbytes(50_000)
    storage.write_bytes(f"{s3_uri}/object", data)
    with behind(once(Fault.CUT_RESPONSE, "GET")), storage.open_reader(f"{s3_uri}/object") as file:
        file.seek(-49_000, 2)
        assert file.read(10) == data[1000:1010]
        assert file.read() == data[1010:]


class ShortOnce:
    """A filesystem that leaves out the end of its first read, without an error."""

    def __init__(self, data: bytes) -> None:
        self.data, self.reads = data, 0

    def size(self, uri: str) -> int:
        return len(self.data)

    def cat_file(self, uri: str, start: int, end: int) -> bytes:
        self.reads += 1
        found = self.data[start:end]
        return found[:-1] if self.reads == 1 else found


def _read_the_end(uri: str) -> bytes:
    return storage.read_range(uri, 2, 100)


@pytest.mark.parametrize(("read", "expected"), [(storage.read_bytes, b"0123456789"), (_read_the_end, b"23456789")])
def test_a_read_that_is_silently_short_is_done_again(
    read: Callable[[str], bytes], expected: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    short = ShortOnce(b"0123456789")
    monkeypatch.setattr(storage.files, "filesystem", lambda uri: short)
    assert read("s3://bucket/object") == expected
    assert short.reads == 2


@BOTH
def test_what_is_forbidden_or_missing_is_asked_for_once(behind: Behind, s3_uri: str) -> None:
    with behind() as proxy:
        with pytest.raises(FileNotFoundError):
            storage.read_range(f"{s3_uri}/missing", 0, 1)
        assert proxy.counts["passed"] == 1


def test_what_is_waited_for(s3: S3) -> None:
    from botocore.exceptions import ClientError, ReadTimeoutError

    def answer(status: int, code: str) -> ClientError:
        return ClientError({"Error": {"Code": code}, "ResponseMetadata": {"HTTPStatusCode": status}}, "GetObject")

    passing = [answer(n, "") for n in (500, 502, 503, 504)]
    passing += [answer(400, "RequestTimeout"), answer(400, "IncompleteBody"), answer(409, "ConditionalRequestConflict")]
    assert all(map(is_transient, [*passing, TimeoutError(), ConnectionResetError(), ShortReadError()]))
    assert is_transient(ReadTimeoutError(endpoint_url="http://127.0.0.1"))
    final = [answer(403, "AccessDenied"), answer(404, "NoSuchKey"), answer(412, "PreconditionFailed"), answer(400, "")]
    assert not any(map(is_transient, [*final, FileNotFoundError(), PermissionError(), UsageError(""), ValueError()]))


def test_a_server_that_accepts_and_never_answers_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(object_clients, "READ_SECONDS", 0.1)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "any")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "any")
    with socket.create_server(("127.0.0.1", 0)) as silent, patience(0):
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{silent.getsockname()[1]}")
        with pytest.raises(StorageAwayError, match=r"s3://bucket/object: .*AWS_ENDPOINT_URL"):
            storage.read_bytes("s3://bucket/object")


def test_bytes_that_arrive_damaged_are_refused(s3_uri: str) -> None:
    bucket, key, _ = storage.filesystem(s3_uri).split_path(f"{s3_uri}/object")
    with pytest.raises(OSError, match="did not match what we received"):
        storage.filesystem(s3_uri).call_s3("put_object", Bucket=bucket, Key=key, Body=b"123", ChecksumCRC32="AAAAAA==")
    assert not storage.exists(f"{s3_uri}/object")


def test_what_may_be_written_later_is_waited_for_less(behind: Behind, s3_uri: str) -> None:
    with behind(share_503=1.0) as proxy, patience(0), pytest.raises(FoldtrainError, match="reduce your request rate"):
        storage.write_bytes(f"{s3_uri}/progress.json", b"{}")
    assert proxy.counts[Fault.SLOW_DOWN] == 1


def test_a_patience_that_is_no_number_is_named(s3_uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FOLDTRAIN_STORAGE_PATIENCE", "long")
    with pytest.raises(UsageError, match="FOLDTRAIN_STORAGE_PATIENCE is 'long'"):
        storage.exists(s3_uri)
