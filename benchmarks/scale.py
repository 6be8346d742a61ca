"""What the driver and a node pay for a data set of 1.28 and of 14.2 million images: time, peak memory and requests.

    python benchmarks/scale.py [--json FILE] [--samples 1280000 14200000] [--only tokenize ...]

    ingest     the plan of a source whose listing is kept (scale_ingest.py)
    order      the order of samples: a first batch, others, and memory (scale_order.py)
    index      the start of training on a node: eight ranks open the image set (scale_index.py)
    tokenize   a start of tokenize that finds every shard done (scale_tokenize.py)
    verify     verify, and export (scale_tools.py)
    monitor    one look at a run that goes on (scale_records.py)

The sets are synthetic: names and sizes, no pixels. Each part runs in a process of its own, and its memory is the peak
above what that process had when the work began. A bound is checked against the larger set, unless it says otherwise.
The last column is a straight line through the two measured sizes, drawn on to 10⁹ images: nobody has measured it.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from report import write_report

HERE = Path(__file__).resolve().parent
SAMPLES = (1_280_000, 14_200_000)
FAR = 10**9
Figures = dict[str, float]
UNITS = {"seconds": "s", "cpu_seconds": "s of CPU", "peak_mib": "MiB", "requests": ""}


@dataclass(frozen=True)
class Part:
    """A module that measures, and what its figures may be at most."""

    module: str
    what: str
    most: Figures
    """At the larger set."""
    most_small: Figures
    """At the smaller one."""


VERIFY = [f"commands_{name}_peak_mib_above_start" for name in ("verify", "verify against images", "verify --quick")]
RESUME = ("seconds", "interrupted_seconds")
PARTS = {
    "ingest": Part("scale_ingest", "ingest's plan", {"peak_mib": 300}, {}),
    "order": Part("scale_order", "the order of samples", {}, {}),
    "index": Part("scale_index", "training start of a node, 8 ranks", {"peak_mib": 300, "requests": 10}, {}),
    "tokenize": Part("scale_tokenize", "tokenize with all shards done", {"peak_mib": 300}, dict.fromkeys(RESUME, 30)),
    "verify": Part("scale_tools", "verify and export", dict.fromkeys(VERIFY, 300), {}),
    "monitor": Part("scale_records", "a monitor's look", {"requests": 4}, {}),
}


def run_part(part: Part, samples: int) -> Figures | None:
    """Its figures, from a process of its own; None if it failed."""
    command = [sys.executable, str(HERE / f"{part.module}.py"), str(samples)]
    ended = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if ended.returncode:
        print(f"{' '.join(command)} failed with exit code {ended.returncode}", file=sys.stderr, flush=True)
        return None
    found = flatten(json.loads(ended.stdout[ended.stdout.index("{") :]))
    print(f"{part.module} {samples}: {found}", file=sys.stderr, flush=True)
    return found


def flatten(figures: dict[str, Any], within: str = "") -> Figures:
    """Figures in one level: those of a part of a part have its name before theirs."""
    found: Figures = {}
    for name, value in figures.items():
        found |= flatten(value, f"{within}{name}_") if isinstance(value, dict) else {f"{within}{name}": value}
    return found


def straight_line(sizes: tuple[int, int], values: tuple[float, float], far: int) -> float:
    """Where the line through two measured points is at `far`."""
    slope = (values[1] - values[0]) / (sizes[1] - sizes[0])
    return values[1] + slope * (far - sizes[1])


def in_both(small: Figures, large: Figures) -> list[str]:
    """Names of the figures that can be drawn on."""
    return [name for name in small if name in large]


def verdict(part: Part, key: str, small: Figures, large: Figures) -> str:
    """The bound of a figure, and whether it is met."""
    for bounds, figures, where in ((part.most, large, ""), (part.most_small, small, " at the smaller")):
        if key in bounds:
            if key not in figures:
                return f"≤ {bounds[key]:g}{where}: not measured"
            return f"≤ {bounds[key]:g}{where}: {'met' if figures[key] <= bounds[key] else 'NOT MET'}"
    return ""


def table(part: Part, sizes: tuple[int, int], small: Figures, large: Figures) -> list[list[str]]:
    """A row for each figure."""
    rows = []
    for key in in_both(small, large):
        far = straight_line(sizes, (small[key], large[key]), FAR)
        unit = UNITS.get(key, "")
        values = [f"{value:,.4g} {unit}".strip() for value in (small[key], large[key], max(0.0, far))]
        rows.append([part.what if not rows else "", key.replace("_", " "), *values, verdict(part, key, small, large)])
    for key in [key for key in {**small, **part.most, **part.most_small} if key not in large]:
        value = f"{small[key]:,.4g} {UNITS.get(key, '')}".strip() if key in small else ""
        rows.append(["", key.replace("_", " "), value, "", "", verdict(part, key, small, large)])
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--samples", type=int, nargs=2, default=SAMPLES, help="the two sizes, smaller first")
    parser.add_argument("--only", nargs="+", choices=PARTS, help="these parts")
    given = parser.parse_args()
    sizes = (given.samples[0], given.samples[1])
    rows: list[list[str]] = []
    figures: dict[str, Any] = {"samples": list(sizes), "extrapolated_to": FAR}
    failed = []
    for name in given.only or PARTS:
        part = PARTS[name]
        small, large = (run_part(part, size) for size in sizes)
        if small is None or large is None:
            failed.append(name)
            rows.append([part.what, "failed", "", "", "", "not measured"])
            continue
        rows += table(part, sizes, small, large)
        far = {key: straight_line(sizes, (small[key], large[key]), FAR) for key in in_both(small, large)}
        bounds = {key: verdict(part, key, small, large) for key in part.most | part.most_small}
        figures[name] = {"small": small, "large": large, "extrapolated": far, "bounds": bounds}
    columns = ["", "", f"{sizes[0]:,}", f"{sizes[1]:,}", "10⁹ (a line)", "bound"]
    write_report("scale", columns, rows, figures, given.json)
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
