"""Which failures of object storage pass by themselves, and how long they are waited for.

    FOLDTRAIN_STORAGE_PATIENCE   seconds from the first failure of an operation until it is given up; 300 by default

Retried: a connection that is refused, reset or cut, a body that is cut, timeouts, HTTP 408, 429, 500, 502, 503, 504,
SlowDown, bytes that arrive damaged, and credentials that have expired, which are read anew. Not retried: what is
missing, forbidden or wrong (storage_errors says which is which). All retrying is done here: s3fs and botocore are told
to try once, since their retries, each inside the other, multiply (5 x 5 x ours) and hide that a write was sent twice.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import time
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Concatenate, Generic, NoReturn, ParamSpec, TypeVar

from tenacity import RetryCallState, Retrying, retry_if_exception, wait_random_exponential

from data_pipeline.storage.object_clients import renew_credentials
from data_pipeline.storage.outside_errors import explain, is_expired, is_slow_down, is_transient, reason, service_code
from data_pipeline.storage.pacing import pacer_of, positive_number
from data_pipeline.storage.uris import is_remote

PATIENCE_VARIABLE = "FOLDTRAIN_STORAGE_PATIENCE"
DEFAULT_PATIENCE = 300.0
FIRST_CONTACT_PATIENCE = 30.0
"""Seconds that a server is waited for which this process never reached: a wrong address should not cost minutes."""
LONGEST_WAIT = 10.0

_LOG = logging.getLogger(__name__)
_answered: set[str] = set()
_served: set[str] = set()
"""Schemes of storage that answered, and that did what was asked."""
_bound: ContextVar[float | None] = ContextVar("storage patience", default=None)

P = ParamSpec("P")
R = TypeVar("R")


class ShortReadError(ConnectionError):
    """Fewer bytes arrived than the object holds."""


def was_reached(uri: str) -> bool:
    """Whether storage of this kind ever answered this process."""
    return uri.partition("://")[0] in _answered


@contextlib.contextmanager
def patience(seconds: float) -> Iterator[None]:
    """Inside, storage is waited for at most this long: for what may as well be written later, such as progress."""
    token = _bound.set(seconds)
    try:
        yield
    finally:
        _bound.reset(token)


class _Stop:
    """Ends the retries of one operation, so many seconds after its first failure.

    Where storage of this kind never answered, it is after the begin: a silent server takes long to fail.
    """

    def __init__(self, scheme: str) -> None:
        self.seconds = _allowed(scheme)
        self._first = None if scheme in _answered else time.monotonic()

    def __call__(self, state: RetryCallState) -> bool:
        now = time.monotonic()
        self._first = now if self._first is None else self._first
        return max(now - self._first, state.idle_for) + state.upcoming_sleep > self.seconds


def _allowed(scheme: str) -> float:
    configured = positive_number(PATIENCE_VARIABLE) if os.environ.get(PATIENCE_VARIABLE) else DEFAULT_PATIENCE
    bound = _bound.get()
    seconds = configured if bound is None else min(bound, configured)
    return seconds if scheme in _answered else min(seconds, FIRST_CONTACT_PATIENCE)


class _Tries(Generic[R]):
    """The tries of one operation on a remote URI, at the pace that its bucket allows."""

    def __init__(self, uri: str, attempt: Callable[[], R], written: int | None) -> None:
        self._uri, self._attempt, self._bytes = uri, attempt, written or 0
        self._scheme = uri.split("://", 1)[0]
        self._pacer = pacer_of(uri, writes=written is not None)
        self.stop = _Stop(self._scheme)

    def once(self) -> R:
        """One try, when its turn has come."""
        wait = self._pacer.reserve(self._bytes)
        if wait > 0:
            time.sleep(wait)
        result = self._attempt()
        self._pacer.succeeded()
        _answered.add(self._scheme)
        _served.add(self._scheme)
        return result

    def may_pass(self, error: BaseException) -> bool:
        """Whether it is worth another try."""
        return is_transient(error) or self._is_expired(error)

    def until_given_up(self, first: list[Exception]) -> R:
        """Further tries, after one that failed: its error is taken out of the list, so that nothing keeps it."""
        return Retrying(
            retry=retry_if_exception(self.may_pass),
            stop=self.stop,
            wait=wait_random_exponential(multiplier=0.2, max=LONGEST_WAIT),
            before_sleep=self._prepare_next,
            reraise=True,
        )(lambda: _raise(first.pop()) if first else self.once())

    def _is_expired(self, error: BaseException) -> bool:
        return is_expired(error, worked_before=self._scheme in _served)

    def _prepare_next(self, state: RetryCallState) -> None:
        """Learn from a failure: who answered, whether credentials are old, whether the pace was too fast."""
        error = _error(state)
        if service_code(error) is not None:
            _answered.add(self._scheme)
            self.stop.seconds = _allowed(self._scheme)
        if self._is_expired(error):
            self._renew()
        if is_slow_down(error):
            self._pacer.slowed()
        if state.attempt_number == 5:
            _LOG.warning("%s: %s; trying again for %.0f seconds", self._uri, reason(error), self.stop.seconds)

    def _renew(self) -> None:
        """Read the credentials anew; what never worked is not waited for as long as what did."""
        if self._scheme not in _served:
            self.stop.seconds = min(self.stop.seconds, FIRST_CONTACT_PATIENCE)
        with contextlib.suppress(Exception):  # the next try says what is wrong
            renew_credentials(self._uri)


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
    tries = _Tries(uri, attempt, written)
    try:
        try:
            return tries.once()  # without tenacity, which costs as much as a try
        except Exception as error:
            if not tries.may_pass(error):
                raise
            first = [error]
        return tries.until_given_up(first)
    except Exception as error:
        known = explain(uri, error, tries.stop.seconds if tries.may_pass(error) else None)
        if known is None:
            raise
        raise known from error


def _raise(error: Exception) -> NoReturn:
    raise error


def _error(state: RetryCallState) -> BaseException:
    error = state.outcome.exception() if state.outcome else None
    assert error is not None
    return error


def retried(function: Callable[Concatenate[str, P], R]) -> Callable[Concatenate[str, P], R]:
    """Make an operation that may be done any number of times patient, where its first argument is a remote URI."""

    @functools.wraps(function)
    def guarded(uri: str, /, *args: P.args, **kwargs: P.kwargs) -> R:
        if not is_remote(uri):
            return function(uri, *args, **kwargs)
        return patiently(uri, lambda: function(uri, *args, **kwargs))

    return guarded
