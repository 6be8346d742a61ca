"""The pool on real Ray: whatever happens to a worker or a shard, what can be made is made, and the rest is named."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from cluster.config.loading import load_config
from cluster.config.run import ClusterConfig, RunConfig
from cluster.pool import ingesting
from cluster.pool.pool_progress import PoolProgress
from cluster.pool.ray_pool import PoolSize, RayPool, Resized, WorkerNeeds
from cluster.pool.scale import write_scale
from cluster.pool.shard_ledger import Report
from cluster.pool.shard_pool import PoolSettings, Shards, make_shards
from cluster.pool.shard_worker import Advance, MakeShard
from cluster.session.head_watch import HeadLostError
from cluster.session.ray_session import ray_session
from data_pipeline.errors import FoldtrainError, UsageError
from data_pipeline.ingest.ingesting import ingest
from tests.conftest import ROOT
from tests.data_pipeline.small_data import contents, write_photos

pytestmark = [pytest.mark.drill, pytest.mark.xdist_group("drill")]


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """A Ray of two CPUs for all tests here."""
    before = dict(os.environ)
    os.environ["PYTHONPATH"] = str(ROOT)  # workers have to find this file, too
    with ray_session(ClusterConfig(workers=2)):
        yield
    os.environ.clear()
    os.environ.update(before)


@dataclass(frozen=True)
class Files:
    """Work that writes a file per shard, or does what is said of it instead."""

    folder: str
    behaviours: tuple[str, ...]

    def open(self, threads: int) -> MakeShard:
        if (Path(self.folder) / "wrong").exists():
            raise UsageError("the tokenizer is another one")
        (Path(self.folder) / f"opened-{os.getpid()}").touch()
        if "dies once, and opens slowly" in self.behaviours and (Path(self.folder) / "s0.tar.tried").exists():
            self._wait_for("kept-3", 1)

        def make(number: int, advance: Advance) -> dict[str, Any]:
            name = f"s{number}.tar"
            first = self._is_first(name)
            self._note("begun", number)
            match self.behaviours[number]:
                case "raises":
                    raise ValueError("this shard is poison")
                case "dies":
                    os.kill(os.getpid(), signal.SIGKILL)
                case "dies once" | "dies once, and opens slowly" if first:
                    os.kill(os.getpid(), signal.SIGKILL)
                case "hangs once" if first:
                    threading.Event().wait()
                case "scales and hangs once" if first:
                    write_scale(self.folder, 2, 2)
                    threading.Event().wait()
                case "grows":
                    write_scale(self.folder, 3, 3)
                    self._wait_for("opened-*", 3)
                case "shrinks":
                    self._wait_for("begun-*", number + 1 + 2)  # with the two that wait for the same
                    write_scale(self.folder, 2, 2)
                    self._wait_for("resized-2", 1)
                case "waits":
                    self._wait_for("resized-2", 1)
            advance(1)
            (Path(self.folder) / name).write_text(f"made by {os.getpid()}")
            self._note("made", number)
            return {"pid": os.getpid()}

        return make

    def _note(self, what: str, number: int) -> None:
        with (Path(self.folder) / f"{what}-{number}").open("a") as file:
            file.write(f"{os.getpid()}\n")

    def _wait_for(self, pattern: str, count: int) -> None:
        while len(list(Path(self.folder).glob(pattern))) < count:
            threading.Event().wait(0.02)

    def _is_first(self, name: str) -> bool:
        try:
            (Path(self.folder) / f"{name}.tried").touch(exist_ok=False)
        except FileExistsError:
            return False
        return True


MakeAll = Callable[..., list[dict[str, Any]]]


@pytest.fixture
def make_all(cluster: None, tmp_path: Path) -> MakeAll:
    """Makes shards that behave in the given ways, in a pool of two; returns what the workers said of those made."""

    def make(
        *behaviours: str, patience: float = 60.0, max_attempts: int = 2, cpus: float = 1, most: int = 2
    ) -> list[dict[str, Any]]:
        shards = Shards(np.arange(len(behaviours)), lambda number: f"s{number}.tar", lambda _number: 1)
        needs, said = WorkerNeeds(cpus, 0), []
        settings = PoolSettings("test", str(tmp_path), PoolSize(1, most), needs, max_attempts, patience)
        with PoolProgress("test", str(tmp_path), len(behaviours), len(behaviours), 0, 0) as progress:
            work = Files(str(tmp_path), behaviours)
            make_shards(work, shards, settings, progress, lambda number, facts: said.append({"number": number} | facts))
        return said

    return make


def made(folder: Path) -> set[str]:
    return {path.name for path in folder.glob("*.tar")}


def test_a_shard_whose_worker_was_killed_is_made_by_another(make_all: MakeAll, tmp_path: Path) -> None:
    said = make_all("well", "dies once", "well", "well")
    assert sorted(facts["number"] for facts in said) == [0, 1, 2, 3]
    assert made(tmp_path) == {"s0.tar", "s1.tar", "s2.tar", "s3.tar"}
    assert not (tmp_path / "quarantine").exists()


def test_a_worker_that_was_killed_keeps_its_shard_while_it_opens_again_though_none_is_left_to_begin(
    make_all: MakeAll, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep = RayPool.keep

    def noted(pool: RayPool, report: Report) -> None:
        keep(pool, report)
        if len(list(tmp_path.glob("opened-*"))) == 2:  # its second process
            (tmp_path / f"kept-{len(list(tmp_path.glob('kept-*'))) + 1}").touch()

    monkeypatch.setattr(RayPool, "keep", noted)
    assert len(make_all("dies once, and opens slowly", most=1)) == 1
    assert len(list(tmp_path.glob("opened-*"))) == 2  # no other pool was started


def test_poison_is_set_aside_with_its_reason_and_all_else_is_made(make_all: MakeAll, tmp_path: Path) -> None:
    with pytest.raises(FoldtrainError) as error:
        make_all("raises", "dies", "well", "well")
    assert error.value.exit_code == 1
    assert "s0.tar (2 tries" in str(error.value)
    assert "ValueError: this shard is poison" in str(error.value)
    assert "s1.tar (2 tries" in str(error.value)
    assert "run the same command again" in str(error.value)
    assert made(tmp_path) == {"s2.tar", "s3.tar"}
    record = json.loads((tmp_path / "quarantine" / "s0.json").read_text())
    assert (record["shard"], record["attempts"]) == ("s0.tar", 2)
    assert record["reason"] == "ValueError: this shard is poison"
    assert "its process ended" in json.loads((tmp_path / "quarantine" / "s1.json").read_text())["reason"]


def test_a_shard_of_a_hung_worker_is_made_by_another_and_the_run_ends(make_all: MakeAll, tmp_path: Path) -> None:
    make_all("well", "hangs once", "well", patience=2.0)
    assert made(tmp_path) == {"s0.tar", "s1.tar", "s2.tar"}


def test_a_hung_worker_does_not_stop_a_pool_that_is_scaled(make_all: MakeAll, tmp_path: Path) -> None:
    make_all("well", "scales and hangs once", "well", patience=2.0)
    assert made(tmp_path) == {"s0.tar", "s1.tar", "s2.tar"}


def test_a_pool_grows_by_workers_that_join_and_shrinks_by_one_that_leaves_and_all_others_go_on(
    make_all: MakeAll, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cluster.pool.shard_pool._CONTROL_SECONDS", 0.0)
    resize, holders = RayPool.resize, {}

    def noted(pool: RayPool, most: int, report: Report) -> Resized:
        change = resize(pool, most, report)
        holders.update({shard.worker: shard.number for shard in report.in_flight if shard.worker in change.leaving})
        (tmp_path / f"resized-{most}").touch()
        return change

    monkeypatch.setattr(RayPool, "resize", noted)
    after = 9
    said = make_all("grows", *["well"] * 5, "shrinks", "waits", "waits", *["well"] * after, cpus=0.5, most=1)
    made = {number: (tmp_path / f"made-{number}").read_text().split() for number in range(9 + after)}
    assert sorted(facts["number"] for facts in said) == list(range(9 + after))
    assert all(len(pids) == 1 for pids in made.values())  # each shard once
    pids = {path.name.removeprefix("opened-") for path in tmp_path.glob("opened-*")}
    assert len(pids) == 3  # who was there at any size: no worker was started again
    ((_, in_hand),) = holders.items()
    (gone,) = made[in_hand]  # it ended its shard first
    assert {pid for number in range(9, 9 + after) for pid in made[number]} <= pids - {gone}


def test_an_error_that_concerns_every_shard_stops_the_run_at_once(make_all: MakeAll, tmp_path: Path) -> None:
    (tmp_path / "wrong").touch()
    with pytest.raises(UsageError, match="the tokenizer is another one"):
        make_all("well", "well")
    assert made(tmp_path) == set()


def test_what_was_set_aside_is_tried_again_however_many_workers_are_asked_for(
    make_all: MakeAll, tmp_path: Path
) -> None:
    (tmp_path / "quarantine").mkdir()
    (tmp_path / "quarantine" / "s0.json").write_text("{}")
    write_scale(str(tmp_path), 50, 50)  # more than fit are no reason to wait
    make_all("well", "well")
    assert made(tmp_path) == {"s0.tar", "s1.tar"}
    assert list((tmp_path / "quarantine").iterdir()) == []
    record = json.loads((tmp_path / "progress.json").read_text())
    assert (record["state"], record["shards_done"], record["shards"], record["images_done"]) == ("finished", 2, 2, 2)


def test_ingest_on_the_pool_gives_the_bytes_of_ingest_in_one_process(
    cluster: None, small_config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos = write_photos(tmp_path / "photos")
    overrides = ["data.shard_samples=7", "data.validation_samples=4", f"data.source.path={photos}"]
    config: RunConfig = load_config(small_config, [*overrides, f"run={tmp_path / 'run'}"])
    ingest(config.data, str(tmp_path / "here"), config.seed)
    monkeypatch.setattr(ingesting, "FEW_IMAGES", 0)
    write_scale(str(tmp_path / "run" / "images"), 1, 2)
    assert ingesting.ingest(config) == 20
    assert not (tmp_path / "run" / "images" / "control.json").exists()  # it was of this run
    for of_the_run in ("progress.json", "config.yaml", "lease/000001.json"):
        (tmp_path / "run" / "images" / of_the_run).unlink()
    assert contents(tmp_path / "run" / "images") == contents(tmp_path / "here")


def test_without_rays_head_a_pool_ends_at_once_and_asks_it_for_nothing(
    make_all: MakeAll, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cluster.pool.shard_pool.watch_head", lambda _: nullcontext(SimpleNamespace(lost=True)))
    killed: list[object] = []
    monkeypatch.setattr("ray.kill", killed.append)
    with pytest.raises(HeadLostError, match=r"^test: Ray's head .* the same command makes the rest"):
        make_all("hangs once")
    assert killed == []
