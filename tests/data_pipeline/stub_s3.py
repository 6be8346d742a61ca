"""A server that answers S3 requests as a test says: for answers that a right server never gives."""

from __future__ import annotations

import contextlib
import ssl
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Event, Thread
from urllib.parse import parse_qsl, urlsplit


@dataclass
class Request:
    """What was asked."""

    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: bytes


@dataclass
class Answer:
    """What is said to it."""

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    pause: float = 0.0
    """Seconds between one byte of the body and the next; 0 for all at once."""


Respond = Callable[[Request], Answer]
Serving = Callable[[Respond], list[Request]]
"""Has a server answer so; gives the list of what it is asked from then on."""


def body(_: Request) -> Answer:
    """Of any object: ten digits."""
    return Answer(200, b"0123456789")


def by_obstore(request: Request) -> bool:
    """Whether it was that client that asked, and not s3fs."""
    return request.headers["user-agent"].startswith("object_store")


def refusal(status: int, code: str, message: str = "The server's own words.", **headers: str) -> Answer:
    """An answer of S3 that something cannot be."""
    body = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>{message}</Message></Error>"
    found = {name.replace("_", "-"): value for name, value in headers.items()}
    return Answer(status, body.encode(), {"Content-Type": "application/xml"} | found)


def page(keys: list[str], token: str | None = None) -> Answer:
    """A page of a listing; with a token there are more."""
    entries = "".join(
        f"<Contents><Key>{key}</Key><Size>1</Size><LastModified>2026-01-01T00:00:00Z</LastModified></Contents>"
        for key in keys
    )
    more = f"<NextContinuationToken>{token}</NextContinuationToken>" if token else ""
    cut = "true" if token else "false"
    body = f"<ListBucketResult><IsTruncated>{cut}</IsTruncated>{more}{entries}</ListBucketResult>"
    return Answer(200, body.encode(), {"Content-Type": "application/xml"})


def _as_s3(request: Request, answer: Answer) -> Answer:
    """What S3 adds to an answer: an ETag, and where a range lies, unless the answer says that it takes none."""
    if answer.status != 200:
        return answer
    if answer.headers.get("Accept-Ranges") == "none":
        return Answer(200, answer.body, {"ETag": '"0"'} | answer.headers, answer.pause)
    headers = {"ETag": '"0"'} | answer.headers
    asked = request.headers.get("range", "") if request.method == "GET" else ""
    if not asked.startswith("bytes="):
        return Answer(200, answer.body, headers, answer.pause)
    first, _, last = asked.removeprefix("bytes=").partition("-")
    whole, start = len(answer.body), int(first)
    if start >= whole:
        return refusal(416, "InvalidRange")
    body = answer.body[start : int(last) + 1]
    headers["Content-Range"] = f"bytes {start}-{start + len(body) - 1}/{whole}"
    return Answer(206, body, headers, answer.pause)


@contextlib.contextmanager
def stub_s3(respond: Respond, tls: ssl.SSLContext | None = None) -> Iterator[tuple[str, list[Request]]]:
    """A server on a port of its own: its URL, and the requests that it got."""
    asked: list[Request] = []
    ended = Event()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _answer(self) -> None:
            parts = urlsplit(self.path)
            headers = {name.lower(): value for name, value in self.headers.items()}
            body = self.rfile.read(int(headers.get("content-length", 0)))
            request = Request(self.command, parts.path, dict(parse_qsl(parts.query, True)), headers, body)
            asked.append(request)
            answer = _as_s3(request, respond(request))
            self.send_response(answer.status)
            for name, value in ({"Content-Length": str(len(answer.body))} | answer.headers).items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "HEAD":
                return
            for at in range(0, len(answer.body), 1 if answer.pause else len(answer.body) or 1):
                if answer.pause and ended.wait(answer.pause):
                    return
                self.wfile.write(answer.body[at : at + (1 if answer.pause else len(answer.body))])

        do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _answer

        def log_message(self, *_: object) -> None:
            """Nothing."""

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *_: object) -> None:
            """A client that went away is what some tests are about."""

    server = Server(("127.0.0.1", 0), Handler)
    if tls is not None:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    thread = Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield f"{'https' if tls else 'http'}://127.0.0.1:{server.server_address[1]}", asked
    finally:
        ended.set()
        server.shutdown()
        server.server_close()
        thread.join()
