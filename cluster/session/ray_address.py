"""The Ray cluster that a command joins: found and greeted before Ray uses its address.

Ray itself waits for minutes for an address at which nothing answers, and says so in the log lines of its C++ core.

1. `cluster.address`, else RAY_ADDRESS, else none: the command starts a cluster of its own. `auto` looks for one here.
2. the form: HOST:PORT of the head; URLs are those of the dashboard and of Ray's client, which are something else
3. a connection, then a call of the head's own service (GCS): is it one, does it take our token, has it our versions
4. a node of the cluster on this machine, as Ray's drivers need one beside them
"""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any

from cluster.terminal.output import console
from data_pipeline.errors import FoldtrainError, UsageError

_CONNECT_SECONDS = 4.0
_CALL_SECONDS = 4.0
_PROBE_SECONDS = 12.0
"""For all of it; looking up a host's name has no bound of its own."""
_LISTEN_SECONDS = 1.0
"""For a connection to a machine of the cluster that is up, whatever else it does."""
_HEAD_PORT = 6379
_TOKEN = "Set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN (or RAY_AUTH_TOKEN_PATH) to the cluster's."  # noqa: S105 - a remedy, no token
_SUBMIT = "foldtrain submit --target ray --address http://HOST:8265"


@dataclass(frozen=True)
class RayAddress:
    """Where a Ray cluster is said to be, and by which setting."""

    text: str
    setting: str
    """cluster.address or RAY_ADDRESS."""

    @property
    def remedy(self) -> str:
        """What to do if there is none."""
        without = "unset it" if self.setting == "RAY_ADDRESS" else "leave it out"
        return f"Start that cluster, correct {self.setting}, or {without} to use this machine alone."

    def refused(self, reason: str) -> UsageError:
        """An error that names the setting and its value."""
        return UsageError(f"{self.setting} is {self.text!r}: {reason}")

    def failed(self, reason: str, remedy: str | None = None) -> FoldtrainError:
        """An error that names the setting, its value, and what to do."""
        return FoldtrainError(f"{self.setting} is {self.text!r}: {reason}. {remedy or self.remedy}")


def asked_address(configured: str | None) -> RayAddress | None:
    """The cluster that is asked for; None for one of this command's own.

    Args:
        configured: `cluster.address`.
    """
    asked = RayAddress((configured or "").strip(), "cluster.address")
    if asked.text in {"", "auto"} and (found := os.environ.get("RAY_ADDRESS", "").strip()):
        asked = RayAddress(found, "RAY_ADDRESS")
    return None if asked.text in {"", "local"} else asked


def host_and_port(asked: RayAddress) -> tuple[str, int]:
    """Of an address like 10.0.0.1:6379, head.example:6379 or [::1]:6379.

    Raises:
        UsageError: if it has another form.
    """
    scheme, separated, rest = asked.text.partition("://")
    if separated:
        what = {"ray": "Ray's client, which foldtrain does not use", "http": "a dashboard", "https": "a dashboard"}
        host = rest.split("/")[0].rpartition(":")[0] or "HOST"
        raise asked.refused(
            f"a URL is the address of {what.get(scheme.lower(), 'something else')}. Give the head's own, like "
            f"{host}:{_HEAD_PORT}, on a machine of the cluster; from elsewhere: {_SUBMIT}"
        )
    host, _, port = asked.text.rpartition(":")
    bare = host.removeprefix("[").removesuffix("]")
    if not bare or not port.isascii() or not port.isdigit() or not 0 < int(port) < 65536:
        raise asked.refused(f"give HOST:PORT of the cluster's head ({_HEAD_PORT} by default), auto, or local")
    return bare, int(port)


def probe(asked: RayAddress) -> str:
    """The address as Ray takes it, once it is known that a cluster answers there. Ray has to be imported.

    Raises:
        UsageError: if it is no address.
        FoldtrainError: if no cluster that this process can use answers there, after 15 seconds at most.
    """
    if asked.text == "auto":
        asked = RayAddress(_found_here(asked), asked.setting)
        console().print(f"{asked.setting} is auto: joins the Ray cluster at {asked.text}", markup=False)
    host, port = host_and_port(asked)
    answers: list[Exception | None] = []

    def greet() -> None:
        try:
            _greet(asked, host, port)
            answers.append(None)
        except Exception as error:  # raised below, in the caller's thread
            answers.append(error)

    thread = threading.Thread(target=greet, name="probe", daemon=True)
    thread.start()
    thread.join(_PROBE_SECONDS)
    problem = answers[0] if answers else asked.failed(f"no answer in {_PROBE_SECONDS:.0f} seconds")
    if problem is not None:
        raise problem
    return asked.text


def _found_here(asked: RayAddress) -> str:
    """The address of the cluster that runs on this machine."""
    from ray._private import services
    from ray._private.authentication.authentication_token_setup import maybe_enable_token_auth_if_token_available

    maybe_enable_token_auth_if_token_available(warn_if_disabled=False)
    try:
        return str(services.get_ray_address_from_environment("auto", None))
    except ConnectionError:
        raise asked.failed("no Ray cluster was found on this machine") from None


def _greet(asked: RayAddress, host: str, port: int) -> None:
    try:
        socket.create_connection((host, port), timeout=_CONNECT_SECONDS).close()
    except socket.gaierror:
        raise asked.failed(f"there is no host {host}") from None
    except TimeoutError:
        raise asked.failed(f"no connection in {_CONNECT_SECONDS:.0f} seconds") from None
    except (OSError, UnicodeError) as error:
        raise asked.failed(f"no connection ({getattr(error, 'strerror', None) or error})") from None
    _call(asked)


def _call(asked: RayAddress) -> None:
    """Ask the head for its versions and its nodes."""
    import grpc
    from ray._private.services import find_node_ids
    from ray.exceptions import AuthenticationError

    messages, services_of_head = head_protocol()
    try:
        channel = head_channel(asked.text)
        nodes = services_of_head.NodeInfoGcsServiceStub(channel)
        alive = nodes.CheckAlive(messages.CheckAliveRequest(), timeout=_CALL_SECONDS)
        _check_versions(asked, {"ray_version": alive.ray_version})
        metadata = services_of_head.InternalKVGcsServiceStub(channel).InternalKVGet(
            messages.InternalKVGetRequest(namespace=b"cluster", key=b"CLUSTER_METADATA"), timeout=_CALL_SECONDS
        )
        _check_versions(asked, json.loads(metadata.value or b"{}"))
        found = nodes.GetAllNodeInfo(messages.GetAllNodeInfoRequest(), timeout=_CALL_SECONDS)
    except AuthenticationError as error:
        reason = str(error).partition(". ")[0]
        raise asked.failed(f"there is no token for it ({reason})", _TOKEN) from None
    except grpc.RpcError as error:
        raise _no_head(asked, error) from None
    here = find_node_ids()  # type: ignore[no-untyped-call]
    if not any(node.node_id.hex() in here for node in found.node_info_list if node.state == 0):
        raise asked.failed(
            "that cluster has no node on this machine",
            f"Run `ray start --address={asked.text}` here first, or send the stage there: {_SUBMIT}",
        )


def head_protocol() -> tuple[Any, Any]:
    """The messages of the head's services, and their clients: generated modules without types."""
    from ray.core.generated import gcs_service_pb2, gcs_service_pb2_grpc

    return gcs_service_pb2, gcs_service_pb2_grpc


def head_channel(address: str) -> Any:
    """A connection to a head, with TLS and the token that the environment names; it is made with the first call."""
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # what fails is an exception, not a line on the terminal
    from ray._private.gcs_utils import create_gcs_channel

    return create_gcs_channel(address)


def _no_head(asked: RayAddress, error: Any) -> FoldtrainError:
    """What it means that the call failed."""
    import grpc

    code, details = error.code(), str(error.details() or "")
    if code in {grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED}:
        has_token = os.environ.get("RAY_AUTH_MODE") == "token"
        return asked.failed(
            "the cluster does not take our token" if has_token else "the cluster asks for a token",
            _TOKEN,
        )
    if code is grpc.StatusCode.UNIMPLEMENTED or "http" in details.lower():
        return asked.failed(f"what answers there is not the head of a Ray cluster (by default on port {_HEAD_PORT})")
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return asked.failed(f"what listens there gave no answer in {_CALL_SECONDS:.0f} seconds")
    return asked.failed(f"what listens there does not answer as a Ray head does ({code.name.lower()})")


def _check_versions(asked: RayAddress, theirs: dict[str, str]) -> None:
    import ray

    ours = {"ray_version": ray.__version__, "python_version": ".".join(map(str, sys.version_info[:3]))}
    for name, version in ours.items():
        other = theirs.get(name) or version
        if other != version and not (name == "python_version" and _minor_is_enough(other, version)):
            label = name.partition("_")[0].title()
            raise asked.failed(
                f"that cluster runs {label} {other}, and this command {version}",
                "Ray takes only drivers of its own versions: install the same on both sides.",
            )


def _minor_is_enough(other: str, version: str) -> bool:
    level = os.environ.get("RAY_DEFAULT_PYTHON_VERSION_MATCH_LEVEL", "patch")
    return level == "minor" and other.split(".")[:2] == version.split(".")[:2]


class Head(Enum):
    """How a head is found."""

    ANSWERS = "answers"
    SILENT = "listens, and gives no answer in time"
    AWAY = "nobody listens"


def question_to_head(address: str, seconds: float) -> Callable[[], Head]:
    """A question to the head at an address. It takes so many seconds at most, which are more than one."""
    messages, services_of_head = head_protocol()
    channel = head_channel(address)

    def ask() -> Head:
        import grpc

        try:
            stub = services_of_head.NodeInfoGcsServiceStub(channel)
            stub.CheckAlive(messages.CheckAliveRequest(), timeout=seconds - _LISTEN_SECONDS)
        except grpc.RpcError as error:
            if error.code() in {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED}:
                return Head.SILENT if _listens(address) else Head.AWAY
        return Head.ANSWERS

    return ask


def _listens(address: str) -> bool:
    """Whether the machine at an address takes a connection, as it does for a process that is busy or stopped."""
    try:
        with socket.create_connection(host_and_port(RayAddress(address, "the head")), timeout=_LISTEN_SECONDS):
            return True
    except OSError:
        return False
