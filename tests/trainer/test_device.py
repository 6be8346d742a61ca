"""A process uses what it was given, on a machine whose torch sees GPUs, and nothing else asks for them."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from data_pipeline.errors import UsageError
from trainer.engine.device import driver_device, given_device

ROOT = Path(__file__).resolve().parents[2]
_ASKED = {"is_available", "device_count", "current_device", "set_device"}


@pytest.fixture
def chosen(monkeypatch: pytest.MonkeyPatch) -> list[torch.device]:
    """Two GPUs, in a torch that says so; what is made its current one."""
    found: list[torch.device] = []
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", found.append)
    return found


def test_a_worker_without_a_gpu_uses_the_cpu_where_the_machine_has_gpus(chosen: list[torch.device]) -> None:
    assert given_device(0) == torch.device("cpu")
    assert chosen == []
    assert os.environ["CUDA_VISIBLE_DEVICES"] == ""  # nor do libraries that ask for themselves see one


@pytest.mark.parametrize("index", [0, 1])
def test_a_worker_uses_the_gpu_that_ray_numbered(chosen: list[torch.device], index: int) -> None:
    assert given_device(1, index) == torch.device("cuda", index)
    assert chosen == [torch.device("cuda", index)]


def test_a_process_of_torchrun_uses_the_gpu_of_its_local_rank(
    chosen: list[torch.device], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert given_device(1) == torch.device("cuda", 1)


def test_a_process_that_sees_one_gpu_uses_it_whatever_its_rank(
    chosen: list[torch.device], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert given_device(1) == torch.device("cuda", 0)


def test_a_gpu_that_is_not_there_is_an_error_and_not_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(UsageError, match=r"cluster\.gpus_per_worker is 1.*sees no GPU.*''.*gpus_per_worker=0"):
        given_device(1)


def test_a_gpu_beyond_those_that_are_visible_is_an_error(chosen: list[torch.device]) -> None:
    with pytest.raises(UsageError, match="GPU 2 was given to this process, which sees 2"):
        given_device(1, 2)
    assert chosen == []


def test_a_command_uses_a_gpu_if_workers_do_and_says_when_it_has_none(
    chosen: list[torch.device], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert driver_device(0) == (torch.device("cpu"), None)
    assert driver_device(1) == (torch.device("cuda", 0), None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    device, note = driver_device(1)
    assert device == torch.device("cpu")
    assert "so it uses the CPU" in str(note)


_MAY_ASK = {
    Path("trainer/engine/device.py"),
    # The doctor tells of what a node has, and trains nothing.
    Path("cluster/preflight/checks/links.py"),
    Path("cluster/preflight/checks/matmul.py"),
    # Predictions name a fake GPU, in whatever process they are made.
    Path("trainer/planning/attention_pairs.py"),
    Path("trainer/planning/model_flops.py"),
}


def _asks(tree: ast.AST) -> Iterator[int]:
    """Lines that ask torch which GPUs there are, or name one."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr in _ASKED and ast.unparse(node.value).endswith("cuda"):
            yield node.lineno
        if isinstance(node, ast.Call):
            arguments = [*node.args, *(keyword.value for keyword in node.keywords)]
            named = [each.value for each in arguments if isinstance(each, ast.Constant)]
            is_name = any(isinstance(each, str) and each.partition(":")[0] == "cuda" for each in named)
            if is_name or (isinstance(node.func, ast.Attribute) and node.func.attr == "cuda"):
                yield node.lineno


@pytest.mark.parametrize("package", ["model", "data_pipeline", "trainer", "cluster"])
def test_only_one_file_asks_for_gpus(package: str) -> None:
    asking = {
        path.relative_to(ROOT): lines
        for path in (ROOT / package).rglob("*.py")
        if (lines := list(_asks(ast.parse(path.read_text()))))
    }
    assert set(asking) == {path for path in _MAY_ASK if path.parts[0] == package}, asking


@pytest.mark.parametrize(
    "line",
    [
        "torch.cuda.is_available()",
        "cuda.device_count()",
        'torch.device("cuda", 1)',
        'x.to(device="cuda:0")',
        "x.cuda()",
    ],
)
def test_what_asks_for_gpus_is_found(line: str) -> None:
    assert list(_asks(ast.parse(line))) == [1]


_TRAIN = """
import json, sys
from unittest import mock
import torch
import torch.distributed as dist

touched = []
torch.cuda.is_available = lambda: True
torch.cuda.device_count = lambda: 1
for name in ("set_device", "current_stream", "synchronize", "_lazy_init"):
    setattr(torch.cuda, name, lambda *_, name=name, **__: touched.append(name))
dist.init_process_group("gloo", init_method=f"file://{sys.argv[1]}/rendezvous", rank=0, world_size=1)
from pathlib import Path
from tests.trainer.test_loop import CountingStage, job
from trainer import stages
from trainer.engine.device import given_device
from trainer.loop import worker

with mock.patch.object(stages, "build_stage", lambda job, device: CountingStage(None)):
    ending, step = worker.run_worker(job(Path(sys.argv[1], "run"), zero_stage=1), given_device(0))
import deepspeed
print(json.dumps([ending, step, deepspeed.get_accelerator().device_name(), touched]))
"""


@pytest.mark.slow
def test_training_runs_on_the_cpu_where_torch_sees_a_gpu(tmp_path: Path) -> None:
    unforced = {name: value for name, value in os.environ.items() if name != "DS_ACCELERATOR"} | {"LOCAL_RANK": "0"}
    done = subprocess.run(
        [sys.executable, "-c", _TRAIN, str(tmp_path)],
        cwd=ROOT,
        env=unforced,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == ["finished", 10, "cpu", []]
    environment = json.loads((tmp_path / "run" / "environment.json").read_text())
    assert (environment["device"], environment["backend"]) == ("cpu", "gloo")


def test_float32_is_float32_whatever_was_set_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch's own default is TF32 for convolutions on a GPU."""
    backends, before = torch.backends, torch.get_float32_matmul_precision()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setattr(backends.cudnn, "allow_tf32", True)
    torch.set_float32_matmul_precision("high")
    assert backends.cuda.matmul.allow_tf32
    try:
        given_device(0)
        assert torch.get_float32_matmul_precision() == "highest"
        assert not backends.cuda.matmul.allow_tf32
        assert not backends.cudnn.allow_tf32
    finally:
        torch.set_float32_matmul_precision(before)
