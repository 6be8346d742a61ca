"""The API server of a Kubernetes cluster: objects of KubeRay made, read and deleted, with errors that say what to do.

The package `kubernetes` is loaded when it is first needed. It reads the kubeconfig, or the account of the pod in which
this runs.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from typing import Any, TypeVar

from data_pipeline.errors import FoldtrainError, UsageError

_GROUP, _VERSION = "ray.io", "v1"
_SECONDS = (10, 30)
"""For a connection, and for its answer."""
_LONGEST_REASON = 600
_KUBECONFIG = "~/.kube/config"
_Answer = TypeVar("_Answer")


class ApiServer:
    """A connection to the API server of a context of the kubeconfig.

    Args:
        context: None for the current one; in a pod without a kubeconfig, for its own cluster.

    Raises:
        UsageError: if the package is missing, or there is no such context.
    """

    def __init__(self, context: str | None) -> None:
        try:
            import kubernetes
        except ImportError as error:
            raise UsageError(
                "a target of kind kuberay needs the Kubernetes client: pip install 'foldtrain[kubernetes]'"
            ) from error
        self._where = f"the Kubernetes cluster of context {context}" if context else "the current Kubernetes cluster"
        self._objects = kubernetes.client.CustomObjectsApi(self._connect(kubernetes, context))

    def _connect(self, kubernetes: Any, context: str | None) -> Any:
        missing = kubernetes.config.ConfigException
        try:
            file = os.environ.get("KUBECONFIG") or _KUBECONFIG  # the package looks for it once, when it is loaded
            return kubernetes.config.new_client_from_config(config_file=file, context=context)
        except missing as error:
            if context is None:
                try:
                    kubernetes.config.load_incluster_config()
                    return kubernetes.client.ApiClient()
                except missing:
                    pass
            raise UsageError(
                f"{self._where} is not known: {_plain(error)}; name a kubeconfig in KUBECONFIG, and its context in the "
                "target's config"
            ) from error

    def create(self, plural: str, manifest: dict[str, Any], *, try_only: bool = False, may_exist: bool = False) -> None:
        """Make an object. Fields that the server does not know are refused.

        Args:
            plural: kind of the object, as its URL names it.
            manifest: all of it.
            try_only: have the server check it, and make nothing.
            may_exist: leave one that exists as it is.

        Raises:
            UsageError: if the server refuses what is in it.
            FoldtrainError: if it cannot be made for another reason.
        """
        metadata = manifest["metadata"]
        more: dict[str, Any] = {"dry_run": "All"} if try_only else {}
        self._ask(
            lambda: self._objects.create_namespaced_custom_object(
                _GROUP,
                _VERSION,
                metadata["namespace"],
                plural,
                manifest,
                field_validation="Strict",
                _request_timeout=_SECONDS,
                **more,
            ),
            f"make {plural}/{metadata['name']} in namespace {metadata['namespace']}",
            accepted={409} if may_exist else set(),
        )

    def read(self, plural: str, namespace: str, name: str) -> dict[str, Any] | None:
        """An object; None if there is none.

        Raises:
            FoldtrainError: if the server does not say.
        """
        found = self._ask(
            lambda: self._objects.get_namespaced_custom_object(
                _GROUP, _VERSION, namespace, plural, name, _request_timeout=_SECONDS
            ),
            f"read {plural}/{name} in namespace {namespace}",
            accepted={404},
        )
        return dict(found) if isinstance(found, dict) else None

    def delete(self, plural: str, namespace: str, name: str) -> None:
        """Delete an object and what belongs to it; one that is gone already is no error.

        Raises:
            FoldtrainError: if the server does not do it.
        """
        self._ask(
            lambda: self._objects.delete_namespaced_custom_object(
                _GROUP, _VERSION, namespace, plural, name, propagation_policy="Background", _request_timeout=_SECONDS
            ),
            f"delete {plural}/{name} in namespace {namespace}",
            accepted={404},
        )

    def _ask(self, ask: Callable[[], _Answer], what: str, accepted: set[int]) -> _Answer | None:
        """The answer; None for an HTTP status that is accepted as one."""
        import urllib3
        from kubernetes.client import ApiException

        try:
            return ask()
        except ApiException as error:
            if error.status in accepted:
                return None
            raise self._refusal(error, what) from error
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise FoldtrainError(f"{self._where} does not answer: {_plain(error)}") from error

    def _refusal(self, error: Any, what: str) -> FoldtrainError:
        reason = _reason(error)
        if error.status in {401, 403}:
            return FoldtrainError(f"{self._where} does not let this user {what}: {reason}")
        if error.status == 404:
            return UsageError(f"cannot {what}: {reason}; there is no such namespace, or KubeRay is not installed there")
        if error.status in {400, 422}:
            return UsageError(f"{self._where} refuses to {what}: {reason}")
        return FoldtrainError(f"{self._where} could not {what}: HTTP {error.status}: {reason}")


def _reason(error: Any) -> str:
    """What a Status object says, or the first line of whatever else came."""
    try:
        message = json.loads(error.body)["message"]
    except (ValueError, TypeError, KeyError):
        message = error.body or error.reason or "no reason is given"
    return _plain(message)


def _plain(text: Any) -> str:
    line = str(text).strip().partition("\n")[0]
    return "".join(sign if sign.isprintable() else " " for sign in line)[:_LONGEST_REASON]
