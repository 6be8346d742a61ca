"""Listings and bulk deletes on S3, request by request: each page is tried again by itself.

s3fs lists without retries, and does not say which objects a bulk delete left.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from data_pipeline.errors import FoldtrainError
from data_pipeline.storage.object_clients import is_s3
from data_pipeline.storage.object_reads import head_object, object_info, time_limit
from data_pipeline.storage.retries import patiently

DELETED_AT_ONCE = 1000
PAGE_BYTES, MOST_PAGES, MOST_EMPTY_PAGES = 2 * 2**20, 100_000, 1000
"""Of a listing: what a page of 1,000 objects has at most, pages in all, and pages in a row without any object."""
_OBJECT_MARKERS = {"ContinuationToken": "NextContinuationToken"}
_UPLOAD_MARKERS = {"KeyMarker": "NextKeyMarker", "UploadIdMarker": "NextUploadIdMarker"}
"""Where the next page begins: the argument that says so, and the part of the page before that it comes from."""


@dataclass(frozen=True)
class Entry:
    """A file of a listing."""

    bytes: int
    """Its length."""
    modified: float | None
    """When it was written, in seconds since 1970; None if the storage does not say."""
    etag: str = ""
    """What the storage calls this version of its content; empty if it was not asked, or does not say."""


@dataclass(frozen=True)
class UnfinishedUpload:
    """Parts of an object that never became one. They cost money until they are removed."""

    uri: str
    upload_id: str
    started: float
    """In seconds since 1970."""


def list_tree(fs: Any, uri: str, *, folders: bool = False) -> dict[str, Entry]:
    """Every object below a folder, by relative name, sorted.

    Args:
        fs: the filesystem of the URI.
        uri: the folder.
        folders: whether to list folders that the storage knows, too, with a slash behind their names.
    """
    return dict(sorted(iter_tree(fs, uri, folders=folders)))


def iter_tree(fs: Any, uri: str, *, folders: bool = False) -> Iterator[tuple[str, Entry]]:
    """As `list_tree`, in the order of the storage; on S3 a page at a time."""
    if is_s3(fs):
        _, prefix = _place(fs, uri)
        found = ((entry["Key"], _entry(entry)) for entry in _all(_objects(fs, uri)))
    else:
        prefix = fs._strip_protocol(uri).rstrip("/") + "/"
        listed = patiently(uri, lambda: fs.find(uri, detail=True, withdirs=folders))
        found = (
            (name.rstrip("/") + "/" * (info["type"] == "directory"), Entry(int(info["size"] or 0), _modified(info)))
            for name, info in listed.items()
        )
    for key, entry in found:
        name = key.removeprefix(prefix)
        if name and (folders or not name.endswith("/")):
            yield name, entry


def _entry(listed: dict[str, Any]) -> Entry:
    return Entry(listed["Size"], listed["LastModified"].timestamp())


def list_folder(fs: Any, uri: str) -> list[str]:
    """Names directly below a folder, sorted; empty if there is no such folder."""
    if not is_s3(fs):
        try:
            listed = patiently(uri, lambda: list(fs.ls(uri, detail=False, **time_limit(fs, uri, PAGE_BYTES))))
        except FileNotFoundError:
            return []
        return sorted(name.rstrip("/").rsplit("/", 1)[-1] for name in listed)
    _, prefix = _place(fs, uri)
    names: set[str] = set()
    for page in _objects(fs, uri, Delimiter="/"):
        found = [entry["Key"] for entry in page.get("Contents", [])]
        found += [entry["Prefix"] for entry in page.get("CommonPrefixes", [])]
        names.update(name.removeprefix(prefix).rstrip("/") for name in found)
    return sorted(names - {""})


def delete_tree(fs: Any, uri: str) -> None:
    """Delete every object below a folder, and the object of that name.

    Raises:
        FoldtrainError: if the storage refuses to delete one; it names it.
    """
    if not is_s3(fs):
        if patiently(uri, lambda: fs.exists(uri)):
            patiently(uri, lambda: fs.rm(uri, recursive=True))
        return
    bucket, prefix = _place(fs, uri)
    keys = [entry["Key"] for entry in _all(_objects(fs, uri))]
    keys.append(prefix.rstrip("/"))
    for start in range(0, len(keys), DELETED_AT_ONCE):
        batch = {"Objects": [{"Key": key} for key in keys[start : start + DELETED_AT_ONCE]], "Quiet": True}
        patiently(uri, functools.partial(_delete, fs, bucket, batch), written=0)


def _delete(fs: Any, bucket: str, batch: dict[str, Any]) -> None:
    limit = time_limit(fs, f"s3://{bucket}")
    errors = fs.call_s3("delete_objects", Bucket=bucket, Delete=batch, **limit).get("Errors", [])
    if not errors:
        return
    first = f"s3://{bucket}/{errors[0].get('Key')}: {errors[0].get('Code')} {errors[0].get('Message')}"
    if errors[0].get("Code") in {"InternalError", "SlowDown", "ServiceUnavailable"}:
        raise ConnectionError(first)
    raise FoldtrainError(f"{first}. {len(errors)} objects could not be deleted: check the bucket's permissions")


def unfinished_uploads(fs: Any, uri: str) -> list[UnfinishedUpload]:
    """Uploads in parts below a folder that were neither completed nor aborted."""
    if not is_s3(fs):
        return []
    bucket, prefix = _place(fs, uri)
    pages = _pages(fs, uri, "list_multipart_uploads", {"Bucket": bucket, "Prefix": prefix}, _UPLOAD_MARKERS)
    return [
        UnfinishedUpload(f"s3://{bucket}/{upload['Key']}", upload["UploadId"], upload["Initiated"].timestamp())
        for page in pages
        for upload in page.get("Uploads", [])
        if upload["Key"].startswith(prefix)
    ]


def abort_upload(fs: Any, uri: str, upload_id: str) -> None:
    """Give the parts of an unfinished upload back, if they are still there."""
    bucket, key, _ = fs.split_path(uri)
    try:
        place = {"Bucket": bucket, "Key": key, "UploadId": upload_id, **time_limit(fs, uri)}
        patiently(uri, lambda: fs.call_s3("abort_multipart_upload", **place), written=0)
    except FileNotFoundError:
        return


def _place(fs: Any, uri: str) -> tuple[str, str]:
    """The bucket of a folder, and how the keys in it begin."""
    bucket, key, _ = fs.split_path(uri.rstrip("/"))
    return bucket, f"{key.rstrip('/')}/" if key else ""


def _objects(fs: Any, uri: str, **arguments: str) -> Iterator[dict[str, Any]]:
    bucket, prefix = _place(fs, uri)
    return _pages(fs, uri, "list_objects_v2", {"Bucket": bucket, "Prefix": prefix, **arguments}, _OBJECT_MARKERS)


def _pages(
    fs: Any, uri: str, method: str, arguments: dict[str, str], markers: dict[str, str]
) -> Iterator[dict[str, Any]]:
    """The pages of a listing, each of which says where the next one begins.

    Raises:
        FoldtrainError: if the server sends the listing in a circle, or pages without anything for ever.
    """
    request = functools.partial(fs.call_s3, method, **arguments, **time_limit(fs, uri, PAGE_BYTES))
    seen: set[tuple[str, ...]] = set()
    place: dict[str, str] = {}
    pages = empty = 0
    while True:
        page: dict[str, Any] = patiently(uri, functools.partial(request, **place))
        yield page
        if not page.get("IsTruncated"):
            return
        pages += 1
        empty = 0 if any(page.get(kind) for kind in ("Contents", "CommonPrefixes", "Uploads")) else empty + 1
        place = {name: str(page.get(source) or "") for name, source in markers.items()}
        marks = {tuple(place.values())} | {("begins with", entry["Key"]) for entry in page.get("Contents", [])[:1]}
        if marks & seen or not any(place.values()) or empty > MOST_EMPTY_PAGES or pages > MOST_PAGES:
            raise FoldtrainError(
                f"{uri}: the server's listing does not come to an end: page {pages:,} is one that was there before, or "
                "has nothing. Another version of the server may do; if there are that many objects, list a part of them"
            )
        seen |= marks


def _all(pages: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for page in pages:
        yield from page.get("Contents", [])


def stat_object(fs: Any, uri: str) -> Entry:
    """One object, by one request.

    Raises:
        FileNotFoundError: if there is none.
    """
    if is_s3(fs):
        head = head_object(fs, uri)
        return Entry(int(head["ContentLength"]), head["LastModified"].timestamp(), str(head.get("ETag") or ""))
    info = object_info(fs, uri)
    return Entry(int(info.get("size") or 0), _modified(info), str(info.get("ETag") or info.get("etag") or ""))


def _modified(info: dict[str, Any]) -> float | None:
    when = info.get("LastModified") or info.get("mtime") or info.get("updated") or info.get("created")
    return float(when.timestamp()) if isinstance(when, datetime) else None
