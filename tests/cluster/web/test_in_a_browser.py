"""The page in a headless Chromium: a live run and a finished one in object storage, compared, stopped, and hostile."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from aiohttp.test_utils import TestServer

from cluster.jobs.control import read_stop
from cluster.jobs.places import job_folder
from cluster.monitor.web import server as web_server
from cluster.monitor.web.access import Access
from cluster.monitor.web.server import Server
from cluster.monitor.web.serving import find_runs
from tests.cluster.web.chromium import PROGRAM, Chromium, Page
from tests.cluster.web.runs_to_watch import (
    fid,
    generator_config,
    look,
    numbers,
    picture,
    write_evaluation,
    write_job,
    write_pool,
    write_records,
    write_training,
)
from trainer.evaluation.naming.numbers import Number
from trainer.records.run_directory import RunDirectory

pytestmark = [
    pytest.mark.slow,
    pytest.mark.xdist_group("s3"),
    pytest.mark.skipif(PROGRAM is None, reason="there is no Chromium: apt-get install chromium"),
]
HOSTILE = "</script><img src=x onerror=document.title='owned'><script>document.title='owned'</script>"


@asynccontextmanager
async def page_of(
    uris: list[str], *, token: str | None = None, control: bool = False
) -> AsyncIterator[tuple[Page, str]]:
    """A page of these runs in a browser, and the origin that it came from."""
    server = TestServer(Server(find_runs(uris), Access("127.0.0.1", token), may_control=control).application())
    await server.start_server()
    origin = f"http://127.0.0.1:{server.port}"
    try:
        async with Chromium() as browser:
            page = await browser.page()
            await page.size(1280, 900)
            await page.open(f"{origin}/" + (f"?token={token}" if token else ""))
            yield page, origin
            others = {url for url in page.requests if urlsplit(url).scheme not in {"data", "about"}}
            assert {f"{urlsplit(url).scheme}://{urlsplit(url).netloc}" for url in others} == {origin}
            assert not page.console, page.console
    finally:
        await server.close()


def browse(uris: list[str], use: Callable[[Page], Awaitable[None]], **given: Any) -> None:
    async def go() -> None:
        async with page_of(uris, **given) as (page, _):
            await use(page)

    asyncio.run(go())


def drawn(name: str) -> str:
    """Whether a chart has a line: its canvas has more colours than axes need."""
    return f"""(() => {{
        const canvas = document.querySelector('.chart[data-name="{name}"] canvas');
        if (!canvas) return 0;
        const data = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data;
        let found = 0;
        for (let at = 0; at < data.length; at += 4) if (data[at + 3] > 200 && data[at + 2] - data[at] > 90) found += 1;
        return found;
    }})()"""


DIFFERENCES = """[...document.querySelectorAll('.differences tbody tr')]
    .map((row) => row.innerText.split(/\\s+/).filter(Boolean))"""
CELLS = "[...document.querySelectorAll('#numbers tbody tr:first-child td')].map((each) => each.textContent)"
NAMELESS = """[...document.querySelectorAll('button, input, select, a, summary')]
    .filter((each) => each.checkVisibility())
    .filter((each) => !(each.innerText.trim() || each.ariaLabel || each.labels?.length))
    .map((each) => each.outerHTML)"""
FRAMED = """new Promise((done) => {
    const frame = document.createElement('iframe');
    frame.src = '/';
    frame.onload = () => {
        try { done(frame.contentDocument?.body?.innerText ?? null); } catch { done(null); }
    };
    document.body.append(frame);
})"""
HELD = """(() => {
    const ask = window.fetch, held = new Promise((resolve) => { window.release = resolve; });
    window.fetch = async (path, ...given) => {
        if (String(path).startsWith('/api/states')) await held;
        return ask(path, ...given);
    };
})()"""
"""A page that learns nothing of its runs before it is released."""
REDRAWN = """import('/static/dom.js').then(({ el, fill }) => {
    window.clicked = [];
    const place = el('div');
    place.style.cssText = 'position: fixed; inset: 0; z-index: 9';
    document.body.append(place);
    const list = (text) => {
        const lines = Array.from({ length: 40 }, (_, line) => el('li', {}, `${line} ${text}`));
        const found = el('ol', { tabindex: '0', 'aria-label': 'list' }, lines);
        found.style.cssText = 'height: 40px; overflow: auto';
        return found;
    };
    window.draw = (names, text = '') => fill(place, names + text, () => [
        names.map((name) => el('button', { 'data-name': name, onclick: () => clicked.push(name) }, name + text)),
        el('details', { 'data-name': 'more' }, el('summary', {}, `more ${text}`)),
        list(text),
    ].flat());
    window.button = (name) => place.querySelector(`[data-name="${name}"]`);
    draw(['first', 'second']);
})"""
MIDDLE = "(() => { const at = button('second').getBoundingClientRect(); return [at.x + 5, at.y + 5]; })()"
PRESSED = """[...document.querySelectorAll('.choice button[aria-pressed="true"]')].map((each) => each.textContent)"""
VALUE = "document.querySelector('.chart[data-name=\"loss\"] .value').textContent"


def test_a_live_run_in_object_storage_moves_and_a_film_strip_appears(
    s3_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(web_server, "_REMOTE_SECONDS", 0.2)
    monkeypatch.setattr(web_server, "_REQUESTS_A_SECOND", 1000.0)
    records = RunDirectory(f"{s3_uri}/tokenizer", "tokenizer", {}, 0, workers=2)
    now = time.time()
    for step in range(1, 41):
        records.metrics(numbers(step, 200, now))
    records.keep(60)

    async def watch(page: Page) -> None:
        await page.until("document.querySelector('.stage .progress')?.textContent", lambda text: "40 of 200" in text)
        await page.until(drawn("loss"), lambda count: count > 50)
        before = await page.run(VALUE)
        assert await page.run("document.getElementById('pictures').hidden") is True
        for step in (60, 80):
            for each in range(step - 19, step + 1):
                records.metrics(numbers(each, 200, now))
            records.event("validation", step, **look(step, step / 200))
            records.pictures(step, {"reconstructions": picture(step, 200)})
        await asyncio.to_thread(records.keep, 60)
        await page.until("document.querySelector('.stage .progress').textContent", lambda text: "80 of 200" in text)
        await page.until(VALUE, lambda text: text != before)
        await page.until("document.querySelectorAll('.strip img').length", lambda count: count == 2)
        await page.until("[...document.querySelectorAll('.compare img')].every((each) => each.naturalWidth === 288)")
        assert await page.run("[...document.querySelectorAll('.step')].map((each) => each.textContent)") == [
            "step 60",
            "step 80",
        ]
        await page.run("document.querySelector('.divider').focus()")
        before = await page.run("document.querySelector('.compare .over').style.clipPath")
        await page.press("ArrowRight", 39)  # the slider between the two moves by keyboard
        await page.until("document.querySelector('.compare .over').style.clipPath", lambda cut: cut != before)
        await page.until("document.querySelectorAll('.map i').length", lambda count: count == 2 * 2 * 6)

    try:
        browse([s3_uri], watch)
    finally:
        records.close()


def test_a_finished_run_is_compared_with_another_and_only_what_differs_in_their_configs_is_shown(s3_uri: str) -> None:
    for name, rate in (("first", 1e-4), ("second", 3e-4)):
        spent = [{"event": "skipped_step", "step": 20}, {"event": "resume", "step": 30, "workers": 3}]
        run = f"{s3_uri}/{name}"
        config, above = generator_config(rate, 8), rate * 1e4
        write_training(run, "generator", count=60, steps=60, above=above, frames=2, config=config, more=spent)
        write_pool(run, "tokens", done=12, shards=12)
        write_evaluation(run, fid(rate * 1e5))

    async def watch(page: Page) -> None:
        await page.until("document.querySelector('h1')?.textContent", lambda text: text == "2 runs")
        assert await page.until(CELLS) == ["10.00 ± 0.03", "30.00 ± 0.03"]
        assert await page.run("document.querySelector('#numbers b').textContent") == "10.00 ± 0.03"
        await page.until(
            "document.querySelectorAll('.chart[data-name=\"loss\"] .run').length", lambda count: count == 2
        )
        await page.until(drawn("loss"), lambda count: count > 50)
        assert await page.until(DIFFERENCES) == [["generator", "generator.trainer.learning_rate", "0.0001", "0.0003"]]
        marks = "[...document.querySelectorAll('.legend button')].map((each) => each.textContent)"
        found = await page.run(marks)
        assert {"skipped step 2", "scaling 2", "finish 2"} <= set(found)
        await page.run(
            "[...document.querySelectorAll('.choice button')].find((each) => each.textContent === 'Hours').click()"
        )
        await page.until("location.hash", lambda text: "axis=hours" in text)
        await page.run("document.querySelector('.chooser input:checked').click()")
        await page.until("document.querySelector('h1').textContent", lambda text: text == "second")
        assert await page.run("[...document.querySelectorAll('.stage .status')].map((each) => each.textContent)") == [
            "finished",
            "finished",
        ]
        table = "[...document.querySelectorAll('.account tbody tr')].map((row) => row.innerText)"
        assert any(row.startswith("training") for row in await page.until(table))

    browse([s3_uri], watch)


def test_it_fits_a_phone_and_is_used_by_keyboard(tmp_path: Path) -> None:
    run = str(tmp_path / ("a-run-with-a-very-long-name" * 3))
    write_training(run, "generator", count=60, steps=60, frames=2, config=generator_config(1e-4, 8))
    write_pool(run, "tokens", done=1, shards=12, rates={"node-with-a-long-name.cluster.example": [91.0] * 12})

    async def watch(page: Page) -> None:
        await page.size(360, 740, phone=True)
        await page.until(drawn("loss"), lambda count: count > 50)
        assert await page.run("document.documentElement.scrollWidth") == 360
        await page.run("document.querySelector('.chart[data-name=\"loss\"] .plot').focus()")
        await page.press("+")
        await page.until(
            "[...document.querySelectorAll('.tools button')].some((each) => each.textContent === 'Show all')"
        )
        await page.press("0")
        await page.until(
            "![...document.querySelectorAll('.tools button')].some((each) => each.textContent === 'Show all')"
        )
        assert await page.run(NAMELESS) == []

    browse([run], watch)


def test_a_run_whose_names_and_logs_are_hostile_is_shown_as_text(tmp_path: Path) -> None:
    name = HOSTILE.replace("/", "⁄")
    run = str(tmp_path / name)
    write_training(
        run, "generator", count=9, steps=9, frames=1, config={"seed": HOSTILE, "generator": {HOSTILE: HOSTILE}}
    )
    write_records(f"{run}/tokenizer/metrics.jsonl", [{"time": time.time(), "step": 1, "loss": 1.0, HOSTILE: 7.0}])
    write_records(
        f"{run}/tokenizer/events.jsonl", [{"time": time.time(), "event": HOSTILE, "step": 1, "error": HOSTILE}]
    )
    write_pool(run, "tokens", done=1, shards=2, rates={HOSTILE: [1.0]})
    write_evaluation(run, fid(9.0, network={"name": HOSTILE}), Number("odd", 1.0, 1, {HOSTILE: HOSTILE}))
    write_job(run, "generator-3fa9c1", node=HOSTILE, target=HOSTILE, text=f"{HOSTILE}\x1b]0;x\x07\n".encode())

    async def watch(page: Page) -> None:
        await page.until("document.querySelector('.log')?.textContent", lambda text: HOSTILE in text)
        await page.until("document.querySelectorAll('.chart canvas').length", lambda count: count > 0)
        await page.run(
            "[...document.querySelectorAll('.choice button')].find((each) => each.textContent === 'tokenizer').click()"
        )
        await page.until("document.querySelectorAll('.chart .name').length", lambda count: count > 0)
        await page.run("document.querySelectorAll('details').forEach((each) => { each.open = true; })")
        await page.until("document.body.innerText", lambda text: text.count("onerror") >= 6)
        assert await page.run("document.querySelector('h1').textContent") == name
        assert await page.run("document.querySelectorAll('img[src=\"x\"], [onerror], body script').length") == 0
        assert "owned" not in str(await page.run("document.title")).replace(name, "")
        assert not await page.run(FRAMED)
        page.console.clear()  # that it refused to be framed

    browse([run], watch)


def test_a_run_is_stopped_by_a_button(tmp_path: Path) -> None:
    run = str(tmp_path / "run")
    write_training(run, "generator", count=9, steps=90, ended=False)
    write_job(run, "generator-3fa9c1", node="n1", text=b"step 9\n")

    async def watch(page: Page) -> None:
        await page.call("Page.addScriptToEvaluateOnNewDocument", source=HELD)
        await page.reload()
        await page.until("document.getElementById('do-stop')?.textContent", lambda text: text == "Stop")
        await page.run("document.getElementById('do-stop').focus()")
        await page.run("release()")  # what is known of the run comes, and the head is drawn anew
        await page.until("document.querySelector('#head .status')?.textContent")
        await page.press("Enter", 13)
        await page.until("document.getElementById('ask').open")
        again = "document.getElementById('do-stop').click()"  # before the page hears of the first answer
        await page.run(f"document.querySelector('#ask button[value=no]').click(); {again}")
        assert read_stop(job_folder(run, "generator-3fa9c1")) is None
        await page.until("document.getElementById('ask').open")
        await page.run("document.querySelector('#ask button[value=yes]').click()")
        await page.until("document.getElementById('said')?.textContent", lambda text: "asked generator-3fa9c1" in text)
        assert read_stop(job_folder(run, "generator-3fa9c1")) is not None

    browse([run], watch, token="opensesame", control=True)


def test_focus_what_was_opened_and_a_click_outlive_a_redraw(tmp_path: Path) -> None:
    write_training(str(tmp_path / "run"), "generator", count=9, steps=9)

    async def watch(page: Page) -> None:
        await page.until("document.querySelector('h1')?.textContent", lambda text: text == "run")
        await page.run(REDRAWN)
        await page.run("button('second').focus(); button('more').open = true")
        await page.run("button('more').nextSibling.scrollTop = 50")
        await page.run("draw(['new', 'first', 'second'], ' redrawn')")
        assert await page.run("document.activeElement.textContent") == "second redrawn"
        assert await page.run("[button('more').open, button('more').nextSibling.scrollTop]") == [True, 50]
        await page.run("draw(['new', 'first'], ' without')")
        assert await page.run("document.activeElement.tagName") == "BODY"  # and not what stands in its place

        await page.run("draw(['first', 'second'])")
        at = await page.run(MIDDLE)
        await page.pointer("mousePressed", at)
        await page.run("draw(['first', 'second'], ' seen by nobody'); draw(['new', 'first', 'second'], ' later')")
        assert await page.run("button('second').textContent") == "second"
        await page.pointer("mouseReleased", at)
        assert await page.run("clicked") == ["second"]
        await page.until("button('second').textContent", lambda text: text == "second later")

    browse([str(tmp_path / "run")], watch)


def test_with_a_token_the_address_loses_it_and_keeps_what_is_chosen(tmp_path: Path) -> None:
    for stage in ("tokenizer", "generator"):
        write_training(str(tmp_path / "run"), stage, count=9, steps=9)

    async def watch(page: Page) -> None:
        await page.until("document.querySelector('h1')?.textContent", lambda text: text == "run")
        assert "token=" not in await page.run("location.href")
        assert await page.run("document.cookie") == ""
        await page.until(PRESSED, lambda names: names == ["generator", "Steps"])
        await page.run("history.replaceState(null, '', '#runs=0&axis=hours&stage=tokenizer')")
        await page.reload()
        await page.until(PRESSED, lambda names: names == ["tokenizer", "Hours"])
        await page.until("document.querySelector('.chart .unit')?.textContent", lambda text: text == "hours")

    browse([str(tmp_path / "run")], watch, token="opensesame")
