"""A headless Chromium, driven by the DevTools protocol."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import itertools
import json
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import aiohttp

PROGRAM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
_FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update", "--disable-default-apps", "--mute-audio"),
    *("--disable-dev-shm-usage", "--hide-scrollbars", "--remote-debugging-port=0"),
)
_SECONDS = 120.0
"""That anything is waited for at most."""


@contextlib.asynccontextmanager
async def in_time(what: str) -> AsyncIterator[None]:
    """Give what is waited for inside up in time, and say what it was."""
    try:
        async with asyncio.timeout(_SECONDS):
            yield
    except TimeoutError:
        raise AssertionError(f"{what}: nothing in {_SECONDS:.0f} s") from None


class Page:
    """A tab.

    Args:
        socket: to the DevTools of the tab.
    """

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket = socket
        self._numbers = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[Any]] = {}
        self.requests: list[str] = []
        """URLs that were asked for."""
        self.console: list[str] = []
        """What was said on the console, and what was refused."""
        self._reader = asyncio.create_task(self._read())

    async def _read(self) -> None:
        """Take what the browser says, until it says no more: then nobody waits for an answer."""
        try:
            await self._take()
        finally:
            for waiting in self._waiting.values():
                if not waiting.done():
                    waiting.set_exception(AssertionError("the browser has closed the tab"))

    async def _take(self) -> None:
        async for message in self._socket:
            found = json.loads(message.data)
            if "id" in found:
                waiting = self._waiting.pop(found["id"], None)
                if waiting is not None and not waiting.done():
                    waiting.set_result(found)
                continue
            given = found["params"]
            match found["method"]:
                case "Network.requestWillBeSent":
                    self.requests.append(given["request"]["url"])
                case "Network.webSocketCreated":
                    self.requests.append(given["url"])
                case "Runtime.consoleAPICalled":
                    self.console.append(
                        " ".join(str(each.get("value", each.get("description"))) for each in given["args"])
                    )
                case "Runtime.exceptionThrown":
                    self.console.append(str(given["exceptionDetails"].get("exception", {}).get("description")))
                case "Log.entryAdded":
                    self.console.append(given["entry"]["text"])

    async def call(self, method: str, **given: Any) -> Any:
        """A command of the protocol.

        Raises:
            AssertionError: if it fails, or has no answer in time; it says which command.
        """
        what = f"{method} {json.dumps(given)[:300]}"
        if self._reader.done():
            raise AssertionError(f"{what}: the browser has closed the tab; console: {self.console}")
        number = next(self._numbers)
        self._waiting[number] = waiting = asyncio.get_running_loop().create_future()
        async with in_time(f"{what}; console: {self.console}"):
            await self._socket.send_json({"id": number, "method": method, "params": given})
            answer = await waiting
        if "error" in answer:
            raise AssertionError(f"{method}: {answer['error']}")
        return answer["result"]

    async def open(self, url: str) -> None:
        """Go to a page."""
        await self.call("Page.navigate", url=url)

    async def run(self, script: str) -> Any:
        """The value of an expression in the page; promises are waited for."""
        found = await self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in found:
            raise AssertionError(f"{script}: {found['exceptionDetails'].get('exception', {}).get('description')}")
        return found["result"].get("value")

    async def until(self, script: str, is_so: Callable[[Any], bool] = bool) -> Any:
        """Wait until the value of an expression is as wanted, and give it."""
        value: Any = None
        clock = asyncio.get_running_loop().time
        end = clock() + _SECONDS
        while clock() < end:
            try:
                value = await self.run(script)
                if is_so(value):
                    return value
            except (AssertionError, TypeError) as error:
                value = error  # the page is not that far yet
            await asyncio.sleep(0.05)
        shown: Any = "it gives no answer"
        with contextlib.suppress(AssertionError):
            shown = await self.run("document.body.innerText")
        raise AssertionError(f"{script} stays {value!r} for {_SECONDS:.0f} s; console: {self.console}; page: {shown}")

    async def reload(self) -> None:
        """Load the page anew; returns once it is the new one that answers."""
        await self.run("window.isBefore = true")
        await self.call("Page.reload")
        await self.until("!window.isBefore && document.readyState === 'complete'")

    async def size(self, width: int, height: int, *, dark: bool = False, phone: bool = False) -> None:
        """The window's, and which colours it prefers."""
        await self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=phone
        )
        scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        await self.call("Emulation.setEmulatedMedia", features=scheme)

    async def press(self, key: str, code: int = 0) -> None:
        """A key."""
        typed = {"text": "\r"} if key == "Enter" else {}
        given = {"key": key, "code": key, "windowsVirtualKeyCode": code}
        await self.call("Input.dispatchKeyEvent", type="keyDown" if typed else "rawKeyDown", **given, **typed)
        await self.call("Input.dispatchKeyEvent", type="keyUp", **given)

    async def pointer(self, kind: str, at: tuple[float, float]) -> None:
        """The left button of a mouse, `mousePressed` or `mouseReleased`, at x and y in CSS pixels."""
        x, y = at
        await self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    async def screenshot(self, path: Path, height: int | None = None) -> None:
        """Of the window, or of so much of the page."""
        clip = {}
        if height:
            width = await self.run("innerWidth")
            clip = {
                "clip": {"x": 0, "y": 0, "width": width, "height": height, "scale": 1},
                "captureBeyondViewport": True,
            }
        found = await self.call("Page.captureScreenshot", format="png", **clip)
        path.write_bytes(base64.b64decode(found["data"]))


class Chromium:
    """The browser, for as long as it is entered; its processes end with it."""

    async def __aenter__(self) -> Self:
        assert PROGRAM is not None
        self._profile = Path(tempfile.mkdtemp(prefix="foldtrain-chromium-"))
        command = [PROGRAM, *_FLAGS, f"--user-data-dir={self._profile}", "about:blank"]
        self._process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )
        self._session = aiohttp.ClientSession()
        file, lines = self._profile / "DevToolsActivePort", list[str]()
        try:
            async with in_time("the start of the browser"):
                while len(lines) < 2:  # it is there before it is written
                    await asyncio.sleep(0.05)
                    lines = file.read_text().split() if file.exists() else []
        except BaseException:
            await self.__aexit__(None, None, None)
            raise
        self._port = int(lines[0])
        return self

    async def page(self) -> Page:
        """A tab of its own, without the cookies of others."""
        async with in_time("a tab of the browser"):
            async with self._session.put(f"http://127.0.0.1:{self._port}/json/new?about:blank") as answer:
                target = await answer.json(content_type=None)
            page = Page(await self._session.ws_connect(target["webSocketDebuggerUrl"], max_msg_size=0))
        for domain in ("Page", "Runtime", "Network", "Log"):
            await page.call(f"{domain}.enable")
        return page

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        await self._session.close()
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        shutil.rmtree(self._profile, ignore_errors=True)
