"""The clients of remote storage: one for each process, scheme and endpoint, opened again when its credentials change.

A filesystem is opened in the process that uses it: s3fs does not survive a fork (s3fs#369). It does not retry.
"""

from __future__ import annotations

import functools
import os
import threading
import time
from collections.abc import Callable
from typing import Any, NamedTuple
from urllib.parse import quote

from data_pipeline.errors import UsageError
from data_pipeline.storage.listing_pages import parse_page
from data_pipeline.storage.request_counts import count

CONNECT_SECONDS, READ_SECONDS = 10, 60
"""A connection that is not made, or on which nothing arrives, for so long is given up and tried again."""
RENEWAL_SECONDS = 5.0
"""Seconds between two readings of the credentials, at least: many threads fail at once."""
S3 = frozenset({"s3", "s3a"})

_OPERATIONS = {
    "HeadObject": "head",
    "PutObject": "put",
    **dict.fromkeys(("ListObjectsV2", "ListMultipartUploads"), "list"),
    **dict.fromkeys(("DeleteObject", "DeleteObjects"), "delete"),
    **dict.fromkeys(("CreateMultipartUpload", "UploadPart", "CompleteMultipartUpload"), "upload"),
    "AbortMultipartUpload": "upload",
}
_CALLS = {"cat_file": "get", "info": "head", "pipe_file": "put", "ls": "list", "find": "list", "rm_file": "delete"}
_ENDPOINTS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")
_renewed: dict[int, float] = {}
_lock = threading.Lock()


class Address(NamedTuple):
    """Where a bucket is, as botocore resolved it."""

    url: str
    """Of the bucket, its name included."""
    region: str
    signed: bool


def learn(addresses: dict[str, Address], http_response: Any, context: dict[str, Any], **_: Any) -> None:
    """Note where a request to a bucket was answered. A handler of botocore's event `after-call`."""
    asked = context.get("input_params") or {}
    schemes = (context.get("endpoint_properties") or {}).get("authSchemes") or [{}]
    signed = context.get("auth_type") != "none"
    v4 = schemes[0].get("name") == "sigv4" and schemes[0].get("signingName") == "s3"
    served = http_response.status_code < 300 or http_response.status_code in {404, 412}
    if not served or not isinstance(asked.get("Bucket"), str) or (signed and not v4):
        return
    url = str(http_response.url).partition("?")[0].rstrip("/")
    if key := asked.get("Key"):
        end = "/" + quote(key, safe="/~")
        if not url.endswith(end):
            return
        url = url.removesuffix(end)
    region = (context.get("signing") or {}).get("region") or schemes[0].get("signingRegion") or ""
    addresses[asked["Bucket"]] = Address(url, region, signed)


def endpoint_variable() -> tuple[str, str] | None:
    """Name and value of the environment variable that names the S3 server; None if none does."""
    for name in _ENDPOINTS:
        if value := os.environ.get(name):
            return name, value
    return None


def open_filesystem(uri: str) -> Any:
    """The fsspec filesystem of a remote URI.

    Raises:
        UsageError: if there is none for its scheme, it names no bucket, or the environment names no server.
    """
    scheme, _, rest = uri.partition("://")
    if scheme != scheme.lower():
        raise UsageError(f"{uri}: write {scheme.lower()}://{rest}")
    endpoint = None
    if scheme in S3:
        if not rest.partition("/")[0]:
            raise UsageError(f"{uri} names no bucket: write {scheme}://bucket/folder")
        endpoint = endpoint_variable()
        if endpoint and not endpoint[1].startswith(("http://", "https://")):
            raise UsageError(f"{endpoint[0]} is {endpoint[1]!r}: write it with its scheme, http://{endpoint[1]}")
    try:
        _require_package(scheme)
    except ValueError as error:
        raise UsageError(f"{uri}: {error}") from None
    return _open(scheme, endpoint, _server(scheme, uri), os.getpid())


@functools.cache
def _require_package(scheme: str) -> None:
    from data_pipeline.storage.places import require_package  # it needs pydantic, which an opened one does not

    require_package(scheme)


def _server(scheme: str, uri: str) -> tuple[tuple[str, Any], ...]:
    """What a filesystem has to be told of the server in a URI: host, port and user of sftp://, ftp:// and hdfs://."""
    if scheme in S3:
        return ()
    from fsspec import get_filesystem_class

    found = get_filesystem_class(scheme)._get_kwargs_from_urls(uri)
    return tuple(sorted((name, value) for name, value in found.items() if name != "path"))


@functools.cache
def _open(protocol: str, endpoint: tuple[str, str] | None, server: tuple[tuple[str, Any], ...], pid: int) -> Any:  # noqa: ARG001 - one each; a fork opens its own
    import fsspec

    options = dict(server)
    if protocol in S3:
        once = {"total_max_attempts": 1, "mode": "standard"}
        timeouts = {"connect_timeout": CONNECT_SECONDS, "read_timeout": READ_SECONDS}
        options["session"] = _session()
        options["config_kwargs"] = {"retries": once, "max_pool_connections": 50, **timeouts}
    fs = fsspec.filesystem(protocol, use_listings_cache=False, skip_instance_cache=True, **options)
    if protocol in S3:
        fs.retries = 1  # storage_retries has the retries of all layers
    else:
        _count_calls(fs)
    return fs


def _session() -> Any:
    """A session of botocore's, which finds the configuration and the credentials, and counts what its clients send."""
    from aiobotocore.session import AioSession

    session = AioSession()
    session.addresses, session.buckets = {}, {}  # by the name of a bucket; object_buckets fills the latter
    session.register("before-send.s3", _count_operation)
    session.register("before-parse.s3.ListObjectsV2", parse_page)
    session.register("after-call.s3", functools.partial(learn, session.addresses))
    return session


def _count_operation(event_name: str, **_: Any) -> None:
    count(_OPERATIONS.get(event_name.rpartition(".")[2], "get"))


def _count_calls(fs: Any) -> None:
    """Count the calls of a filesystem: it does not say what requests it makes of them."""
    for name, kind in _CALLS.items():
        if hasattr(fs, name):
            setattr(fs, name, _counting(getattr(fs, name), kind))


def _counting(call: Callable[..., Any], kind: str) -> Callable[..., Any]:
    @functools.wraps(call)
    def counted(*args: Any, **kwargs: Any) -> Any:
        count(kind)
        return call(*args, **kwargs)

    return counted


def renew_credentials(uri: str) -> None:
    """Have the next request read the chain of credentials again (~/.aws, container, instance), for S3."""
    if uri.partition("://")[0] not in S3:
        return
    fs = open_filesystem(uri)
    with _lock:
        now = time.monotonic()
        if now - _renewed.get(id(fs), -RENEWAL_SECONDS) < RENEWAL_SECONDS:
            return
        _renewed[id(fs)] = now
    fs.session = _session()
    fs.connect(refresh=True)


def is_s3(fs: Any) -> bool:
    """Whether an fsspec filesystem is s3fs."""
    protocol = getattr(fs, "protocol", "")
    return "s3" in ((protocol,) if isinstance(protocol, str) else protocol)


def checksum_arguments(fs: Any) -> dict[str, str]:
    """What has each part of an upload carry a checksum, unless the user switched them off.

    AWS_REQUEST_CHECKSUM_CALCULATION=when_required, or request_checksum_calculation in ~/.aws/config, is for servers
    that do not know them.
    """
    chosen = getattr(fs.s3.meta.config, "request_checksum_calculation", None)
    return {} if chosen == "when_required" else {"ChecksumAlgorithm": "CRC32"}
