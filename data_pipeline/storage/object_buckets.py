"""The client for what is done often to objects on S3: obstore, which takes a fraction of the processor time of s3fs.

s3fs is the way in. The first request to a bucket goes through it: it knows the profiles, endpoints, regions, redirects
and addressing styles of botocore, and tells what is wrong with them. Where that request was answered is where obstore
goes from then on (`Address`), with the credentials that s3fs holds, which botocore renews before they expire. s3fs
goes on doing what is asked of it by no `Bucket`: listings, uploads in parts, keys that obstore cannot spell, and
everything in a process that was forked from one in which obstore ran, since its threads do not come along.
"""

from __future__ import annotations

import functools
import os
import re
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any, TypeVar

from data_pipeline.storage import object_clients
from data_pipeline.storage.object_clients import Address
from data_pipeline.storage.request_counts import count
from data_pipeline.storage.store_errors import OtherClientError, TooLargeError, translated

if TYPE_CHECKING:
    from obstore.store import ClientConfig, S3Config, S3Credential

CREDENTIALS_SECONDS = 60.0
"""So often botocore is asked for credentials; it renews those that expire 10 minutes before they do."""
IDLE_SECONDS = 15
"""A connection that was not used for so long is closed: servers close theirs after 20 seconds or more."""
_HEARD_SECONDS = 0.5
"""Within which a signal is heard while the main thread waits for an answer."""
ALLOWANCE_BYTES = 2**20
"""What a request is given time for is rounded up to this times a power of four: each has its own connections."""

THREADS = 4
"""Threads of obstore's own in a process, at most."""

_ODD = re.compile(r"(?:^|/)\.{0,2}(?:/|$)|[\x00-\x1f\x7f]|\?versionId=")
"""Keys with a part that is empty, `.` or `..`, which obstore refuses or changes, or what s3fs takes for a version."""
_runtime: int | None = None
"""The process in which obstore's threads run."""

R = TypeVar("R")


def through(uri: str, fs: Any, near: Callable[[Bucket, str], R], far: Callable[[], R]) -> R:
    """Do something to an object by `near`, given its bucket and key, where obstore can do it, and else by `far`."""
    found = _bucket_of(fs, uri)
    if found is None:
        return far()
    try:
        return near(*found)
    except OtherClientError:
        return far()


def _bucket_of(fs: Any, uri: str) -> tuple[Bucket, str] | None:
    addresses = getattr(getattr(fs, "session", None), "addresses", None)
    name, _, key = uri.partition("://")[2].partition("/")
    if not addresses or name not in addresses or _ODD.search(key) or _runtime not in {None, os.getpid()}:
        return None
    address, buckets = addresses[name], fs.session.buckets
    bucket = buckets.get(name)
    if bucket is None or bucket.address != address:
        buckets[name] = bucket = Bucket(fs, name, address)
    return (bucket, key) if bucket.usable else None


class Bucket:
    """One bucket. Every method is one request, tried once.

    Args:
        fs: the s3fs filesystem that reached it.
        name: its name.
        address: where it was reached.
    """

    def __init__(self, fs: Any, name: str, address: Address) -> None:
        self.name, self.address = name, address
        self._fs = fs
        self._stores: dict[float, Any] = {}
        self._credentials = _Credentials(fs) if address.signed else None
        authority = fs.session.get_config_variable("ca_bundle")
        plain = not fs.s3_additional_kwargs and not fs.req_kw and not fs.version_aware
        signature = getattr(fs.s3.meta.config, "signature_version", None)
        self._authority = Path(authority) if authority else None
        self.usable = plain and signature != "s3" and (self._authority is None or self._authority.is_file())
        """Whether all that the user asked of s3fs can be carried over."""

    def read(self, key: str, start: int, length: int, seconds: float, most: int | None = None) -> tuple[bytes, int]:
        """Bytes of an object from `start`, fewer only where it ends; and how many it has.

        Raises:
            TooLargeError: if it has more than `most`; its bytes are not read.
        """

        def call(store: Any, obstore: Any) -> tuple[bytes, int]:
            answer = obstore.get(store, key, options={"range": (start, start + length)})
            size = int(answer.meta["size"])
            if most is not None and size > most:
                raise TooLargeError(size)
            return bytes(answer.bytes()), size

        return self._ask("get", seconds, call)

    def read_many(self, key: str, ranges: Sequence[tuple[int, int]], seconds: float) -> list[bytes]:
        """Several ranges of an object, each as (start, length), in one call: as many requests, ten at a time."""
        starts, lengths = [start for start, _ in ranges], [length for _, length in ranges]

        def call(store: Any, obstore: Any) -> list[bytes]:
            return [bytes(data) for data in obstore.get_ranges(store, key, starts=starts, lengths=lengths, coalesce=0)]

        return self._ask("get", seconds, call, len(ranges))

    def head(self, key: str, seconds: float) -> dict[str, Any]:
        """What the server says of an object, by botocore's names."""
        answer = self._ask("head", seconds, lambda store, obstore: obstore.get(store, key, options={"head": True}))
        meta = answer.meta
        own = {name: value for name, value in answer.attributes.items() if name not in _HEADERS}
        found = {"ContentLength": int(meta["size"]), "LastModified": meta["last_modified"], "ETag": meta["e_tag"]}
        return {**found, "Metadata": own}

    def put(
        self, key: str, data: bytes, seconds: float, *, metadata: dict[str, str], only_if_absent: bool = False
    ) -> None:
        """Put an object whole; with a SHA-256, which the server compares, unless checksums were switched off."""
        options: dict[str, Any] = {"mode": "create"} if only_if_absent else {}
        if metadata:
            options["attributes"] = metadata
        self._ask("put", seconds, lambda store, obstore: obstore.put(store, key, data, use_multipart=False, **options))

    def delete(self, key: str, seconds: float) -> None:
        """Delete an object, if it is there."""
        self._ask("delete", seconds, lambda store, obstore: obstore.delete(store, key))

    def _ask(self, kind: str, seconds: float, call: Callable[[Any, Any], R], requests: int = 1) -> R:
        """Send a request, which is given up after so many seconds; or several at once."""
        import obstore

        store = self._stores.get(seconds) or self._open(seconds)
        count(kind, requests)
        try:
            return _MAIN.run(functools.partial(call, store, obstore))
        except TooLargeError:
            raise
        except Exception as error:
            failed = self._credentials.failed if self._credentials else None
            if failed is not None and "credential provider" in str(error):
                raise failed from error
            raise translated(error) from error

    def _open(self, seconds: float) -> Any:
        """A store with its own time limit. All that obstore would take from the environment is said."""
        from obstore.store import S3Store

        global _runtime
        if _runtime is None:  # a thread for each core, on nodes of 192 with a process for each GPU, would be thousands
            os.environ.setdefault("TOKIO_WORKER_THREADS", str(min(THREADS, len(os.sched_getaffinity(0)))))
        _runtime = os.getpid()
        client: ClientConfig = {
            "allow_http": True,
            "connect_timeout": timedelta(seconds=min(object_clients.CONNECT_SECONDS, seconds)),
            "read_timeout": timedelta(seconds=min(object_clients.READ_SECONDS, seconds)),
            "timeout": timedelta(seconds=seconds),
            "pool_idle_timeout": timedelta(seconds=IDLE_SECONDS),
        }
        if self._authority is not None:
            client["root_certificate"] = self._authority.read_bytes()
        config: S3Config = {
            "aws_endpoint_url_s3": self.address.url,
            "virtual_hosted_style_request": True,  # the bucket is in the URL already, wherever its name stands
            "region": self.address.region or "us-east-1",
            "skip_signature": not self.address.signed,
            "unsigned_payload": False,
            "s3_express": False,
            "conditional_put": "etag",
            "disable_bulk_delete": True,
        }
        if object_clients.checksum_arguments(self._fs):
            config["checksum_algorithm"] = "SHA256"
        store = S3Store(
            self.name,
            config=config,
            client_options=client,
            retry_config={"max_retries": 0},
            credential_provider=self._credentials,
        )
        return self._stores.setdefault(seconds, store)


def allowance(length: int) -> int:
    """Bytes that a request of so many is given the time of, so that few stores are opened."""
    rounded = ALLOWANCE_BYTES
    while rounded < length:
        rounded *= 4
    return rounded


_HEADERS = {
    "Content-Disposition",
    "Content-Encoding",
    "Content-Language",
    "Content-Type",
    "Cache-Control",
    "Storage-Class",
}


class _Credentials:
    """Gives obstore the credentials that s3fs holds, each time that it asks. Those which expire, botocore renews."""

    def __init__(self, fs: Any) -> None:
        self._fs = fs
        self.failed: Exception | None = None
        """Why there were none the last time; obstore tells it as text alone."""

    def __call__(self) -> S3Credential:
        """Credentials, and when to ask again."""
        from fsspec.asyn import sync

        self.failed = None
        try:
            found = sync(self._fs.loop, self._fs.s3._request_signer._credentials.get_frozen_credentials)
        except Exception as error:
            self.failed = error
            raise
        again = datetime.now(UTC) + timedelta(seconds=CREDENTIALS_SECONDS)
        return {
            "access_key_id": found.access_key,
            "secret_access_key": found.secret_key,
            "token": found.token,
            "expires_at": again,
        }


class _BesideMain:
    """Runs calls of the main thread on another one, because there Ctrl-C is heard only between two calls."""

    def __init__(self) -> None:
        self._calls: SimpleQueue[Any] | None = None

    def run(self, call: Callable[[], R]) -> R:
        if threading.current_thread() is not threading.main_thread():
            return call()
        if self._calls is None:
            self._calls = SimpleQueue()
            threading.Thread(target=_serve, args=(self._calls,), name="requests", daemon=True).start()
        answers: SimpleQueue[Any] = SimpleQueue()
        try:
            self._calls.put((call, answers))
            done, result = _wait_for(answers)
        except BaseException:  # the thread is busy for as long as the request: it is left to end by itself
            self._calls.put(None)
            self._calls = None
            raise
        if done:
            return result  # type: ignore[no-any-return]
        raise result


def _wait_for(answers: SimpleQueue[Any]) -> Any:
    """The answer. A signal that comes just before a wait begins does not end it, so no wait is long."""
    while True:
        with suppress(Empty):
            return answers.get(timeout=_HEARD_SECONDS)


def _serve(calls: SimpleQueue[Any]) -> None:
    while (item := calls.get()) is not None:
        call, answers = item
        try:
            answers.put((True, call()))
        except BaseException as error:
            answers.put((False, error))


_MAIN = _BesideMain()
