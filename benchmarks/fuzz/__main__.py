"""Reads many thousand hostile files as the commands do; exit code 1 if one of them did what none may do.

python -m benchmarks.fuzz --inputs 20000 --seed 0
python -m benchmarks.fuzz --seed 0 --only 4711 --keep /tmp/input     # one input again, with its files
"""

from __future__ import annotations

import logging
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.fuzz.guard import MORE_BYTES, SECONDS
from benchmarks.fuzz.running import Outcome, make_input, run, target_of
from benchmarks.fuzz.targets import TARGETS
from benchmarks.fuzz.templates import everything

SHOWN = 12
"""Findings that are printed whole."""


def main(
    inputs: Annotated[int, typer.Option(min=1, help="How many.")] = 20_000,
    seed: Annotated[int, typer.Option(help="Of all changes.")] = 0,
    only: Annotated[int | None, typer.Option(help="The number of one input.")] = None,
    keep: Annotated[Path | None, typer.Option(help="Where to write the files of --only.")] = None,
) -> None:
    """Try inputs, and print what came of them."""
    logging.disable(logging.CRITICAL)  # what is left out is logged, a thousand times here
    files, began = everything(), time.monotonic()
    numbers = range(inputs) if only is None else [only]
    if only is not None and keep is not None:
        for name, data in make_input(only, seed, target_of(only, TARGETS), files).items():
            (keep / name).parent.mkdir(parents=True, exist_ok=True)
            (keep / name).write_bytes(data)
    outcome = run(numbers, seed, files, progress=lambda done: print(f"\r{done}", end="", file=sys.stderr, flush=True))
    print(file=sys.stderr)
    print(summary(outcome, time.monotonic() - began))
    sys.exit(1 if outcome.findings else 0)


def summary(outcome: Outcome, seconds: float) -> str:
    """The result in words."""
    lines = [f"{'file':<20}{'inputs':>8}{'refused':>9}"]
    lines += [f"{name:<20}{count:>8}{outcome.refused[name]:>9}" for name, count in outcome.inputs.items()]
    kinds = Counter(finding.kind for finding in outcome.findings)
    total = sum(outcome.inputs.values())
    lines += [
        f"{total} inputs in {seconds:.0f} s; the slowest took {outcome.slowest:.1f} CPU s "
        f"(a reader may take {SECONDS:g})",
        f"most memory beyond the start: {outcome.peak_bytes / 2**20:.0f} MiB (at most {MORE_BYTES / 2**20:.0f})",
        f"tracebacks that are no FoldtrainError: {kinds['traceback']}; over the memory: {kinds['memory']}; over the "
        f"time: {kinds['seconds']}; opened outside of the folder: {kinds['outside']}; died: {kinds['died']}",
    ]
    seen: Counter[tuple[str, str]] = Counter()
    for finding in outcome.findings:
        place = (finding.target, finding.text.strip().splitlines()[-1][:80])
        seen[place] += 1
        if seen[place] == 1 and len(seen) <= SHOWN:
            lines.append(f"\ninput {finding.number}, {finding.target}, {finding.kind}:\n{finding.text[:3000]}")
    lines += [f"{count:>6} × {target}: {text}" for (target, text), count in seen.most_common(40)]
    return "\n".join(lines)


if __name__ == "__main__":
    typer.run(main)
