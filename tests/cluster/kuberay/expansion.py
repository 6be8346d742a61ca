"""How Kubernetes puts variables into the values of others: a reading of third_party/forked/golang/expansion, by hand.

`$(NAME)` is replaced if NAME is known and stays otherwise, `$$` is `$`, and every other `$` stays.
"""

from __future__ import annotations

from collections.abc import Mapping


def expanded(value: str, known: Mapping[str, str]) -> str:
    """A value as a process finds it in its environment."""
    made, at = "", 0
    while at < len(value):
        rest = value[at:]
        if rest.startswith("$$"):
            made, at = made + "$", at + 2
        elif rest.startswith("$(") and ")" in rest:
            name = rest[2 : rest.index(")")]
            made, at = made + known.get(name, f"$({name})"), at + len(name) + 3
        else:
            made, at = made + value[at], at + 1
    return made
