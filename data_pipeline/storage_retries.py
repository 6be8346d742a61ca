"""Which failures of object storage pass by themselves, and how long they are waited for.

    FOLDTRAIN_STORAGE_PATIENCE   seconds from the first failure of an operation until it is given up; 300 by default

Retried: a connection that is refused, reset or cut, a body that is cut, timeouts, HTTP 408, 429, 500, 502, 503, 504,
SlowDown, and bytes that arrive damaged. Not retried: what is missing, forbidden or wrong. All retrying is done here:
s3fs and botocore are told to try once, since their retries, each inside the other, multiply (5 x 5 x ours) and hide
whether a write was sent twice.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Concatenate, ParamSpec, TypeVar

from tenacity import RetryCallState, Retrying, retry_if_exception, wait_random_exponential

from data_pipeline.errors import FoldtrainError, StorageAwayError, UsageError
from data_pipeline.pacing import pacer_of, positive_number
from data_pipeline.uris import is_remote

PATIENCE_VARIABLE = "FOLDTRAIN_STORAGE_PATIENCE"
DEFAULT_PATIENCE = 300.0
FIRST_CONTACT_PATIENCE = 30.0
"""Seconds that a server is waited for which this process never reached: a wrong address should not cost minutes."""
LONGEST_WAIT = 10.0

_STATUSES = {408, 429, 500, 502, 503, 504}
_CODES = {
    *("SlowDown", "RequestTimeout", "InternalError", "ServiceUnavailable", "Throttling", "ThrottlingException"),
    *("TooManyRequests", "RequestLimitExceeded", "OperationAborted", "ConditionalRequestConflict"),
    *("IncompleteBody", "BadDigest", "XAmzContentSHA256Mismatch", "XAmzContentChecksumMismatch"),
}
_SLOW_DOWN = {"SlowDown", "ServiceUnavailable", "Throttling", "ThrottlingException", "TooManyRequests", "503", "429"}
_NAMES = {"IncompleteRead", "IncompleteReadError", "ClientPayloadError", "FlexibleChecksumError", "ResponseParserError"}
"""Failures whose classes lie in several libraries, some of which may not be loaded."""
_FINAL = (FileNotFoundError, FileExistsError, PermissionError, IsADirectoryError, NotADirectoryError, UsageError)
_ERRNOS = {None, errno.EIO, errno.EAGAIN, errno.EBUSY}

_LOG = logging.getLogger(__name__)
_answered: set[str] = set()
_bound: ContextVar[float | None] = ContextVar("storage patience", default=None)

P = ParamSpec("P")
R = TypeVar("R")


class ShortReadError(ConnectionError):
    """Fewer bytes arrived than the object holds."""


@contextlib.contextmanager
def patience(seconds: float) -> Iterator[None]:
    """Inside, storage is waited for at most this long: for what may as well be written later, such as progress."""
    token = _bound.set(seconds)
    try:
        yield
    finally:
        _bound.reset(token)


def service_code(error: BaseException) -> tuple[int, str] | None:
    """HTTP status and error code of what the server answered; None if it did not answer."""
    current: BaseException | None = error
    while current is not None:
        response = getattr(current, "response", None)
        if isinstance(response, dict) and "Error" in response:
            status = response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
            return int(status), str(response["Error"].get("Code", ""))
        current = current.__cause__
    return None


def is_transient(error: BaseException) -> bool:
    """Whether the same request may succeed a moment later."""
    answer = service_code(error)
    if answer is not None:
        return answer[0] in _STATUSES or answer[1] in _CODES or answer[1] in map(str, _STATUSES)
    if isinstance(error, _FINAL):
        return False
    if isinstance(error, ConnectionError | TimeoutError) or _is_cut(error):
        return True
    return isinstance(error, OSError) and error.errno in _ERRNOS


def is_slow_down(error: BaseException) -> bool:
    """Whether the server asks for fewer requests."""
    answer = service_code(error)
    return answer is not None and (answer[0] in {429, 503} or answer[1] in _SLOW_DOWN)


def _is_cut(error: BaseException) -> bool:
    """Whether a connection could not be made or broke. botocore's and aiohttp's errors for that are no OSErrors."""
    botocore = sys.modules.get("botocore.exceptions")
    if botocore is not None and isinstance(error, botocore.ConnectionError | botocore.HTTPClientError):
        return True
    aiohttp = sys.modules.get("aiohttp")
    if aiohttp is not None and isinstance(error, aiohttp.ClientResponseError):
        return error.status in _STATUSES
    if aiohttp is not None and isinstance(error, aiohttp.ClientConnectionError):
        return True
    return type(error).__name__ in _NAMES


class _Stop:
    """Ends the retries of one operation, so many seconds after its first failure."""

    def __init__(self, scheme: str) -> None:
        self.seconds = _allowed(scheme)
        self._first: float | None = None

    def __call__(self, state: RetryCallState) -> bool:
        now = time.monotonic()
        self._first = now if self._first is None else self._first
        return max(now - self._first, state.idle_for) + state.upcoming_sleep > self.seconds


def _allowed(scheme: str) -> float:
    configured = positive_number(PATIENCE_VARIABLE) if os.environ.get(PATIENCE_VARIABLE) else DEFAULT_PATIENCE
    bound = _bound.get()
    seconds = configured if bound is None else min(bound, configured)
    return seconds if scheme in _answered else min(seconds, FIRST_CONTACT_PATIENCE)


def patiently(uri: str, attempt: Callable[[], R], *, written: int | None = None) -> R:
    """Do something to a remote URI until it succeeds or fails for good, at the pace that the bucket allows.

    Args:
        uri: what it is done to.
        attempt: one try; done again only after a failure that may pass.
        written: bytes that it sends, if it is a write.

    Raises:
        StorageAwayError: if storage stays away for longer than it is waited for; it names the URI and what to check.
        FoldtrainError: if storage refuses; it names them, too.
        FileNotFoundError, FileExistsError and others: as `attempt` raises them.
    """
    scheme = uri.split("://", 1)[0]
    pacer = pacer_of(uri, writes=written is not None)
    stop = _Stop(scheme)

    def paced() -> R:
        wait = pacer.reserve(written or 0)
        if wait > 0:
            time.sleep(wait)
        result = attempt()
        pacer.succeeded()
        _answered.add(scheme)
        return result

    def before_sleep(state: RetryCallState) -> None:
        error = _error(state)
        if service_code(error) is not None:
            _answered.add(scheme)
            stop.seconds = _allowed(scheme)
        if is_slow_down(error):
            pacer.slowed()
        if state.attempt_number == 5:
            _LOG.warning("%s: %s; trying again for %.0f seconds", uri, error, stop.seconds)

    retrying = Retrying(
        retry=retry_if_exception(is_transient),
        stop=stop,
        wait=wait_random_exponential(multiplier=0.2, max=LONGEST_WAIT),
        before_sleep=before_sleep,
        reraise=True,
    )
    try:
        return retrying(paced)
    except Exception as error:
        if isinstance(error, FoldtrainError) or not (is_transient(error) or _is_refusal(error)):
            raise
        kind = StorageAwayError if is_transient(error) else FoldtrainError
        raise kind(_advice(uri, error, stop.seconds)) from error


def _error(state: RetryCallState) -> BaseException:
    error = state.outcome.exception() if state.outcome else None
    assert error is not None
    return error


def _is_refusal(error: BaseException) -> bool:
    botocore = sys.modules.get("botocore.exceptions")
    return isinstance(error, PermissionError) or (botocore is not None and isinstance(error, botocore.BotoCoreError))


def _advice(uri: str, error: BaseException, seconds: float) -> str:
    waited = f", again and again for {seconds:.0f} seconds" if is_transient(error) else ""
    return (
        f"{uri}: {str(error) or type(error).__name__}{waited}. Check the URI, AWS_ENDPOINT_URL, and the credentials "
        "(AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or ~/.aws/credentials)"
    )


def retried(function: Callable[Concatenate[str, P], R]) -> Callable[Concatenate[str, P], R]:
    """Make an operation that may be done any number of times patient, where its first argument is a remote URI."""

    @functools.wraps(function)
    def guarded(uri: str, /, *args: P.args, **kwargs: P.kwargs) -> R:
        if not is_remote(uri):
            return function(uri, *args, **kwargs)
        return patiently(uri, lambda: function(uri, *args, **kwargs))

    return guarded
