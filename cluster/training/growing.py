"""Growing a training stage: more workers are asked of the cluster, and taken once they fit and pay."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from cluster.training.elastic_policy import Room
from cluster.training.elastic_sizes import largest_usable
from cluster.training.growth import Growth, Pace
from cluster.training.worker_group import Needs, ask_for_room, is_room, remove_room

_MOST_ASKED = 64
"""Workers that room is asked for at once."""


class Demand(Protocol):
    """Room for further workers, asked of the cluster."""

    def ask(self, count: int) -> None:
        """Ask for room for so many in all."""

    def there(self) -> int:
        """For how many of them it is kept."""

    def withdraw(self) -> None:
        """Ask for none any more, and hand back what is kept."""


class Reservations:
    """Room that Ray is asked to keep: a placement group for each worker.

    Those that Ray cannot place wait, and an autoscaler adds nodes for them. They are this command's own: Ray forgets
    them when it ends, however it ends. (`ray.autoscaler.sdk.request_resources` outlives who called it, and is one
    number for the whole cluster.)

    Args:
        needs: of one worker.
    """

    def __init__(self, needs: Needs) -> None:
        self._needs = needs
        self._kept: list[Any] = []

    def ask(self, count: int) -> None:
        """Ask for room for so many in all, at most 64."""
        wanted = min(count, _MOST_ASKED)
        while len(self._kept) > wanted:
            remove_room(self._kept.pop())
        while len(self._kept) < wanted:
            self._kept.append(ask_for_room(self._needs, 1))

    def there(self) -> int:
        """For how many of them it is kept."""
        return sum(map(is_room, self._kept))

    def withdraw(self) -> None:
        """Ask for none any more, and hand back what is kept."""
        while self._kept:
            remove_room(self._kept.pop())


class Growing:
    """Decides when a running stage goes on with more workers.

    Args:
        room: of the cluster.
        demand: for more of it.
        pace: says how far the stage is, if that is known.
        decline: takes a growth that is not done, since it does not pay.
    """

    def __init__(
        self, room: Room, demand: Demand, pace: Callable[[], Pace | None], decline: Callable[[Growth], None]
    ) -> None:
        self._room, self._demand, self._pace, self._decline = room, demand, pace, decline
        self._declined: tuple[int, int] | None = None

    def larger(self, sizes: Sequence[int], now: int) -> int | None:
        """The size that the stage is to take instead of what it has; None for none yet.

        Room is asked for as long as growth pays. Fewer workers than the fewest are made up for in any case.

        Args:
            sizes: that can be used, ascending.
            now: workers that it has.
        """
        pace = self._pace()
        paying = [size for size in sizes if size > now and (now < sizes[0] or _pays(now, size, pace))]
        if not paying:
            self._demand.withdraw()
            if sizes[-1] > now and pace is not None and self._declined != (now, sizes[-1]):
                self._declined = now, sizes[-1]
                self._decline(Growth(now, sizes[-1], pace))
            return None
        kept = self._demand.there()  # before more is asked for: what is placed just now would count as free, too
        found = largest_usable(paying, now + kept + self._room.free())
        self._demand.ask(paying[-1] - now)
        return found or None

    def release(self) -> None:
        """Hand back the room that is kept, for a start to take it, or since there is none to come."""
        self._demand.withdraw()


def _pays(now: int, larger: int, pace: Pace | None) -> bool:
    return pace is None or Growth(now, larger, pace).pays
