"""What there is to tell of a training stage, from the records that it leaves, once each. Pure: time is given.

    nan       the loss of a record is no number, or the gradients of ten steps in a row were none
    spike     the stage found one (trainer/rollback/spikes.py)
    slow      fewer samples a second than the config says, in some records in a row
    goodput   a smaller share of the time was training than it says, the same, some time after the start
    worse     a number that it names is worse than its best of this start by more than it says
    stalled   no record for longer than it says

What lasts is told when it begins, and again only if it was over in between.
"""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from cluster.config.alerts import AlertConfig, AlertKind
from cluster.terminal.output import duration
from trainer.records.goodput import STARTS

Record = Mapping[str, Any]

_SKIPPED_IN_A_ROW = 10
"""Fewer are what a loss scale that looks for its height does."""
_LEAST_QUIET, _QUIET_GAPS, _FIRST_QUIET = 300.0, 10, 1800.0
_REMEMBERED = 2_000
_OVER = frozenset({"finish", "stop"})


@dataclass(frozen=True)
class Found:
    """Something to tell."""

    kind: AlertKind
    """What it is."""
    text: str
    """In words."""
    step: int | None = None
    """Of the stage."""


class _Lasting:
    """Something that begins and ends."""

    def __init__(self) -> None:
        self._lasts = False

    def begins(self, lasts: bool) -> bool:
        """Whether it lasts now, and did not before."""
        began = lasts and not self._lasts
        self._lasts = lasts
        return began


class _InARow:
    """Counts how often something was so without a break."""

    def __init__(self, enough: int) -> None:
        self._enough, self._count = enough, 0

    def add(self, is_so: bool) -> bool:
        """Whether that makes enough."""
        self._count = self._count + 1 if is_so else 0
        return self._count >= self._enough


class TrainingRules:
    """Of one stage, for one receiver.

    Args:
        config: what it wants to be told.
        now: seconds of a clock that never goes back, at which the stage was started.
    """

    def __init__(self, config: AlertConfig, now: float) -> None:
        self._config = config
        self._known: deque[tuple[Any, ...]] = deque(maxlen=_REMEMBERED)
        self._nan, self._slow, self._low, self._quiet = _Lasting(), _Lasting(), _Lasting(), _Lasting()
        self._worse, self._best = _Lasting(), math.inf
        self._slow_records, self._low_records = _InARow(config.records), _InARow(config.records)
        self._first: float | None = None
        self._last_seen, self._last_step, self._over = now, 0, False
        self._gaps: deque[float] = deque(maxlen=20)
        self._last_time: float | None = None

    def look(self, events: Iterable[Record], metrics: Iterable[Record], now: float) -> list[Found]:
        """What there is to tell.

        Args:
            events: of events.jsonl, those of this start that are new. Some may come again.
            metrics: of metrics.jsonl, the same.
            now: seconds, as above.
        """
        told = [*self._events(events, now), *self._metrics(metrics, now), *self._stalled(now)]
        return [each for each in told if each.kind in self._config.on]

    def _is_new(self, *identity: Any) -> bool:
        if identity in self._known:
            return False
        self._known.append(identity)
        return True

    # --------------------------------------------------------------------------------------------------- what happened

    def _events(self, events: Iterable[Record], now: float) -> Iterator[Found]:
        for event in events:
            name, step = event["event"], event["step"]
            if not self._is_new(event.get("time"), name, step):
                continue
            self._last_seen = now
            if name in STARTS:
                self._over, self._first = False, None
            elif name in _OVER:
                self._over = True
            elif name == "spike":
                yield from self._spike(event)
            elif name == "skipped_step" and _number(event, "in_a_row") >= _SKIPPED_IN_A_ROW and self._nan.begins(True):
                yield Found("nan", f"gradients of {_SKIPPED_IN_A_ROW} steps in a row are not finite", step)

    def _spike(self, event: Record) -> Iterator[Found]:
        back = f"; it goes back to step {event['back_to']}" if event.get("action") == "rollback" else ""
        if event.get("loss") is not None:
            usual = f", usual is {event['usual']:.4g}" if event.get("usual") is not None else ""
            yield Found("spike", f"the loss spiked to {event['loss']:.4g}{usual}{back}", event["step"])
        elif self._nan.begins(True):
            yield Found("nan", f"the loss is not finite{back}", event["step"])

    # ------------------------------------------------------------------------------------------------ what was measured

    def _metrics(self, records: Iterable[Record], now: float) -> Iterator[Found]:
        for record in records:
            if self._is_new(record.get("time"), record["step"]):
                self._seen(record, now)
                yield from self._measured(record)

    def _seen(self, record: Record, now: float) -> None:
        time = _number(record, "time")
        if self._last_time is not None and time > self._last_time:
            self._gaps.append(time - self._last_time)
        self._last_time, self._last_seen, self._last_step = time, now, record["step"]
        self._first = time if self._first is None else self._first

    def _measured(self, record: Record) -> Iterator[Found]:
        step = record["step"]
        if self._nan.begins("loss" in record and record["loss"] is None):
            yield Found("nan", "the loss is not finite", step)
        rate, least = record.get("samples_per_second"), self._config.samples_per_second
        if least is not None and rate is not None and self._slow.begins(self._slow_records.add(rate < least)):
            yield Found("slow", f"{rate:.4g} samples/s, less than {least:.4g}", step)
        yield from self._worsened(record)
        share, least = record.get("goodput"), self._config.goodput
        if least is None or share is None or not self._is_judged(record):
            return
        if self._low.begins(self._low_records.add(share < least)):
            yield Found("goodput", f"{share:.0%} of the time was training, less than {least:.0%}", step)

    def _worsened(self, record: Record) -> Iterator[Found]:
        """Whether the number that is watched is worse than it was; of values of which large ones are good, negated."""
        name, sign = self._config.metric, 1 if self._config.mode == "min" else -1
        value = None if name is None else record.get(name)
        if value is None:
            return
        found = sign * float(value)
        self._best = min(self._best, found)
        if self._worse.begins(found > self._best + self._config.worse_by * abs(self._best)):
            yield Found("worse", f"{name} is {value:.4g}, and was {sign * self._best:.4g} at its best", record["step"])

    def _is_judged(self, record: Record) -> bool:
        """Whether so many seconds have passed since the first record of this start that its goodput means something."""
        return _number(record, "time") - (self._first or 0.0) >= self._config.goodput_after

    # ------------------------------------------------------------------------------------------------ what did not come

    def _stalled(self, now: float) -> Iterator[Found]:
        quiet = now - self._last_seen
        if self._quiet.begins(not self._over and quiet > self._longest_quiet()):
            yield Found("stalled", f"no record for {duration(quiet)}", self._last_step or None)

    def _longest_quiet(self) -> float:
        given = self._config.stalled_seconds
        usual = statistics.median(self._gaps) if self._gaps else 0.0
        longest = max(_LEAST_QUIET, _QUIET_GAPS * usual) if given is None else given
        return max(longest, _FIRST_QUIET) if self._first is None else longest


def _number(record: Record, key: str) -> float:
    value = record.get(key)
    return float(value) if isinstance(value, int | float) else 0.0
