"""Losses of a stage that loses a node of its Ray cluster and gets another, against the undisturbed stage.

Three Ray nodes on this machine, ZeRO 2 on three workers; one node is killed by kill -9, a new one is added later, and
then Ray drains one. The drill is that of tests/cluster/test_elastic.py. `--figure FILE` draws both curves as SVG.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup
from report import write_report

from cluster.drills.elastic import STEPS, ElasticRun, run_elastic
from trainer.report.charts import HEIGHT, WIDTH, Line, line_chart

_STYLE = """
:root { --c0: #3565d0; --c1: #d97917; --c2: #178f80; --c3: #b8437f; --c4: #5b5f6b; }
text { fill: #667085; font: 11.5px system-ui, "DejaVu Sans", sans-serif; text-anchor: middle; }
text.end { text-anchor: end; }
text.key { text-anchor: start; font-size: 13px; fill: #1c2330; }
.grid { stroke: #e3e6ec; fill: none; }
.axis { stroke: #667085; stroke-opacity: .6; fill: none; }
.c0 { --c: var(--c0); } .c1 { --c: var(--c1); } .c2 { --c: var(--c2); } .c3 { --c: var(--c3); }
.c4 { --c: var(--c4); }
.fill { fill: var(--c); stroke: none; }
.line { fill: none; stroke: var(--c); stroke-width: 1.6; stroke-linejoin: round; }
.line.c0 { stroke-width: 6; stroke-opacity: .35; }
.line.c2, .line.c3, .line.c4 { stroke-dasharray: 4 3; }
"""
_KEYS = (
    (30, 0, "unbroken"),
    (130, 1, "elastic"),
    (220, 3, "a node is lost"),
    (335, 2, "another is there"),
    (458, 4, "one leaves"),
)
"""Place, colour and text."""
_TOP = 34


def mark(step: float, values: Sequence[float], colour: int) -> Line:
    """An upright line at a step, over the range of the values."""
    return Line("", [(step, min(values)), (step, max(values))], colour)


def panels(run: ElasticRun) -> list[Markup]:
    """The charts of the figure."""
    steps = range(1, STEPS + 1)
    curves = [
        Line("", list(zip(steps, losses, strict=True)), i) for i, losses in enumerate((run.unbroken, run.elastic))
    ]
    pairs = zip(run.unbroken, run.elastic, strict=True)
    apart = [abs(other / one - 1) for one, other in pairs]
    lost, grown, drained = run.restarts
    points = list(zip(steps, apart, strict=True))
    corners: list[tuple[float, float]] = []
    ends = [step for step, _ in run.sizes[1:]] + [STEPS]
    for (begin, workers), end in zip(run.sizes, ends, strict=True):
        corners += [(begin, workers), (end, workers)]
    found = []
    for lines, values, label, log in (
        (curves, [*run.unbroken, *run.elastic], "loss", False),
        ([Line("", points, 1)], [each for each in apart if each] or [1.0], "relative difference", True),
        ([Line("", corners, 1)], [0.0, 3.0], "workers", False),
    ):
        marks = [mark(lost["step"] + lost["lost_steps"], values, 3), mark(grown["step"], values, 2)]
        marks.append(mark(drained["step"], values, 4))
        chart = line_chart([*lines, *marks], title=label, x_label="step", y_label=label, log_y=log)
        found.append(Markup(str(chart).partition("</svg>")[0] + "</svg>"))
    return found


def figure(run: ElasticRun) -> str:
    """The charts, one above the other, as one SVG."""
    charts = panels(run)
    height = _TOP + HEIGHT * len(charts)
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH * 1.4:.0f}">']
    parts += [f"<style>{_STYLE}</style>", f'<rect width="{WIDTH}" height="{height}" fill="#fff"/>']
    for x, colour, text in _KEYS:
        parts.append(f'<path class="c{colour} line" d="M{x} 18h18"/>')
        parts.append(f'<text class="key" x="{x + 23}" y="22" style="font-size:10.5px">{text}</text>')
    for number, chart in enumerate(charts):
        at = f'<svg y="{_TOP + HEIGHT * number}" width="{WIDTH}" height="{HEIGHT}" '
        parts.append(str(chart).replace("<svg ", at, 1))
    return "\n".join([*parts, "</svg>", ""])


def figures(run: ElasticRun) -> dict[str, Any]:
    """What the run comes to in numbers."""
    account = [event for event in run.events if event["event"] == "goodput"][-1]
    costs = ("step", "workers_before", "workers", "lost_steps", "seconds")
    return {
        "steps": STEPS,
        "largest_relative_difference": run.difference,
        "audit_problems": run.audit["problems"],
        "restarts": [{name: restart[name] for name in costs} for restart in run.restarts],
        "seconds": account["wall_seconds"],
        "shares": account["shares"],
    }


def main() -> None:
    """Run the drill, and say what came of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--figure", type=Path, help="write both curves there, as SVG")
    parser.add_argument("--json", type=Path, help="write the figures there")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        run = run_elastic(Path(folder) / "run")
    found = figures(run)
    rows = [
        [
            f"{each['workers_before']} → {each['workers']}",
            str(each["step"]),
            str(each["lost_steps"]),
            f"{each['seconds']:.1f}",
        ]
        for each in found["restarts"]
    ]
    rows.append(["all", str(STEPS), "", f"{found['seconds']:.1f}"])
    write_report(
        "elastic_run", ["workers", "from step", "steps done again", "seconds without a step"], rows, found, options.json
    )
    print(f"largest relative difference of a loss: {found['largest_relative_difference']:.1e}")
    print("ledger audit:", "; ".join(found["audit_problems"]) or "each sample once")
    if options.figure:
        options.figure.parent.mkdir(parents=True, exist_ok=True)
        options.figure.write_text(figure(run))


if __name__ == "__main__":
    main()
