"""A wrong or stale address of a Ray cluster is named before Ray waits for it."""

from __future__ import annotations

import json
import socket
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from cluster.session import ray_address
from cluster.session.ray_address import Head as Found
from cluster.session.ray_address import RayAddress, asked_address, host_and_port, probe, question_to_head
from data_pipeline.errors import FoldtrainError, UsageError

OUR_PYTHON = ".".join(map(str, sys.version_info[:3]))


def at(text: str, setting: str = "cluster.address") -> RayAddress:
    return RayAddress(text, setting)


@pytest.mark.parametrize(
    ("configured", "variable", "expected"),
    [
        (None, None, None),
        ("", "", None),
        ("local", "10.0.0.1:6379", None),
        (None, "local", None),
        ("10.0.0.1:6379", "10.0.0.2:6379", at("10.0.0.1:6379")),
        (None, " 10.0.0.2:6379\n", at("10.0.0.2:6379", "RAY_ADDRESS")),
        ("auto", "10.0.0.2:6379", at("10.0.0.2:6379", "RAY_ADDRESS")),
        ("auto", None, at("auto")),
    ],
)
def test_the_config_is_asked_before_the_environment(
    configured: str | None, variable: str | None, expected: RayAddress | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    if variable is not None:
        monkeypatch.setenv("RAY_ADDRESS", variable)
    assert asked_address(configured) == expected


@pytest.mark.parametrize(
    ("text", "parts"),
    [("10.0.0.1:6379", ("10.0.0.1", 6379)), ("head.example:80", ("head.example", 80)), ("[::1]:6379", ("::1", 6379))],
)
def test_an_address_has_a_host_and_a_port(text: str, parts: tuple[str, int]) -> None:
    assert host_and_port(at(text)) == parts


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("http://head:8265", "the address of a dashboard. Give the head's own, like head:6379"),
        ("HTTPS://head", "the address of a dashboard"),
        ("ray://head:10001", "of Ray's client, which foldtrain does not use. Give the head's own, like head:6379"),
        ("redis://head:6379", "give|Give"),
        ("10.0.0.1", "give HOST:PORT"),
        (":6379", "give HOST:PORT"),
        ("head:http", "give HOST:PORT"),
        ("head:0", "give HOST:PORT"),
        ("head:65536", "give HOST:PORT"),
        ("head:²", "give HOST:PORT"),
    ],
)
@pytest.mark.parametrize("setting", ["cluster.address", "RAY_ADDRESS"])
def test_another_form_is_refused_with_its_setting(text: str, reason: str, setting: str) -> None:
    with pytest.raises(UsageError, match=reason) as refused:
        probe(at(text, setting))
    assert str(refused.value).startswith(f"{setting} is {text!r}")


class Head:
    """What a Ray head answers, as far as it is asked."""

    def __init__(self, ray: str = "", python: str = OUR_PYTHON, token: str | None = None, nodes: tuple[str, ...] = ()):
        self.ray, self.python, self.token, self.nodes = ray, python, token, nodes
        self.address = ""

    def _admit(self, context: Any) -> None:
        import grpc

        if self.token and dict(context.invocation_metadata()).get("authorization") != f"Bearer {self.token}":
            context.abort(grpc.StatusCode.UNAUTHENTICATED, "no")

    def CheckAlive(self, request: Any, context: Any) -> Any:  # noqa: N802 - Ray's name
        from ray.core.generated import gcs_service_pb2 as messages

        self._admit(context)
        return messages.CheckAliveReply(ray_version=self.ray)

    def InternalKVGet(self, request: Any, context: Any) -> Any:  # noqa: N802 - Ray's name
        from ray.core.generated import gcs_service_pb2 as messages

        assert (request.namespace, request.key) == (b"cluster", b"CLUSTER_METADATA")
        value = {"ray_version": self.ray, "python_version": self.python}
        return messages.InternalKVGetReply(value=json.dumps(value).encode())

    def GetAllNodeInfo(self, request: Any, context: Any) -> Any:  # noqa: N802 - Ray's name
        from ray.core.generated import gcs_pb2
        from ray.core.generated import gcs_service_pb2 as messages

        found = [gcs_pb2.GcsNodeInfo(node_id=bytes.fromhex(node)) for node in self.nodes]
        return messages.GetAllNodeInfoReply(node_info_list=found)


@contextmanager
def serving(head: Head, *, as_head: bool = True) -> Iterator[Head]:
    import grpc
    import ray
    from ray.core.generated import gcs_service_pb2 as messages

    def method(name: str) -> Any:
        request, reply = getattr(messages, f"{name}Request"), getattr(messages, f"{name}Reply")
        return grpc.unary_unary_rpc_method_handler(getattr(head, name), request.FromString, reply.SerializeToString)

    services = {"NodeInfoGcsService": ("CheckAlive", "GetAllNodeInfo"), "InternalKVGcsService": ("InternalKVGet",)}
    head.ray = head.ray or ray.__version__
    server = grpc.server(ThreadPoolExecutor(2))
    for service, names in services.items() if as_head else ():
        methods = {name: method(name) for name in names}
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(f"ray.rpc.{service}", methods),))
    head.address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    try:
        yield head
    finally:
        server.stop(None).wait()


@contextmanager
def silent() -> Iterator[str]:
    """A port that accepts connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"127.0.0.1:{server.getsockname()[1]}"


@contextmanager
def dashboard() -> Iterator[str]:
    class Quiet(BaseHTTPRequestHandler):
        def log_message(self, *arguments: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Quiet) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"127.0.0.1:{server.server_address[1]}"
        server.shutdown()


@pytest.mark.parametrize(
    ("text", "reason"),
    [("127.0.0.1:1", "no connection (Connection refused)"), ("no-such-host.invalid:6379", "there is no host")],
)
@pytest.mark.parametrize(("setting", "remedy"), [("cluster.address", "leave it out"), ("RAY_ADDRESS", "unset it")])
def test_an_address_at_which_nothing_answers_is_an_error_with_its_setting_and_a_remedy(
    text: str, reason: str, setting: str, remedy: str
) -> None:
    with pytest.raises(FoldtrainError) as failed:
        probe(at(text, setting))
    assert str(failed.value).startswith(f"{setting} is {text!r}: {reason}")
    assert f"or {remedy} to use this machine alone" in str(failed.value)


def test_a_port_that_says_nothing_is_waited_for_only_so_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_address, "_CALL_SECONDS", 0.2)
    with silent() as address, pytest.raises(FoldtrainError, match="gave no answer in 0 seconds"):
        probe(at(address))


def test_all_of_it_has_one_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_address, "_PROBE_SECONDS", 0.2)
    with silent() as address, pytest.raises(FoldtrainError, match="no answer in 0 seconds"):
        probe(at(address))


def test_the_port_of_a_dashboard_is_not_that_of_the_head() -> None:
    with dashboard() as address, pytest.raises(FoldtrainError, match=r"not the head .* port 6379"):
        probe(at(address))


def test_the_port_of_another_grpc_service_is_not_that_of_the_head() -> None:
    with serving(Head(), as_head=False) as head, pytest.raises(FoldtrainError, match="not the head"):
        probe(at(head.address))


@pytest.mark.parametrize(
    ("head", "reason"),
    [
        (Head(ray="1.0.0"), "that cluster runs Ray 1.0.0, and this command"),
        (Head(python="3.9.1"), "that cluster runs Python 3.9.1, and this command"),
        (Head(token="another"), "the cluster does not take our token. Set RAY_AUTH_MODE=token"),
        (Head(nodes=("ab" * 28,)), "that cluster has no node on this machine. Run `ray start --address="),
    ],
    ids=["ray", "python", "token", "elsewhere"],
)
def test_a_cluster_that_cannot_be_joined_says_why(head: Head, reason: str) -> None:
    with serving(head), pytest.raises(FoldtrainError) as failed:
        probe(at(head.address))
    assert reason in str(failed.value)


def test_a_token_that_is_not_where_it_is_said_to_be_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from ray._raylet import AuthenticationTokenLoader

    loader = AuthenticationTokenLoader.instance()
    with monkeypatch.context() as environment:
        environment.delenv("RAY_AUTH_TOKEN")
        environment.setenv("RAY_AUTH_TOKEN_PATH", "/no/token")
        loader.reset_cache()
        with serving(Head(token="x")) as head, pytest.raises(FoldtrainError, match=r"no token for it .*/no/token"):
            probe(at(head.address))
    loader.reset_cache()


def test_a_cluster_with_a_node_here_is_joined(monkeypatch: pytest.MonkeyPatch) -> None:
    from ray._private import services

    monkeypatch.setattr(services, "find_node_ids", lambda: {"ab" * 28})
    with serving(Head(nodes=("cd" * 28, "ab" * 28))) as head:
        assert probe(at(head.address)) == head.address


def test_what_auto_comes_to_is_said(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from ray._private import services

    monkeypatch.setattr(services, "get_ray_address_from_environment", lambda *_: "127.0.0.1:1")
    with pytest.raises(FoldtrainError, match=r"127\.0\.0\.1:1"):
        probe(at("auto"))
    assert "cluster.address is auto: joins the Ray cluster at 127.0.0.1:1" in capsys.readouterr().out


def test_a_head_answers_until_nobody_listens_there() -> None:
    with serving(Head()) as head:
        ask = question_to_head(head.address, 3.0)
        assert ask() is Found.ANSWERS
    assert ask() is Found.AWAY


def test_a_head_that_takes_connections_and_says_nothing_is_silent() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        ask = question_to_head(f"127.0.0.1:{listening.getsockname()[1]}", 1.2)
        assert ask() is Found.SILENT
    assert ask() is Found.AWAY
