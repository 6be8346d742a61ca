"""Receivers of alerts on loopback: one that answers, and one that takes a connection and never says a word."""

from __future__ import annotations

import json
import queue
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Answering(ThreadingHTTPServer):
    """Answers each POST with the next of `codes`, the last of them for ever; what came is in `got`."""

    daemon_threads = True

    def __init__(self, *codes: int, location: str = "") -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.codes, self.location = list(codes or (200,)), location
        self.got: queue.Queue[dict[str, Any]] = queue.Queue()
        self._thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        """With something in it that is secret."""
        return f"http://127.0.0.1:{self.server_port}/services/T0P53CR3T"

    def close(self) -> None:
        """End it."""
        self.shutdown()
        self.server_close()
        self._thread.join()


class _Handler(BaseHTTPRequestHandler):
    server: Answering

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.got.put(body | {"content-type": self.headers["Content-Type"], "path": self.path})
        codes = self.server.codes
        self.send_response(codes.pop(0) if len(codes) > 1 else codes[0])
        if self.server.location:
            self.send_header("Location", self.server.location)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Say nothing."""


class Silent:
    """Takes connections and never answers."""

    def __init__(self) -> None:
        self._socket = socket.create_server(("127.0.0.1", 0))

    @property
    def url(self) -> str:
        """Of it."""
        return f"http://127.0.0.1:{self._socket.getsockname()[1]}/"

    def close(self) -> None:
        """End it."""
        self._socket.close()
