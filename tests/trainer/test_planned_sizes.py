"""Hours and price of a stage at several sizes: arithmetic on paper, and where the hours are from."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from trainer.planning import sizes
from trainer.planning.plan import DataFacts, Request
from trainer.planning.sizes import MeasuredRate, measured_rate, plan_sizes, scaled_rate


def write(folder: Path, name: str, *records: dict[str, Any]) -> None:
    (folder / f"{name}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))


def test_the_rate_of_a_run_is_that_of_its_newest_start_without_its_first_record(tmp_path: Path) -> None:
    assert measured_rate(str(tmp_path)) is None
    write(
        tmp_path,
        "events",
        {"event": "start", "step": 0, "workers": 2},
        {"event": "resume", "step": 10, "workers": 4},
        {"event": "checkpoint", "step": 20},
    )
    assert measured_rate(str(tmp_path)) is None
    write(tmp_path, "metrics", *({"step": s, "samples_per_second": r} for s, r in ((10, 50.0), (20, 7.0), (30, 90.0))))
    assert measured_rate(str(tmp_path)) == MeasuredRate(90.0, workers=4)


@pytest.mark.parametrize(
    ("workers", "there", "here", "rate", "words"),
    [
        (4, None, None, 100.0, "measured in this run with 4 workers"),
        (8, None, None, 200.0, "in proportion: communication is not counted"),
        (8, 400.0, 600.0, 150.0, "scaled as predicted with communication"),  # half as much more, not twice
        (2, None, None, 50.0, "in proportion"),
    ],
)
def test_what_was_measured_is_scaled_as_predicted_or_else_in_proportion(
    workers: int, there: float | None, here: float | None, rate: float, words: str
) -> None:
    found, source = scaled_rate(MeasuredRate(100.0, 4), workers, there, here)
    assert found == rate
    assert words in source


class Planned:
    """In place of a plan of a network: its steps take what a test says."""

    def __init__(self, patch: pytest.MonkeyPatch, hours_by_world: dict[int, float]) -> None:
        self.hours = hours_by_world
        self.asked: list[tuple[int, int, float | None]] = []
        patch.setattr(sizes, "make_plan", self._plan)

    def _plan(self, request: Any) -> Any:
        world = request.nodes * request.ranks_per_node
        self.asked.append((request.nodes, request.ranks_per_node, request.throughput))
        samples = 3_600_000
        hours = samples / 3600 / request.throughput if request.throughput else self.hours.get(world)
        rate = None if hours is None else samples / 3600 / hours
        source = request.throughput_from if request.throughput else "a trace"
        time = SimpleNamespace(samples_per_second=rate, predicted=request.throughput is None, known_from=source)
        total = None if hours is None else hours * world
        cost = None if total is None or request.price is None else total * request.price
        fit = SimpleNamespace(fits=None)
        return SimpleNamespace(world=world, nodes=request.nodes, time=time, gpu_hours=total, cost=cost, fit=fit)


def request(**changes: Any) -> Any:
    values: dict[str, Any] = {"configs": None, "nodes": 1, "ranks_per_node": 1, "device": "H100"}
    return Request(stage="train-generator", data=DataFacts(None), **(values | changes))


def test_hours_and_price_of_nodes_are_those_on_paper(monkeypatch: pytest.MonkeyPatch) -> None:
    planned = Planned(monkeypatch, {4: 10.0, 8: 5.0, 16: 3.0})
    found = plan_sizes(request(), [4, 8, 16], per_node=8, node_price=32.0)
    assert [(each.nodes, each.hours, each.node_hours, each.price) for each in found] == [
        (1, 10.0, 10.0, 320.0),  # half a node is a node
        (1, 5.0, 5.0, 160.0),
        (2, 3.0, 6.0, 192.0),
    ]
    assert planned.asked == [(1, 4, None), (1, 8, None), (2, 8, None)]
    assert {each.known_from for each in found} == {"predicted by a trace"}


def test_a_price_of_devices_counts_those_that_work(monkeypatch: pytest.MonkeyPatch) -> None:
    Planned(monkeypatch, {4: 10.0})
    (found,) = plan_sizes(request(price=2.0), [4], per_node=8)
    assert found.price == 80.0


def test_what_the_run_has_measured_goes_before_what_is_predicted(monkeypatch: pytest.MonkeyPatch) -> None:
    Planned(monkeypatch, {4: 10.0, 8: 8.0})
    found = plan_sizes(request(), [4, 8], per_node=8, measured=MeasuredRate(200.0, 4))
    assert [each.samples_per_second for each in found] == pytest.approx([200.0, 250.0])
    assert [each.hours for each in found] == pytest.approx([5.0, 4.0])
    assert found[0].known_from == "measured in this run with 4 workers"


def test_a_size_that_cannot_be_had_says_why_and_the_others_are_planned(monkeypatch: pytest.MonkeyPatch) -> None:
    Planned(monkeypatch, {8: 5.0})
    odd, even = plan_sizes(request(), [12, 8], per_node=8)
    assert (odd.hours, odd.price, odd.known_from) == (None, None, "12 workers do not fill nodes of 8")
    assert even.hours == 5.0


def test_without_a_device_and_a_measurement_nothing_is_made_up(monkeypatch: pytest.MonkeyPatch) -> None:
    Planned(monkeypatch, {})
    (found,) = plan_sizes(request(device=None), [2], per_node=None, node_price=1.0)
    assert (found.hours, found.node_hours, found.price) == (None, None, None)
