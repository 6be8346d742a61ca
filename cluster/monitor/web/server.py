"""The server of the page: answers from what was read, and reads what somebody watches."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from aiohttp import web
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from cluster.monitor.web import curves
from cluster.monitor.web.access import Access, add_headers
from cluster.monitor.web.codes import code_maps
from cluster.monitor.web.configs import configs_of
from cluster.monitor.web.control import ACTIONS, control
from cluster.monitor.web.evaluations import evaluations_of
from cluster.monitor.web.logs import LogReader
from cluster.monitor.web.marks import marks
from cluster.monitor.web.run_reading import RunReading
from data_pipeline import storage
from data_pipeline.errors import FoldtrainError
from data_pipeline.text.json_records import finite
from data_pipeline.text.printable import printable
from trainer.records.columns import Columns

_HERE = Path(__file__).parent
MOST_COMPARED = 10
"""Runs that are shown over each other."""
_REQUESTS_A_SECOND = 1.0
"""Most that the looks at one run cost its storage, whoever watches it, on average."""
_LOCAL_SECONDS, _REMOTE_SECONDS, _LONGEST_PAUSE = 1.0, 2.0, 60.0
"""Between two looks."""
_WATCHED_SECONDS = 30.0
"""For which a run is looked at after the page last asked for it."""
_MOST_NAMES = 60
_OPENING = 4
"""Runs that are opened at once."""
T = TypeVar("T")


@dataclass
class _Watched:
    """A run, and who looks at it."""

    reading: RunReading
    logs: LogReader
    asked_at: float = 0.0
    looker: asyncio.Task[None] | None = None
    opened: asyncio.Event = field(default_factory=asyncio.Event)


class Server:
    """The page's server over some runs.

    Args:
        runs: URI and name of each.
        access: who may ask.
        may_control: whether the page may stop a run, and have it write a checkpoint.
        price: of an hour of all machines of a run, if a job's record does not say; None if unknown.
    """

    def __init__(
        self, runs: Sequence[tuple[str, str]], access: Access, *, may_control: bool = False, price: float | None = None
    ) -> None:
        self._access, self._may_control, self._price = access, may_control, price
        self.watched = [_Watched(RunReading(uri, name), LogReader(uri)) for uri, name in runs]
        self._opening = asyncio.Semaphore(_OPENING)
        self._looking = asyncio.Lock()  # one look after the other, so that each knows the requests that it has sent
        page = Environment(loader=FileSystemLoader(_HERE), autoescape=True, undefined=StrictUndefined)
        self._page = page.get_template("page.html")

    def application(self) -> web.Application:
        """What aiohttp serves."""
        app = web.Application(middlewares=[self._access.check], client_max_size=64 * 1024)
        app.on_response_prepare.append(add_headers)
        app.on_shutdown.append(self._end)
        app.router.add_static("/static/", _HERE / "static")
        app.router.add_static("/vendored/", _HERE / "vendored")
        routes: dict[str, Callable[[web.Request], Any]] = {
            "/": self._get_page,
            "/api/runs": self._get_runs,
            "/api/states": self._get_states,
            "/api/curves": self._get_curves,
            "/api/picture": self._get_picture,
            "/api/codes": self._get_codes,
            "/api/configs": self._get_configs,
            "/api/evaluations": self._get_evaluations,
            "/api/jobs": self._get_jobs,
            "/api/log": self._get_log,
        }
        for path, handler in routes.items():
            app.router.add_get(path, handler)
        if self._may_control:
            app.router.add_post("/api/control", self._post_control)
        return app

    async def _end(self, _app: web.Application) -> None:
        for each in self.watched:
            if each.looker:
                each.looker.cancel()

    # ------------------------------------------------------------------------------------------------------- looking

    async def _watch(self, number: int) -> _Watched:
        """A run that the page asks for, once it was read; from now on it is looked at."""
        each = self.watched[number]
        each.asked_at = time.monotonic()
        if each.looker is None or each.looker.done():
            each.looker = asyncio.create_task(self._look(each))
        await each.opened.wait()
        return each

    async def _look(self, each: _Watched) -> None:
        """Look at a run for as long as somebody watches it; nobody waits for a look that has ended, however it did."""
        try:
            await self._look_on(each)
        finally:
            each.opened.set()

    async def _look_on(self, each: _Watched) -> None:
        remote = storage.is_remote(each.reading.uri)
        while time.monotonic() - each.asked_at < _WATCHED_SECONDS or not each.opened.is_set():
            began, before = time.monotonic(), storage.requests().total()
            if each.opened.is_set():
                async with self._looking:
                    before = storage.requests().total()
                    await asyncio.to_thread(each.reading.look, time.time())
                    sent = storage.requests().total() - before
            else:
                async with self._opening:
                    await asyncio.to_thread(each.reading.look, time.time())
                sent = 0
                each.opened.set()
            shortest = _REMOTE_SECONDS if remote else _LOCAL_SECONDS
            idle = min(_LONGEST_PAUSE, shortest * 2.0 ** min(each.reading.idle_looks, 30))
            pause = max(idle, sent / _REQUESTS_A_SECOND) - (time.monotonic() - began)
            await asyncio.sleep(max(0.05, pause))

    def _number(self, request: web.Request) -> int:
        return _integer(request, "run", len(self.watched) - 1)

    # ------------------------------------------------------------------------------------------------------- answers

    async def _get_page(self, _request: web.Request) -> web.Response:
        text = self._page.render(
            secret=self._access.page_secret if self._may_control else "",
            control=self._may_control,
            price="" if self._price is None else f"{self._price:g}",
        )
        return web.Response(text=text, content_type="text/html", charset="utf-8")

    async def _get_runs(self, _request: web.Request) -> web.Response:
        runs = [{"id": i, "name": printable(each.reading.name), "uri": printable(each.reading.uri)}
                for i, each in enumerate(self.watched)]  # fmt: skip
        return _json({"runs": runs, "most": MOST_COMPARED, "actions": list(ACTIONS) if self._may_control else []})

    async def _get_states(self, request: web.Request) -> web.Response:
        """Of each run that is asked for as ID:VERSION, its state, or null if it is still the same."""
        asked = [_known(text, len(self.watched)) for text in request.query.getall("run", [])[:MOST_COMPARED]]
        watched = await asyncio.gather(*(self._watch(number) for number, _ in asked))
        found: dict[str, Any] = {}
        for (number, version), each in zip(asked, watched, strict=True):
            reading = each.reading
            is_same = version == reading.version
            found[str(number)] = {
                "version": reading.version,
                "state": None if is_same else reading.state,
                "seen_at": reading.state.get("seen_at"),
                "ages": {stage["name"]: stage["age"] for stage in reading.state.get("stages", ())},
            }
        return _json({"now": time.time(), "runs": found})

    async def _get_curves(self, request: web.Request) -> web.Response:
        """Curves by name and run, and the marks of each run, of one stage on one axis."""
        numbers = [_known(text, len(self.watched))[0] for text in request.query.getall("run", [])[:MOST_COMPARED]]
        names = request.query.getall("name", [])[:_MOST_NAMES]
        axis, stage = _choice(request, "axis", curves.AXES), request.query.get("stage", "")
        low, high = _float(request, "low"), _float(request, "high")
        most = _integer(request, "points", curves.MOST_POINTS, 16, default=curves.MOST_POINTS)
        watched = await asyncio.gather(*(self._watch(number) for number in numbers))

        def draw() -> dict[str, Any]:
            drawn: dict[str, Any] = {name: {} for name in names}
            marked: dict[str, Any] = {}
            for number, each in zip(numbers, watched, strict=True):
                history = each.reading.histories.get(stage)
                if history is None:
                    continue
                rows, began = history.metrics.numbers, history.began
                for name in names:
                    known = _unprintable(rows, name)
                    found = curves.curve(rows, known, axis, began, low=low, high=high, most=most)  # type: ignore[arg-type]
                    if found is not None:
                        drawn[name][str(number)] = found
                marked[str(number)] = marks(history, axis)  # type: ignore[arg-type]
            return {"curves": drawn, "marks": marked}

        return _json(await asyncio.to_thread(draw))

    async def _get_picture(self, request: web.Request) -> web.Response:
        each = await self._watch(self._number(request))
        step = _integer(request, "step", 2**53)
        png = await _read(each.reading.picture, request.query.get("stage", ""), step)
        if png is None:
            raise web.HTTPNotFound(text="there is no such picture\n")
        return web.Response(body=png, content_type="image/png", headers={"Cache-Control": "private, max-age=600"})

    async def _get_codes(self, request: web.Request) -> web.Response:
        each = await self._watch(self._number(request))
        return _json(await _read(code_maps, each.reading))

    async def _get_configs(self, request: web.Request) -> web.Response:
        each = await self._watch(self._number(request))
        return _json(await _read(configs_of, each.reading))

    async def _get_evaluations(self, request: web.Request) -> web.Response:
        numbers = [_known(text, len(self.watched))[0] for text in request.query.getall("run", [])[:MOST_COMPARED]]
        watched = await asyncio.gather(*(self._watch(number) for number in numbers))
        readings = {number: each.reading for number, each in zip(numbers, watched, strict=True)}
        return _json(await _read(evaluations_of, readings))

    async def _get_jobs(self, request: web.Request) -> web.Response:
        each = await self._watch(self._number(request))
        return _json({"jobs": await _read(each.logs.jobs), "price": await _read(each.logs.price)})

    async def _get_log(self, request: web.Request) -> web.Response:
        each = await self._watch(self._number(request))
        after = _integer(request, "after", 2**53, default=0)
        return _json(await _read(each.logs.after, request.query.get("job", ""), after))

    async def _post_control(self, request: web.Request) -> web.Response:
        try:
            body = json.loads(await request.text())
        except ValueError:
            body = None
        if not isinstance(body, dict) or body.get("action") not in ACTIONS:
            raise web.HTTPBadRequest(text=f"give an action: {', '.join(ACTIONS)}\n")
        number = body.get("run")
        if type(number) is not int or not 0 <= number < len(self.watched):
            raise web.HTTPBadRequest(text="give a run\n")
        said = await _read(control, self.watched[number].reading, body["action"])
        return _json({"said": said})


async def _read(use: Callable[..., T], *given: Any) -> T:
    """Call what may read storage, beside all other requests; what storage says instead is the answer."""
    try:
        return await asyncio.to_thread(use, *given)
    except (FoldtrainError, OSError) as error:
        raise web.HTTPBadGateway(text=printable(str(error)) + "\n") from error


def _json(value: Any) -> web.Response:
    try:
        text = json.dumps(value, allow_nan=False)
    except ValueError:  # sums of what a record holds may be no numbers any more
        text = json.dumps(finite(value), allow_nan=False)
    return web.Response(text=text, content_type="application/json", charset="utf-8")


def _known(text: str, count: int) -> tuple[int, int]:
    """A run, and the version of it that the page has."""
    number, _, version = text.partition(":")
    if not _is_integer(number) or int(number) >= count or (version and not _is_integer(version)):
        raise web.HTTPBadRequest(text="there is no such run\n")
    return int(number), int(version or -1)


def _is_integer(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 16


def _integer(request: web.Request, name: str, most: int, least: int = 0, default: int | None = None) -> int:
    text = request.query.get(name)
    if text is None and default is not None:
        return default
    if text is None or not _is_integer(text) or not least <= int(text) <= most:
        raise web.HTTPBadRequest(text=f"{name}: give a whole number from {least} to {most}\n")
    return int(text)


def _float(request: web.Request, name: str) -> float | None:
    text = request.query.get(name)
    if text is None:
        return None
    try:
        found = float(text)
    except ValueError:
        found = float("nan")
    if found != found or abs(found) == float("inf"):
        raise web.HTTPBadRequest(text=f"{name}: give a number\n")
    return found


def _choice(request: web.Request, name: str, choices: Sequence[str]) -> str:
    found = request.query.get(name, choices[0])
    if found not in choices:
        raise web.HTTPBadRequest(text=f"{name}: choose from {', '.join(choices)}\n")
    return found


def _unprintable(rows: Columns, name: str) -> str:
    """The number that the page calls so."""
    if name in rows:
        return name
    return next((each for each in rows if printable(each) == name), name)
