"""Jobs on a cluster under Slurm: an sbatch script whose processes make a Ray cluster of the allocation's nodes.

    slurm_config.py    what a target's file says         slurm_commands.py   sbatch, squeue, scontrol, scancel, sacct
    slurm_script.py    the scripts that sbatch gets      slurm_batch.py      the process of an allocation, and its end
    slurm_node.py      the process of each node          slurm_ray.py        Ray's processes on a node

The nodes need foldtrain (`python` of the target) and the run's URI, and nothing else in common: no home, no folder.
"""

from __future__ import annotations

import contextlib
import math
import os
import shutil

from cluster.config.absolute_paths import require_reachable
from cluster.targets import slurm_commands as slurm
from cluster.targets import slurm_script as script
from cluster.targets.own_variables import not_sent
from cluster.targets.slurm_config import SlurmConfig
from cluster.targets.target import JobSpec, Rendered, TargetState
from data_pipeline import storage
from data_pipeline.errors import FoldtrainError, UsageError
from data_pipeline.text.counted import counted

SCRIPT = "job.sbatch"


class SlurmTarget:
    """A cluster under Slurm.

    Args:
        name: as `--target` was given.
        section: its config.
    """

    def __init__(self, name: str, section: SlurmConfig) -> None:
        self.name, self._section = name, section

    def check(self, job: JobSpec) -> list[str]:
        """See Target. Slurm is asked whether it would take the script, and when it would start it."""
        require_reachable(job.config)
        self._require_room(job)
        if shutil.which("sbatch") is None:
            raise UsageError(
                f"there is no sbatch here: submit to {self.name} from a machine that Slurm's jobs are submitted from"
            )
        said = [sentence for stage in job.stages for sentence in not_sent(stage, job.config, os.environ)]
        if not storage.is_remote(job.run):
            said.append(f"{job.run} is no URI: it has to be the same folder here and on every node of the cluster")
        if self._section.secrets:
            said.append(f"{', '.join(self._section.secrets)}: not sent; taken from the login profile of each node")
        if left_out := slurm.left_out(os.environ):
            said.append(f"{', '.join(left_out)}: set here and not used; the target's file says what sbatch is told")
        said.append(slurm.run(["sbatch", "--test-only"], script=self._script(job), times="%F %T").strip())
        return list(dict.fromkeys(said))

    def render(self, job: JobSpec) -> list[Rendered]:
        """See Target."""
        return [Rendered(SCRIPT, self._script(job))]

    def start(self, job: JobSpec) -> str:
        """See Target. The handle is Slurm's number of the job; on one of several clusters NUMBER;CLUSTER."""
        return self._submit(self._script(job))

    def state(self, handle: str) -> TargetState:
        """See Target."""
        return slurm.state_of(handle)

    def cancel(self, handle: str) -> None:
        """See Target. Nodes that have joined the job leave with it; those that wait are taken from the queue."""
        with contextlib.suppress(slurm.UnknownJobError):
            slurm.run(slurm.of_job("scancel", handle))
        for joined in self._queued(handle):
            self._cancel_joined(joined, handle)

    # ----------------------------------------------------------------------------------------------- nodes that join

    def nodes(self, handle: str) -> int:
        """Nodes that a job has or has asked for: its own, and those that join it."""
        return self._section.fewest_nodes + len(self._joined(handle))

    def add_nodes(self, handle: str, count: int) -> str:
        """Ask for further nodes for a job that runs: an allocation each, which joins the job's Ray cluster.

        Each comes when Slurm has one, and leaves with the job. Its own time limit ends it earlier: the node is drained,
        and joins again in its next allocation.

        Args:
            handle: of the job.
            count: of nodes.

        Returns:
            Slurm's number of their job array.

        Raises:
            UsageError: if the target's `nodes` does not allow so many, or the job has ended.
            FoldtrainError: if Slurm does not take them.
        """
        if count < 1:
            raise UsageError(f"{count} further nodes: give a number from 1 on")
        there, most = self.nodes(handle), self._section.most_nodes
        if there + count > most:
            raise UsageError(
                f"{there} nodes and {count} more are over what target {self.name} allows a job: set nodes of its file "
                f"to {self._section.fewest_nodes}:{there + count} (it says {most})"
            )
        state = slurm.state_of(handle)
        if state.status not in {"pending", "running"}:
            raise UsageError(f"no node can join job {handle}, which has ended: {state.message}")
        number, _ = slurm.split_handle(handle)
        return self._submit(script.nodes_script(self._section, slurm.JOIN + number, handle, count))

    def remove_nodes(self, handle: str, count: int) -> list[str]:
        """Have nodes that have joined a job leave it: those that still wait first, then the ones that came last.

        A node that runs is drained: what works there leaves before it goes.

        Args:
            handle: of the job.
            count: of nodes.

        Returns:
            Slurm's numbers of those that leave.

        Raises:
            UsageError: if so many have not joined: a job keeps those that it was started with.
        """
        joined = self._joined(handle)
        if not 0 < count <= len(joined):
            raise UsageError(
                f"{counted(count, 'node')} cannot leave: {len(joined)} joined, and a job keeps the "
                f"{self._section.fewest_nodes} that it was started with"
            )
        leaving = joined[:count]
        for one in leaving:
            if one.waits:
                self._cancel_joined(one, handle)
            else:
                self._rename(one, handle)
                slurm.run(slurm.of_job("scancel", one.handle(handle), "--batch", "--signal=USR2"))
        return [one.number for one in leaving]

    def _joined(self, handle: str) -> list[_Joined]:
        """Those that have not ended, in the order in which they are to leave.

        Without those that had joined an earlier start of a job that was requeued: these are about to leave.
        """
        since = slurm.state_of(handle).started
        return [one for one in self._queued(handle) if one.waits or (since is not None and one.started >= since)]

    def _queued(self, handle: str) -> list[_Joined]:
        """The same, whichever start of the job they have joined."""
        number, cluster = slurm.split_handle(handle)
        command = ["squeue", "--noheader", "--array", f"--name={slurm.JOIN}{number}", "--format=%i|%T|%S"]
        rows = [
            line.strip().split("|")
            for line in slurm.run([*command, *([f"--clusters={cluster}"] if cluster else [])]).splitlines()
        ]
        found = [_Joined(*row) for row in rows if len(row) == 3 and row[1] != "COMPLETING"]
        return sorted(found, key=lambda one: (one.waits, *one.order), reverse=True)

    def _rename(self, joined: _Joined, handle: str) -> None:
        """So that it does not count as a node of the job while what works there ends."""
        number, cluster = slurm.split_handle(handle)
        update = ["scontrol", *([f"--clusters={cluster}"] if cluster else []), "update", f"JobId={joined.number}"]
        with contextlib.suppress(slurm.UnknownJobError):
            slurm.run([*update, f"JobName={slurm.LEFT}{number}"])

    def _cancel_joined(self, joined: _Joined, handle: str) -> None:
        with contextlib.suppress(slurm.UnknownJobError):
            slurm.run(slurm.of_job("scancel", joined.handle(handle)))

    # --------------------------------------------------------------------------------------------------------- parts

    def _script(self, job: JobSpec) -> str:
        return script.job_script(self._section, job.id, job.argv)

    def _submit(self, text: str) -> str:
        answer = slurm.run(["sbatch", "--parsable"], script=text).strip()
        handle = answer.splitlines()[-1].strip() if answer else ""
        try:
            slurm.split_handle(handle)
        except UsageError as error:
            raise FoldtrainError(f"sbatch answers without the number of the job: {answer[:200]}") from error
        return handle

    def _require_room(self, job: JobSpec) -> None:
        """Make sure that the fewest workers fit into the fewest nodes.

        Raises:
            UsageError: if not.
        """
        config, section = job.config.cluster, self._section
        room = {
            "cpus_per_node": math.inf
            if section.cpus_per_node is None
            else section.cpus_per_node // config.cpus_per_worker,
            "gpus_per_node": section.gpus_per_node // config.gpus_per_worker if config.gpus_per_worker else math.inf,
        }
        for key, workers in room.items():
            if workers * section.fewest_nodes < config.fewest_workers:
                per = key.replace("_node", "_worker")
                raise UsageError(
                    f"cluster.workers is {config.fewest_workers} with cluster.{per} {getattr(config, per):g}, and "
                    f"target {self.name} has {counted(section.fewest_nodes, 'node')} with {key} "
                    f"{getattr(section, key)}: use fewer workers, or set nodes or {key} of its file"
                )


class _Joined:
    """An allocation that joins a job.

    Args:
        number: Slurm's.
        state: Slurm's word for it.
        started: unix time in seconds; no number before it has.
    """

    def __init__(self, number: str, state: str, started: str) -> None:
        self.number, self.waits = number, state == "PENDING"
        self.started = float(started) if started.isascii() and started.isdigit() else 0.0

    @property
    def order(self) -> tuple[int, int]:
        """Its place among those that were asked for."""
        job, _, task = self.number.partition("_")
        return int(job), int(task or 0)

    def handle(self, of_job: str) -> str:
        """As Slurm's commands take it."""
        cluster = slurm.split_handle(of_job)[1]
        return f"{self.number};{cluster}" if cluster else self.number
