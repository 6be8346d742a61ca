"""Who may ask the page's server for anything.

1. on loopback the process at the other end must be this user's, or root's, as far as the system tells (Linux)
2. Host: of a request must be an address, or a name of this machine, so that no page of another site can ask through a
   name of its own that leads here (DNS rebinding)
3. where a token is needed, the first URL has it; a cookie has it from then on, so that it stays in no history
4. what changes anything needs, besides, a header with a secret of the page (CSRF)
5. no answer may be framed, sniffed, or run or load anything that is not this server's
"""

from __future__ import annotations

import hmac
import ipaddress
import os
import secrets
import socket
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from weakref import WeakKeyDictionary

from aiohttp import web

COOKIE = "foldtrain_monitor"
CSRF_HEADER = "X-Foldtrain-Page"
HEADERS = {
    "Content-Security-Policy": "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "object-src 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=()",
}
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def is_loopback(host: str) -> bool:
    """Whether an address or name is this machine for itself alone."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def user_of(peer: tuple[Any, ...], own: tuple[Any, ...]) -> int | None:
    """The user whose process holds the other end of a connection within this machine; None if that cannot be told.

    Args:
        peer: address and port of the other end.
        own: of this end.
    """
    try:
        v6 = ipaddress.ip_address(peer[0]).version == 6
        table = Path("/proc/net/tcp6" if v6 else "/proc/net/tcp").read_text().splitlines()[1:]
    except (OSError, ValueError):  # no Linux, or a socket of another kind
        return None
    ends = [_as_the_kernel_writes(*each[:2]) for each in (peer, own)]
    for line in table:
        columns = line.split()
        if len(columns) > 7 and columns[1:3] == ends:
            return int(columns[7])
    return None


def _as_the_kernel_writes(host: str, port: int) -> str:
    """An end of a connection in /proc/net/tcp: words of the address in this machine's order of bytes."""
    packed = ipaddress.ip_address(host).packed
    words = [int.from_bytes(packed[at : at + 4], sys.byteorder) for at in range(0, len(packed), 4)]
    return "".join(f"{word:08X}" for word in words) + f":{port:04X}"


class Access:
    """The rules of one server.

    Args:
        host: that it listens on.
        token: that whoever asks has to know; None if nobody has to.
        users: of this machine who may ask, by number, where it listens on loopback.
    """

    def __init__(self, host: str, token: str | None, users: frozenset[int] | None = None) -> None:
        self.token = token
        self._users = frozenset({os.getuid(), 0}) if users is None else users
        self._strangers: WeakKeyDictionary[object, bool] = WeakKeyDictionary()
        self.page_secret = secrets.token_urlsafe(24)
        """That a request which changes anything has to bring."""
        self._is_local = is_loopback(host)
        names = {"localhost"} if self._is_local else {"localhost", host, socket.gethostname(), socket.getfqdn()}
        self._names = {name.lower() for name in names}

    def knows_host(self, header: str) -> bool:
        """Whether a Host header names this machine."""
        try:
            name = urlsplit(f"//{header}").hostname or ""
        except ValueError:
            return False
        if name in self._names:
            return True
        try:
            address = ipaddress.ip_address(name)
        except ValueError:
            return False
        return address.is_loopback or not self._is_local

    def _is_token(self, given: str | None) -> bool:
        return self.token is None or hmac.compare_digest((given or "").encode(), self.token.encode())

    @web.middleware
    async def check(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Let a request through, or refuse it."""
        if self._is_local and self._is_stranger(request):
            raise web.HTTPForbidden(text="this monitor is another user's\n")
        if not self.knows_host(request.headers.get("Host", "")):
            raise web.HTTPMisdirectedRequest(text="this is another host's name: use the address that was printed\n")
        if self.token is not None and "token" in request.query and request.method == "GET":
            if not self._is_token(request.query["token"]):
                raise web.HTTPForbidden(text=_NO_TOKEN)
            answer = web.HTTPSeeOther(request.path)
            name = f"{COOKIE}_{request.url.port}"
            answer.set_cookie(name, self.token, httponly=True, samesite="Lax", path="/")
            raise answer
        if not self._is_token(request.cookies.get(f"{COOKIE}_{request.url.port}")):
            raise web.HTTPForbidden(text=_NO_TOKEN)
        if request.method not in {"GET", "HEAD"} and not self._is_from_page(request):
            raise web.HTTPForbidden(text="this request is not from the page\n")
        return await handler(request)

    def _is_stranger(self, request: web.Request) -> bool:
        """Whether the process at the other end is another user's."""
        connection = request.transport
        if connection is None:
            return False
        if connection not in self._strangers:
            peer, own = connection.get_extra_info("peername"), connection.get_extra_info("sockname")
            user = user_of(peer, own) if peer and own else None
            self._strangers[connection] = user is not None and user not in self._users
        return self._strangers[connection]

    def _is_from_page(self, request: web.Request) -> bool:
        given = request.headers.get(CSRF_HEADER, "")
        origin = request.headers.get("Origin")
        is_own = origin is None or urlsplit(origin).netloc == request.headers.get("Host")
        return is_own and hmac.compare_digest(given.encode(), self.page_secret.encode())


_NO_TOKEN = "open the whole address that `foldtrain monitor --web` printed, with its token\n"  # noqa: S105 - no token


async def add_headers(_request: web.Request, answer: web.StreamResponse) -> None:
    """What every answer says to the browser."""
    for name, value in HEADERS.items():
        answer.headers[name] = value
    answer.headers.setdefault("Cache-Control", "no-store")
