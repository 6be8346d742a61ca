"""What the page's server answers: what is new of runs, curves, pictures, codes, configs and logs; read once for all."""

from __future__ import annotations

import asyncio
import io
import json
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

import pytest
from aiohttp.test_utils import TestClient, TestServer
from PIL import Image, PngImagePlugin

from cluster.jobs.control import read_stop
from cluster.jobs.places import job_folder
from cluster.monitor.web import evaluations as evaluations_module
from cluster.monitor.web import logs
from cluster.monitor.web import server as web_server
from cluster.monitor.web.access import CSRF_HEADER, Access
from cluster.monitor.web.server import Server
from cluster.monitor.web.serving import find_runs
from cluster.pool.scale import read_asked, write_scale
from data_pipeline import storage
from data_pipeline.errors import UsageError
from tests.cluster.web.runs_to_watch import (
    fid,
    generator_config,
    numbers,
    picture,
    write_evaluation,
    write_job,
    write_pool,
    write_records,
    write_training,
)
from trainer.evaluation.naming.numbers import Number
from trainer.records import local_file, reading_columns
from trainer.records.jsonl import Continued, JsonlWriter
from trainer.records.record_shapes import is_metrics
from trainer.records.trackers.pictures import picture_name

T = TypeVar("T")
HOSTILE = "<img src=x onerror=alert(1)>\x1b[31m\u202e"
SHOWN = r"<img src=x onerror=alert(1)>\u001b[31m\u202e"


def ask(uris: list[str], use: Callable[[TestClient[Any, Any]], Awaitable[T]], **given: Any) -> T:
    """What `use` makes of a server of these runs."""

    async def run() -> T:
        server = Server(find_runs(uris), Access("127.0.0.1", None), **given)
        async with TestClient(TestServer(server.application())) as client:
            return await use(client)

    return asyncio.run(run())


async def get(client: TestClient[Any, Any], path: str) -> Any:
    async with client.get(path) as answer:
        text = await answer.text()
        assert answer.status == 200, f"{path}: {answer.status}: {text}"
        return json.loads(text)


async def state_of(client: TestClient[Any, Any], run: int = 0) -> dict[str, Any]:
    found: dict[str, Any] = (await get(client, f"/api/states?run={run}"))["runs"][str(run)]["state"]
    return found


@pytest.fixture
def run(tmp_path: Path) -> str:
    """A run whose tokenizer has finished, and whose generator is at work."""
    uri = str(tmp_path / "run")
    write_training(uri, "tokenizer", count=40, steps=40, frames=2, config=generator_config(1e-4, 4))
    write_training(uri, "generator", count=30, steps=60, ended=False, config=generator_config(1e-4, 4))
    write_pool(uri, "tokens", done=3, shards=12, rates={"node1": [90.0, 80.0], "node2": [20.0]})
    return uri


def test_a_run_is_told_with_its_stages_their_workers_and_where_the_time_went(run: str) -> None:
    state = ask([run], state_of)
    stages = {stage["name"]: stage for stage in state["stages"]}
    assert {name: stage["status"] for name, stage in stages.items()} == {
        "tokenizer": "finished",
        "tokens": "running",
        "generator": "running",
    }
    generator, tokens = stages["generator"], stages["tokens"]
    assert (generator["done"], generator["total"], generator["rows"]) == (30, 60, 30)
    assert (tokens["done"], tokens["total"]) == (3, 12)
    rates = {host["host"]: [each["rate"] for each in host["workers"]] for host in tokens["hosts"]}
    assert rates == {"node1": [90.0, 80.0], "node2": [20.0]}
    assert [each["slow"] for host in tokens["hosts"] for each in host["workers"]] == [False, False, True]
    spent = stages["tokenizer"]["seconds"]
    assert spent["start_up"] == pytest.approx(20.0, abs=0.01)
    assert spent["shutdown"] == pytest.approx(8.0, abs=0.01)
    assert spent["training"] + spent["data_wait"] == pytest.approx(20.0, abs=0.01)


def test_who_has_the_newest_version_is_sent_nothing_and_later_only_what_is_new_is_read(
    run: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(web_server, "_LOCAL_SECONDS", 0.01)

    async def watch(client: TestClient[Any, Any]) -> None:
        before = (await get(client, "/api/states?run=0"))["runs"]["0"]
        version = before["version"]
        assert (await get(client, f"/api/states?run=0:{version}"))["runs"]["0"]["state"] is None
        writer = JsonlWriter(f"{run}/generator/metrics.jsonl", keep=Continued(is_metrics))
        writer.write(numbers(31, 60, 1e9))
        writer.close()
        after: dict[str, Any] | None = None
        while after is None or stage(after)["done"] != 31:
            found = (await get(client, f"/api/states?run=0:{version}"))["runs"]["0"]
            after = found["state"] or after
        assert (stage(before["state"])["rows_read"], stage(after)["rows_read"]) == (30, 31)
        curve = (await get(client, "/api/curves?run=0&stage=generator&name=loss"))["curves"]["loss"]["0"]
        assert curve["x"] == list(range(1, 32))

    def stage(state: dict[str, Any]) -> dict[str, Any]:
        return next(each for each in state["stages"] if each["name"] == "generator")

    ask([run], watch)


def test_curves_of_several_runs_come_by_name_with_the_marks_of_each(run: str, tmp_path: Path) -> None:
    other = str(tmp_path / "other")
    skipped = {"event": "skipped_step", "step": 2}
    write_training(other, "generator", count=9, steps=60, spike_at=5, more=[skipped])

    async def curves(client: TestClient[Any, Any]) -> Any:
        return await get(client, "/api/curves?run=0&run=1&stage=generator&name=loss&name=lpips&name=none&axis=images")

    found = ask([run, other], curves)
    drawn = {name: list(curves) for name, curves in found["curves"].items()}
    assert drawn == {"loss": ["0", "1"], "lpips": ["0", "1"], "none": []}
    assert [len(found["curves"]["loss"][run]["x"]) for run in ("0", "1")] == [30, 9]
    assert found["curves"]["loss"]["1"]["highest"] == 40.0
    assert [mark["x"] for mark in found["marks"]["1"] if mark["kind"] == "skipped step"] == [512]


def test_a_stretch_of_a_long_curve_has_more_of_its_points(tmp_path: Path) -> None:
    write_training(str(tmp_path), "generator", count=500, steps=500)

    async def near(client: TestClient[Any, Any]) -> list[Any]:
        path = "/api/curves?run=0&stage=generator&name=loss&points=50"
        return [(await get(client, path + more))["curves"]["loss"]["0"]["x"] for more in ("", "&low=100&high=120")]

    whole, stretch = ask([str(tmp_path)], near)
    assert (whole[0], whole[-1], len(whole) <= 50) == (1, 500, True)
    assert stretch == list(range(99, 122))


def test_pictures_are_those_that_events_speak_of_and_hold_pixels_alone(tmp_path: Path) -> None:
    run = str(tmp_path)
    write_training(run, "tokenizer", count=40, steps=40, frames=2)
    text = PngImagePlugin.PngInfo()
    text.add_text("Comment", "<script>alert(1)</script>")
    made = io.BytesIO()
    Image.new("RGB", (4, 3), (1, 2, 3)).save(made, "PNG", pnginfo=text)
    folder = f"{run}/tokenizer/pictures"
    storage.write_bytes(f"{folder}/{picture_name('reconstructions', 20)}", made.getvalue() + b"<script>")
    storage.write_bytes(f"{folder}/{picture_name('reconstructions', 7)}", made.getvalue())

    async def pictures(client: TestClient[Any, Any]) -> dict[int, tuple[int, str, bytes]]:
        state = await state_of(client)
        assert state["stages"][0]["frames"] == [20, 40]
        found = {}
        for step in (7, 20, 40):
            async with client.get(f"/api/picture?run=0&stage=tokenizer&step={step}") as answer:
                found[step] = (answer.status, answer.content_type, await answer.read())
        return found

    found = ask([run], pictures)
    assert [found[step][0] for step in (7, 20, 40)] == [404, 200, 200]
    assert found[20][1] == "image/png"
    assert b"script" not in found[20][2]
    with Image.open(io.BytesIO(found[20][2])) as image:
        assert (image.size, image.getpixel((0, 0)), image.text) == ((4, 3), (1, 2, 3), {})  # type: ignore[attr-defined]
    with Image.open(io.BytesIO(found[40][2])) as image, Image.open(io.BytesIO(picture(40, 40))) as made_by_hand:
        assert image.tobytes() == made_by_hand.tobytes()


@pytest.mark.parametrize("bytes_", [b"<svg onload=alert(1)>", b"\x89PNG\r\n\x1a\n<script>", b"GIF89a" + bytes(40), b""])
def test_a_picture_that_is_no_png_is_not_served(tmp_path: Path, bytes_: bytes) -> None:
    write_training(str(tmp_path), "tokenizer", count=40, steps=40, frames=1)
    storage.write_bytes(f"{tmp_path}/tokenizer/pictures/{picture_name('reconstructions', 40)}", bytes_)

    async def status(client: TestClient[Any, Any]) -> int:
        async with client.get("/api/picture?run=0&stage=tokenizer&step=40") as answer:
            return answer.status

    assert ask([str(tmp_path)], status) == 404


def test_code_maps_have_the_share_of_each_group_at_each_look(run: str) -> None:
    found = ask([run], lambda client: get(client, "/api/codes?run=0"))
    semantic = next(each for each in found["looks"] if each["fold"] == "semantic")
    assert semantic["steps"] == [20, 40]
    assert semantic["use"][1] == [pytest.approx(0.5 + 0.1 * group) for group in range(6)]
    assert (semantic["dead"], found["evaluation"]) == (0.05, None)


def test_configs_have_what_a_stage_used_by_dotted_names(run: str) -> None:
    found = ask([run], lambda client: get(client, "/api/configs?run=0"))
    generator = next(each for each in found if each["stage"] == "generator")
    assert generator["values"]["generator.trainer.learning_rate"] == "0.0001"
    assert "learning_rate: 0.0001" in generator["text"]


def evaluations(client: TestClient[Any, Any], runs: str) -> Awaitable[Any]:
    return get(client, f"/api/evaluations?{'&'.join(f'run={each}' for each in runs)}")


def test_numbers_of_runs_are_a_table_of_what_may_be_compared(run: str, tmp_path: Path) -> None:
    other, third = str(tmp_path / "other"), str(tmp_path / "third")
    for uri in (other, third):
        write_training(uri, "generator", count=3, steps=3)
    write_evaluation(run, fid(9.25), Number("mse", 0.5, 10, {}, {"tokenizer": "a", "keep": 1}))
    write_evaluation(other, fid(8.5), fid(7.5, rounding="floor"), Number("mse", 0.25, 10, {}, {"tokenizer": "b"}))
    storage.write_json(
        f"{run}/stages.json", [{"stage": "train-generator", "seconds": 5400, "items": 3, "unit": "samples"}]
    )
    found = ask([run, other, third], lambda client: evaluations(client, "012"))
    assert [(each["run"], each["hours"]) for each in found["columns"]] == [(0, 1.5), (1, None)]
    rows = {(each["title"], each["method"]): each for each in found["metrics"]}
    (fids,) = (each for (title, method), each in rows.items() if title.startswith("FID") and "nearest" in method)
    (floored,) = (each for (title, method), each in rows.items() if title.startswith("FID") and "floor" in method)
    assert [cell["text"] for cell in fids["cells"]] == ["9.25 ± 0.03", "8.50 ± 0.03"]
    assert [cell["best"] for cell in fids["cells"]] == [False, True], "the lower FID"
    assert "guidance 1.5" in fids["cells"][0]["name"]
    assert floored["cells"][0] is None, "another rounding stands in a row of its own"
    assert floored["cells"][1]["best"] is False, "there is nothing to be better than"
    assert found["problems"] == []


def test_what_is_not_sent_of_numbers_is_counted(run: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluations_module, "MOST_METRICS", 2)
    monkeypatch.setattr(evaluations_module, "MOST_COLUMNS", 1)
    other = str(tmp_path / "other")
    write_training(other, "generator", count=3, steps=3)
    write_evaluation(run, *(fid(9.0, images=images) for images in (10, 20, 30, 40, 50)))
    write_evaluation(other, fid(8.0, images=10))
    found = ask([run, other], lambda client: evaluations(client, "01"))
    assert (len(found["columns"]), len(found["metrics"])) == (1, 2)
    assert found["left_out"] == (5 - 2) + (2 - 1)


def test_numbers_that_cannot_be_read_are_said_and_the_others_stay(run: str, tmp_path: Path) -> None:
    other = str(tmp_path / "other")
    write_training(other, "generator", count=3, steps=3)
    write_evaluation(run, fid(9.25))
    storage.write_json(f"{other}/evaluation.json", {"numbers": [{"metric": HOSTILE}]})
    found = ask([run, other], lambda client: evaluations(client, "01"))
    assert [each["run"] for each in found["columns"]] == [0]
    (problem,) = found["problems"]
    assert problem["run"] == 1
    assert "evaluation.json" in problem["text"]
    assert not {"\x1b", "\u202e"} & set(json.dumps(found, ensure_ascii=False))


def test_jobs_their_logs_and_their_price_come_from_the_runs_folder_and_a_piece_is_sent_once(
    run: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logs, "_LOG_SECONDS", 0.0)
    write_job(
        run, "generator-3fa9c1", node=HOSTILE, text=b"first\n\x1b[32mgreen\x1b[0m\r\nsecond \x1b]0;title\x07<b>\n"
    )
    write_job(run, "run-000000", node="n1", text=b"", status="succeeded", submitted=4.0)

    async def ask_logs(client: TestClient[Any, Any]) -> tuple[Any, Any, Any, Any]:
        jobs = await get(client, "/api/jobs?run=0")
        whole = await get(client, "/api/log?run=0&job=generator-3fa9c1")
        rest = await get(client, f"/api/log?run=0&job=generator-3fa9c1&after={whole['end']}")
        folder = job_folder(run, "generator-3fa9c1")
        storage.write_bytes(f"{folder}/log/000000.txt", storage.read_bytes(f"{folder}/log/000000.txt") + b"third\n")
        return jobs, whole, rest, await get(client, f"/api/log?run=0&job=generator-3fa9c1&after={whole['end']}")

    jobs, whole, rest, more = ask([run], ask_logs)
    assert [(each["id"], each["status"], each["target"], each["node"]) for each in jobs["jobs"]] == [
        ("generator-3fa9c1", "running", "slurm", SHOWN),
        ("run-000000", "succeeded", "slurm", "n1"),
    ]
    assert jobs["price"] == {"per_hour": 26.0, "currency": "EUR"}
    assert whole["text"] == "first\ngreen\nsecond \\u001b]0;title\\u0007<b>\n"
    assert (rest["text"], more["text"]) == ("", "third\n")


@pytest.mark.parametrize("job", ["..", ".", "a/../b", "../../generator", "%2e%2e", ""])
def test_no_name_of_a_job_becomes_a_path(run: str, job: str) -> None:
    async def status(client: TestClient[Any, Any]) -> int:
        async with client.get("/api/log", params={"run": "0", "job": job}) as answer:
            return answer.status

    assert ask([run], status) == 502


def test_nobody_waits_for_a_first_look_that_was_given_up(run: str) -> None:
    async def go() -> Any:
        server = Server(find_runs([run]), Access("127.0.0.1", None))
        (watched,) = server.watched
        async with TestClient(TestServer(server.application())) as client:
            with watched.reading.lock:  # the look does not come to an end
                asked = asyncio.create_task(get(client, "/api/states?run=0"))
                while watched.looker is None:
                    await asyncio.sleep(0)
                await asyncio.sleep(0)
                watched.looker.cancel()
                return await asyncio.wait_for(asked, 60)

    assert asyncio.run(go())["runs"]["0"]["state"] == {}


def post(client: TestClient[Any, Any], secret: str, body: Any) -> Any:
    return client.post("/api/control", json=body, headers={CSRF_HEADER: secret})


def test_a_run_is_stopped_through_its_folder_and_one_without_a_job_says_so(run: str) -> None:
    async def stop(client: TestClient[Any, Any], secret: str) -> list[tuple[int, str]]:
        found = []
        for place in range(2):
            async with post(client, secret, {"run": 0, "action": "stop"}) as answer:
                found.append((answer.status, await answer.text()))
            if place == 0:
                write_job(run, "run-000000", node="n1", text=b"", status="succeeded")
                write_job(run, "generator-3fa9c1", node="n1", text=b"")
        return found

    async def go() -> list[tuple[int, str]]:
        access = Access("127.0.0.1", None)
        server = Server(find_runs([run]), access, may_control=True)
        async with TestClient(TestServer(server.application())) as client:
            return await stop(client, access.page_secret)

    (nothing, why), (done, said) = asyncio.run(go())
    assert (nothing, "no job is at work here" in why) == (502, True)
    assert (done, "asked generator-3fa9c1 to stop" in said) == (200, True)
    stop_of = {job: read_stop(job_folder(run, job)) for job in ("generator-3fa9c1", "run-000000")}
    assert stop_of["run-000000"] is None
    assert (found := stop_of["generator-3fa9c1"]) is not None
    assert found.stop == "checkpoint"


def test_a_stage_that_trains_is_asked_for_a_checkpoint_through_its_folder(run: str, tmp_path: Path) -> None:
    other = str(tmp_path / "other")
    write_training(other, "generator", count=2, steps=2)
    write_scale(f"{run}/generator", 2, 3)

    async def go() -> list[tuple[int, str]]:
        access = Access("127.0.0.1", None)
        server = Server(find_runs([run, other]), access, may_control=True)
        found = []
        async with TestClient(TestServer(server.application())) as client:
            await get(client, "/api/states?run=0&run=1")
            for number in (0, 1):
                async with post(client, access.page_secret, {"run": number, "action": "checkpoint"}) as answer:
                    found.append((answer.status, await answer.text()))
        return found

    (done, said), (nothing, why) = asyncio.run(go())
    assert (done, "asked generator for a checkpoint" in said) == (200, True)
    assert (nothing, "nothing trains there now" in why) == (502, True)
    asked = read_asked(f"{run}/generator")
    assert asked.workers == (2, 3)
    assert asked.checkpoint is not None
    assert not storage.exists(f"{run}/tokenizer/control.json")


def test_text_of_a_run_comes_without_characters_that_cannot_be_seen(tmp_path: Path) -> None:
    run = str(tmp_path / "<b>run")
    write_training(
        run, "generator", count=3, steps=3, config={"seed": HOSTILE, HOSTILE: 1, "generator": {HOSTILE: [HOSTILE]}}
    )
    write_records(f"{run}/tokenizer/metrics.jsonl", [{"time": 1.0, "step": 1, "loss": 1.0, HOSTILE: 7.0}])
    write_records(f"{run}/tokenizer/events.jsonl", [{"time": 1.0, "event": HOSTILE, "step": 1, "error": HOSTILE}])

    async def texts(client: TestClient[Any, Any]) -> tuple[Any, Any, Any]:
        state = await state_of(client)
        async with client.get("/api/curves", params={"run": 0, "stage": "tokenizer", "name": SHOWN}) as answer:
            return state, await answer.json(), await get(client, "/api/configs?run=0")

    state, curves, configs = ask([run], texts)
    assert (state["name"], SHOWN in state["stages"][0]["names"]) == ("<b>run", True)
    assert [event["text"] for event in state["events"] if event["stage"] == "tokenizer"] == [
        f"{SHOWN} at step 1, error {SHOWN}"
    ]
    assert curves["curves"][SHOWN]["0"]["y"] == [7.0]
    assert configs[0]["values"]["seed"] == SHOWN
    assert [name for name in configs[0]["values"] if name != "seed"] == [f"generator.{SHOWN}"]
    assert not {"\x1b", "\u202e"} & set(json.dumps(configs, ensure_ascii=False))


def test_what_storage_says_is_shown_and_what_was_seen_last_stays(run: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web_server, "_LOCAL_SECONDS", 0.01)

    async def watch(client: TestClient[Any, Any]) -> Any:
        first = (await get(client, "/api/states?run=0"))["runs"]["0"]

        def away(*_: object) -> None:
            raise OSError("the server does not answer")

        monkeypatch.setattr("cluster.monitor.watching.RunReader.look", away)
        while (found := (await get(client, f"/api/states?run=0:{first['version']}"))["runs"]["0"])["state"] is None:
            pass
        return found["state"]

    state = ask([run], watch)
    assert (state["away"], len(state["stages"])) == ("the server does not answer", 3)


def test_numbers_beyond_all_bounds_break_no_answer(tmp_path: Path) -> None:
    run = str(tmp_path / "run")
    huge = [
        numbers(step, 9, 1e308) | {"time": sign * 1.7e308, "loss": sign * 1.7e308} for step, sign in ((1, -1), (2, 1))
    ]
    write_records(f"{run}/generator/metrics.jsonl", huge)
    start = {"time": -1.7e308, "event": "start", "step": 0, "began": -1.7e308, "workers": 2**63}
    write_records(f"{run}/generator/events.jsonl", [start, start | {"time": 1.7e308, "event": "skipped_step"}])

    async def all_of_it(client: TestClient[Any, Any]) -> Any:
        state = await state_of(client)
        for axis in ("steps", "images", "hours", "date"):
            await get(client, f"/api/curves?run=0&stage=generator&name=loss&axis={axis}")
        return state

    state = ask([run], all_of_it)
    assert (state["away"], [stage["rows"] for stage in state["stages"]]) == ("", [2])


def test_a_record_that_breaks_a_reader_is_said_and_nobody_waits_forever(
    run: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise KeyError("nobody thought of this")

    monkeypatch.setattr("cluster.monitor.watching.RunReader.look", broken)
    assert "nobody thought of this" in ask([run], state_of)["away"]


@pytest.mark.parametrize(
    "path",
    [
        *("/api/states?run=1", "/api/states?run=x", "/api/states?run=-1", "/api/picture?run=0&stage=tokenizer"),
        *("/api/curves?run=0&axis=moons", "/api/curves?run=0&low=nan", "/api/curves?run=0&points=9999999"),
        *("/api/log?run=0&job=a&after=-1", "/api/states?run=" + "9" * 400),
    ],
)
def test_questions_that_make_no_sense_are_refused(run: str, path: str) -> None:
    async def status(client: TestClient[Any, Any]) -> int:
        async with client.get(path) as answer:
            return answer.status

    assert ask([run], status) == 400


def test_a_folder_offers_its_runs_and_names_that_are_alike_are_told_apart(tmp_path: Path) -> None:
    for name in ("a/run", "b/run", "b/second"):
        write_training(str(tmp_path / name), "generator", count=2, steps=2)
    (tmp_path / "b/notes").mkdir()
    assert find_runs([str(tmp_path / "b")]) == [(f"{tmp_path}/b/run", "run"), (f"{tmp_path}/b/second", "second")]
    found = find_runs([str(tmp_path / "a/run"), str(tmp_path / "b"), str(tmp_path / "b/run/")])
    assert [name for _, name in found][:2] == ["a/run", "b/run"]
    with pytest.raises(UsageError, match="there is no run"):
        find_runs([str(tmp_path / "elsewhere")])


def test_long_runs_are_read_from_their_columns_and_once_for_all_watchers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, runs = 3_000, 3
    monkeypatch.setattr(local_file, "_BLOCK_BYTES", 64 * 1024)
    for number in range(runs):
        write_training(str(tmp_path / f"run-{number}"), "generator", count=rows, steps=rows, spike_at=777)
    parsed, plain = list[int](), reading_columns.parse_lines

    def parse(text: bytes, is_record: Any) -> Any:
        parsed.append(len(text))
        return plain(text, is_record)

    monkeypatch.setattr(reading_columns, "parse_lines", parse)

    async def watch(client: TestClient[Any, Any]) -> Any:
        asked = "&".join(f"run={number}" for number in range(runs))
        for _ in range(3):
            states = (await get(client, f"/api/states?{asked}"))["runs"]
        curves = await get(client, f"/api/curves?{asked}&stage=generator&name=loss")
        return states, curves["curves"]["loss"]

    states, drawn = ask([str(tmp_path)], watch)
    assert [each["state"]["stages"][0]["rows_read"] for each in states.values()] == [rows] * runs
    assert [(len(each["x"]) <= 1000, each["highest"], 40.0 in each["y"]) for each in drawn.values()] == [
        (True, 40.0, True)
    ] * runs
    lines = sum((tmp_path / f"run-{number}/generator/metrics.jsonl").stat().st_size for number in range(runs))
    assert sum(parsed) < lines / 4  # what has no columns yet


@pytest.mark.xdist_group("s3")
def test_five_watchers_of_a_run_cost_its_storage_no_more_than_one(s3_uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    write_training(s3_uri, "tokenizer", count=40, steps=40, frames=1)
    write_training(s3_uri, "generator", count=30, steps=60, ended=False)
    looks = list[int]()
    plain = asyncio.sleep
    clock = [0.0]  # seconds that the server has waited between its looks

    async def sleep(seconds: float) -> None:
        if asyncio.current_task().get_coro().__name__ == "_look":  # type: ignore[union-attr]
            clock[0] += seconds
            looks.append(1)
        await plain(0)

    monkeypatch.setattr(web_server.asyncio, "sleep", sleep)

    async def watch(client: TestClient[Any, Any]) -> tuple[int, float, int]:
        await get(client, "/api/states?run=0")
        before, waited, looked = storage.requests().total(), clock[0], len(looks)
        began = time.monotonic()
        while len(looks) - looked < 30:
            await asyncio.gather(*(get(client, "/api/states?run=0") for _ in range(5)))
            await asyncio.gather(*(get(client, "/api/curves?run=0&stage=generator&name=loss") for _ in range(5)))
        took = time.monotonic() - began  # which the pauses are shorter by
        return storage.requests().total() - before, clock[0] - waited + took, len(looks) - looked

    sent, seconds, looked = ask([s3_uri], watch)
    assert looked >= 30
    assert 0 < sent <= seconds + 6  # one a second, all watchers together; of the last look the pause is yet to come
