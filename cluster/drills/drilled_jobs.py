"""A run submitted as a job by the commands of a user, and what its records say of it with and without a cluster."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import yaml
from pydantic import ValidationError

from cluster.drills.bucket import Bucket
from cluster.drills.cluster_blows import UNITS
from cluster.drills.drilled_graph import FOLDERS
from cluster.drills.striking import complete_shards
from cluster.drills.trained import complete_checkpoints
from cluster.drills.victims import run
from cluster.jobs.records import JobRecord, State
from cluster.terminal.output import say
from data_pipeline.errors import FoldtrainError

STAGES = ",".join(FOLDERS)
_SUBMITTED = re.compile(r"submitted ([a-z-]+-[0-9a-f]{6});")
_TRIES = 3
"""Times that a job is submitted before the cluster counts as broken."""
_WORDS = {
    "succeeded": "it succeeded",
    "failed": "it failed",
    "preempted": "its scheduler ended it",
    "lost": "it gave no sign of life",
}
"""What `describe` says of a job."""


class DrilledJobs:
    """Submits runs of a bucket to a Ray cluster, and reads what is on record of them.

    Args:
        folder: for the target's file, and for what `foldtrain` keeps of a user.
        config: of the runs.
        bucket: that they are in.
        dashboard: URL of the cluster's.
        environment: variables of every command: where the bucket is, and the cluster's token.
    """

    def __init__(
        self, folder: Path, config: Path, bucket: Bucket, dashboard: str, environment: Mapping[str, str]
    ) -> None:
        self._bucket, self._config, self._target = bucket, config, folder / "drilled.yaml"
        self.environment = {**environment, "FOLDTRAIN_HOME": str(folder / "home"), "RAY_ADDRESS": ""}
        target = {"extends": "package:cluster/ray.yaml", "address": dashboard, "python": sys.executable}
        self._target.write_text(yaml.safe_dump(target))

    def submit(self, name: str) -> str:
        """All stages of a run, as one job: always the same command. Returns the job's id.

        Again if it is not taken, as a person would do whose cluster takes long to answer.

        Raises:
            FoldtrainError: if it is not taken, several times.
        """
        command = ("submit", str(self._config), f"run={self._bucket.uri(name)}", "--stage", STAGES)
        for left in reversed(range(_TRIES)):
            try:
                said = run(*command, "--target", str(self._target), "-y", environment=self.environment)
                break
            except FoldtrainError as error:
                if not left:
                    raise
                say(f"a job was not taken, and is submitted again: {str(error).strip().splitlines()[-1]}", err=True)
        found = _SUBMITTED.search(said)
        if found is None:
            raise FoldtrainError(f"submit does not say which job it has submitted:\n{said}")
        return found[1]

    def record(self, name: str, job: str) -> JobRecord:
        """How a job stands, by its own word."""
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            data = json.loads(self._bucket.read(f"{name}/jobs/{job}/state.json"))
            state = State.model_validate(data)
        except (BotoCoreError, ClientError, ValueError, ValidationError):
            state = None
        return JobRecord(job, self._bucket.uri(name), None, state=state)

    def units(self, name: str, stage: str) -> int:
        """Checkpoints or shards that a stage has committed; -1 if it has not begun, or storage does not answer."""
        from botocore.exceptions import BotoCoreError, ClientError

        assert stage in UNITS, stage
        try:
            stamps = self._bucket.stamps(f"{name}/{FOLDERS[stage]}")
        except (BotoCoreError, ClientError):
            return -1
        if not stamps:
            return -1
        if stage == "tokenize":
            return sum(each.endswith(".tar") for each in complete_shards(stamps))
        return len(complete_checkpoints(stamps))

    def telling(self, record: JobRecord, stage: str) -> Iterator[str]:
        """What `describe` and `logs` do not tell of a job, a problem each. No cluster has to be there.

        Args:
            record: of the job, which is over.
            stage: that is done, by its command.
        """
        try:
            described, log = (
                run(command, record.run, "--job", record.id, environment=self.environment)
                for command in ("describe", "logs")
            )
        except FoldtrainError as error:
            yield f"of {record.id} nothing is told: {error}"
            return
        for wanted in (record.id, _WORDS[record.status], "by itself", "to do", stage):
            if wanted not in " ".join(described.split()):
                yield f"describe does not say {wanted!r} of {record.id}, which {record.status}:\n{described}"
        if f"{stage}: " not in log:
            yield f"the log of {record.id} does not speak of {stage}:\n{log[-2000:]}"
