"""A server in place of S3, which says what a test has it say, and nothing of this machine in the environment."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from data_pipeline.storage import object_clients
from tests.data_pipeline.stub_s3 import Request, Respond, Serving, body, stub_s3


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nothing of this machine's credentials."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")


@dataclass
class _Server:
    """One server for all tests, so that one client is opened; what it says changes."""

    url: str
    asked: list[Request]
    respond: Respond


@pytest.fixture(scope="module")
def server() -> Iterator[_Server]:
    server = _Server("", [], body)
    with stub_s3(lambda request: server.respond(request)) as (server.url, server.asked):
        yield server


@pytest.fixture
def serving(server: _Server, monkeypatch: pytest.MonkeyPatch) -> Serving:
    """Has the server answer as it is told; gives the list of what it is asked."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", server.url)

    def start(respond: Respond) -> list[Request]:
        server.respond = respond
        server.asked.clear()
        return server.asked

    return start


@pytest.fixture
def new_client() -> Iterator[None]:
    """The client is opened in this test, and in no other: it reads the environment once."""
    object_clients._open.cache_clear()
    yield
    object_clients._open.cache_clear()
