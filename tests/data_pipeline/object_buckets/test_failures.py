"""What goes wrong between obstore and a server is mended, or told in the words of s3fs."""

from __future__ import annotations

import os
import signal
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue

import pytest

from data_pipeline import storage
from data_pipeline.errors import StorageAwayError
from data_pipeline.storage import object_clients
from data_pipeline.storage.retries import patience
from tests.data_pipeline.stub_s3 import Answer, Request, Serving, body, by_obstore, refusal

pytestmark = pytest.mark.xdist_group("stub_s3")


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
