"""The dashboard in docs/grafana shows metrics that exist, and no others."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.trainer.gloo import run_gloo
from trainer.config import TrackingConfig, TrainerConfig
from trainer.engine.engine import StepResult, Update
from trainer.engine.scalars import Scalars
from trainer.records.meter import Meter
from trainer.records.run_directory import RunDirectory

DASHBOARD = json.loads(Path(__file__).parents[2].joinpath("docs", "grafana", "foldtrain.json").read_text())
EXPRESSIONS = [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]
_METRIC = re.compile(r"\b(foldtrain_\w+)")


def record_a_step(folder: Path) -> None:
    """As a training stage does."""
    meter = Meter(TrainerConfig(steps=100, global_batch=8), exported="network")
    terms = Scalars.of({"loss": torch.tensor(1.0)})
    meter.add(StepResult(terms, {"network": Update(applied=True, grad_norm=torch.tensor(2.0))}), 0.0, 1.0)
    records = RunDirectory(str(folder), "generator", {}, 0, TrackingConfig(wandb="off"))
    records.metrics(meter.record(1, skipped=0))
    records.close()


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> dict[str, set[str]]:
    """Names of the metrics of a stage, and the labels of each, as Prometheus reads them."""
    from prometheus_client.parser import text_string_to_metric_families

    folder = tmp_path_factory.mktemp("grafana")
    run_gloo(1, folder, record_a_step, folder / "stage")
    text = (folder / "stage" / "metrics.prom").read_text()
    found = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    return {sample.name: set(sample.labels) for sample in found}


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_each_expression_is_of_metrics_that_a_stage_exports(expression: str, exported: dict[str, set[str]]) -> None:
    named = _METRIC.findall(expression)
    assert named
    assert set(named) <= exported.keys()


def test_it_chooses_by_labels_that_these_metrics_have(exported: dict[str, set[str]]) -> None:
    by_prometheus = {"instance", "job"}
    used = {label for each in EXPRESSIONS for label in re.findall(r"(\w+)=~", each)}
    assert used <= exported["foldtrain_step"] | by_prometheus
    variables = {each["name"]: each["query"] for each in DASHBOARD["templating"]["list"]}
    assert variables["stage"] == "label_values(foldtrain_step, stage)"
    assert {name for each in EXPRESSIONS for name in re.findall(r"\$(\w+)", each)} <= variables.keys()


def test_panels_have_numbers_of_their_own_and_do_not_overlap() -> None:
    panels: list[dict[str, Any]] = DASHBOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    cells = [
        (x, y)
        for each in (panel["gridPos"] for panel in panels)
        for x in range(each["x"], each["x"] + each["w"])
        for y in range(each["y"], each["y"] + each["h"])
    ]
    assert len(set(cells)) == len(cells)
    assert max(x for x, _ in cells) < 24
