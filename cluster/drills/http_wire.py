"""As much of HTTP/1.1 as a proxy needs that must not change what it passes on: heads, and how bodies end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass

CHUNK = 256 * 1024


@dataclass(frozen=True)
class Head:
    """The start line and headers of a request or a response, and its very bytes."""

    raw: bytes

    @property
    def start(self) -> list[str]:
        """The parts of the start line: method, path, version; or version, status, reason."""
        return self.raw.split(b"\r\n", 1)[0].decode("latin-1").split(" ", 2)

    @property
    def headers(self) -> dict[str, str]:
        """Values by lower-case name."""
        lines = self.raw.decode("latin-1").split("\r\n")[1:]
        pairs = (line.partition(":") for line in lines if line)
        return {name.lower(): value.strip() for name, _, value in pairs}

    @property
    def status(self) -> int:
        """Of a response."""
        return int(self.start[1])

    @property
    def length(self) -> int | None:
        """Bytes of the body as they are stated; None if they are not (chunks, or up to the end of the connection)."""
        headers = self.headers
        if "chunked" in headers.get("transfer-encoding", "").lower():
            return None
        return int(headers["content-length"]) if "content-length" in headers else None


async def read_head(reader: asyncio.StreamReader) -> Head | None:
    """The next head; None if the other side closed the connection."""
    try:
        return Head(await reader.readuntil(b"\r\n\r\n"))
    except asyncio.IncompleteReadError:
        return None


async def request_body(reader: asyncio.StreamReader, head: Head) -> AsyncIterator[bytes]:
    """The pieces of a request's body, as they are on the wire."""
    if "chunked" in head.headers.get("transfer-encoding", "").lower():
        async for piece in _chunks(reader):
            yield piece
    else:
        async for piece in _counted(reader, head.length or 0):
            yield piece


async def response_body(reader: asyncio.StreamReader, head: Head, method: str) -> AsyncIterator[bytes]:
    """The pieces of a response's body, as they are on the wire."""
    if method == "HEAD" or head.status in {204, 304}:
        return
    if "chunked" in head.headers.get("transfer-encoding", "").lower():
        pieces = _chunks(reader)
    elif head.length is not None:
        pieces = _counted(reader, head.length)
    else:
        pieces = _to_the_end(reader)
    async for piece in pieces:
        yield piece


async def _counted(reader: asyncio.StreamReader, left: int) -> AsyncIterator[bytes]:
    while left:
        piece = await reader.read(min(CHUNK, left))
        if not piece:
            raise ConnectionResetError("the body ended early")
        left -= len(piece)
        yield piece


async def _chunks(reader: asyncio.StreamReader) -> AsyncIterator[bytes]:
    size = -1
    while size:
        line = await reader.readuntil(b"\r\n")
        yield line
        size = int(line.split(b";")[0], 16)
        if size:
            yield await reader.readexactly(size + 2)
    while True:  # trailers, up to an empty line
        line = await reader.readuntil(b"\r\n")
        yield line
        if line == b"\r\n":
            return


async def _to_the_end(reader: asyncio.StreamReader) -> AsyncIterator[bytes]:
    while piece := await reader.read(CHUNK):
        yield piece
