"""`foldtrain monitor --web`: which runs are shown, and a server for them until Ctrl-C."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import secrets
import signal
import socket
from collections.abc import Sequence

from cluster.monitor.watching import is_run, require_run
from cluster.terminal.output import say
from data_pipeline import storage
from data_pipeline.errors import UsageError
from data_pipeline.text.printable import printable

MOST_RUNS = 200
"""Of a folder that are offered."""


def find_runs(uris: Sequence[str]) -> list[tuple[str, str]]:
    """URI and name of each run that is meant by runs, and folders of runs.

    Raises:
        UsageError: if there is no run at one of them, nor directly in it.
    """
    found: list[str] = []
    for uri in uris:
        names = storage.list_names(uri)
        if is_run(names):
            found.append(uri)
            continue
        inside = [child for name in names[:MOST_RUNS] if is_run(storage.list_names(child := storage.join(uri, name)))]
        if not inside:
            require_run(uri)
            inside = [uri]  # an empty folder, in which a run may be about to begin
        found += inside
    runs = list(dict.fromkeys(found))
    return list(zip(runs, _names(runs), strict=True))


def _names(runs: Sequence[str]) -> list[str]:
    """The last part of each URI; of those that are alike, as many as tell them apart."""
    parts = [run.rstrip("/").split("/") for run in runs]
    names = []
    for own in parts:
        count = 1
        while count < len(own) and sum(other[-count:] == own[-count:] for other in parts) > 1:
            count += 1
        names.append("/".join(own[-count:]))
    return names


def serve(uris: Sequence[str], *, host: str, port: int, control: bool = False, price: float | None = None) -> None:
    """Serve the page until Ctrl-C or SIGTERM.

    Args:
        uris: runs, or folders of runs.
        host: to listen on. Another one than this machine for itself needs a token, which the printed URL has.
        port: to listen on; 0 for any that is free.
        control: whether the page may stop a run and have it write a checkpoint. Needs a token, too.
        price: of an hour of all machines of a run.

    Raises:
        UsageError: if there is no such run, or nothing can listen there.
    """
    from cluster.monitor.web.access import Access

    runs, token = find_runs(uris), draw_token(host, control=control)
    listening = _listen(host, port)
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(_serve(runs, listening, Access(host, token), control=control, price=price))


def draw_token(host: str, *, control: bool) -> str | None:
    """A token, as far as one is needed: elsewhere than on loopback, and where a run can be changed."""
    from cluster.monitor.web.access import is_loopback

    return None if is_loopback(host) and not control else secrets.token_urlsafe(24)


def _listen(host: str, port: int) -> socket.socket:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host.strip("[]"), port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listening = socket.socket(family, kind, protocol)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
    except OSError as error:
        raise UsageError(f"cannot listen on {host}:{port}: {error.strerror or error}; give another --port") from error
    return listening


async def _serve(
    runs: Sequence[tuple[str, str]], listening: socket.socket, access: object, *, control: bool, price: float | None
) -> None:
    from aiohttp import web

    from cluster.monitor.web.access import Access
    from cluster.monitor.web.server import Server

    assert isinstance(access, Access)
    server = Server(runs, access, may_control=control, price=price)
    runner = web.AppRunner(server.application(), access_log=None)
    await runner.setup()
    try:
        await web.SockSite(runner, listening, shutdown_timeout=2.0).start()
        _say(runs, listening, access.token)
        ended = asyncio.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, ended.set)
        await ended.wait()
    finally:
        await runner.cleanup()


def _say(runs: Sequence[tuple[str, str]], listening: socket.socket, token: str | None) -> None:
    host, port = listening.getsockname()[:2]
    if ipaddress.ip_address(host).is_unspecified:
        host = socket.gethostname()
    shown = f"[{host}]" if ":" in host else host
    names = ", ".join(printable(name) for _, name in runs[:5]) + (f" and {len(runs) - 5} more" if len(runs) > 5 else "")
    say(f"showing {names}; Ctrl-C ends it", f"http://{shown}:{port}/" + (f"?token={token}" if token else ""))
