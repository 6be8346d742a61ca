"""The newest record as Prometheus gauges: a file for node_exporter's textfile collector, and a port if asked for."""

from __future__ import annotations

import logging
import re
from typing import Any

from data_pipeline import storage

_LOG = logging.getLogger(__name__)
FILE = "metrics.prom"
_NOT_ALLOWED = re.compile(r"[^a-zA-Z0-9_]")


class PrometheusReader:
    """Gauges `foldtrain_<name>{stage="..."}`, one for each number of a record.

    The file is replaced as a whole. It is written only where the stage's folder is on this machine, since no collector
    reads object storage.

    Args:
        folder: of the stage, at any URI.
        stage: its name, the label of all gauges.
        port: where to answer HTTP requests for /metrics, on all interfaces; None for nowhere. A port that is taken
            is said, and the file written all the same.
    """

    def __init__(self, folder: str, stage: str, port: int | None) -> None:
        from prometheus_client import CollectorRegistry

        self._path = None if storage.is_remote(folder) else str(storage.local_path(folder) / FILE)
        self._stage = stage
        self._registry = CollectorRegistry()
        self._gauges: dict[str, Any] = {}
        self._server = None if port is None else self._serve(port)

    def _serve(self, port: int) -> Any:
        from prometheus_client import start_http_server

        try:
            return start_http_server(port, registry=self._registry)
        except OSError as error:
            _LOG.error("tracking.prometheus_port %d cannot be used (%s): metrics are in files only", port, error)
            return None

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
