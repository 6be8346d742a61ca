"""A second driver on a stage is refused by name, before it has changed anything."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from cluster.config.loading import load_config
from cluster.pool import tokenizing
from cluster.stages.pipeline import run_stage
from cluster.training import stage as training
from data_pipeline.leases.lease import LeaseHeldError, only_driver
from data_pipeline.leases.lease_record import Holder
from tests.data_pipeline.small_data import write_photos


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@contextmanager
def no_ray(*_: Any) -> Iterator[None]:
    yield


@pytest.fixture
def run(small_config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Runs a stage in a working directory with pictures, without Ray."""
    monkeypatch.chdir(tmp_path)
    write_photos(tmp_path / "pictures")
    for module in (tokenizing, training):
        monkeypatch.setattr(module, "ray_session", no_ray)
        monkeypatch.setattr(module, "require_gpus", lambda *_: None)
    return lambda name, *overrides: run_stage(name, load_config(small_config, overrides))


def test_a_second_ingest_is_refused_and_changes_nothing(run: Callable[..., None], tmp_path: Path) -> None:
    images = tmp_path / "runs/small/images"
    with only_driver(str(images), "ingest"):
        before = files(images)
        with pytest.raises(LeaseHeldError, match=r"images: another driver is at work there: ingest on"):
            run("ingest")
        assert files(images) == before
    run("ingest")
    assert (images / "train/manifest.json").exists()


def test_a_second_training_is_refused_and_changes_nothing(run: Callable[..., None], tmp_path: Path) -> None:
    run("ingest")
    stage = tmp_path / "runs/small/tokenizer"
    with only_driver(str(stage), "training of tokenizer"):
        before = files(stage)
        with pytest.raises(LeaseHeldError, match="tokenizer"):
            run("train-tokenizer", "teacher=null")
        assert files(stage) == before


def test_a_training_hands_its_lease_to_its_workers(
    run: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run("ingest")
    jobs: list[Any] = []
    monkeypatch.setattr(training, "_train", lambda job, *_: jobs.append(job) or training.Trained(0, "stopped", False))
    run("train-tokenizer", "teacher=null")
    (job,) = jobs
    assert (job.lease.folder, job.lease.number) == (str(tmp_path / "runs/small/tokenizer"), 1)


def test_a_second_tokenize_is_refused_and_changes_nothing(
    run: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens = tmp_path / "runs/small/tokens"
    plan = SimpleNamespace(output=str(tokens), shards=[], samples=0)
    monkeypatch.setattr(tokenizing, "check_images", lambda _: None)
    monkeypatch.setattr(tokenizing.weights, "read_card", lambda *_: None)
    monkeypatch.setattr(tokenizing, "plan_tokens", lambda *_: plan)
    monkeypatch.setattr(tokenizing, "read_commits", lambda _: SimpleNamespace(missing=np.zeros(1, np.int64)))
    with only_driver(str(tokens), "tokenize"):
        before = files(tokens)
        with pytest.raises(LeaseHeldError, match="tokens: another driver"):
            run("tokenize")
        assert files(tokens) == before


def test_an_ingest_that_another_driver_took_over_ends(
    run: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cluster.pool import ingesting
    from data_pipeline import storage
    from data_pipeline.leases.lease import LeaseLostError

    images = tmp_path / "runs/small/images"
    write, written = ingesting.write_shard, list[str]()

    def succeeded(*arguments: Any) -> Any:
        written.append("shard")
        storage.write_json(str(images / "lease/000002.json"), Holder.here("another ingest", 30).record())
        (lease,) = taken
        lease._confirmed -= 1000
        return write(*arguments)

    taken: list[Any] = []
    start = ingesting.only_driver

    @contextmanager
    def noted(*arguments: Any) -> Iterator[Any]:
        with start(*arguments) as lease:
            taken.append(lease)
            yield lease

    monkeypatch.setattr(ingesting, "only_driver", noted)
    monkeypatch.setattr(ingesting, "write_shard", succeeded)
    with pytest.raises(LeaseLostError, match="another ingest"):
        run("ingest", "data.shard_samples=5")
    assert written == ["shard"]
    assert not (images / "train/manifest.json").exists()
