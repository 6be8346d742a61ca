"""Pictures of a run: which there are, and their pixels, decoded and encoded anew before a browser gets them."""

from __future__ import annotations

import io
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

from data_pipeline import storage
from data_pipeline.errors import CorruptShardError
from trainer.records.trackers.pictures import FOLDER, picture_step
from trainer.report.collect import MOST_FRAME_BYTES, PICTURES
from trainer.report.data import StageRecords
from trainer.report.generator import pictured_steps
from trainer.report.held_out import looks

MOST_PIXELS = 64 * 2**20
"""Of a picture; more are not decoded."""
_KEPT_BYTES = 32 * 2**20
"""Of the pictures of a stage that are kept, those that were asked for last."""
_TRIES = 3
"""Looks at which a frame that an event has promised is looked for: it is stored a moment later."""


def checked_png(data: bytes) -> bytes | None:
    """The pixels of a PNG, and nothing else of it, as a PNG; None if it is none, or too large."""
    from PIL import Image

    try:
        with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
            if image.width * image.height > MOST_PIXELS:
                return None
            pixels = image.convert("RGBA" if "A" in image.getbands() or "transparency" in image.info else "RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None
    found = io.BytesIO()
    Image.frombytes(pixels.mode, pixels.size, pixels.tobytes()).save(found, "PNG")  # without text and profiles
    return found.getvalue()


class Frames:
    """The film strip of a stage: a picture for each look at held-out images, or of what a generator drew.

    Args:
        run: URI of the run.
        stage: folder of the stage.
    """

    def __init__(self, run: str, stage: str) -> None:
        self._stage, self._folder = stage, storage.join(run, stage, FOLDER)
        self.steps: list[int] = []
        """Steps of which there is a picture."""
        self._names: dict[int, str] = {}
        self._asked: set[int] = set()
        self._starts = self._events_seen = self._tries = 0
        self._kept: OrderedDict[tuple[int, int], bytes] = OrderedDict()

    def look(self, events: Sequence[Mapping[str, Any]]) -> None:
        """List the pictures, if an event says that there is another one: one request, otherwise none."""
        if len(events) != self._events_seen:
            self._events_seen = len(events)
            records = StageRecords(self._stage, events=tuple(events))
            asked = {event["step"] for event in looks(records)} | pictured_steps(records)
            self._starts = sum(event["event"] in {"resume", "rollback"} for event in events)
            self._tries = _TRIES if asked - self._asked else self._tries
            self._asked = asked
        if self._tries and not self._asked <= self._names.keys():
            self._tries -= 1
            found = [(picture_step(name, kind), name) for name in storage.list_names(self._folder) for kind in PICTURES]
            self._names = {step: name for step, name in found if step is not None}
        self.steps = sorted(self._asked & self._names.keys())

    def picture(self, step: int) -> bytes | None:
        """The picture of a step, a PNG; None if there is none, or it is no PNG."""
        name = self._names.get(step)
        if name is None or step not in self._asked:
            return None
        key = (step, self._starts)  # a step that was done again has another one
        if key not in self._kept:
            try:
                data = storage.read_bytes(storage.join(self._folder, name), MOST_FRAME_BYTES)
            except (FileNotFoundError, CorruptShardError):
                return None
            png = checked_png(data)
            if png is None:
                return None
            self._kept[key] = png
            while sum(map(len, self._kept.values())) > _KEPT_BYTES and len(self._kept) > 1:
                self._kept.popitem(last=False)
        return self._kept[key]
