"""Pictures of the monitor's page, by a headless Chromium: what docs/monitoring.md shows.

    python docs/figures/monitor.py RUN ONE OTHER docs/figures

The page of a run in light and in dark, and on a phone; two others over each other.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from pathlib import Path

from aiohttp.test_utils import TestServer

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from cluster.monitor.web.access import Access
from cluster.monitor.web.server import Server
from cluster.monitor.web.serving import find_runs
from tests.cluster.web.chromium import Chromium, Page

WIDTH, PHONE = 1280, 390
DRAWN = """
    [...document.querySelector('.charts').querySelectorAll('.plot')].every((each) => each.querySelector('canvas'))
    && [...document.querySelectorAll('img')].every((each) => each.complete && each.naturalWidth > 0)"""
END = "Math.ceil(document.getElementById({part!r}).getBoundingClientRect().bottom + scrollY + 18)"


async def show(page: Page, origin: str, runs: str, *, stage: str, dark: bool = False, phone: bool = False) -> None:
    """Open runs, and wait until all is drawn."""
    await page.size(PHONE if phone else WIDTH, 844 if phone else 900, dark=dark, phone=phone)
    await page.open("about:blank")
    await page.open(f"{origin}/#runs={runs}&axis=steps&stage={stage}")
    await page.until("document.querySelectorAll('.chart').length", lambda count: count > 3)
    height = await page.run("document.body.scrollHeight")
    for y in range(0, height, 500):  # charts and pictures wait until they are seen
        await page.run(f"scrollTo(0, {y})")
        await asyncio.sleep(0.5)
    await page.run("scrollTo(0, 0)")
    await page.until(DRAWN)
    await asyncio.sleep(1)


async def draw(runs: list[str], folder: Path) -> None:
    """All pictures."""
    server = TestServer(Server(find_runs(runs), Access("127.0.0.1", None)).application())
    await server.start_server()
    origin = f"http://127.0.0.1:{server.port}"
    async with Chromium() as browser:
        page = await browser.page()
        for name, chosen, stage, dark, phone, part in (
            ("monitor", "0", "tokenizer", False, False, "codes"),
            ("monitor-dark", "0", "generator", True, False, "curves"),
            ("monitor-compared", "1,2", "generator", False, False, "curves"),
            ("monitor-phone", "0", "generator", False, True, "curves"),
        ):
            await show(page, origin, chosen, stage=stage, dark=dark, phone=phone)
            height = await page.run(END.format(part=part))
            await page.screenshot(folder / f"{name}.png", height)
            print(f"{folder / name}.png: {height} high; console: {page.console}")
    await server.close()


def main() -> None:
    """Draw them."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("run", help="a run, at any URI")
    parser.add_argument("one", help="another")
    parser.add_argument("other", help="one to compare it with")
    parser.add_argument("folder", type=Path, help="where the pictures go")
    asked = parser.parse_args()
    asyncio.run(draw([asked.run, asked.one, asked.other], asked.folder))


if __name__ == "__main__":
    main()
