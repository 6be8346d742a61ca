"""The request to stop a job, in its folder: control.json, which the job's own process looks for every few seconds.

    {"version": 1, "stop": "checkpoint", "asked": 1764140000.0, "by": "user@host"}    save a checkpoint, then end
    {"version": 1, "stop": "now", ...}                                               end at once

It stays: a job that was stopped does not go on when its scheduler starts it again. A new one is submitted for that.
"""

from __future__ import annotations

import getpass
import socket
import time
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from data_pipeline import storage
from data_pipeline.errors import UsageError
from data_pipeline.text import json_records

_FILE = "control.json"
_MOST_BYTES = 65_536


class Stop(BaseModel):
    """Somebody asked a job to end."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)

    version: Literal[1] = 1
    stop: Literal["checkpoint", "now"]
    """With a checkpoint first, or at once."""
    asked: float = 0.0
    """Unix time in seconds, by the clock of who asked."""
    by: str = Field("", max_length=200)
    """Who: user@host."""


def me() -> str:
    """Who this process works for: user@host."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container whose user has no name
        user = "unknown"
    return f"{user}@{socket.gethostname()}"[:200]


def write_stop(folder: str, *, now: bool) -> Stop:
    """Ask the job of a folder to end. A request to end at once is not taken back by a milder one."""
    known = read_stop(folder)
    if known is not None and (known.stop == "now" or not now):
        return known
    stop = Stop(stop="now" if now else "checkpoint", asked=time.time(), by=me())
    storage.write_json(storage.join(folder, _FILE), stop.model_dump())
    return stop


def read_stop(folder: str) -> Stop | None:
    """What the job of a folder was asked; None if nothing.

    Raises:
        UsageError: if the file is no such request; it names the file.
    """
    uri = storage.join(folder, _FILE)
    try:
        return Stop.model_validate(json_records.parse(storage.read_bytes(uri, _MOST_BYTES)))
    except FileNotFoundError:
        return None
    except ValidationError as error:
        raise UsageError(f"{uri} is no request to a job ({json_records.first_problem(error)}): delete it") from None
    except ValueError as error:
        raise UsageError(f"{uri} is not valid JSON ({error}): delete it") from error
