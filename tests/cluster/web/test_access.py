"""Who may ask the page's server: by the host's name, a token, a cookie, and a secret of the page to change a run."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Awaitable, Callable
from http.cookies import SimpleCookie
from pathlib import Path
from typing import Any, TypeVar

import aiohttp
import pytest
from aiohttp.test_utils import TestClient, TestServer

from cluster.monitor.web.access import CSRF_HEADER, Access, is_loopback, user_of
from cluster.monitor.web.server import Server
from tests.cluster.web.runs_to_watch import write_training

T = TypeVar("T")
TOKEN = "opensesame"


def ask(run: Path, access: Access, use: Callable[[TestClient[Any, Any]], Awaitable[T]], *, control: bool = False) -> T:
    async def go() -> T:
        write_training(str(run), "generator", count=2, steps=2)
        server = Server([(str(run), "run")], access, may_control=control)
        jar = aiohttp.CookieJar(unsafe=True)  # of an address
        async with TestClient(TestServer(server.application()), cookie_jar=jar) as client:
            return await use(client)

    return asyncio.run(go())


@pytest.mark.parametrize(
    ("listens", "header", "known"),
    [
        ("127.0.0.1", "127.0.0.1:8470", True),
        ("127.0.0.1", "localhost:8470", True),
        ("127.0.0.1", "LOCALHOST", True),
        ("127.0.0.1", "[::1]:8470", True),
        ("127.0.0.1", "evil.example:8470", False),
        ("127.0.0.1", "localhost.evil.example", False),
        ("127.0.0.1", "10.0.0.7:8470", False),
        ("127.0.0.1", "", False),
        ("127.0.0.1", "user@evil.example", False),
        ("0.0.0.0", "10.0.0.7:8470", True),
        ("0.0.0.0", "evil.example", False),
        ("head.cluster", "head.cluster:8470", True),
    ],
)
def test_a_host_header_names_this_machine_or_the_request_is_refused(listens: str, header: str, *, known: bool) -> None:
    assert Access(listens, None).knows_host(header) is known


def test_a_page_of_another_site_cannot_ask_through_a_name_that_leads_here(tmp_path: Path) -> None:
    async def status(client: TestClient[Any, Any]) -> tuple[int, str]:
        async with client.get("/api/runs", headers={"Host": "evil.example"}) as answer:
            return answer.status, await answer.text()

    code, text = ask(tmp_path, Access("127.0.0.1", None), status)
    assert code == 421
    assert "generator" not in text


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1", "127.8.8.8"])
def test_these_are_this_machine_for_itself(host: str) -> None:
    assert is_loopback(host)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.1.2.3", "head.cluster", "localhost.evil.example"])
def test_and_these_are_not(host: str) -> None:
    assert not is_loopback(host)


@pytest.mark.parametrize(("users", "status"), [(None, 200), (frozenset({os.getuid() + 12_345}), 403)])
def test_on_loopback_another_users_process_is_refused(
    tmp_path: Path, users: frozenset[int] | None, status: int
) -> None:
    async def twice(client: TestClient[Any, Any]) -> list[int]:
        found = []
        for _ in range(2):
            async with client.get("/api/runs") as answer:
                found.append(answer.status)
        return found

    assert ask(tmp_path, Access("127.0.0.1", None, users), twice) == [status] * 2


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_whose_process_is_at_the_other_end_is_told_by_the_system(host: str) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, 0), family=family) as server:
        with socket.create_connection(server.getsockname()[:2]) as client:
            end, peer = server.accept()
            with end:
                assert user_of(peer, end.getsockname()) == os.getuid()
        assert user_of(("127.0.0.1", 1), ("127.0.0.1", 2)) is None
        assert client.fileno() == -1


def test_without_the_token_nothing_is_told(tmp_path: Path) -> None:
    async def statuses(client: TestClient[Any, Any]) -> list[int]:
        found = []
        for path in ("/", "/api/runs", "/api/states?run=0", "/static/app.js", "/?token=wrong", "/api/runs?token="):
            async with client.get(path, allow_redirects=False) as answer:
                found.append(answer.status)
        return found

    assert ask(tmp_path, Access("0.0.0.0", TOKEN), statuses) == [403] * 6


def test_the_token_is_given_once_and_a_cookie_has_it_from_then_on(tmp_path: Path) -> None:
    async def enter(client: TestClient[Any, Any]) -> tuple[int, str, SimpleCookie, int, int]:
        async with client.get(f"/?token={TOKEN}", allow_redirects=False) as answer:
            entered, place, cookies = answer.status, answer.headers["Location"], answer.cookies
        async with client.get("/") as page, client.get("/api/runs") as runs:
            return entered, place, cookies, page.status, runs.status

    entered, place, cookies, page, runs = ask(tmp_path, Access("0.0.0.0", TOKEN), enter)
    assert (entered, place, page, runs) == (303, "/", 200, 200)
    (cookie,) = cookies.values()
    assert (cookie["httponly"], cookie["samesite"]) == (True, "Lax")


def test_no_answer_may_be_framed_sniffed_kept_or_load_anything_from_elsewhere(tmp_path: Path) -> None:
    async def headers(client: TestClient[Any, Any]) -> list[Any]:
        found = []
        for path in ("/", "/api/runs", "/static/app.js", "/no-such-page", "/api/states?run=7"):
            async with client.get(path) as answer:
                found.append(answer.headers)
        return found

    for each in ask(tmp_path, Access("127.0.0.1", None), headers):
        policy = each["Content-Security-Policy"]
        assert "default-src 'self'" in policy
        assert "frame-ancestors 'none'" in policy
        assert "unsafe" not in policy
        assert (each["X-Content-Type-Options"], each["Referrer-Policy"]) == ("nosniff", "no-referrer")
        assert "no-store" in each["Cache-Control"]


def test_the_page_has_no_script_or_style_of_its_own_text_and_no_other_host() -> None:
    folder = Path(__file__).parents[3] / "cluster/monitor/web"
    page = (folder / "page.html").read_text()
    assert "style=" not in page
    assert "<style" not in page
    assert " on" + "click" not in page
    assert "</script>" in page
    assert "><" not in [part for part in page.split("<script")[1:] if not part.split(">", 1)[1].startswith("</script>")]
    for file in [folder / "page.html", *sorted((folder / "static").iterdir())]:
        text = file.read_text().replace('xmlns="http://www.w3.org/2000/svg"', "")
        assert "http:" not in text, file
        assert "https:" not in text, file
        assert not [word for word in ("innerHTML", "insertAdjacentHTML", "document.write", "eval(") if word in text], (
            file
        )


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 403),
        ({CSRF_HEADER: "guess"}, 403),
        ({CSRF_HEADER: "SECRET", "Origin": "http://evil.example"}, 403),
        ({CSRF_HEADER: "SECRET"}, 400),
    ],
)
def test_what_changes_a_run_needs_the_secret_of_the_page(tmp_path: Path, headers: dict[str, str], status: int) -> None:
    access = Access("127.0.0.1", None)
    given = {name: value.replace("SECRET", access.page_secret) for name, value in headers.items()}

    async def post(client: TestClient[Any, Any]) -> int:
        async with client.post("/api/control", json={"run": 0, "action": "dance"}, headers=given) as answer:
            return answer.status

    assert ask(tmp_path, access, post, control=True) == status


def test_without_control_nothing_can_be_changed_and_the_page_has_no_secret(tmp_path: Path) -> None:
    access = Access("127.0.0.1", None)

    async def post(client: TestClient[Any, Any]) -> tuple[int, str]:
        headers = {CSRF_HEADER: access.page_secret}
        async with (
            client.post("/api/control", json={"run": 0, "action": "stop"}, headers=headers) as answer,
            client.get("/") as page,
        ):
            return answer.status, await page.text()

    status, page = ask(tmp_path, access, post)
    assert status in {404, 405}
    assert access.page_secret not in page
