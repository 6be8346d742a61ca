"""How long each stage of a run took, in stages.json: a stage that was interrupted adds up."""

from __future__ import annotations

from data_pipeline import storage

_UNITS = {"ingest": "images", "tokenize": "images", "sample": "images", "evaluate": "images", "report": "pages"}


def record_time(run: str, stage: str, seconds: float, items: int) -> None:
    """Add to the time of a stage that did something.

    Args:
        run: URI of the run.
        stage: its name.
        seconds: wall-clock time of this call.
        items: what it worked through (training samples, images).
    """
    uri = storage.join(run, "stages.json")
    try:
        entries = storage.read_json(uri)
    except FileNotFoundError:
        entries = []
    known = next((entry for entry in entries if entry["stage"] == stage), None)
    if known is None:
        known = {"stage": stage, "seconds": 0.0, "items": 0, "unit": _UNITS.get(stage, "samples")}
        entries.append(known)
    known["seconds"] += seconds
    known["items"] = items
    storage.write_json(uri, entries)
