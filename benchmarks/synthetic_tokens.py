"""An S3 server that seems to hold the tars and commit records of any number of token shards, and makes them up.

Filling a real server with 142,000 shards takes 284,000 writes. This one answers listings and reads of records from the
plan, waits before each answer like a server that is far away, and keeps what is put to it. It runs in a process of its
own, so that what it needs is not counted.
"""

from __future__ import annotations

import asyncio
import multiprocessing
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

import root_on_path  # noqa: F401 - the packages are found through it

from cluster.drills.http_wire import Head, read_head, request_body
from data_pipeline import storage
from data_pipeline.shards.manifest import ShardRecord, TokenCommit
from data_pipeline.tokens.commits import record_name
from data_pipeline.tokens.plan import PlannedShard, TokenPlan

PAGE = 1000
WRITTEN = "2026-01-01T00:00:00.000Z"
"""When the shards were; what is put is of a day later."""
PUT_AT = "2026-01-02T00:00:00.000Z"


def tar_bytes(shard: PlannedShard) -> int:
    """Length of the tar of a shard, which nobody reads: its tokens take ten bytes a sample."""
    return 10 * shard.samples


def digest_of(shard: PlannedShard) -> str:
    """What passes for the sha256 of its tar."""
    return f"{shard.number:064x}"


def commit_of(plan: TokenPlan, shard: PlannedShard) -> bytes:
    """The commit record of a shard."""
    size = tar_bytes(shard)
    record = ShardRecord(name=shard.name, samples=shard.samples, bytes=size, sha256=digest_of(shard))
    commit = TokenCommit(shard=record, made_by=plan.made_by(), software=plan.software)
    return storage.canonical_json(commit.model_dump(mode="json"))


class _Server:
    def __init__(self, plan: TokenPlan, delay: float) -> None:
        self._plan, self._delay = plan, delay
        self._bucket, _, self._folder = plan.output.removeprefix("s3://").partition("/")
        self._put: dict[str, bytes] = {}
        self._lengths: dict[tuple[int, int], int] = {}

    async def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while (head := await read_head(reader)) is not None:
                await self._answer(head, reader, writer)
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            writer.close()

    async def _answer(self, head: Head, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if "100-continue" in head.headers.get("expect", "").lower():
            writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        sent = b"".join([piece async for piece in request_body(reader, head)])
        await asyncio.sleep(self._delay)
        method, target, _ = head.start
        parts = urlsplit(target)
        name = unquote(parts.path).removeprefix(f"/{self._bucket}").lstrip("/").removeprefix(f"{self._folder}/")
        query = dict(parse_qsl(parts.query, keep_blank_values=True))
        place = ""
        if method == "PUT":
            self._put[name] = sent
            status, body = 200, b""
        elif method == "GET" and "list-type" in query:
            status, body = 200, self._list(query.get("continuation-token", ""))
        else:
            found = self._object(name)
            status, body = (404, b"") if found is None else (200, found)
            first, _, last = head.headers.get("range", "").removeprefix("bytes=").partition("-")
            if found is not None and first:
                status, body = 206, found[int(first) : int(last or len(found)) + 1]
                place = f"Content-Range: bytes {first}-{int(first) + len(body) - 1}/{len(found)}\r\n"
        start = f"HTTP/1.1 {status} .\r\nContent-Length: {len(body)}\r\n{place}"
        fields = 'Last-Modified: Thu, 01 Jan 2026 00:00:00 GMT\r\nETag: "0"\r\n\r\n'
        writer.write(f"{start}{fields}".encode() + (b"" if method == "HEAD" else body))
        await writer.drain()

    def _object(self, name: str) -> bytes | None:
        if name in self._put:
            return self._put[name]
        number = self._plan.shards.number_of(name.removesuffix(".json") + ".tar")
        return (
            None if number is None or not name.endswith(".json") else commit_of(self._plan, self._plan.shards[number])
        )

    def _list(self, token: str) -> bytes:
        """A page: what was put, in the first one, then tar and record of each shard."""
        first = int(token or 0)
        shards = self._plan.shards[first : first + PAGE // 2]
        entries = [] if first else [(name, len(data), PUT_AT) for name, data in self._put.items()]
        for shard in shards:
            entries.append((shard.name, tar_bytes(shard), WRITTEN))
            entries.append((record_name(shard.name), self._record_bytes(shard), WRITTEN))
        contents = "".join(
            f"<Contents><Key>{self._folder}/{name}</Key><LastModified>{written}</LastModified><Size>{size}</Size>"
            '<ETag>"d41d8cd98f00b204e9800998ecf8427e"</ETag><StorageClass>STANDARD</StorageClass></Contents>'
            for name, size, written in entries
        )
        rest = first + len(shards)
        more = rest < len(self._plan.shards)
        place = f"<NextContinuationToken>{rest}</NextContinuationToken>" if more else ""
        cut = f"<IsTruncated>{str(more).lower()}</IsTruncated>"
        return f"<ListBucketResult>{cut}{place}{contents}</ListBucketResult>".encode()

    def _record_bytes(self, shard: PlannedShard) -> int:
        kind = (len(shard.name), shard.samples)
        if kind not in self._lengths:
            self._lengths[kind] = len(commit_of(self._plan, shard))
        return self._lengths[kind]


def _serve(plan: TokenPlan, delay: float, ends: Any) -> None:
    async def serve() -> None:
        server = await asyncio.start_server(_Server(plan, delay).accept, "127.0.0.1", 0)
        ends.send(server.sockets[0].getsockname()[1])
        await asyncio.to_thread(ends.recv)

    asyncio.run(serve())


@contextmanager
def in_process(function: Callable[..., None], *arguments: Any) -> Iterator[Any]:
    """Run a server's function in a process of its own; gives what it sends first, and tells it when to end."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=function, args=(*arguments, theirs), daemon=True)
    process.start()
    yield ours.recv()
    ours.send("end")
    process.join(10)
    process.kill()


@contextmanager
def synthetic_tokens(plan: TokenPlan, delay: float) -> Iterator[str]:
    """A server of the shards of a plan; gives its URL."""
    with in_process(_serve, plan, delay) as port:
        yield f"http://127.0.0.1:{port}"
