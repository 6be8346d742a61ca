"""Whether it pays to go on with more workers: what a restart costs against what the steps that are left would save.

    cost   seconds of a restart, as this run has measured them, times the workers that stand still meanwhile
    gain   seconds by which the steps that are left end earlier, times the same workers

A step is taken to be as much faster as there are more workers, which is the most that they can give. So growth that is
declined would have cost more than it gains on any cluster.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from cluster.terminal.output import duration
from data_pipeline import storage
from data_pipeline.errors import FoldtrainError
from data_pipeline.text.counted import counted
from trainer.records.jsonl import read_last_records
from trainer.records.record_shapes import is_metrics, is_timed_event


@dataclass(frozen=True)
class Pace:
    """How far a stage is, and how fast."""

    steps_left: int
    step_seconds: float
    """Of a step with the workers that there are."""
    restart_seconds: float
    """From the last step of one start to the first of the next."""


@dataclass(frozen=True)
class Growth:
    """A change to more workers."""

    workers: int
    """Those that there are."""
    larger: int
    """Those that there would be."""
    pace: Pace

    @property
    def cost(self) -> float:
        """Worker-seconds in which nobody trains."""
        return self.pace.restart_seconds * self.larger

    @property
    def saved_seconds(self) -> float:
        """By which the steps that are left would be done earlier."""
        return self.pace.steps_left * self.pace.step_seconds * (1 - self.workers / self.larger)

    @property
    def gain(self) -> float:
        """Worker-seconds that this is worth."""
        return self.saved_seconds * self.larger

    @property
    def pays(self) -> bool:
        """Whether the stage would end earlier."""
        return self.gain > self.cost

    def facts(self) -> dict[str, Any]:
        """For events.jsonl."""
        numbers = {name: round(value, 3) for name, value in asdict(self.pace).items()}
        return {"workers": self.workers, "larger": self.larger, **numbers} | {
            "cost_worker_seconds": round(self.cost, 1),
            "gain_worker_seconds": round(self.gain, 1),
        }

    def __str__(self) -> str:
        noun = "worker" if self.workers == 1 else "workers"
        restart, saved = duration(self.pace.restart_seconds), duration(self.saved_seconds)
        return (
            f"stays with {self.workers} {noun}: a restart with {self.larger} takes {restart} ({self.cost:.0f} "
            f"worker-seconds), and the {counted(self.pace.steps_left, 'step')} left would end only {saved} earlier "
            f"({self.gain:.0f})"
        )


def read_pace(folder: str) -> Pace | None:
    """How far a stage is, from its records; None before they say.

    A restart takes what the last one of this run took; before there was one, what its start took until the first step.
    """
    try:
        metrics = read_last_records(storage.join(folder, "metrics.jsonl"), is_record=_has_pace)
        events = read_last_records(storage.join(folder, "events.jsonl"), is_record=is_timed_event)
    except (OSError, FoldtrainError):  # storage that is away for a moment: it is asked again
        return None
    if not metrics:
        return None
    last = metrics[-1]
    started = [event["seconds"] for event in events if event["event"] == "first_step" and event.get("seconds")]
    restarted = [event["seconds"] for event in events if event["event"] == "restart" and event.get("seconds")]
    measured = (restarted or started)[-1:]
    if not measured:
        return None
    return Pace(max(0, last["steps"] - last["step"]), float(last["step_seconds"]), float(measured[0]))


def _has_pace(record: dict[str, Any]) -> bool:
    return is_metrics(record) and bool(record.get("steps")) and bool(record.get("step_seconds"))
