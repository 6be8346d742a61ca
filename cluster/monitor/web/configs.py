"""What the stages of a run were asked: as text, and by dotted names, so that runs can be compared."""

from __future__ import annotations

from typing import Any

import yaml

from cluster.monitor.web.run_reading import RunReading
from data_pipeline.errors import UsageError
from data_pipeline.text.printable import printable
from trainer.registry import STAGES
from trainer.report.collect import settings_changes, used_config
from trainer.report.settings import LONGEST, dotted


def configs_of(reading: RunReading) -> list[dict[str, Any]]:
    """Of each stage that has recorded a config the sections that it used: as YAML, by name, and what was changed.

    One that was cut or edited is said to be so.
    """
    found = []
    for stage in STAGES:
        if stage.product == "results":
            continue
        history = reading.histories.get(stage.folder)
        changes = list(settings_changes(history.events.records)) if history else []
        entry: dict[str, Any] = {"stage": stage.folder, "changes": [printable(each[:LONGEST]) for each in changes]}
        try:
            used = used_config(reading.uri, stage)
        except UsageError as error:
            found.append(entry | {"text": printable(str(error)), "values": {}})
            continue
        if used is not None:
            text = yaml.safe_dump(used, sort_keys=False, allow_unicode=True)
            found.append(entry | {"text": printable(text, lines=True), "values": dict(dotted(used))})
    return found
