"""From an alert to who is to be told: a webhook or a command, each on a thread of its own behind a bounded queue.

What a receiver does not do is said in the terminal, and holds nothing up. Addresses of webhooks are read when they are
needed, and are in no message: errors name where an address is found.
"""

from __future__ import annotations

import http.client
import json
import os
import queue
import signal
import subprocess
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from data_pipeline.errors import UsageError

MOST_WAITING = 100
"""Alerts that may wait for a receiver; further ones are lost, and that is said."""
_TRIES, _PAUSE_SECONDS = 3, 2.0
_LONGEST_ADDRESS = 8_192


@dataclass(frozen=True)
class Message:
    """What a receiver gets."""

    alert: str
    """Kind of the alert."""
    text: str
    """For people: the run's name, the stage, what happened, the link."""
    run: str
    """URI of the run."""
    stage: str
    """Of it."""
    step: int | None
    """Of the stage."""
    link: str
    """Where more is to be seen."""
    time: float
    """Unix time, seconds."""


class NotDeliveredError(Exception):
    """Why a receiver was not told. Holds no address."""


class Receiver(Protocol):
    """Who can be told."""

    name: str
    """For people, without a secret."""

    def send(self, message: Message) -> None:
        """Tell it, in a bounded time between any two bytes.

        Raises:
            NotDeliveredError: if that did not work.
        """


class Webhook:
    """A POST with JSON to an address that is found where a reference says.

    Args:
        reference: `env:NAME` or `file:PATH`.
        seconds: for a connection, and between two bytes of an answer.

    Raises:
        UsageError: if there is no address now.
    """

    def __init__(self, reference: str, seconds: float) -> None:
        self.name, self._reference, self._seconds = f"webhook {reference}", reference, seconds
        self._opener = urllib.request.build_opener(_NoRedirect)
        try:
            self._address()
        except NotDeliveredError as error:
            raise UsageError(f"{self.name}: {error}") from None

    def _address(self) -> str:
        kind, _, name = self._reference.partition(":")
        try:
            found = os.environ.get(name, "") if kind == "env" else Path(name).read_text()[:_LONGEST_ADDRESS]
        except (OSError, UnicodeDecodeError) as error:
            raise NotDeliveredError(f"{name} cannot be read ({type(error).__name__})") from None
        address = found.strip()
        if not address.startswith(("https://", "http://")):
            raise NotDeliveredError(f"{name} {'holds' if found else 'is not set, or is empty: it has to hold'} no URL")
        return address

    def send(self, message: Message) -> None:
        """See Receiver."""
        body, headers = json.dumps(asdict(message)).encode(), {"Content-Type": "application/json"}
        try:
            request = urllib.request.Request(self._address(), body, headers)  # noqa: S310 - http alone, see above
            with self._opener.open(request, timeout=self._seconds) as response:
                response.read(1)
        except urllib.error.HTTPError as error:
            error.close()
            raise NotDeliveredError(f"it answers HTTP {error.code}") from None
        except (OSError, http.client.HTTPException, ValueError) as error:  # messages of these may hold the address
            cause = error.reason if isinstance(error, urllib.error.URLError) else error
            raise NotDeliveredError(f"it cannot be reached ({type(cause).__name__})") from None


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """An address that sends elsewhere is no receiver."""

    def redirect_request(self, *_: Any) -> None:
        """See urllib."""


class Command:
    """A program that gets the text on its stdin.

    Args:
        arguments: the program and what it is given; no shell reads them.
        seconds: after which it is killed, with all that it started.
    """

    def __init__(self, arguments: Sequence[str], seconds: float) -> None:
        self.name, self._arguments, self._seconds = f"command {arguments[0]}", list(arguments), seconds

    def send(self, message: Message) -> None:
        """See Receiver."""
        try:
            process = subprocess.Popen(
                self._arguments,
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env=os.environ | {"FOLDTRAIN_ALERT": message.alert},
                start_new_session=True,
            )
        except (OSError, ValueError) as error:
            raise NotDeliveredError(f"it cannot be started ({type(error).__name__})") from None
        try:
            process.communicate(message.text.encode(), timeout=self._seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            raise NotDeliveredError(f"it had not ended after {self._seconds:g} seconds, and was killed") from None
        if process.returncode:
            raise NotDeliveredError(f"its exit code is {process.returncode}")


class Sender:
    """Hands messages to a receiver in the background, in their order, each a few times if it has to be.

    Args:
        receiver: who is told.
        say: is given what went wrong, in a line.
        pause: seconds between two tries.
    """

    def __init__(self, receiver: Receiver, say: Callable[[str], object], pause: float = _PAUSE_SECONDS) -> None:
        self._receiver, self._say, self._pause = receiver, say, pause
        self._queue: queue.Queue[Message | None] = queue.Queue(MOST_WAITING)
        self._closing = threading.Event()
        self._waiting = 0
        self._thread = threading.Thread(target=self._run, name=f"alerts to {receiver.name}", daemon=True)
        self._thread.start()

    def send(self, message: Message) -> None:
        """Have a message sent; returns at once."""
        try:
            self._queue.put_nowait(message)
        except queue.Full:
            self._say(f"{self._receiver.name}: {MOST_WAITING} alerts wait already, so {message.alert} is not sent")

    def finish(self) -> None:
        """Say that no message comes any more; returns at once."""
        self._closing.set()
        try:
            self._queue.put_nowait(None)
        except queue.Full:
            return

    def join(self, seconds: float) -> None:
        """Wait until all are sent, but not longer; what is left is said, and sent as long as this process lives."""
        self._thread.join(max(0.0, seconds))
        if self._thread.is_alive():
            self._say(f"{self._receiver.name}: does not answer, so not all alerts are sent")

    def _run(self) -> None:
        while (message := self._next()) is not None:
            self._deliver(message)

    def _next(self) -> Message | None:
        if self._closing.is_set() and self._queue.empty():
            return None
        return self._queue.get()

    def _deliver(self, message: Message) -> None:
        for left in reversed(range(_TRIES)):
            try:
                self._receiver.send(message)
            except NotDeliveredError as error:
                if not left:
                    self._say(f"{self._receiver.name}: {message.alert} is not delivered: {error}")
                else:
                    self._closing.wait(self._pause)
            else:
                return
