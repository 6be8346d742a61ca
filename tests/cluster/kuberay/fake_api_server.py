"""An API server that speaks as much of Kubernetes as a target needs: objects of ray.io/v1 in namespaces, over HTTP.

It keeps objects, answers with Status objects as Kubernetes does, checks bodies against the CRDs if it is asked to be
strict, and writes down what it was asked. `refuse` has it answer the next requests otherwise.
"""

from __future__ import annotations

import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple
from urllib.parse import parse_qs, urlsplit

from tests.cluster.kuberay.schemas import faults

_PATH = re.compile(r"/apis/ray\.io/v1/namespaces/([a-z0-9-]+)/(rayjobs|rayclusters)(?:/([a-z0-9-]+))?")


class Asked(NamedTuple):
    """A request."""

    method: str
    path: str
    options: dict[str, str]
    body: Any
    token: str | None


class FakeApiServer(ThreadingHTTPServer):
    """Listens on loopback until it is closed."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.objects: dict[tuple[str, str, str], dict[str, Any]] = {}
        self.asked: list[Asked] = []
        self.refuse: tuple[int, str] | None = None
        self._thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.server_port}"

    def close(self) -> None:
        """End it."""
        self.shutdown()
        self.server_close()
        self._thread.join()

    def answer(self, asked: Asked) -> tuple[int, Any]:
        """What Kubernetes would say."""
        self.asked.append(asked)
        if self.refuse:
            return _status(*self.refuse)
        found = _PATH.fullmatch(asked.path)
        if not found:
            return _status(404, "the server could not find the requested resource")
        namespace, plural, name = found.groups()
        if asked.method == "POST":
            return self._create(namespace, plural, asked)
        key = (namespace, plural, name)
        if key not in self.objects:
            return _status(404, f'{plural}.ray.io "{name}" not found')
        return (200, self.objects[key]) if asked.method == "GET" else (200, self.objects.pop(key))

    def _create(self, namespace: str, plural: str, asked: Asked) -> tuple[int, Any]:
        key = (namespace, plural, asked.body["metadata"]["name"])
        if key in self.objects:
            return _status(409, f'{plural}.ray.io "{key[2]}" already exists')
        wrong = faults(asked.body) if asked.options.get("fieldValidation") == "Strict" else []
        if wrong:
            return _status(400, f"strict decoding error: {wrong[0]}")
        if asked.options.get("dryRun") != "All":
            self.objects[key] = asked.body
        return 201, asked.body


def _status(code: int, message: str) -> tuple[int, Any]:
    return code, {"kind": "Status", "apiVersion": "v1", "status": "Failure", "message": message, "code": code}


class _Handler(BaseHTTPRequestHandler):
    server: FakeApiServer

    def _serve(self) -> None:
        parts = urlsplit(self.path)
        options = {name: values[0] for name, values in parse_qs(parts.query).items()}
        size = int(self.headers.get("Content-Length") or 0)
        body = json.loads(self.rfile.read(size)) if size else None
        asked = Asked(self.command, parts.path, options, body, self.headers.get("Authorization"))
        code, answer = self.server.answer(asked)
        text = json.dumps(answer).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    do_GET = do_POST = do_DELETE = _serve

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Say nothing."""
