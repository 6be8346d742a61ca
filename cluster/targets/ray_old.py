"""Jobs on a given Ray cluster, through Ray's job API.

The resolved config travels as a file in the job's working directory, so nothing of it is ever read by a shell: the
entry point is a fixed stage name between fixed words. Ray sets RAY_ADDRESS in the job, and the stage joins the cluster.
No variable of this shell is sent: Ray writes a job's runtime_env and metadata into logs.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shlex
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any
from uuid import uuid4

from cluster.config.absolute_paths import require_reachable
from cluster.config.loading import resolved_yaml
from cluster.config.run import RunConfig
from cluster.session.job_environment import FILE_VARIABLE, SETUP_HOOK
from cluster.targets.dashboard import open_dashboard, tail_logs
from cluster.targets.own_variables import not_sent
from cluster.targets.target_old import Job, Status
from cluster.terminal.output import console
from data_pipeline.errors import FoldtrainError, UsageError

_CONFIG = "config.yaml"
_CHATTY = ("ray.dashboard.modules.job.sdk", "ray.dashboard.modules.dashboard_sdk", "ray._private.runtime_env.packaging")
"""Loggers that report each upload and each closed connection."""
_STATUS: dict[str, Status] = {
    "PENDING": "pending",
    "RUNNING": "running",
    "SUCCEEDED": "succeeded",
    "FAILED": "failed",
    "STOPPED": "stopped",
}


class RayTarget:
    """A cluster whose dashboard answers at `address`. Its nodes have foldtrain installed."""

    name = "ray"

    def __init__(
        self,
        address: str | None,
        *,
        python: str = "python",
        headers: Mapping[str, str] | None = None,
        hand_over: Callable[[str], Path] | None = None,
    ) -> None:
        """Name the cluster.

        Args:
            address: URL of its dashboard.
            python: The interpreter that has foldtrain, on its nodes.
            headers: HTTP headers that it asks for.
            hand_over: Given a job's id, writes the variables that it gets into a file on its node. Returns its path.

        Raises:
            UsageError: if the address is missing or is no URL.
        """
        if not address or not address.startswith(("http://", "https://")):
            raise UsageError(
                f"--address {address or '(not given)'}: give the URL of the cluster's dashboard, http://HOST:8265"
            )
        self.address = address
        self._python = python
        self._headers = dict(headers or {})
        self._hand_over = hand_over

    def submit(self, stage: str, config: RunConfig) -> str:
        """See Target."""
        require_reachable(config)
        from rich.text import Text

        for sentence in not_sent(stage, config, os.environ):
            console(stderr=True).print(Text(sentence))
        return self.start(stage, config, target=self.name)

    def start(self, stage: str, config: RunConfig, *, target: str) -> str:
        """Start a stage with a config whose paths mean the same on the cluster as here."""
        job_id = f"{stage}-{uuid4().hex[:6]}"
        client = self._client()
        with tempfile.TemporaryDirectory(prefix="foldtrain-job-") as folder, self._handed_over(job_id) as file:
            Path(folder, _CONFIG).write_text(resolved_yaml(config))
            module = "cluster.local_job" if file else "cluster.cli"
            client.submit_job(
                entrypoint=shlex.join([self._python, "-P", "-m", module, stage, _CONFIG]),
                submission_id=job_id,
                runtime_env={"working_dir": folder} | (_reading(file) if file else {}),
                metadata={"foldtrain": "1", "stage": stage, "run": config.run, "target": target},
            )
        return job_id

    @contextlib.contextmanager
    def _handed_over(self, job_id: str) -> Iterator[Path | None]:
        """The file with the variables of a job that is submitted meanwhile, if it gets any."""
        file = self._hand_over(job_id) if self._hand_over else None
        try:
            yield file
        except BaseException:
            if file:
                file.unlink(missing_ok=True)
            raise

    def jobs(self) -> list[Job]:
        """See Target."""
        found = [_job(details) for details in self._client().list_jobs() if "foldtrain" in (details.metadata or {})]
        return sorted(found, key=lambda job: job.started or float("inf"))

    def job(self, job_id: str) -> Job:
        """See Target."""
        return self._known(self._client(), job_id)

    def logs(self, job_id: str, write: Callable[[str], object], *, follow: bool) -> None:
        """See Target."""
        client = self._client()
        self._known(client, job_id)
        if not follow:
            write(client.get_job_logs(job_id))
            return
        try:
            asyncio.run(_tail(client, job_id, write))
        except RuntimeError as error:
            raise FoldtrainError(f"the logs of {job_id} broke off ({error}); the job goes on") from error

    def stop(self, job_id: str) -> None:
        """See Target."""
        client = self._client()
        self._known(client, job_id)
        client.stop_job(job_id)

    def _known(self, client: Any, job_id: str) -> Job:
        try:
            return _job(client.get_job_info(job_id))
        except RuntimeError as error:
            if "404" not in str(error):
                raise
            raise UsageError(f"{self.address} has no job {job_id}; `foldtrain jobs` lists them") from error

    def _client(self) -> Any:
        import ray.job_submission  # noqa: F401 - it sets the levels of these loggers, once

        for name in _CHATTY:
            logging.getLogger(name).setLevel(logging.WARNING)
        with _without_ray_addresses():
            return open_dashboard(self.address, self._headers)


@contextlib.contextmanager
def _without_ray_addresses() -> Iterator[None]:
    """Hide the variables that Ray would prefer to the address that it is given."""
    hidden = {name: os.environ.pop(name) for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS") if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(hidden)


async def _tail(client: Any, job_id: str, write: Callable[[str], object]) -> None:
    await tail_logs(client, job_id, write)


def _reading(file: Path) -> dict[str, Any]:
    """What Ray is told of a file with variables: where it is, and to have each worker of the job read it."""
    return {"env_vars": {FILE_VARIABLE: str(file)}, "worker_process_setup_hook": SETUP_HOOK}


def _job(details: Any) -> Job:
    metadata = details.metadata or {}
    return Job(
        id=str(details.submission_id),
        stage=metadata.get("stage", ""),
        run=metadata.get("run", ""),
        status=_STATUS[str(details.status.value)],
        started=details.start_time / 1000 if details.start_time else None,
        ended=details.end_time / 1000 if details.end_time else None,
        message=(details.message or "").partition(", last available logs")[0].strip(),  # its logs are shown already
    )
