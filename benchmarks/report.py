"""How every benchmark says what it found: a table, and with --json its figures and the machine."""

from __future__ import annotations

import datetime
import json
import os
import platform
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table


def write_report(
    name: str, columns: list[str], rows: list[list[str]], figures: dict[str, Any], output: Path | None
) -> None:
    """Print a table; write `figures` with the date and the machine to `output`, if one is given."""
    table = Table(*columns, title=name)
    for row in rows:
        table.add_row(*row)
    Console(width=120).print(table)
    if output is not None:
        write_figures(name, figures, output)


def write_figures(name: str, figures: dict[str, Any], output: Path) -> None:
    """The figures of a benchmark as JSON, with the date and the machine."""
    machine = {"cpus": len(os.sched_getaffinity(0)), "processor": processor(), "python": platform.python_version()}
    record = {"benchmark": name, "date": datetime.datetime.now(datetime.UTC).date().isoformat(), "machine": machine}
    output.write_text(json.dumps(record | figures, indent=1) + "\n")


def processor() -> dict[str, str | list[str]]:
    """Its name, and which units for products of bf16 it has: figures of another are not to be compared."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return {"name": platform.processor()}
    facts = dict(reversed([[part.strip() for part in line.split(":", 1)] for line in lines if ":" in line]))
    units = sorted(set(facts.get("flags", "").split()) & {"amx_bf16", "avx512_bf16"})
    return {"name": facts.get("model name", platform.processor()), "bf16": units}
