"""Runs of TiTok: the proxy that stage 1 is given, and what a bottleneck without tokens is refused for."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import nn
from typer.testing import CliRunner

from cluster.cli import app
from cluster.config.loading import load_config
from cluster.config.run import RunConfig
from cluster.pool import tokenizing
from cluster.stages import pipeline
from cluster.stages.pipeline import run_stage
from cluster.stages.train_jobs import check_proxy, train_job
from data_pipeline.config import TokensConfig
from data_pipeline.errors import UsageError
from data_pipeline.shards.halves import halves_of
from data_pipeline.shards.weights import Card, write_weights
from data_pipeline.tokens.plan import plan_tokens
from model.config import TokenizerConfig
from model.families import build_tokenizer
from tests.cluster.test_results import finished  # noqa: F401 - a fixture
from tests.trainer.test_titok_training import PROXY_CONFIG, STAGE_1
from trainer.job import PROXY
from trainer.registry import stage_named

pytestmark = pytest.mark.xdist_group("results")

Configure = Callable[..., RunConfig]
TRAINER = {"steps": 10, "global_batch": 8}
KL = STAGE_1.model_dump(mode="json") | {"target": "rgb", "pixel_decoder": None, "quantizer": {"kind": "kl"}}


def write_tokenizer(uri: str, config: TokenizerConfig) -> Card:
    network: Any = build_tokenizer(config)
    assert isinstance(network, nn.Module)
    files = {"model": network.state_dict()}
    return write_weights(uri, "tokenizer", config.model_dump(mode="json"), files, {}, halves=halves_of(network))


@pytest.fixture
def configure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Configure:
    """The config of a run whose tokenizer is stage 1 of TiTok, with overrides; its images are not there yet."""
    monkeypatch.chdir(tmp_path)
    config = {
        "run": "runs/titok",
        "inputs": {"images": "runs/small/images/train", "proxy": "runs/proxy"},
        "tokenizer": {"model": STAGE_1.model_dump(mode="json"), "trainer": TRAINER},
        "generator": {"model": {"depth": 1, "width": 16, "heads": 2}, "trainer": TRAINER},
    }
    Path("titok.yaml").write_text(yaml.safe_dump(config))
    return lambda *overrides: load_config("titok.yaml", overrides)


def test_the_proxy_is_found_in_its_run_and_is_part_of_the_lineage(
    configure: Configure,
    finished: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    card = write_tokenizer("runs/proxy/tokenizer/export", PROXY_CONFIG)
    job = train_job(configure(), stage_named("train-tokenizer"))
    assert job.inputs[PROXY] == str(tmp_path / "runs/proxy/tokenizer/export")
    assert job.lineage[PROXY] == card.fingerprint()
    assert job.config["inputs"]["proxy"] == str(tmp_path / "runs/proxy")
    single = ["tokenizer.model.target=rgb", "tokenizer.model.pixel_decoder=null"]
    assert PROXY not in train_job(configure(*single), stage_named("train-tokenizer")).inputs


def test_stage_1_without_a_proxy_is_refused_by_the_config(configure: Configure) -> None:
    with pytest.raises(UsageError, match=r"learns to predict the codes of a proxy.* as inputs\.proxy"):
        configure("inputs.proxy=null")
    assert configure("inputs.proxy=null", "tokenizer.model.target=pixels").inputs.proxy is None
    assert configure("inputs.proxy=null", "inputs.tokenizer=runs/other").inputs.proxy is None


def test_a_proxy_that_is_missing_or_does_not_fit_is_refused_before_anything_runs(
    configure: Configure, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=r"inputs\.proxy is .*runs/proxy, and there is no finished tokenizer"):
        check_proxy(configure())
    write_tokenizer("runs/proxy/tokenizer/export", PROXY_CONFIG)
    check_proxy(configure())
    with pytest.raises(UsageError, match=r"inputs\.proxy: .*export is no proxy for tokenizer\.model: .* 64 codes"):
        check_proxy(configure("tokenizer.model.proxy_codes=64"))


def test_nothing_is_written_into_the_proxy(configure: Configure) -> None:
    with pytest.raises(
        UsageError, match=r"inputs\.proxy is runs/proxy and tokens\.output is runs/proxy/tokens: what is"
    ):
        configure("tokens.output=runs/proxy/tokens")


@pytest.fixture
def without_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever would start a worker fails."""

    def start(*_: Any, **__: Any) -> None:
        raise AssertionError("a worker was started")

    monkeypatch.setattr(tokenizing, "tokenize", start)
    monkeypatch.setattr(pipeline, "_train", start)


NO_TOKENS = r"a tokenizer with a Gaussian bottleneck \(quantizer\.kind kl\) has no tokens"


@pytest.mark.usefixtures("without_workers")
@pytest.mark.parametrize("stage", ["tokenize", "train-generator", "sample", "evaluate"])
@pytest.mark.parametrize("given", [False, True])
def test_a_gaussian_bottleneck_is_refused_by_name_where_tokens_are_wanted(
    configure: Configure,
    stage: str,
    given: bool,
    finished: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    model = f"tokenizer.model={yaml.safe_dump(KL, default_flow_style=True)}"
    overrides, where = [model, "inputs.proxy=null"], r"tokenizer\.model: "
    if given:
        config = configure(*overrides).tokenizer
        assert config is not None
        write_tokenizer("runs/kl/tokenizer/export", config.model)
        overrides, where = ["inputs.tokenizer=runs/kl"], r"inputs\.tokenizer, .*runs/kl/tokenizer/export: "
    with pytest.raises(UsageError, match=where + NO_TOKENS):
        run_stage(stage, configure(*overrides))


@pytest.mark.usefixtures("without_workers")
def test_a_quickstart_with_a_gaussian_bottleneck_is_refused_before_its_first_stage(
    configure: Configure,
    finished: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    model = f"tokenizer.model={yaml.safe_dump(KL, default_flow_style=True)}"
    with pytest.raises(UsageError, match=NO_TOKENS):
        run_stage("quickstart", configure(model, "inputs.proxy=null"))


def test_a_plan_of_tokens_of_a_gaussian_bottleneck_is_refused(
    configure: Configure,
    finished: Path,  # noqa: F811
) -> None:
    config = configure(f"tokenizer.model={yaml.safe_dump(KL, default_flow_style=True)}", "inputs.proxy=null").tokenizer
    assert config is not None
    torch.manual_seed(0)
    card = write_tokenizer("kl", config.model)
    with pytest.raises(UsageError, match=NO_TOKENS):
        plan_tokens(str(finished / "runs/small/images/train"), card, TokensConfig(), "tokens", "crop")


def plan(configure: Configure, *overrides: str) -> dict[str, Any]:
    """Of stage 1, as JSON."""
    configure()
    arguments = ["plan", "titok.yaml", *overrides, "--stage", "train-tokenizer", "--samples", "100", "--json"]
    done = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.slow
def test_a_plan_counts_the_proxy_or_says_that_it_does_not(configure: Configure) -> None:
    without = plan(configure)
    assert without["note"].endswith("runs/proxy, cannot be reached from here: its time and memory are not counted")
    write_tokenizer("runs/proxy/tokenizer/export", PROXY_CONFIG)
    counted = plan(configure)
    assert counted["note"] is None
    assert counted["parameters"] == without["parameters"]
    assert counted["time"]["flops_per_step"] > without["time"]["flops_per_step"]
    assert sum(counted["memory"]["device"].values()) > sum(without["memory"]["device"].values())
