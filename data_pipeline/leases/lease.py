"""One driver at a time in a folder: a lease that is taken, renewed, and taken over from whoever is gone.

    lease/000012.json    the holder: host, pid, user, command, since when, how long it may be silent, its beat

 1. The holder is whoever created the record with the highest number. A record is created only where there is none of
    that number (`storage.create_bytes`), so of many that try at once one succeeds. That is all that storage has to do.
 2. The holder writes its own record again every sixth of its seconds, with a higher beat, after it has seen that there
    is no higher number. Nobody else ever writes it.
 3. A second driver is refused at once if the holder's process lives on the same machine, and as soon as it sees a beat.
 4. It takes the lease over, by creating the next number, if the holder has released it; or its process is dead on this
    machine (by its pid and start time); or its beat has not changed for its seconds, measured by the watcher's own
    clock. Clocks of two machines are never compared. So after a kill -9 a start waits for 30 s at most.
 5. The highest record is never removed, so a number never comes twice; who takes a lease removes the lower ones. A
    holder that finds a higher number, or not its own record, has lost it, and writes nothing more.
 6. Silence alone does not end a holder. Whose storage is away, or who was asleep, asks for the highest number once
    storage answers: if it is still its own, nobody took over, and it goes on. Until it has asked it does not write.
 7. Who works for the holder in other processes has a `Claim`, and asks the same before it commits anything.

Some S3 servers ignore If-None-Match. Whoever takes a lease finds that out by trying to create its record again, says
so, and looks after a pause whether the record is still its own. There two drivers that start within one request of each
other may both begin; at the next beat one of them finds the other's record, and ends.
"""

from __future__ import annotations

import logging
import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from data_pipeline import storage
from data_pipeline.errors import FoldtrainError
from data_pipeline.leases.lease_record import SECONDS, Holder
from data_pipeline.storage.retries import patience
from data_pipeline.text import json_records

FOLDER = "lease"
WAIT_VARIABLE = "FOLDTRAIN_LEASE_WAIT"
"""Seconds that a second driver waits for the first to end before it is refused; 0 by default."""

_BEATS = 6
"""Signs of life in the time that a holder may be silent."""
_LOOK_SECONDS = 0.5
_SETTLE_SECONDS = 2.0
_NAME = re.compile(r"(\d{6,12})\.json")
_MOST_BYTES = 65_536
_LOOKS = 5
"""At records that are gone when they are read."""
_LOG = logging.getLogger(__name__)


class LeaseHeldError(FoldtrainError):
    """Another driver is at work."""


class LeaseLostError(FoldtrainError):
    """This driver was taken for dead, and another one took over."""


def awake_and_asleep() -> float:
    """Seconds by a clock that also runs while the machine sleeps, where there is one."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic()


@dataclass(frozen=True)
class Claim:
    """That a folder is held, as plain data for the processes that work for its holder."""

    folder: str
    number: int
    holder: Holder

    def check(self) -> None:
        """Ask storage whether the lease is still held.

        Raises:
            LeaseLostError: if it is not; it says who has it.
            StorageAwayError: if storage does not answer.
        """
        number, found = _newest(self.folder)
        if number == self.number and found is not None and found.token == self.holder.token:
            return
        who = f"its record {self._record} was removed" if found is None else f"{found} has taken over"
        raise LeaseLostError(
            f"{self.folder}: {who}, because this driver ({self.holder}) gave no sign of life for "
            f"{self.holder.seconds:g} s (it was paused, or cut off from storage) or was taken for dead. This one ends "
            "here and writes nothing more; what was committed is kept. To have it go on, end the other one and start "
            "the same command again"
        )

    @property
    def _record(self) -> str:
        return _path(self.folder, self.number)


class Watch:
    """Knows whether a claim still holds; its thread asks storage from time to time. Used by who works for the holder.

    Args:
        claim: on what.
    """

    def __init__(self, claim: Claim) -> None:
        self.claim = claim
        self._confirmed = awake_and_asleep()
        self.lost: LeaseLostError | None = None
        """Why the claim holds no more, once that is known."""
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name=f"lease {claim.folder}", daemon=True)
        self._thread.start()

    def require(self) -> None:
        """To be called before anything is written, as often as you like: asks storage only if it did not for long.

        Raises:
            LeaseLostError: if another driver took over.
            StorageAwayError: if that is possible, and storage does not answer.
        """
        if self.lost is not None:
            raise self.lost
        if awake_and_asleep() - self._confirmed > self.claim.holder.seconds / 2:
            self.confirm()

    def confirm(self) -> None:
        """Ask storage now; before what must not be overwritten. Raises as `require`."""
        if self.lost is not None:
            raise self.lost
        asked = awake_and_asleep()
        try:
            self.claim.check()
        except LeaseLostError as error:
            self.lost = error
            raise
        self._confirmed = max(self._confirmed, asked)

    def close(self) -> None:
        """Ask no more."""
        self._ended.set()
        self._thread.join(self.claim.holder.seconds)

    def _watch(self) -> None:
        pause, said = self.claim.holder.seconds / _BEATS, False
        while not self._ended.wait(pause):
            try:
                with patience(pause):
                    self.confirm()
                    self._renew()
                said = False
            except LeaseLostError as error:
                _LOG.warning("%s", error)
                return
            except Exception as error:  # rule 6
                if not said:
                    _LOG.warning("%s: its lease cannot be renewed (%s); trying again", self.claim.folder, error)
                said = True

    def _renew(self) -> None:
        """Only the holder does."""


class Lease(Watch):
    """A claim of this very process, which its thread renews."""

    def __init__(self, claim: Claim) -> None:
        self._holder = claim.holder
        super().__init__(claim)

    def _renew(self) -> None:
        self._holder = self._holder.next_beat()
        _write(self.claim, self._holder)

    def release(self) -> None:
        """Let the next driver begin at once. If storage is away, it waits until this holder was silent long enough."""
        self.close()
        if self.lost is not None:
            return
        try:
            with patience(self.claim.holder.seconds):
                self.confirm()
                _write(self.claim, replace(self._holder.next_beat(), released=True))
        except Exception as error:  # the work is done; the lease ends by itself
            _LOG.warning("%s: its lease could not be released (%s); it ends by itself", self.claim.folder, error)


@contextmanager
def only_driver(
    folder: str, command: str, seconds: float = SECONDS, say: Callable[[str], object] = print
) -> Iterator[Lease]:
    """Be the only driver in a folder.

    Args:
        folder: of a stage or a data set, at any URI.
        command: what the driver does, for others' messages.
        seconds: that it may be silent.
        say: is told why it takes time, and what storage cannot do.

    Raises:
        LeaseHeldError: if there is another driver; it names host, pid, user and since when.
        LeaseLostError: if another driver took over meanwhile, and nothing else was raised.
        FoldtrainError: if storage refuses or stays away.
    """
    lease = Lease(take(folder, command, seconds, say))
    try:
        yield lease
    finally:
        lease.release()
    if lease.lost is not None:
        raise lease.lost


def take(folder: str, command: str, seconds: float = SECONDS, say: Callable[[str], object] = print) -> Claim:
    """Become the holder; waits for one that may be dead. Arguments and errors as for `only_driver`."""
    watch = _Watch(folder, say)
    while True:
        number, found = _newest(folder)
        if found is not None and not watch.is_over(number, found):
            time.sleep(_LOOK_SECONDS)
            continue
        claim = Claim(folder, number + 1, Holder.here(command, seconds))
        if storage.create_bytes(_path(folder, claim.number), _encode(claim.holder)) and _is_mine(claim, say):
            _remove_lower(claim)
            return claim


def holder_of(folder: str) -> Holder | None:
    """Who holds a folder, or has not released it; None if nobody has. It may be dead."""
    found = _newest(folder)[1]
    return None if found is None or found.released else found


def seems_live(folder: str) -> Holder | None:
    """The holder of a folder, unless its process is known to be dead."""
    found = holder_of(folder)
    return None if found is None or found.life() == "dead" else found


class _Watch:
    """Looks at one holder until it is over, or is seen to live."""

    def __init__(self, folder: str, say: Callable[[str], object]) -> None:
        self._folder, self._say = folder, say
        self._end = time.monotonic() + _wait_seconds()
        self._seen: tuple[int, Holder] | None = None
        self._since = 0.0

    def is_over(self, number: int, found: Holder) -> bool:
        """Whether the holder's lease may be taken over now.

        Raises:
            LeaseHeldError: if it lives.
        """
        if found.released:
            return True
        now, before = time.monotonic(), self._seen
        if before != (number, found):
            self._seen, self._since = (number, found), now
        life = found.life()
        if life == "dead":
            self._say(f"{self._folder}: {found} is dead; this driver takes over")
            return True
        if life == "alive" or (before is not None and before != (number, found)):
            self._refuse_late(found)
        elif before is None:
            self._say(f"{self._folder}: waiting up to {found.seconds:g} s for a sign of life of {found}")
        return life == "unknown" and now - self._since >= found.seconds

    def _refuse_late(self, found: Holder) -> None:
        if time.monotonic() >= self._end:
            raise LeaseHeldError(
                f"{self._folder}: another driver is at work there: {found}. Wait for it, or end it (kill {found.pid} "
                f"on {found.host}, or foldtrain stop where it was submitted), and start this command again; or set "
                f"{WAIT_VARIABLE} to the seconds that this one may wait for its end"
            )


def _wait_seconds() -> float:
    try:
        return max(0.0, float(os.environ.get(WAIT_VARIABLE) or 0))
    except ValueError:
        raise FoldtrainError(f"{WAIT_VARIABLE} is {os.environ[WAIT_VARIABLE]!r}: give a number of seconds") from None


def _is_mine(claim: Claim, say: Callable[[str], object]) -> bool:
    """Whether a record that was just created stays, on storage that may ignore that it must not be replaced."""
    if storage.create_bytes(_path(claim.folder, claim.number), _encode(claim.holder.next_beat())):
        say(
            f"{claim.folder}: its storage replaces objects that it was asked to leave alone (If-None-Match): two "
            "drivers that start in the same moment may both begin there, and one ends some seconds later"
        )
        time.sleep(_SETTLE_SECONDS)
    found = _newest(claim.folder)[1]
    return found is not None and found.token == claim.holder.token


def _newest(folder: str) -> tuple[int, Holder | None]:
    """The highest number and its holder; 0 and None if there is no record."""
    number, data = 0, b""
    for _ in range(_LOOKS):
        names = storage.list_names(storage.join(folder, FOLDER))
        number = max((int(match[1]) for name in names if (match := _NAME.fullmatch(name))), default=0)
        if number == 0:
            return 0, None
        try:
            data = storage.read_range(_path(folder, number), 0, _MOST_BYTES)
            break
        except FileNotFoundError:  # a higher one is there by now, or the folder is gone
            continue
    try:
        return number, Holder.parse(json_records.parse(data))
    except (ValueError, TypeError, KeyError):
        return number, Holder.unknown(data)


def _remove_lower(claim: Claim) -> None:
    for name in storage.list_names(storage.join(claim.folder, FOLDER)):
        match = _NAME.fullmatch(name)
        if match and int(match[1]) < claim.number:
            storage.remove_file(storage.join(claim.folder, FOLDER, name))


def _write(claim: Claim, holder: Holder) -> None:
    storage.write_bytes(_path(claim.folder, claim.number), _encode(holder))


def _path(folder: str, number: int) -> str:
    return storage.join(folder, FOLDER, f"{number:06d}.json")


def _encode(holder: Holder) -> bytes:
    record: dict[str, Any] = holder.record()
    return storage.canonical_json(record)
