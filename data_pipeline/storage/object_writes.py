"""Objects on remote storage, put whole or not at all: in one request, or in parts on S3.

Every request to S3 carries a checksum of its body, unless the user switched that off (`checksum_arguments`): SHA-256 of
an object that goes up whole, by obstore, and CRC-32 of a part, by s3fs. The server
compares it before it keeps anything; a part or an object that arrives damaged is refused and sent again. Reads are by
range, which carry no checksum: their length is checked here, their bytes by the caller, with the CRC-32 or sha256 of an
index or a manifest.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, BinaryIO
from uuid import uuid4

from data_pipeline.errors import FoldtrainError
from data_pipeline.storage import upload_marks
from data_pipeline.storage.object_buckets import allowance, through
from data_pipeline.storage.object_clients import checksum_arguments, is_s3
from data_pipeline.storage.object_listing import abort_upload
from data_pipeline.storage.object_reads import head_object, seconds_for, time_limit
from data_pipeline.storage.outside_errors import service_code
from data_pipeline.storage.retries import patiently

PART_BYTES = 64 * 2**20
"""Larger objects go up in parts of this size, so that a cut connection costs one part."""
VIEW_PART_BYTES = 16 * 2**20
"""As long as the parts of a view: each is copied, as the client takes nothing but bytes, and several are under way."""
PARTS_AT_ONCE = 4
MAX_PARTS = 10_000
WRITE_SECONDS, SLOWEST_BYTES = 60.0, 100_000
"""A write that is not answered within so many seconds, and the time that its bytes take at so many a second, is tried
again. A PUT to S3 first waits for "100 Continue", and aiohttp would wait for that from a lost node for ever."""

_UNSUPPORTED = {"NotImplemented", "UnsupportedArgument", "InvalidArgument", "501"}
_MARK = "foldtrain-put"
"""Metadata of an object that was created: which call did it."""
_LOG = logging.getLogger(__name__)


class FileBytes:
    """The content of a file of this machine as `put` takes it: parts are read when they are sent, and none is mapped.

    Args:
        file: open for reading; nobody moves in it meanwhile, and it does not change.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._size = file.fileno(), os.fstat(file.fileno()).st_size

    def __len__(self) -> int:
        """Bytes of the file."""
        return self._size

    def __getitem__(self, part: slice) -> bytes:
        """A part of it."""
        start, stop, _ = part.indices(self._size)
        return os.pread(self._file, max(0, stop - start), start)

    def __bytes__(self) -> bytes:
        """All of it."""
        return self[:]


Body = bytes | memoryview | FileBytes
"""What an object is made of."""


class NoConditionalPutError(Exception):
    """The store does not have If-None-Match."""


def put(fs: Any, uri: str, data: Body, holds: Callable[[], bool], *, only_if_absent: bool = False) -> bool:
    """Put an object.

    Args:
        fs: the fsspec filesystem of the URI.
        uri: where to.
        data: the object. Of a view or a file, only parts are copied on S3; other stores get a copy of the whole.
        holds: whether the object is there with these bytes. Asked only after a request whose answer was lost.
        only_if_absent: leave what is there alone.

    Returns:
        False if something was there and was left alone. An object that an earlier try of this very call put there,
        and whose answer was lost, counts as put.

    Raises:
        NoConditionalPutError: if `only_if_absent` is asked of a store that refuses If-None-Match.
        FoldtrainError: if storage refuses or stays away.
    """
    part = PART_BYTES if isinstance(data, bytes) else VIEW_PART_BYTES
    if len(data) > part and is_s3(fs):
        return _Upload(fs, uri, data, part).run(holds, only_if_absent=only_if_absent)
    whole = bytes(data)  # which copies nothing that is bytes
    token = uuid4().hex if only_if_absent and is_s3(fs) else None
    # s3fs would send more than twice the chunk size in parts
    options: dict[str, Any] = (
        {"chunksize": max(1, len(data)), **_within(len(data)), **_marked(token)} if is_s3(fs) else {}
    )
    mode = {"mode": "create"} if only_if_absent else {}

    metadata = {} if token is None else {_MARK: token}
    seconds = _seconds_for(allowance(len(data)))

    def request() -> None:
        through(
            uri,
            fs,
            lambda bucket, key: bucket.put(key, whole, seconds, metadata=metadata, only_if_absent=only_if_absent),
            lambda: fs.pipe_file(uri, whole, **mode, **options),
        )

    done, unsure = _commit(uri, request, holds, len(data), only_if_absent=only_if_absent)
    return done or _is_ours(fs, uri, token, lambda: unsure and holds())


def _marked(token: str | None) -> dict[str, Any]:
    """What makes an object say which call put it there."""
    return {} if token is None else {"Metadata": {_MARK: token}}


def _within(written: int) -> dict[str, float]:
    """What makes fsspec give a write up in time."""
    return {"timeout": _seconds_for(written)}


def _seconds_for(written: int) -> float:
    return WRITE_SECONDS + written / SLOWEST_BYTES


def delete(fs: Any, uri: str) -> None:
    """Delete one object, if it is there; some storage raises FileNotFoundError if it is not."""
    through(
        uri,
        fs,
        lambda bucket, key: bucket.delete(key, seconds_for(allowance(1))),
        lambda: fs.rm_file(uri, **time_limit(fs, uri)),
    )


def _is_ours(fs: Any, uri: str, token: str | None, otherwise: Callable[[], bool]) -> bool:
    """Whether this call put the object there that stood in its own way.

    aiohttp sends a PUT again by itself if its connection breaks before an answer, so a conflict may be with ourselves
    even at the first failure. A store that drops metadata leaves only the bytes to compare.
    """
    if token is None:
        return otherwise()
    try:
        found = patiently(uri, lambda: head_object(fs, uri)).get("Metadata", {})
    except FileNotFoundError:
        return False
    return bool(found[_MARK] == token) if _MARK in found else otherwise()


def _commit(
    uri: str, request: Callable[[], None], holds: Callable[[], bool], written: int, *, only_if_absent: bool
) -> tuple[bool, bool]:
    """Send the request that makes an object appear until it is answered.

    Returns:
        Whether it was done, and not refused because something is there; and whether an answer was lost before.
    """
    unsure = False

    def attempt() -> bool:
        nonlocal unsure
        try:
            request()
        except Exception as error:
            if only_if_absent and _is_conflict(error):
                return False
            if only_if_absent and _is_unsupported(error):
                raise NoConditionalPutError(str(error)) from error
            if unsure and _is_lost_upload(error) and holds():
                return True
            unsure = True
            raise
        return True

    return patiently(uri, attempt, written=written), unsure


def _is_conflict(error: BaseException) -> bool:
    answer = service_code(error)
    return (
        isinstance(error, FileExistsError) if answer is None else answer[0] == 412 or answer[1] == "PreconditionFailed"
    )


def _is_unsupported(error: BaseException) -> bool:
    answer = service_code(error)
    if answer is not None:
        return answer[0] == 501 or answer[1] in _UNSUPPORTED
    if isinstance(error, OSError):
        return error.errno == errno.ENOSYS
    botocore = sys.modules.get("botocore.exceptions")
    unknown = botocore is not None and isinstance(error, botocore.ParamValidationError)
    return unknown or isinstance(error, TypeError | NotImplementedError)


def _is_lost_upload(error: BaseException) -> bool:
    """Whether an upload in parts is gone: completed by a request whose answer was lost, or aborted."""
    answer = service_code(error)
    return answer is not None and answer[1] == "NoSuchUpload"


class _Upload:
    """One object in parts. Each part is tried again by itself; whatever fails in the end, the parts are given back."""

    def __init__(self, fs: Any, uri: str, data: Body, part: int) -> None:
        self._fs, self._uri, self._data = fs, uri, data
        self._part = max(part, -(-len(data) // MAX_PARTS))
        bucket, key, _ = fs.split_path(uri)
        self._target = {"Bucket": bucket, "Key": key}
        self._checksum: dict[str, str] = {}

    def run(self, holds: Callable[[], bool], *, only_if_absent: bool) -> bool:
        """Send all parts, then make the object appear. Returns whether it did (see `put`)."""
        token = uuid4().hex if only_if_absent else None
        self._checksum = patiently(self._uri, lambda: checksum_arguments(self._fs))
        started = self._call("create_multipart_upload", 0, **self._checksum, **_marked(token))
        self._target["UploadId"] = started["UploadId"]
        done = False
        try:
            self._mark()
            parts = self._send_parts()
            match = {"IfNoneMatch": "*"} if only_if_absent else {}

            def complete() -> None:
                arguments = {**self._target, "MultipartUpload": {"Parts": parts}, **match, **_within(len(self._data))}
                self._fs.call_s3("complete_multipart_upload", **arguments)

            done, unsure = _commit(self._uri, complete, holds, 0, only_if_absent=only_if_absent)
            done = done or _is_ours(self._fs, self._uri, token, lambda: unsure and holds())
        except FileNotFoundError as error:
            raise FoldtrainError(
                f"{self._uri}: its unfinished upload was removed while it ran. Give foldtrain gc, or the bucket's "
                "lifecycle rule for unfinished uploads, a larger age, and run the command again"
            ) from error
        finally:
            if done or self._abort():
                self._unmark()
        return done

    def _send_parts(self) -> list[dict[str, Any]]:
        numbers = range(1, -(-len(self._data) // self._part) + 1)
        pool = ThreadPoolExecutor(PARTS_AT_ONCE, thread_name_prefix="upload")
        try:
            return list(pool.map(self._send_part, numbers))
        finally:
            pool.shutdown(cancel_futures=True)

    def _send_part(self, number: int) -> dict[str, Any]:
        body = bytes(self._data[(number - 1) * self._part : number * self._part])
        answer = self._call("upload_part", len(body), Body=body, PartNumber=number, **self._checksum)
        checksum = {"ChecksumCRC32": answer["ChecksumCRC32"]} if "ChecksumCRC32" in answer else {}
        return {"PartNumber": number, "ETag": answer["ETag"], **checksum}

    def _call(self, method: str, written: int, **arguments: Any) -> Any:
        def request() -> Any:
            return self._fs.call_s3(method, **self._target, **arguments, **_within(written))

        return patiently(self._uri, request, written=written)

    def _mark(self) -> None:
        """Say that the upload is ours, so that `foldtrain gc` may remove what is left of it."""
        upload_id = self._target["UploadId"]
        put(
            self._fs, upload_marks.place(self._uri, upload_id), upload_marks.encode(self._uri, upload_id), lambda: False
        )

    def _unmark(self) -> None:
        mark = upload_marks.place(self._uri, self._target["UploadId"])
        with contextlib.suppress(FoldtrainError, FileNotFoundError):  # foldtrain gc removes it
            patiently(self._uri, lambda: delete(self._fs, mark), written=0)

    def _abort(self) -> bool:
        """Give the parts back; says whether they are. What cannot be reached now is found by `foldtrain gc`."""
        try:
            abort_upload(self._fs, self._uri, self._target["UploadId"])
        except FoldtrainError as error:
            _LOG.warning("%s: an unfinished upload is left behind (%s); foldtrain gc removes it", self._uri, error)
            return False
        return True
