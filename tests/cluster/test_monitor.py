"""The monitor tells from a run's files alone how each stage stands."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from rich.console import Console

from cluster.monitor import monitor_view
from cluster.monitor.monitor_view import Watch, frame, show
from cluster.monitor.stage_readers import read_training, usual_gap
from cluster.monitor.stage_view import StageView
from cluster.monitor.watching import MOST_REQUESTS, RunReader, read_run
from cluster.pool.pool_progress import PoolProgress
from data_pipeline import storage
from data_pipeline.errors import FoldtrainError, StorageAwayError, UsageError
from trainer.records.jsonl import JsonlWriter, read_last_records

NOW = 1_000_000.0
SLOW_NODE = ((1, "node1", 90.0), (2, "node1", 80.0), (3, "node2", 20.0))


def metric(step: int, age: float, **more: Any) -> dict[str, Any]:
    """A record that a training stage wrote `age` seconds ago."""
    base = {"time": NOW - age, "step": step, "steps": 100, "loss": 5.0 / step, "samples_per_second": 250.0}
    return base | {"eta_seconds": 75.0, "skipped_steps": 0} | more


def event(name: str, step: int, age: float, **more: Any) -> dict[str, Any]:
    return {"time": NOW - age, "event": name, "step": step} | more


def write_lines(path: Path, records: list[dict[str, Any]], tail: str = "") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records) + tail)


def stage(run: Path, metrics: list[dict[str, Any]], events: list[dict[str, Any]], name: str = "generator") -> StageView:
    """What is read of a stage that left these records."""
    write_lines(run / name / "metrics.jsonl", metrics)
    write_lines(run / name / "events.jsonl", events)
    view = read_training(str(run / name), name, NOW)
    assert view is not None
    return view


def shown(run: str, views: list[StageView], width: int = 200) -> str:
    console = Console(width=width)
    with console.capture() as captured:
        console.print(frame(run, views, NOW, width))
    return captured.get()


def test_a_stage_that_just_wrote_is_running(tmp_path: Path) -> None:
    view = stage(tmp_path, [metric(10, 20), metric(20, 5)], [event("start", 0, 30)])
    assert (view.status, view.done, view.total, view.rate, view.eta) == ("running", 20, 100, 250.0, 75.0)
    assert view.losses == (0.5, 0.25)


def test_a_stage_that_has_been_quiet_is_stalled(tmp_path: Path) -> None:
    view = stage(tmp_path, [metric(10, 310), metric(20, 300)], [event("start", 0, 320)])
    assert (view.status, view.age, view.eta) == ("stalled", 300.0, None)


def test_a_stage_that_writes_seldom_may_be_quiet_for_longer(tmp_path: Path) -> None:
    view = stage(tmp_path, [metric(10, 1200), metric(20, 700), metric(30, 200)], [event("start", 0, 1300)])
    assert view.status == "running"


def test_a_finished_stage_stays_finished_however_old(tmp_path: Path) -> None:
    view = stage(tmp_path, [metric(100, 9e5)], [event("start", 0, 9e5), event("finish", 100, 9e5)])
    assert (view.status, view.eta) == ("finished", None)


def test_a_failure_shows_until_the_stage_goes_on(tmp_path: Path) -> None:
    events = [event("start", 0, 50), event("failure", 10, 40)]
    assert stage(tmp_path, [metric(10, 41)], events).status == "failed"
    assert stage(tmp_path, [metric(10, 41)], [*events, event("resume", 10, 5)]).status == "running"


def test_a_stage_that_was_stopped_is_not_taken_for_a_stalled_one_but_one_that_is_resized_is_running(
    tmp_path: Path,
) -> None:
    for ending, status in (("stopped", "stopped"), ("paused", "running")):
        events = [event("start", 0, 50), event("stop", 10, 40) | {"ending": ending}]
        assert stage(tmp_path / ending, [metric(10, 41)], events).status == status


def test_restarts_and_skipped_steps_are_counted(tmp_path: Path) -> None:
    events = [event("start", 0, 50), event("resume", 5, 40, lost_steps=2), event("resume", 7, 30)]
    view = stage(tmp_path, [metric(10, 5, skipped_steps=3)], events)
    assert (view.restarts, view.skipped) == (2, 3)
    assert "generator: 3 skipped steps, 2 restarts" in shown("r", [view])
    assert "resume at step 5, lost steps 2" in [happened.text for happened in view.events]


def test_spikes_and_what_was_passed_over_for_them_are_counted(tmp_path: Path) -> None:
    spike = event("spike", 9, 30, action="rollback", back_to=5, skip=[8, 10])
    happened = [event("start", 0, 50), spike, event("spike_samples", 9, 30, keys=["image7"]), event("rollback", 5, 29)]
    view = stage(tmp_path, [metric(12, 5, passed_over_steps=2)], happened)
    text = shown("r", [view])
    assert "generator: 1 loss spike, 2 steps passed over" in text
    assert "spike at step 9, action rollback, back to 5, skip [8, 10]" in text
    assert "image7" not in text


def test_a_running_stage_shows_the_share_of_training_and_one_that_ended_all_causes(tmp_path: Path) -> None:
    running = stage(tmp_path, [metric(10, 5, goodput=0.625)], [event("start", 0, 50)])
    assert "generator: time: training 62%" in shown("r", [running])
    shares = {"start_up": 0.25, "training": 0.7, "lost_steps": 0.05, "shutdown": 0.0}
    happened = [event("start", 0, 50), event("finish", 10, 4), event("goodput", 10, 4, shares=shares)]
    ended = stage(tmp_path, [metric(10, 5, goodput=0.72)], happened)
    assert "generator: time: training 70%, start up 25%, lost steps 5%" in shown("r", [ended])
    assert "goodput at" not in shown("r", [ended])


def test_a_stage_that_only_started_is_shown(tmp_path: Path) -> None:
    write_lines(tmp_path / "generator" / "events.jsonl", [event("start", 0, 1)])
    (view,) = read_run(str(tmp_path), NOW)
    assert (view.status, view.done, view.total) == ("running", 0, None)


def test_a_half_written_last_line_is_left_out(tmp_path: Path) -> None:
    write_lines(tmp_path / "m.jsonl", [metric(1, 9), metric(2, 8)], tail='{"time": 99, "st')
    assert [record["step"] for record in read_last_records(str(tmp_path / "m.jsonl"))] == [1, 2]


def test_of_a_long_file_only_the_end_is_read_and_no_cut_line(tmp_path: Path) -> None:
    write_lines(tmp_path / "m.jsonl", [metric(step, 5, note="x" * 200) for step in range(1, 3001)])
    steps = [record["step"] for record in read_last_records(str(tmp_path / "m.jsonl"), 256 * 1024)]
    assert steps == list(range(steps[0], 3001))
    assert 300 < len(steps) < 3000


def test_numbers_that_are_not_finite_do_not_break_it(tmp_path: Path) -> None:
    view = stage(tmp_path, [metric(1, 9, loss=float("nan")), metric(2, 5, samples_per_second="?")], [])
    assert (view.losses, view.rate) == ((2.5,), None)
    assert "generator" in shown("r", [view])


def test_tokenize_is_read_from_its_progress(tmp_path: Path) -> None:
    progress = {"time": NOW - 3, "shards_done": 3, "shards": 12, "images_per_second": 90.5, "workers": 2}
    storage.write_json(str(tmp_path / "tokens" / "progress.json"), progress | {"eta_seconds": 63})
    (view,) = read_run(str(tmp_path), NOW)
    assert (view.status, view.done, view.total, view.workers, view.eta) == ("running", 3, 12, 2, 63.0)
    assert "3/12 shards 25%" in shown("r", [view])
    assert "tokens: 2 workers" in shown("r", [view])


def test_tokenize_is_finished_when_its_manifest_is_there(tmp_path: Path) -> None:
    storage.write_json(str(tmp_path / "tokens" / "progress.json"), {"time": 1, "shards_done": 2, "shards": 2})
    storage.write_json(str(tmp_path / "tokens" / "manifest.json"), {})
    assert [view.status for view in read_run(str(tmp_path), NOW)] == ["finished"]


def test_stages_come_in_the_order_in_which_they_run(tmp_path: Path) -> None:
    storage.write_json(str(tmp_path / "tokens" / "progress.json"), {"time": NOW, "shards_done": 0, "shards": 2})
    for name in ("generator", "teacher", "tokenizer", "judge"):
        stage(tmp_path, [metric(1, 1)], [], name)
    names = [view.name for view in read_run(str(tmp_path), NOW)]
    assert names == ["teacher", "judge", "tokenizer", "tokens", "generator"]


def test_a_frame_shows_what_one_wants_to_know(tmp_path: Path) -> None:
    view = stage(tmp_path, [metric(1, 9), metric(50, 5)], [event("start", 0, 9), event("checkpoint", 50, 5)])
    text = shown("s3://b/run", [view])
    for part in (
        "s3://b/run",
        "running",
        "50/100 steps 50%",
        "0.1",
        "█▁",
        "250.0",
        "1m 15s",
        "checkpoint at step 50",
    ):
        assert part in text


def test_a_frame_fits_a_terminal_of_80_columns(tmp_path: Path) -> None:
    long = [metric(step, 900 - step, steps=1_000_000, samples_per_second=12345.6) for step in range(1, 600)]
    view = stage(tmp_path, long, [event("start", 0, 9)], "tokenizer")
    table = shown("r", [view], width=80).splitlines()[1:3]
    assert ["599/1,000,000 steps 0%" in table[1], "…" in "".join(table)] == [True, False]


def test_what_a_run_says_is_not_markup(tmp_path: Path) -> None:
    view = stage(tmp_path, [metric(1, 1)], [event("[red]odd[/]", 1, 1)])
    assert "[red]odd[/] at step 1" in shown("[bold]run", [view])


@pytest.mark.parametrize("made", [(), ("images/config.yaml",)])
def test_an_empty_run_is_said_to_be_empty(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], made: tuple[str, ...]
) -> None:
    for name in made:
        storage.write_bytes(str(tmp_path / name), b"")
    show(str(tmp_path), once=True, interval=1)
    assert "nothing has begun in this run" in capsys.readouterr().out


@pytest.mark.parametrize("once", [True, False])
@pytest.mark.parametrize(
    ("run", "hint"),
    [
        ("runs/frist", r"no run at runs/frist, .* did you mean runs/first\?"),
        ("elsewhere", r"no run at elsewhere, .* give the folder that `run` names"),
        ("runs", r"runs is no run: it holds first; did you mean runs/first\?"),
        ("notes", r"notes is no run: it holds todo.txt; a run has .*tokenizer"),
        ("notes/todo.txt", "no run at notes/todo.txt"),
    ],
)
def test_a_mistyped_run_is_an_error_and_what_may_be_meant_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: str, hint: str, *, once: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    stage(tmp_path / "runs/first", [metric(1, 1)], [event("start", 0, 1)])
    storage.write_bytes(str(tmp_path / "notes/todo.txt"), b"")
    with pytest.raises(UsageError, match=hint):
        show(run, once=once, interval=0)


def looked(watch: Watch, now: float = NOW) -> str:
    console = Console(width=200)
    with console.capture() as captured:
        console.print(watch.look(now, 200))
    return captured.get()


def test_while_storage_is_away_the_last_view_is_shown_with_its_time_and_then_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage(tmp_path, [metric(10, 5)], [event("start", 0, 50)])
    watch = Watch(str(tmp_path))
    assert "10/100 steps" in looked(watch)

    def away(*_: object) -> list[StageView]:
        raise StorageAwayError("the server does not answer")

    with monkeypatch.context() as patch:
        patch.setattr(RunReader, "look", away)
        shown_meanwhile = looked(watch, NOW + 500)
    assert "storage cannot be read, this is from" in shown_meanwhile
    assert "trying again. the server does not answer" in shown_meanwhile
    assert "10/100 steps" in shown_meanwhile
    assert "running" in shown_meanwhile
    stage(tmp_path, [metric(20, 5)], [event("start", 0, 50)])
    assert ["20/100 steps" in looked(watch), "trying again" in looked(watch)] == [True, False]


def test_a_server_that_never_answered_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as closed:  # bound, and never listening: a connection is refused
        closed.bind(("127.0.0.1", 0))
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{closed.getsockname()[1]}")
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "x")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "x")
        monkeypatch.setattr(monitor_view, "_PATIENCE_SECONDS", 0.01)
        text = looked(Watch("s3://bucket/run"))
    assert "storage cannot be read, nothing was seen yet; trying again" in text


def test_a_refusal_that_does_not_pass_ends_the_first_look_and_no_later_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object) -> list[StageView]:
        raise FoldtrainError("access is denied")

    stage(tmp_path, [metric(10, 5)], [event("start", 0, 50)])
    seen = Watch(str(tmp_path))
    looked(seen)
    monkeypatch.setattr(RunReader, "look", refused)
    with pytest.raises(FoldtrainError, match="access is denied"):
        looked(Watch(str(tmp_path)))
    assert "trying again. access is denied" in looked(seen)


@pytest.mark.parametrize(
    ("raised", "status"), [(KeyboardInterrupt(), "stopped"), (SystemExit(143), "stopped"), (FoldtrainError(), "failed")]
)
def test_a_pool_that_was_told_to_end_is_stopped_and_one_that_could_not_go_on_has_failed(
    tmp_path: Path, raised: BaseException, status: str
) -> None:
    with pytest.raises(type(raised)), PoolProgress("tokenize", str(tmp_path / "tokens"), 4, 40, 1, 10):
        raise raised
    (view,) = read_run(str(tmp_path), NOW)
    assert (view.status, view.done, view.total) == (status, 1, 4)


def test_the_usual_gap_is_the_median() -> None:
    assert usual_gap([0, 10, 20, 30, 1000]) == 10
    assert usual_gap([5]) == 0


@pytest.mark.xdist_group("s3")
def test_a_run_in_object_storage_looks_the_same(tmp_path: Path, s3_uri: str) -> None:
    local = stage(
        tmp_path, [metric(step, 100 - step, note="x" * 300) for step in range(1, 1500)], [event("start", 0, 99)]
    )
    for name in ("metrics.jsonl", "events.jsonl"):
        storage.write_bytes(f"{s3_uri}/generator/{name}", (tmp_path / "generator" / name).read_bytes())
    assert read_run(s3_uri, NOW) == [local]


TRAINED = ("teacher", "judge", "tokenizer", "generator")


def remote_stage(run: str, name: str, metrics: list[dict[str, Any]], events: list[dict[str, Any]]) -> None:
    """A training stage in object storage that left these records."""
    for file, records in (("metrics", metrics), ("events", events)):
        text = "".join(json.dumps(record) + "\n" for record in records)
        if text:
            storage.write_bytes(f"{run}/{name}/{file}.jsonl", text.encode())


def remote_run(run: str) -> None:
    """A run with all stages, of which the generator is at work and the set of tokens has no word of its end."""
    for name in TRAINED:
        ended = [] if name == "generator" else [event("finish", 100, 500)]
        remote_stage(run, name, [metric(90, 5)], [event("start", 0, 900), *ended])
    for name in ("images", "tokens"):
        storage.write_json(f"{run}/{name}/progress.json", {"time": NOW - 5, "shards_done": 1, "shards": 2})


def requests_of_looks(run: str, looks: int) -> list[int]:
    """Of those after the first."""
    reader, found = RunReader(run), list[int]()
    reader.look(NOW)
    for _ in range(looks):
        with storage.counted() as sent:
            reader.look(NOW)
        found.append(sent.total())
    return found


def test_a_look_at_a_run_that_has_not_changed_costs_few_requests_however_many_stages_it_has() -> None:
    run = f"memory://{uuid4().hex}/run"
    remote_run(run)
    assert max(requests_of_looks(run, 40)) <= MOST_REQUESTS
    remote_stage(run, "generator", [], [event("start", 0, 900), event("finish", 100, 1)])
    assert max(requests_of_looks(run, 40)) <= MOST_REQUESTS


@pytest.mark.xdist_group("s3")
@pytest.mark.parametrize("state", ["at work", "before its first record", "ended", "making shards"])
def test_so_it_does_on_s3(s3_uri: str, state: str) -> None:
    remote_run(s3_uri)
    started = [event("start", 0, 9)]
    match state:
        case "before its first record":
            storage.remove_file(f"{s3_uri}/generator/metrics.jsonl")
            remote_stage(s3_uri, "generator", [], started)
        case "ended":
            remote_stage(s3_uri, "generator", [], [*started, event("finish", 100, 1)])
        case "making shards":
            storage.remove_tree(f"{s3_uri}/generator")
    found = requests_of_looks(s3_uri, 30)
    assert max(found) <= MOST_REQUESTS
    assert max(found) > 1


def test_whatever_changes_in_a_run_is_seen_some_looks_later() -> None:
    run = f"memory://{uuid4().hex}/run"
    remote_run(run)
    storage.remove_tree(f"{run}/judge")
    reader = RunReader(run)
    reader.look(NOW)
    done = [event("start", 0, 900), event("finish", 1, 5)]
    remote_stage(run, "teacher", [metric(99, 1)], done)
    remote_stage(run, "judge", [metric(7, 1)], done)
    storage.write_json(f"{run}/tokens/manifest.json", {})
    for number in range(30):  # and the stage at work never rests
        remote_stage(run, "generator", [metric(90 + step, 5) for step in range(number + 1)], [event("start", 0, 900)])
        views = {view.name: view for view in reader.look(NOW)}
        assert views["generator"].done == 90 + number
    assert (views["teacher"].done, views["judge"].done, views["tokens"].status) == (99, 7, "finished")
    remote_stage(run, "judge", [metric(7, 1)], [*done, event("resume", 9, 1)])
    for _ in range(12):
        views = {view.name: view for view in reader.look(NOW)}
    assert views["judge"].status == "running"


def test_shards_that_are_elsewhere_are_found_once_their_record_says_where() -> None:
    run, place = f"memory://{uuid4().hex}/run", f"memory://{uuid4().hex}/images"
    storage.write_bytes(f"{run}/images/odd", b"")
    storage.write_json(f"{place}/progress.json", {"time": NOW - 5, "shards_done": 3, "shards": 9})
    reader = RunReader(run)
    assert reader.look(NOW) == []
    storage.write_bytes(f"{run}/images/config.yaml", f"data: {{images: '{place}'}}\n".encode())
    for _ in range(4):
        views = reader.look(NOW)
    assert [(view.name, view.done, view.total) for view in views] == [("images", 3, 9)]
    assert read_run(run, NOW) == views


def test_looks_come_less_often_once_nothing_is_at_work(tmp_path: Path) -> None:
    stage(tmp_path, [metric(10, 5)], [event("start", 0, 50)])
    watch = Watch(str(tmp_path))
    for _ in range(3):
        assert "looks come" not in looked(watch)
    assert watch.pause(2.0) == 2.0
    stage(tmp_path, [metric(10, 5)], [event("start", 0, 50), event("finish", 10, 1)])
    pauses = []
    for _ in range(9):
        text = looked(watch)
        pauses.append(watch.pause(2.0))
    assert pauses == [4.0, 8.0, 16.0, 32.0, 60.0, 60.0, 60.0, 60.0, 60.0]
    assert watch.pause(600.0) == 600.0
    assert "nothing is at work: looks come up to 60 s apart" in text
    stage(tmp_path, [metric(10, 5)], [event("start", 0, 50), event("finish", 10, 3), event("resume", 10, 1)])
    looked(watch)
    assert watch.pause(2.0) == 2.0


def test_records_of_a_stage_are_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    run = f"memory://{uuid4().hex}/run"
    writer = JsonlWriter(f"{run}/generator/metrics.jsonl", keep=[], interval=3600)
    for step in range(500):
        writer.write(metric(step + 1, 5, note="x" * 200))
    assert writer.flush(60)
    reader = RunReader(run)
    assert len(reader.look(NOW)[0].losses) == 500
    writer.write(metric(501, 1))
    assert writer.flush(60)
    read = list[int]()
    read_range = storage.read_range
    monkeypatch.setattr(storage, "read_range", lambda *place: read.append(place[2]) or read_range(*place))
    assert len(reader.look(NOW)[0].losses) == 501
    assert sum(read) < 1000  # the last line that is known
    writer.close()


def test_ingest_and_its_workers_are_read_from_its_progress(tmp_path: Path) -> None:
    rates = [{"worker": str(n), "host": host, "images_per_second": rate} for n, host, rate in SLOW_NODE]
    progress = {"time": NOW - 3, "state": "running", "shards_done": 1, "shards": 4, "workers": 3}
    storage.write_json(str(tmp_path / "images" / "progress.json"), progress | {"worker_rates": rates})
    (view,) = read_run(str(tmp_path), NOW)
    assert (view.name, view.status, view.workers) == ("images", "running", 3)
    assert "images: node1: 90.0, 80.0 images/s" in shown("r", [view])
    assert "images: node2: 20.0 (slow) images/s" in shown("r", [view])
    storage.write_json(str(tmp_path / "images" / "progress.json"), progress | {"state": "finished"})
    assert [view.status for view in read_run(str(tmp_path), NOW)] == ["finished"]


def test_events_that_anybody_may_have_written_are_text_of_one_line(tmp_path: Path) -> None:
    bad = "x\x1b]0;owned\x07[red]\nerror: forged\u202e" + "y" * 100_000
    told = [event("start", 0, 50), event("stop", 1, 40, reason=bad), {"event": bad, "step": [], "time": 1e300}]
    out = shown("r", [stage(tmp_path, [metric(1, 9)], told)], width=3000)
    assert r"reason x\u001b]0;owned\u0007[red]\u000aerror: forged\u202eyyy" in out
    assert "at 1e+300 s" in out
    assert len(out) < 20_000
    assert not {"\x1b", "\x07", "\u202e"} & set(out)


def test_the_newest_look_at_held_out_tokens_is_shown(tmp_path: Path) -> None:
    looked = {"validation_loss": 3.5, "validation_training_loss": 3.25, "validation_loss_group0_fold0": 0.75}
    view = stage(tmp_path, [metric(20, 30, **looked), metric(30, 20)], [event("start", 0, 50)], "generator")
    words = " ".join(shown("run", [view]).split())
    assert "generator: held-out images at step 20: loss 3.5, of training images 3.25" in words
    assert "0.75" not in words


def test_the_newest_look_at_held_out_images_is_shown(tmp_path: Path) -> None:
    looked = {"validation_mse": 0.25, "validation_psnr": 17.5, "validation_ssim": None, "validation_use_fold_1": 0.875}
    looked["validation_frechet_distance_64"] = 12.5
    metrics = [
        metric(10, 40, validation_mse=0.5),
        metric(20, 30, **looked, validation_training_mse=0.125, validation_mse_of_1=0.75, validation_seconds=2.0),
        metric(30, 20),
    ]
    look = event("validation", 20, 30, mse=[0.75, 0.25], codes={"fold_1": {}})
    view = stage(tmp_path, metrics, [event("start", 0, 50), look], "tokenizer")
    assert view.looked_at == 20
    words = " ".join(shown("run", [view]).split())
    found = "squared error 0.25, PSNR 17.5, use of fold 1 0.875, Fréchet distance of 64 12.5"
    assert f"tokenizer: held-out images at step 20: {found}" in words
    assert "of training images 0.125" in words
    assert "0.75" not in words
    assert "codes" not in words  # the event itself is none of what happened
    assert "held-out" not in shown("run", [stage(tmp_path, [metric(10, 40)], [event("start", 0, 50)])])
