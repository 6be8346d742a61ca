"""Versions of the formats. A record of another version is refused by name, before anything else in it is looked at."""

from __future__ import annotations

from data_pipeline.errors import UsageError


def check_version(path: str, what: str, found: object, needed: int, remedy: str) -> None:
    """Refuse what another version of foldtrain wrote.

    Args:
        path: URI of the record, for the error.
        what: kind of record, for the error.
        found: what the record states; None if it states no version.
        needed: the version that is read here.
        remedy: how it is made anew, for the error: an imperative.

    Raises:
        UsageError: if they differ; it says what was found, what is needed, and what to do.
    """
    if type(found) is int and found == needed:
        return
    if type(found) is int and found > needed:
        remedy = "update foldtrain"
    stated = f"version {found}" if type(found) is int else "no version"
    raise UsageError(f"{path} is {what} of {stated}, but version {needed} is needed: {remedy}")
