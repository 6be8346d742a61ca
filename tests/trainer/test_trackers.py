"""A tracker that hangs, fails or is slow never stops a run, and what it missed is counted."""

from __future__ import annotations

import io
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import wandb
from PIL import Image

from data_pipeline import storage
from trainer.config import TrackingConfig
from trainer.records import run_directory
from trainer.records.jsonl import read_records
from trainer.records.run_directory import RunDirectory
from trainer.records.trackers import close_followers, open_followers, tensorboard
from trainer.records.trackers.follower import Follower, Reader
from trainer.records.trackers.pictures import PictureReader, picture_step
from trainer.records.trackers.prometheus import PrometheusReader
from trainer.records.trackers.tensorboard import TensorBoardReader
from trainer.records.trackers.weights_and_biases import WandbReader

Record = dict[str, Any]


def record(step: int, **more: Any) -> Record:
    return {"time": 100.0 + step, "step": step, "steps": 9, "loss": 1 / step, "note": "text"} | more


class Kept:
    """Keeps what it is given, once it is let."""

    def __init__(self, may_write: threading.Event) -> None:
        self.records: list[Record] = []
        self.closed = False
        self._may_write = may_write

    def write(self, given: Record) -> None:
        self._may_write.wait()
        self.records.append(given)

    def close(self) -> None:
        self.closed = True


class Failing(Kept):
    """Raises at every second record."""

    def write(self, given: Record) -> None:
        if given["step"] % 2:
            raise ConnectionError("gone")
        super().write(given)


@pytest.fixture
def never() -> Iterator[threading.Event]:
    """Set only when the test is over, so that its threads end."""
    event = threading.Event()
    yield event
    event.set()


@pytest.fixture
def at_once() -> threading.Event:
    event = threading.Event()
    event.set()
    return event


def feed(reader: Callable[[], Reader], records: int, most: int = 1000, seconds: float = 60.0) -> dict[str, int]:
    """What a reader missed of some records."""
    follower = Follower("reader", reader, most)
    for step in range(1, records + 1):
        follower.write(record(step))
    return close_followers([follower], seconds)


def test_a_reader_gets_all_records_in_their_order_and_is_closed(at_once: threading.Event) -> None:
    kept = Kept(at_once)
    assert feed(lambda: kept, 500) == {}
    assert [given["step"] for given in kept.records] == list(range(1, 501))
    assert kept.closed


def test_a_reader_that_hangs_for_ever_holds_nobody_up_and_what_it_missed_is_counted(never: threading.Event) -> None:
    assert feed(lambda: Kept(never), 1500, most=100, seconds=0.0) == {"reader": 1500}


def test_a_reader_that_hangs_at_its_start_holds_nobody_up(never: threading.Event) -> None:
    def start() -> Reader:
        never.wait()
        return Kept(never)

    assert feed(start, 7, seconds=0.0) == {"reader": 7}


def test_a_reader_that_does_not_start_is_said_and_counted(caplog: pytest.LogCaptureFixture) -> None:
    def start() -> Reader:
        raise RuntimeError("no account")

    assert feed(start, 7) == {"reader": 7}
    assert "the run goes on" in caplog.text


def test_a_reader_that_fails_at_a_record_gets_the_next(
    at_once: threading.Event, caplog: pytest.LogCaptureFixture
) -> None:
    failing = Failing(at_once)
    assert feed(lambda: failing, 8) == {"reader": 4}
    assert [given["step"] for given in failing.records] == [2, 4, 6, 8]
    assert caplog.text.count("the run goes on") == 1


def test_several_readers_that_hang_share_one_wait(never: threading.Event, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[float] = []
    monkeypatch.setattr(Follower, "join", lambda self, seconds: asked.append(seconds))
    monkeypatch.setattr(time, "monotonic", iter([100.0, 100.0, 104.0, 107.0]).__next__)
    followers = [Follower(str(number), lambda: Kept(never)) for number in range(3)]
    close_followers(followers, 5.0)
    assert asked == [5.0, 1.0, 0.0]


def test_a_run_ends_with_a_reader_that_hangs_and_says_what_it_missed(
    never: threading.Event, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(run_directory, "open_followers", lambda *_: [Follower("slow", lambda: Kept(never))])
    monkeypatch.setattr(run_directory, "close_followers", lambda followers: close_followers(followers, 0.0))
    records = RunDirectory(str(tmp_path), "generator", {}, 0)
    for step in range(1, 4):
        records.metrics(record(step))
    records.close()
    (dropped,) = [each for each in read_records(str(tmp_path / "events.jsonl")) if each["event"] == "dropped_records"]
    assert dropped["slow"] == 3
    assert len(read_records(str(tmp_path / "metrics.jsonl"))) == 3


# ---------------------------------------------------------------------------------------------------- each of them


def names(tracking: TrackingConfig, folder: Path) -> list[str]:
    followers = open_followers(tracking, str(folder), "generator", {})
    close_followers(followers)
    return [follower.name for follower in followers]


def test_the_config_says_who_is_shown_the_metrics(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(wandb, "init", lambda **_: pytest.fail("it was started"))
    monkeypatch.delenv("WANDB_MODE", raising=False)
    assert names(TrackingConfig(wandb="off"), tmp_path) == ["pictures", "prometheus"]
    assert names(TrackingConfig(wandb="off", tensorboard=True), tmp_path) == ["pictures", "prometheus", "tensorboard"]
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert names(TrackingConfig(), tmp_path) == ["pictures", "prometheus"]


def test_wandb_is_offline_beside_the_run_unless_told_otherwise(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    started: list[dict[str, Any]] = []
    logged: list[Record] = []

    class Run:
        def define_metric(self, *_: Any, **__: Any) -> None: ...
        def log(self, numbers: Record) -> None:
            logged.append(numbers)

        def finish(self) -> None: ...

    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setattr(wandb, "init", lambda **settings: started.append(settings) or Run())
    followers = open_followers(TrackingConfig(), str(tmp_path), "generator", {"seed": 1})
    for follower in followers:
        follower.write(record(2))
    assert close_followers(followers, 60.0) == {}
    (settings,) = started
    assert (settings["mode"], settings["dir"], settings["config"]) == ("offline", str(tmp_path), {"seed": 1})
    assert logged == [{"time": 102.0, "step": 2, "steps": 9, "loss": 0.5}]


@pytest.mark.slow
def test_wandb_itself_writes_a_run_beside_the_stage(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("WANDB_MODE", raising=False)
    reader = WandbReader(str(tmp_path), "generator", {"seed": 1})
    reader.write(record(2) | {"reconstructions": png(9)})
    reader.close()
    (run,) = (tmp_path / "wandb").glob("offline-run-*")
    (kept,) = run.glob("run-*.wandb")
    assert b"loss" in kept.read_bytes()
    assert len(list((run / "files" / "media" / "images").glob("reconstructions_*.png"))) == 1


@pytest.mark.slow
@pytest.mark.xdist_group("s3")
def test_an_offline_run_of_wandb_reaches_object_storage_and_leaves_nothing_here(
    s3_uri: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    reader = WandbReader(s3_uri, "generator", {"seed": 1})
    reader.write(record(2) | {"reconstructions": png(9)})
    reader.close()
    found = list(storage.walk(f"{s3_uri}/wandb"))
    (kept,) = (path for path in found if path.endswith(".wandb"))
    assert b"loss" in storage.read_bytes(f"{s3_uri}/wandb/{kept}")
    assert sum("/files/media/images/reconstructions_" in path for path in found) == 1
    assert not list(tmp_path.glob("wandb-*"))


def test_what_cannot_be_put_is_not_left_on_this_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    class Run:
        def define_metric(self, *_: Any, **__: Any) -> None: ...
        def finish(self) -> None:
            raise ConnectionError("gone")

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(wandb, "init", lambda **_: Run())
    reader = WandbReader("s3://bucket/run/generator", "generator", {})
    assert len(list(tmp_path.iterdir())) == 1
    with pytest.raises(ConnectionError):
        reader.close()
    assert not list(tmp_path.iterdir())


def scalars(path: Path) -> list[tuple[int, str, float]]:
    return [(step, value.tag, value.simple_value) for step, value in shown(path)]


def shown(path: Path) -> list[tuple[int, Any]]:
    """What an event file holds: records of length, checksum, protocol buffer, checksum."""
    from tensorboardX.proto.event_pb2 import Event

    data, found = path.read_bytes(), list[tuple[int, Any]]()
    while data:
        length = int.from_bytes(data[:8], "little")
        event = Event.FromString(data[12 : 12 + length])
        found += [(event.step, value) for value in event.summary.value]
        data = data[16 + length :]
    return found


def test_tensorboard_gets_the_numbers_of_each_record_at_its_step(tmp_path: Path) -> None:
    reader = TensorBoardReader(str(tmp_path))
    reader.write(record(1))
    reader.write(record(2, loss=None))
    reader.close()
    (path,) = (tmp_path / "tensorboard").iterdir()
    assert ".tfevents." in path.name
    assert scalars(path) == [(1, "steps", 9.0), (1, "loss", 1.0), (2, "steps", 9.0)]


def png(red: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (3, 2), (red, 0, 0)).save(buffer, format="PNG")
    return buffer.getvalue()


def test_pictures_become_files_that_sort_by_step_and_numbers_do_not(tmp_path: Path) -> None:
    reader = PictureReader(str(tmp_path))
    for step, red in ((10, 1), (9, 2), (10, 3)):
        reader.write(record(step) | {"reconstructions": png(red)})
    reader.write(record(11))
    reader.close()
    found = sorted((tmp_path / "pictures").iterdir())
    assert [picture_step(each.name, "reconstructions") for each in found] == [9, 10]
    assert [each.read_bytes() for each in found] == [png(2), png(3)]  # of a step that was done again, the last
    assert picture_step("reconstructions-000000010.png.part", "reconstructions") is None
    assert picture_step("samples-000000010.png", "reconstructions") is None


def test_tensorboard_shows_pictures(tmp_path: Path) -> None:
    reader = TensorBoardReader(str(tmp_path))
    reader.write({"time": 1.0, "step": 7, "reconstructions": png(9)})
    reader.close()
    (path,) = (tmp_path / "tensorboard").iterdir()
    ((step, value),) = shown(path)
    image = value.image
    assert (step, value.tag) == (7, "reconstructions")
    assert (image.width, image.height, image.colorspace, image.encoded_image_string) == (3, 2, 3, png(9))


def test_wandb_is_given_pictures(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    logged: list[Record] = []

    class Run:
        def define_metric(self, *_: Any, **__: Any) -> None: ...
        def log(self, numbers: Record) -> None:
            logged.append(numbers)

    monkeypatch.setattr(wandb, "init", lambda **_: Run())
    WandbReader(str(tmp_path), "tokenizer", {}).write({"step": 7, "reconstructions": png(9)})
    ((step, picture),) = [(each["step"], each["reconstructions"]) for each in logged]
    assert step == 7
    assert picture.image.getpixel((0, 0)) == (9, 0, 0)


@pytest.mark.xdist_group("s3")
def test_tensorboard_files_reach_object_storage(s3_uri: str, tmp_path: Path) -> None:
    reader = TensorBoardReader(s3_uri)
    reader.write(record(1))
    reader.close()
    (name,) = storage.list_names(f"{s3_uri}/tensorboard")
    (tmp_path / name).write_bytes(storage.read_bytes(f"{s3_uri}/tensorboard/{name}"))
    assert scalars(tmp_path / name) == [(1, "steps", 9.0), (1, "loss", 1.0)]
    assert not reader._local.exists()


def test_what_tensorboard_sends_to_object_storage_is_linear_in_the_records(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tensorboard, "_FILE_BYTES", 2000)
    uri, sent = f"memory://{uuid4().hex}", list[int]()
    write = storage.write_bytes
    monkeypatch.setattr(storage, "write_bytes", lambda at, data: sent.append(len(data)) or write(at, data))
    reader = TensorBoardReader(uri, upload_seconds=0)
    for step in range(1, 301):
        reader.write(record(step))
    reader.close()
    assert max(sent) < 2200
    found = list[tuple[int, str, float]]()
    for name in storage.list_names(f"{uri}/tensorboard"):  # in the order in which TensorBoard reads them
        (tmp_path / name).write_bytes(storage.read_bytes(f"{uri}/tensorboard/{name}"))
        found += [each for each in scalars(tmp_path / name) if each[1] == "loss"]
    assert [step for step, _, _ in found] == list(range(1, 301))


def test_prometheus_finds_the_newest_numbers_in_a_file(tmp_path: Path) -> None:
    reader = PrometheusReader(str(tmp_path), "generator", None)
    reader.write(record(1))
    reader.write(record(2) | {"loss": None, "loss_group0_fold1": 0.25})
    reader.close()
    lines = (tmp_path / "metrics.prom").read_text().splitlines()
    assert 'foldtrain_step{stage="generator"} 2.0' in lines
    assert 'foldtrain_loss{stage="generator"} NaN' in lines  # it was, and is no number any more
    assert 'foldtrain_loss_group0_fold1{stage="generator"} 0.25' in lines
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.prom"]


@pytest.mark.parametrize(
    ("local", "world", "asked", "host"),
    [
        ("2", "2", None, "127.0.0.1"),
        (None, None, None, "127.0.0.1"),
        ("2", "4", None, "0.0.0.0"),
        ("2", "4", "127.0.0.1", "127.0.0.1"),
        ("2", "2", "0.0.0.0", "0.0.0.0"),
    ],
)
def test_the_port_is_opened_on_the_loopback_device_where_all_workers_are_on_one_machine(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    tmp_path: Path,
    local: str | None,
    world: str | None,
    asked: str | None,
    host: str,
) -> None:
    for name, value in (("LOCAL_WORLD_SIZE", local), ("WORLD_SIZE", world)):
        if value is None:
            monkeypatch.delenv(name, raising=False)
        else:
            monkeypatch.setenv(name, value)
    reader = PrometheusReader(str(tmp_path), "generator", 0, asked)
    assert reader._server[0].server_address[0] == host
    assert ("open to whoever reaches port" in caplog.text) == (host == "0.0.0.0")
    reader.close()


def test_prometheus_may_ask_a_port_and_a_taken_one_costs_only_that(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = PrometheusReader(str(tmp_path), "generator", 0)
    second = PrometheusReader(str(tmp_path), "tokenizer", first.port)
    first.write(record(3))
    with urllib.request.urlopen(f"http://127.0.0.1:{first.port}/metrics") as answer:
        assert b'foldtrain_step{stage="generator"} 3.0' in answer.read()
    second.write(record(4))
    assert "step" in (tmp_path / "metrics.prom").read_text()
    assert second.port is None
    assert "prometheus_port" in caplog.text
    first.close()
    second.close()
