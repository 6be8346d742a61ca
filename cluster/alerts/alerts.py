"""The alerts of one stage: what its config wants told, from its records and from the command that runs it."""

from __future__ import annotations

import time
import urllib.parse
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from cluster.alerts.delivery import Command, Message, Receiver, Sender, Webhook
from cluster.alerts.rules import Found, Record, TrainingRules
from cluster.config.alerts import AlertConfig
from cluster.terminal.output import console
from data_pipeline.text.printable import printable

CLOSE_SECONDS = 10.0
"""How long the end of a stage waits for all receivers together."""
_LONGEST_TEXT = 2_000


class Alerts:
    """Tells receivers of a stage. From any thread; nothing here waits, but `close`.

    Args:
        configs: receivers, and what each wants to be told.
        run: URI of the run.
        stage: of it.
        say: is given what went wrong with a receiver, in a line.

    Raises:
        UsageError: if a webhook's address is nowhere.
    """

    def __init__(
        self, configs: Sequence[AlertConfig], run: str, stage: str, say: Callable[[str], object] | None = None
    ) -> None:
        self._run, self._stage, self._say = run, stage, say or _print
        receivers = [_receiver(config) for config in configs]
        now = time.monotonic()
        self._all = [
            (config, TrainingRules(config, now), Sender(receiver, self._say))
            for config, receiver in zip(configs, receivers, strict=True)
        ]

    def look(self, events: Sequence[Record], metrics: Sequence[Record]) -> None:
        """Take in what is new in the records of the stage, and that nothing is."""
        now = time.monotonic()
        for config, rules, sender in self._all:
            for found in rules.look(events, metrics, now):
                sender.send(self._message(config, found))

    def tell(self, found: Found) -> None:
        """Tell what the records do not say."""
        for config, _, sender in self._all:
            if found.kind in config.on:
                sender.send(self._message(config, found))

    def close(self, seconds: float = CLOSE_SECONDS) -> None:
        """Have all that there is sent, in a bounded time."""
        for _, _, sender in self._all:
            sender.finish()
        deadline = time.monotonic() + seconds
        for _, _, sender in self._all:
            sender.join(deadline - time.monotonic())

    def _message(self, config: AlertConfig, found: Found) -> Message:
        link = self._run if config.link is None else config.link.replace("{run}", urllib.parse.quote(self._run, ""))
        at = "" if found.step is None else f" (step {found.step})"
        name = self._run.rstrip("/").rpartition("/")[2]
        line = printable(f"{name}: {self._stage} {found.kind}: {found.text}{at}")[:_LONGEST_TEXT]
        return Message(
            found.kind, f"{line}\n{printable(link)}", self._run, self._stage, found.step, link, round(time.time(), 3)
        )


@contextmanager
def alerting(
    configs: Sequence[AlertConfig], run: str, stage: str, expected: tuple[type[Exception], ...] = ()
) -> Iterator[Alerts]:
    """The alerts of a stage, as long as it is entered. A stage that ends with an error is told of as failed.

    Args:
        configs: as for `Alerts`.
        run: the same.
        stage: the same.
        expected: errors that are no failure of the stage.
    """
    alerts = Alerts(configs, run, stage)
    try:
        yield alerts
    except expected:
        raise
    except Exception as error:
        first = str(error).strip().partition("\n")[0] or type(error).__name__
        alerts.tell(Found("failed", first))
        raise
    finally:
        alerts.close()


def _receiver(config: AlertConfig) -> Receiver:
    if config.webhook is not None:
        return Webhook(config.webhook, config.timeout_seconds)
    assert config.command is not None
    return Command(config.command, config.timeout_seconds)


def _print(text: str) -> None:
    console(stderr=True).print(f"alerts: {text}", markup=False)
