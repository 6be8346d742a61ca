"""What a worker of training and of tokenize uses follows from what it reserves, not from what its torch sees."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from cluster.config.loading import load_config
from cluster.config.run import ClusterConfig
from cluster.pool.tokenizing import TokenizeWork
from cluster.session.job_environment import FILE_VARIABLE
from cluster.session.ray_session import require_gpus
from cluster.stages import results
from cluster.training.worker_group import Needs
from data_pipeline.errors import UsageError

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> list[torch.device]:
    """A torch that sees two GPUs; what is made its current one."""
    chosen: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    return chosen


@pytest.mark.parametrize(("gpus", "resources"), [(0, {"CPU": 1}), (1, {"CPU": 1, "GPU": 1})])
def test_a_training_worker_reserves_the_gpus_of_the_config(gpus: int, resources: dict[str, float]) -> None:
    assert Needs(1, gpus).resources == resources


@pytest.mark.parametrize(("gpus", "device"), [(0, "cpu"), (1, "cuda:0")])
def test_a_tokenize_worker_uses_what_it_reserves(monkeypatch: pytest.MonkeyPatch, gpus: int, device: str) -> None:
    seen: list[str] = []
    monkeypatch.setattr("data_pipeline.shards.image_shards.ImageShards", lambda *_, **__: None)
    monkeypatch.setattr("data_pipeline.node.host_memory.keep_freed_memory", lambda: seen.append("memory is kept"))
    monkeypatch.setattr(
        "data_pipeline.tokens.tokenizing.load_encoder", lambda plan, tokenizer, device: seen.append(device)
    )
    plan: Any = SimpleNamespace(images="")
    TokenizeWork(plan, "", gpus).open(1)
    assert seen == (["memory is kept"] if gpus == 0 else []) + [device]


def test_a_tokenize_worker_that_sees_no_gpu_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    plan: Any = SimpleNamespace(images="")
    with pytest.raises(UsageError, match="gpus_per_worker is 1"):
        TokenizeWork(plan, "", 1).open(1)


def test_sample_and_evaluate_use_the_cpu_and_say_so_where_workers_have_gpus_and_they_have_none(
    small_config: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    without, with_gpus = (load_config(small_config, [f"cluster.gpus_per_worker={gpus}"]) for gpus in (0, 1))
    assert (results.device_of(without), results.device_of(with_gpus)) == (CPU, torch.device("cuda", 0))
    assert capsys.readouterr().out == ""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert results.device_of(with_gpus) == CPU
    assert "no GPU is visible to this command" in capsys.readouterr().out


def node(gpus: float) -> dict[str, Any]:
    return {"Alive": True, "Resources": {"CPU": 2.0} | ({"GPU": gpus} if gpus else {})}


@pytest.mark.parametrize("gpus", [0, 1])
def test_a_machine_with_too_few_gpus_is_refused_before_workers_wait_for_them(
    monkeypatch: pytest.MonkeyPatch, gpus: int
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr("ray.nodes", lambda: [node(gpus)])
    there = "there is 1 GPU" if gpus == 1 else "there are 0 GPUs"
    with pytest.raises(UsageError, match=rf"gpus_per_worker is 1.* 2 .*{there} on this machine"):
        require_gpus(ClusterConfig(gpus_per_worker=1), 2)


def test_a_job_on_the_local_head_is_on_this_machine_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    monkeypatch.setenv(FILE_VARIABLE, "/somewhere")
    monkeypatch.setattr("ray.nodes", lambda: [node(0)])
    with pytest.raises(UsageError, match="there are 0 GPUs on this machine"):
        require_gpus(ClusterConfig(gpus_per_worker=1), 1)


def test_gpus_that_are_there_or_are_not_asked_for_are_no_matter(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("ray.nodes", lambda: [node(2)])
    require_gpus(ClusterConfig(gpus_per_worker=1), 2)
    require_gpus(ClusterConfig(gpus_per_worker=0), 3)
    assert capsys.readouterr().out == ""


def test_a_cluster_that_may_get_nodes_with_gpus_is_waited_for_and_that_is_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    monkeypatch.setattr("ray.nodes", lambda: [node(0)])
    require_gpus(ClusterConfig(gpus_per_worker=1), 2)
    assert "there are 0 GPUs in the cluster so far: waiting for more" in capsys.readouterr().out


@pytest.mark.parametrize("gpus", ["0.5", "2", "-1", "'1'", "1e-9", ".nan"])
def test_a_part_of_a_gpu_or_several_per_worker_are_refused(small_config: Path, gpus: str) -> None:
    with pytest.raises(UsageError, match=r"cluster\.gpus_per_worker.*give 1, or 0 for CPUs.*cluster\.workers"):
        load_config(small_config, [f"cluster.gpus_per_worker={gpus}"])


@pytest.mark.parametrize(("gpus", "read"), [("0", 0), ("1", 1), ("1.0", 1)])
def test_one_gpu_or_none_per_worker(small_config: Path, gpus: str, read: int) -> None:
    found = load_config(small_config, [f"cluster.gpus_per_worker={gpus}"]).cluster.gpus_per_worker
    assert (found, type(found)) == (read, int)
