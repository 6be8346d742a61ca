"""Jobs on a Ray cluster that runs already, through Ray's job API.

What is sent is the command of the job's process, which names the run's URI and the job's id: nothing of a config is
ever read by a shell. Ray sets RAY_ADDRESS in the job, and the process joins the cluster. No variable of this shell is
sent: Ray writes a job's runtime_env and metadata into logs.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shlex
from collections.abc import Iterator, Mapping
from typing import Any, Literal

from tenacity import Retrying, retry_if_exception_type, stop_after_delay, wait_fixed

from cluster.config.absolute_paths import require_reachable
from cluster.targets.config import TargetSection
from cluster.targets.dashboard import AgentAwayError, UnansweredError, open_dashboard
from cluster.targets.own_variables import not_sent
from cluster.targets.target import JobSpec, Rendered, TargetState, TargetStatus
from data_pipeline import storage
from data_pipeline.errors import FoldtrainError, UsageError

AGENT_SECONDS, _AGAIN_SECONDS = 60.0, 0.5
"""How long the agent that starts jobs on the head is waited for, and how long between one question and the next."""
REQUEST = "POST /api/jobs/"
"""What is sent to the dashboard."""
_CHATTY = ("ray.dashboard.modules.job.sdk", "ray.dashboard.modules.dashboard_sdk", "ray._private.runtime_env.packaging")
"""Loggers that report each upload and each closed connection."""
_STATUS: dict[str, TargetStatus] = {
    "PENDING": "pending",
    "RUNNING": "running",
    "SUCCEEDED": "succeeded",
    "FAILED": "failed",
    "STOPPED": "stopped",
}


class RayConfig(TargetSection):
    """A Ray cluster that runs already, whose nodes have foldtrain installed."""

    kind: Literal["ray"] = "ray"
    address: str | None = None
    """URL of its dashboard: http://HOST:8265. `--address` on the command line goes before it."""


class RayTarget:
    """A cluster whose dashboard answers at an address.

    A dashboard that asks for a token gets what RAY_AUTH_MODE=token and RAY_AUTH_TOKEN (or RAY_AUTH_TOKEN_PATH) say.

    Args:
        name: as `--target` was given.
        section: its config.

    Raises:
        UsageError: if the address is missing or is no URL.
    """

    def __init__(self, name: str, section: RayConfig) -> None:
        if not section.address or not section.address.startswith(("http://", "https://")):
            raise UsageError(
                f"--address {section.address or '(not given)'}: give the URL of the cluster's dashboard, "
                "http://HOST:8265, there or as `address` of the target's file"
            )
        self.name, self.address, self._section = name, section.address, section

    def check(self, job: JobSpec) -> list[str]:
        """See Target."""
        require_reachable(job.config)
        said = [sentence for stage in job.stages for sentence in not_sent(stage, job.config, os.environ)]
        if not storage.is_remote(job.run):
            said.append(f"{job.run} is no URI: it has to be the same folder here and on every node of the cluster")
        if self._section.secrets:
            said.append(f"{', '.join(self._section.secrets)}: not sent; every node of the cluster has to have its own")
        RayJobs(self.address).ask()
        return list(dict.fromkeys(said))

    def render(self, job: JobSpec) -> list[Rendered]:
        """See Target."""
        return [rendered(request(job, self.name, self._section.environment))]

    def start(self, job: JobSpec) -> str:
        """See Target."""
        return RayJobs(self.address).submit(request(job, self.name, self._section.environment))

    def state(self, handle: str) -> TargetState:
        """See Target."""
        return RayJobs(self.address).state(handle)

    def cancel(self, handle: str) -> None:
        """See Target."""
        RayJobs(self.address).cancel(handle)


def request(job: JobSpec, target: str, variables: Mapping[str, str], hook: str | None = None) -> dict[str, Any]:
    """What Ray's job API is asked for a job.

    Args:
        job: that is to be started.
        target: its target's name.
        variables: of every process of the job.
        hook: what Ray calls at the start of each of its workers.
    """
    runtime_env: dict[str, Any] = {"env_vars": dict(variables)} if variables else {}
    return {
        "entrypoint": shlex.join(job.argv),
        "submission_id": job.id,
        "runtime_env": runtime_env | ({"worker_process_setup_hook": hook} if hook else {}),
        "metadata": {"foldtrain": "1", "stage": ",".join(job.stages), "run": job.run, "target": target},
    }


def rendered(asked: dict[str, Any]) -> Rendered:
    """A request as text."""
    return Rendered(REQUEST, json.dumps(asked, indent=1, ensure_ascii=False) + "\n")


class RayJobs:
    """Ray's job API.

    Args:
        address: URL of the dashboard.
        headers: HTTP headers that it asks for.
    """

    def __init__(self, address: str, headers: Mapping[str, str] | None = None) -> None:
        self._address, self._headers = address, dict(headers or {})

    def ask(self) -> None:
        """Make sure that the dashboard answers, and lets us in.

        Raises:
            FoldtrainError: if not.
        """
        self._client()

    def submit(self, asked: dict[str, Any]) -> str:
        """Start a job. Returns its id.

        A head that has just begun, or is busy, is asked again for a while, unless it has the job after all.
        """
        client, job_id = self._client(), str(asked["submission_id"])
        again = Retrying(
            retry=retry_if_exception_type((AgentAwayError, UnansweredError)),
            stop=stop_after_delay(AGENT_SECONDS),
            wait=wait_fixed(_AGAIN_SECONDS),
            reraise=True,
        )

        def submit_unless_it_is_there() -> str:
            is_first = again.statistics["attempt_number"] == 1
            if is_first or self.state(job_id).status == "lost":
                return str(client.submit_job(**asked))
            return job_id

        try:
            return again(submit_unless_it_is_there)
        except RuntimeError as error:
            raise FoldtrainError(
                f"{self._address} does not take the job: {str(error).partition(chr(10))[0]}"
            ) from error

    def state(self, job_id: str) -> TargetState:
        """What Ray says of a job; a cluster that does not know it has lost it."""
        try:
            details = self._client().get_job_info(job_id)
        except RuntimeError as error:
            if "404" not in str(error):
                raise FoldtrainError(f"{self._address} does not say how {job_id} stands: {error}") from error
            return TargetState("lost", f"the Ray cluster at {self._address} has no such job")
        return TargetState(
            status=_STATUS[str(details.status.value)],
            message=(details.message or "").partition(", last available logs")[0].strip(),  # they are in the run
            started=details.start_time / 1000 if details.start_time else None,
            ended=details.end_time / 1000 if details.end_time else None,
        )

    def cancel(self, job_id: str) -> None:
        """Have Ray end a job: SIGTERM to its processes, and SIGKILL three seconds later."""
        try:
            self._client().stop_job(job_id)
        except RuntimeError as error:
            if "404" not in str(error):
                raise FoldtrainError(f"{self._address} does not stop {job_id}: {error}") from error

    def _client(self) -> Any:
        import ray.job_submission  # noqa: F401 - it sets the levels of these loggers, once

        for name in _CHATTY:
            logging.getLogger(name).setLevel(logging.WARNING)
        with _without_ray_addresses():
            return open_dashboard(self._address, self._headers)


@contextlib.contextmanager
def _without_ray_addresses() -> Iterator[None]:
    """Hide the variables that Ray would prefer to the address that it is given."""
    hidden = {name: os.environ.pop(name) for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS") if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(hidden)
