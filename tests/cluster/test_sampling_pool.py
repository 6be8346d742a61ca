"""Samples and rows of images on real Ray: one worker that two join, of whom one is killed, does as one process."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cluster.config.run import ClusterConfig
from cluster.pool.measuring import MeasureWork, measure_all
from cluster.pool.sampling import SampleWork, draw_all, fingerprints
from cluster.pool.scale import write_scale
from cluster.pool.shard_worker import Advance, MakeShard
from cluster.session.ray_session import ray_session
from data_pipeline import storage
from data_pipeline.images.transforms import Pixels
from tests.cluster.random_run import NAMES, write_run
from tests.conftest import ROOT
from trainer.config import SamplingConfig
from trainer.evaluation.measures import ImageMeasure, Rows
from trainer.evaluation.row_files import RowPlan, StoredRows
from trainer.evaluation.row_files import begin as begin_rows
from trainer.evaluation.samples.label_plan import plan_of
from trainer.evaluation.samples.sample_files import SamplePlan
from trainer.evaluation.set_numbers import statistics
from trainer.evaluation.sets import Labels, NpzSet
from trainer.metrics.frechet import FeatureStatistics, frechet_distance
from trainer.stages.trained_generator import GeneratorSource

pytestmark = [pytest.mark.drill, pytest.mark.xdist_group("drill")]

PARTS, PART_IMAGES = 12, 4
KILLED = "killed"


@pytest.fixture(scope="module")
def cluster() -> Iterator[ClusterConfig]:
    """A Ray of three CPUs."""
    before = dict(os.environ)
    os.environ["PYTHONPATH"] = str(ROOT)  # workers have to find this file, too
    with ray_session(ClusterConfig(workers=3)):
        yield ClusterConfig(workers=1)
    os.environ.clear()
    os.environ.update(before)


@dataclass(frozen=True)
class Watched(SampleWork):
    """Asks for three workers in its first part, waits in its second until they are there, and dies in its fifth."""

    log: str = ""

    def open(self, threads: int) -> MakeShard:
        make, log = super().open(threads), Path(self.log)
        (log / f"opened-{os.getpid()}").touch()

        def watched(part: int, advance: Advance) -> dict[str, Any]:
            if part == 0:
                write_scale(self.plan.folder, 3, 3)
            while part == 1 and len(list(log.glob("opened-*"))) < 3:
                threading.Event().wait(0.05)
            if part == 4 and not (log / KILLED).exists():
                (log / KILLED).write_text(str(os.getpid()))
                os.kill(os.getpid(), signal.SIGKILL)
            facts = make(part, advance)
            with (log / f"made-{part}").open("a") as file:
                file.write(f"{os.getpid()}\n")
            return facts

        return watched


def work_of(run: Path, output: Path) -> SampleWork:
    source, tokenizer = GeneratorSource(str(run / "generator/export")), str(run / "tokenizer/export")
    config = SamplingConfig(cpu_batch=4)
    plan = SamplePlan(str(output), "png", plan_of(range(len(NAMES)), PARTS * PART_IMAGES - 1), PART_IMAGES, {"seed": 5})
    blank = SampleWork(plan, source, tokenizer, config, 5, {})
    return replace(blank, fingerprints=fingerprints(blank.load(torch.device("cpu")), ema=True))


def hashes(folder: Path) -> dict[str, str]:
    return {path.name: storage.sha256(path.read_bytes()) for path in folder.glob("*.png")}


def test_three_workers_of_which_one_is_killed_give_the_files_of_one_process(
    cluster: ClusterConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = write_run(tmp_path / "run")
    here = work_of(run, tmp_path / "here")
    assert draw_all(here, NAMES, {}, here.load(torch.device("cpu"))) == 47
    log = tmp_path / "log"
    log.mkdir()
    monkeypatch.setattr("cluster.pool.shard_pool._CONTROL_SECONDS", 0)
    plain = work_of(run, tmp_path / "pool")
    work = Watched(**{name: getattr(plain, name) for name in plain.__dataclass_fields__}, log=str(log))
    assert draw_all(work, NAMES, {}, cluster) == 47
    assert hashes(tmp_path / "pool") == hashes(tmp_path / "here")
    assert len(hashes(tmp_path / "pool")) == 47 + 1  # and the grid
    makers = {part: (log / f"made-{part}").read_text().split() for part in range(PARTS)}
    assert all(len(pids) == 1 for pids in makers.values())
    assert makers[4] != [(log / KILLED).read_text()]
    assert makers[0] == makers[1]  # the first worker went on while the others joined
    assert len(list(log.glob("opened-*"))) == 3 + 1  # and one in place of the one that was killed
    one, other = (json.loads((tmp_path / each / "sampling.json").read_text()) for each in ("here", "pool"))
    assert one["sha256_of_parts"] == other["sha256_of_parts"]
    progress = json.loads((tmp_path / "pool/progress.json").read_text())
    assert (progress["state"], progress["images_done"], progress["shards_done"]) == ("finished", 47, PARTS)
    assert not (tmp_path / "pool/control.json").exists()


# ----------------------------------------------------------------------------------------------------- rows of images


@dataclass(frozen=True)
class Colours:
    """A measure: means and deviations of the colours of an image."""

    def identity(self) -> dict[str, Any]:
        return {"kind": "colours"}

    def open(self, device: torch.device) -> ImageMeasure:
        def measured(pixels_BHWC: Pixels, label_B: Labels, first: int) -> Rows:
            values = pixels_BHWC.reshape(len(pixels_BHWC), -1, 3).astype(np.float32) / device_scale(device)
            return {"colours.features": np.concatenate([values.mean(1), values.std(1)], axis=1)}

        return measured


def device_scale(device: torch.device) -> float:
    assert device.type == "cpu"
    return 255


@dataclass(frozen=True)
class WatchedMeasure(MeasureWork):
    """Asks for three workers in its first part, and dies once in its third."""

    log: str = ""

    def open(self, threads: int) -> MakeShard:
        make, log = super().open(threads), Path(self.log)

        def watched(part: int, advance: Advance) -> dict[str, Any]:
            if part == 0:
                write_scale(self.plan.folder, 3, 3)
            if part == 2 and not (log / KILLED).exists():
                (log / KILLED).write_text(str(os.getpid()))
                os.kill(os.getpid(), signal.SIGKILL)
            return make(part, advance)

        return watched


def measure_of(images: NpzSet, folder: Path) -> MeasureWork:
    plan = RowPlan(str(folder), images.identity(), Colours().identity(), images.count, 64)
    return MeasureWork(plan, images, Colours())


def test_rows_on_workers_that_join_and_die_are_those_of_one_process_to_the_bit(
    cluster: ClusterConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cluster.pool.shard_pool._CONTROL_SECONDS", 0)
    np.savez(tmp_path / "images.npz", np.random.default_rng(0).integers(0, 256, (2600, 8, 8, 3), np.uint8))
    images, log = NpzSet.of(str(tmp_path / "images.npz")), tmp_path / "log"
    log.mkdir()
    here = measure_all(measure_of(images, tmp_path / "here"), torch.device("cpu"))

    plain = measure_of(images, tmp_path / "pool")
    work = WatchedMeasure(**{name: getattr(plain, name) for name in plain.__dataclass_fields__}, log=str(log))
    pool = measure_all(work, cluster)

    assert (log / KILLED).exists()
    assert pool.finished.pixels == here.finished.pixels
    np.testing.assert_array_equal(pool.column("colours.features"), here.column("colours.features"))
    assert frechet(here) == frechet(pool) > 0


def test_rows_that_one_process_began_are_finished_by_workers(cluster: ClusterConfig, tmp_path: Path) -> None:
    np.savez(tmp_path / "images.npz", np.random.default_rng(1).integers(0, 256, (1100, 8, 8, 3), np.uint8))
    images = NpzSet.of(str(tmp_path / "images.npz"))
    work = measure_of(images, tmp_path / "rows")
    begin_rows(work.plan)
    work.on(torch.device("cpu"))(1, lambda _images: None)
    written = storage.stat(work.plan.uri(1))

    rows = measure_all(work, cluster)

    assert storage.stat(work.plan.uri(1)) == written
    expected = measure_all(measure_of(images, tmp_path / "whole"), torch.device("cpu"))
    np.testing.assert_array_equal(rows.column("colours.features"), expected.column("colours.features"))


def frechet(rows: StoredRows) -> float:
    """From images of one colour more or less."""
    width = rows.column("colours.features").shape[1]
    return frechet_distance(statistics(rows, "colours.features"), FeatureStatistics(np.zeros(width), np.eye(width)))
