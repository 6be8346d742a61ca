"""The proxy of the fault drills: what passes is unchanged, and what fails, fails as S3 does."""

from __future__ import annotations

import contextlib
import http.client
import socket
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from cluster.drills.fault_proxy import Fault, FaultProxy

BODY = bytes(range(256)) * 40


class _Echo(BaseHTTPRequestHandler):
    """Answers a GET with BODY, and a PUT with the Host header that came and the number of bytes."""

    protocol_version = "HTTP/1.1"
    served: list[str]

    def do_GET(self) -> None:
        self._answer(BODY)

    def do_HEAD(self) -> None:
        self._answer(BODY, body=False)

    def do_PUT(self) -> None:
        data = self.rfile.read(int(self.headers["Content-Length"]))
        if len(data) < int(self.headers["Content-Length"]):
            self.close_connection = True
            return
        self.served.append(self.path)
        self._answer(f"{self.headers['Host']} {len(data)}".encode())

    def _answer(self, data: bytes, body: bool = True) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if body:
            self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        pass


class Origin:
    """A plain HTTP server behind a proxy."""

    def __init__(self) -> None:
        self.served: list[str] = []
        handler = type("Handler", (_Echo,), {"served": self.served})
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"


@pytest.fixture
def origin() -> Iterator[Origin]:
    origin = Origin()
    thread = threading.Thread(target=origin.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield origin
    origin.server.shutdown()
    thread.join()
    origin.server.server_close()


@pytest.fixture
def client() -> Iterator[Callable[[FaultProxy], http.client.HTTPConnection]]:
    opened: list[http.client.HTTPConnection] = []

    def connect(proxy: FaultProxy) -> http.client.HTTPConnection:
        opened.append(http.client.HTTPConnection(proxy.endpoint.removeprefix("http://"), timeout=30))
        return opened[-1]

    yield connect
    for connection in opened:
        connection.close()


Connect = Callable[[FaultProxy], http.client.HTTPConnection]


def ask(
    connection: http.client.HTTPConnection, method: str, path: str = "/", body: bytes | None = None
) -> tuple[int, bytes]:
    connection.request(method, path, body=body)
    answer = connection.getresponse()
    return answer.status, answer.read()


def test_without_faults_everything_passes_on_one_connection(origin: Origin, client: Connect) -> None:
    with FaultProxy(origin.url, seed=0) as proxy:
        connection = client(proxy)
        assert ask(connection, "GET") == (200, BODY)
        assert ask(connection, "HEAD") == (200, b"")
        host = proxy.endpoint.removeprefix("http://")
        assert ask(connection, "PUT", body=BODY) == (200, f"{host} {len(BODY)}".encode())
        assert dict(proxy.counts) == {"passed": 3}


def test_each_request_waits_as_long_as_is_asked_before_the_server_gets_it(
    origin: Origin, client: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    waited: list[tuple[float, int]] = []

    async def sleep(seconds: float) -> None:
        waited.append((seconds, len(origin.served)))

    monkeypatch.setattr("cluster.drills.fault_proxy.asyncio.sleep", sleep)
    with FaultProxy(origin.url, seed=0, delay=30.0) as proxy:
        connection = client(proxy)
        for _ in range(3):
            assert ask(connection, "PUT", body=BODY)[0] == 200
    assert waited == [(30.0, 0), (30.0, 1), (30.0, 2)]


def test_answers_of_the_server_are_told_and_the_faults_of_the_proxy_are_not(origin: Origin, client: Connect) -> None:
    told: list[tuple[str, str, int]] = []

    def rule(_method: str, path: str, _headers: dict[str, str]) -> Fault | None:
        return Fault.SLOW_DOWN if path == "/refused" else None

    with FaultProxy(origin.url, seed=0, rule=rule, answered=lambda *answer: told.append(answer)) as proxy:
        assert ask(client(proxy), "PUT", "/refused", BODY)[0] == 503
        assert ask(client(proxy), "PUT", "/taken?x", BODY)[0] == 200
    assert told == [("PUT", "/taken?x", 200)]


def test_slow_down_has_the_xml_of_s3_and_never_reaches_the_server(origin: Origin, client: Connect) -> None:
    with FaultProxy(origin.url, seed=0, share_503=1.0) as proxy:
        status, body = ask(client(proxy), "PUT", "/key", BODY)
        assert status == 503
        assert b"<Code>SlowDown</Code>" in body
        assert proxy.counts == {Fault.SLOW_DOWN: 1}
    assert origin.served == []


def test_a_cut_response_stops_in_the_middle_of_its_body(origin: Origin, client: Connect) -> None:
    with FaultProxy(origin.url, seed=0, rule=lambda *_: Fault.CUT_RESPONSE) as proxy:
        connection = client(proxy)
        connection.request("GET", "/")
        answer = connection.getresponse()
        assert answer.headers["Content-Length"] == str(len(BODY))
        with pytest.raises((http.client.IncompleteRead, ConnectionError)) as caught:
            answer.read()
        if isinstance(caught.value, http.client.IncompleteRead):
            assert len(caught.value.partial) <= len(BODY) // 2


def test_what_a_cut_response_was_for_is_done(origin: Origin, client: Connect) -> None:
    with FaultProxy(origin.url, seed=0, rule=lambda *_: Fault.CUT_RESPONSE) as proxy:
        connection = client(proxy)
        with pytest.raises((http.client.HTTPException, ConnectionError)):
            ask(connection, "PUT", "/key", BODY)
    assert origin.served == ["/key"]


def test_what_a_cut_request_was_for_is_not_done(origin: Origin, client: Connect) -> None:
    with FaultProxy(origin.url, seed=0, rule=lambda *_: Fault.CUT_REQUEST) as proxy:
        connection = client(proxy)
        with pytest.raises((http.client.HTTPException, ConnectionError)):
            ask(connection, "PUT", "/key", BODY)
    assert origin.served == []


def test_it_is_switched_off_and_on_while_it_runs(origin: Origin, client: Connect) -> None:
    with FaultProxy(origin.url, seed=0, share_503=1.0) as proxy:
        proxy.faulty = False
        assert ask(client(proxy), "GET") == (200, BODY)
        proxy.faulty = True
        assert ask(client(proxy), "GET")[0] == 503


def faults_of(origin: Origin, client: Connect, seed: int) -> list[int]:
    with FaultProxy(origin.url, seed=seed, share_503=0.5) as proxy:
        return [ask(client(proxy), "GET")[0] for _ in range(30)]


def test_the_faults_follow_from_the_seed(origin: Origin, client: Connect) -> None:
    first = faults_of(origin, client, seed=1)
    assert first == faults_of(origin, client, seed=1)
    assert first != faults_of(origin, client, seed=2)
    assert set(first) == {200, 503}


def test_a_server_that_is_away_cuts_the_connection(origin: Origin, client: Connect) -> None:
    with FaultProxy("http://127.0.0.1:1", seed=0) as proxy:
        connection = client(proxy)
        with pytest.raises((http.client.HTTPException, ConnectionError)):
            ask(connection, "GET")


def test_a_client_that_waits_to_go_on_is_cut_when_the_server_is_gone() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def hear_and_leave() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(1000)

        server = threading.Thread(target=hear_and_leave, daemon=True)
        server.start()
        with FaultProxy(f"http://127.0.0.1:{listener.getsockname()[1]}", seed=0) as proxy:
            host, port = proxy.endpoint.removeprefix("http://").split(":")
            with socket.create_connection((host, int(port)), timeout=30) as client:
                client.sendall(b"PUT /key HTTP/1.1\r\nHost: s3\r\nContent-Length: 4\r\nExpect: 100-continue\r\n\r\n")
                with contextlib.suppress(ConnectionResetError):
                    assert client.recv(100) == b""
        server.join()
