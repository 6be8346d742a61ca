"""The newest record as Prometheus gauges: a file for node_exporter's textfile collector, and a port if asked for."""

from __future__ import annotations

import logging
import os
import re
from typing import Any

from data_pipeline import storage

_LOG = logging.getLogger(__name__)
FILE = "metrics.prom"
_NOT_ALLOWED = re.compile(r"[^a-zA-Z0-9_]")
_LOOPBACK, _EVERYWHERE = "127.0.0.1", "0.0.0.0"  # noqa: S104 - where the workers' machines are several, and it is said


def default_host() -> str:
    """Where the port is opened by default: Ray and torchrun tell a worker how many of all are on its machine."""
    all_here = os.environ.get("LOCAL_WORLD_SIZE") == os.environ.get("WORLD_SIZE")
    return _LOOPBACK if all_here else _EVERYWHERE


class PrometheusReader:
    """Gauges `foldtrain_<name>{stage="..."}`, one for each number of a record.

    The file is replaced as a whole. It is written only where the stage's folder is on this machine, since no collector
    reads object storage.

    Args:
        folder: of the stage, at any URI.
        stage: its name, the label of all gauges.
        port: where to answer HTTP requests for /metrics; None for nowhere. A port that is taken is said, and the file
            written all the same.
        host: address at which it is opened; None for the loopback device where all workers are on this machine, else
            for all interfaces, which is said.
    """

    def __init__(self, folder: str, stage: str, port: int | None, host: str | None = None) -> None:
        from prometheus_client import CollectorRegistry

        self._path = None if storage.is_remote(folder) else str(storage.local_path(folder) / FILE)
        self._stage = stage
        self._registry = CollectorRegistry()
        self._gauges: dict[str, Any] = {}
        self._server = None if port is None else self._serve(port, host or default_host())

    def _serve(self, port: int, host: str) -> Any:
        from prometheus_client import start_http_server

        try:
            server = start_http_server(port, addr=host, registry=self._registry)
        except OSError as error:
            _LOG.error(
                "tracking.prometheus_port %s:%d cannot be used (%s): metrics are in files only", host, port, error
            )
            return None
        if host == _EVERYWHERE:
            _LOG.warning("metrics are open to whoever reaches port %d of this node (tracking.prometheus_host)", port)
        return server

    @property
    def port(self) -> int | None:
        """Where requests are answered."""
        return None if self._server is None else int(self._server[0].server_port)

    def write(self, record: dict[str, Any]) -> None:
        """Show the numbers of a record in place of the last one's."""
        from prometheus_client import write_to_textfile

        for name, value in record.items():
            if isinstance(value, int | float):
                self._gauge(name).set(value)
            elif name in self._gauges:  # not finite any more: an old value would be a lie
                self._gauge(name).set(float("nan"))
        if self._path is not None:
            write_to_textfile(self._path, self._registry)

    def _gauge(self, name: str) -> Any:
        from prometheus_client import Gauge

        if name not in self._gauges:
            title = f"foldtrain_{_NOT_ALLOWED.sub('_', name)}"
            gauge = Gauge(title, f"{name} of metrics.jsonl", ["stage"], registry=self._registry)
            self._gauges[name] = gauge.labels(stage=self._stage)
        return self._gauges[name]

    def close(self) -> None:
        """Stop answering. The file keeps the last values."""
        if self._server is not None:
            server, thread = self._server
            server.shutdown()
            server.server_close()
            thread.join()
