"""An HTTP proxy in front of an S3 server that fails as real ones do: 503 SlowDown, and connections that are cut.

Everything else passes byte for byte, with the client's own Host header, since S3 signatures cover it. The faults follow
from a seed in the order in which requests arrive.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import threading
from collections import Counter
from collections.abc import Callable
from enum import Enum
from typing import Self
from urllib.parse import urlsplit

from cluster.drills.http_wire import CHUNK, Head, read_head, request_body, response_body


class Fault(Enum):
    """What is done to a request."""

    SLOW_DOWN = "503 SlowDown"
    """The server never sees it."""
    NOT_IMPLEMENTED = "501 NotImplemented"
    """The server never sees it."""
    FORBIDDEN = "403 AccessDenied"
    """The server never sees it."""
    CUT_REQUEST = "cut in the request"
    """The server sees its head and about half of its body."""
    CUT_RESPONSE = "cut in the response"
    """The server does it; the client gets half of the answer's body, or nothing if it has none."""
    DAMAGE = "damage"
    """The server sees a body of which one byte is another."""
    SILENCE = "silence"
    """The server never sees it, and the client gets no answer, as from a node that is lost."""


Rule = Callable[[str, str, dict[str, str]], Fault | None]
"""(method, path with query, headers by lower-case name) -> what to do; None leaves it to chance."""
Answered = Callable[[str, str, int], None]
"""(method, path with query, status): told of each answer of the server, before the client is."""

_ANSWERS = {
    Fault.SLOW_DOWN: (503, "Slow Down", "SlowDown", "Please reduce your request rate."),
    Fault.NOT_IMPLEMENTED: (501, "Not Implemented", "NotImplemented", "A header you provided is not implemented."),
    Fault.FORBIDDEN: (403, "Forbidden", "AccessDenied", "Access Denied."),
}


class FaultProxy:
    """A proxy on a port of its own of this machine, in a thread of its own.

    Args:
        target: URL of the server.
        seed: of the faults.
        share_503: share of the requests that are answered 503 SlowDown.
        share_cut: share of the requests whose connection is cut, half of them in the request, half in the response.
        rule: decides before chance does.
        answered: is told of the server's answers.
        delay: seconds that each request waits before the server gets it; many wait at the same time.
    """

    def __init__(
        self,
        target: str,
        seed: int,
        share_503: float = 0.0,
        share_cut: float = 0.0,
        rule: Rule | None = None,
        answered: Answered | None = None,
        delay: float = 0.0,
    ) -> None:
        assert 0 <= share_503 + share_cut <= 1, (share_503, share_cut)
        place = urlsplit(target)
        assert place.scheme == "http", target
        assert place.hostname is not None, target
        self._host, self._target_port = place.hostname, place.port or 80
        self._random = random.Random(seed)
        self._share_503, self._share_cut, self._rule = share_503, share_cut, rule
        self._answered, self._delay = answered, delay
        self.counts: Counter[Fault | str] = Counter()
        """Requests by what was done to them; "passed" for those that went through."""
        self.faulty = True
        """Set it to False to let everything pass, and back to True, at any time."""
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), name="fault proxy", daemon=True)

    @property
    def endpoint(self) -> str:
        """Its URL."""
        return f"http://127.0.0.1:{self._port}"

    def start(self) -> Self:
        """Begin to serve."""
        self._thread.start()
        if not self._ready.wait(30):
            raise RuntimeError("the fault proxy did not start")
        return self

    def stop(self) -> None:
        """Cut all connections and end."""
        self._loop.call_soon_threadsafe(self._ended.set)
        self._thread.join()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    async def _serve(self) -> None:
        self._loop, self._ended = asyncio.get_running_loop(), asyncio.Event()
        self._clients: set[asyncio.Task[None]] = set()
        server = await asyncio.start_server(self._accept, "127.0.0.1", 0, limit=2 * CHUNK)
        self._port = server.sockets[0].getsockname()[1]
        self._ready.set()
        await self._ended.wait()
        server.close()
        for client in self._clients:
            client.cancel()
        await asyncio.gather(*self._clients, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._clients.add(task)
        upstream: asyncio.StreamWriter | None = None
        try:
            source, upstream = await asyncio.open_connection(self._host, self._target_port, limit=2 * CHUNK)
            while await self._exchange(reader, writer, source, upstream):
                pass
        except (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, asyncio.CancelledError):
            pass  # either side went away: the other is told by a cut
        finally:
            self._clients.discard(task)
            for end in (writer, upstream):
                if end is not None:
                    end.transport.abort()

    async def _exchange(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        source: asyncio.StreamReader,
        upstream: asyncio.StreamWriter,
    ) -> bool:
        """One request and its answer. Returns whether the connection goes on."""
        head = await read_head(reader)
        if head is None:
            return False
        fault = self._choose(head)
        self.counts["passed" if fault is None else fault] += 1
        await asyncio.sleep(self._delay)
        if fault is Fault.SILENCE:
            while await reader.read(CHUNK):
                pass
            return False
        if fault in _ANSWERS:
            await _refuse(fault, head, reader, writer)
            return False
        upstream.write(head.raw)
        answer = None
        if "100-continue" in head.headers.get("expect", "").lower():
            answer = await read_head(source)
            if answer is None:  # the server is gone: the client would wait for it, and we for the client
                return False
            if answer.status == 100:
                writer.write(answer.raw)
                answer = None
        if answer is None:
            if not await _forward_request(head, reader, upstream, fault):
                return False
            answer = await read_head(source)
        if answer is None or fault is Fault.CUT_REQUEST:
            return False
        if self._answered is not None:
            self._answered(head.start[0], head.start[1], answer.status)
        whole = await _forward_response(answer, head.start[0], source, writer, cut=fault is Fault.CUT_RESPONSE)
        return whole and answer.headers.get("connection", "").lower() != "close"

    def _choose(self, head: Head) -> Fault | None:
        if not self.faulty:
            return None
        method, path, _ = head.start
        found = self._rule(method, path, head.headers) if self._rule else None
        if found is not None:
            return found
        drawn = self._random.random()
        if drawn < self._share_503:
            return Fault.SLOW_DOWN
        if drawn < self._share_503 + self._share_cut / 2:
            return Fault.CUT_REQUEST
        return Fault.CUT_RESPONSE if drawn < self._share_503 + self._share_cut else None


async def _refuse(fault: Fault, head: Head, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    status, reason, code, message = _ANSWERS[fault]
    if "expect" not in head.headers:
        async for _ in request_body(reader, head):
            pass
    body = f'<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>{code}</Code><Message>{message}</Message></Error>'
    start = f"HTTP/1.1 {status} {reason}\r\nContent-Type: application/xml\r\nContent-Length: {len(body)}\r\n"
    writer.write(f"{start}Connection: close\r\n\r\n{'' if head.start[0] == 'HEAD' else body}".encode())
    await writer.drain()
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()


async def _forward_request(
    head: Head, reader: asyncio.StreamReader, upstream: asyncio.StreamWriter, fault: Fault | None
) -> bool:
    """Pass a request's body on. False if it was cut; at its half, or right away if its length is not stated."""
    room = (head.length or 0) // 2
    cut = fault is Fault.CUT_REQUEST
    async for found in request_body(reader, head):
        piece = bytes([found[0] ^ 1]) + found[1:] if fault is Fault.DAMAGE and found else found
        if cut and len(piece) > room:
            upstream.write(piece[:room])
            await upstream.drain()
            return False
        room -= len(piece)
        upstream.write(piece)
        await upstream.drain()
    return not cut


async def _forward_response(
    head: Head, method: str, source: asyncio.StreamReader, writer: asyncio.StreamWriter, *, cut: bool
) -> bool:
    """Pass an answer on. False if it was cut: in its body, or before its head if it has none."""
    room = (head.length or 0) // 2
    if cut and (room == 0 or method == "HEAD"):
        return False
    writer.write(head.raw)
    async for piece in response_body(source, head, method):
        if cut and len(piece) > room:
            writer.write(piece[:room])
            await writer.drain()
            return False
        room -= len(piece)
        writer.write(piece)
        await writer.drain()
    return head.length is not None or method == "HEAD" or "transfer-encoding" in head.headers
