"""Counts in messages: 1 worker, 2 workers, 1,000 images."""

from __future__ import annotations


def counted(count: float, one: str, many: str = "") -> str:
    """A count and what is counted, with commas between thousands.

    Args:
        count: how many.
        one: what one of them is called, and its verb if there is one: "worker", "worker leaves".
        many: what several are called; `one` with an s if left out.
    """
    number = f"{count:,}" if isinstance(count, int) else f"{count:g}"
    return f"{number} {one if count == 1 else many or f'{one}s'}"
