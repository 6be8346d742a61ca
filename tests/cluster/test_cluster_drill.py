"""`foldtrain drill cluster`: what is planned, what is struck, and what counts as wrong."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from cluster.drills import cluster as drill_module
from cluster.drills import cluster_striking
from cluster.drills.cluster import ClusterDrill, ClusterTrial
from cluster.drills.cluster_blows import CUT_SECONDS, KINDS, UNITS, Kind, plan_trial, sooner
from cluster.drills.cluster_striking import ClusterStriker
from cluster.drills.drilled_jobs import DrilledJobs
from cluster.drills.node_networks import NodeNetworks, missing
from cluster.drills.ray_nodes import RayNode, RayNodes
from cluster.drills.trained import Trained
from cluster.drills.victims import PATIENCE, Family
from cluster.jobs import records
from cluster.jobs.logs import LogWriter
from cluster.jobs.places import job_folder
from cluster.jobs.records import JobRecord, State, Submitted
from data_pipeline.errors import FoldtrainError

# ------------------------------------------------------------------------------------------------------ what is planned


@pytest.mark.drill
@pytest.mark.xdist_group("cluster_drill")
def test_a_job_that_loses_its_driver_ends_as_an_undisturbed_one_once_it_is_submitted_again(tmp_path: Path) -> None:
    """A trial of `foldtrain drill cluster`, the shortest of those whose blow ends the job."""
    plan = replace(plan_trial(0), kind="driver", stage="train-generator", units=1, delay=0.5)
    with ClusterDrill(tmp_path, 0) as drill:
        drill.make_reference(0)
        trial = drill.try_plan(plan)
    assert trial.problems == []
    assert len(trial.jobs) == len(trial.exit_codes) == 2
    assert [blow.partition(" (")[0] for blow in trial.blows] == ["driver"]


def test_a_seed_decides_all_of_a_trial() -> None:
    assert [plan_trial(seed) for seed in range(40)] == [plan_trial(seed) for seed in range(40)]
    assert len({plan_trial(seed).delay for seed in range(40)}) == 40


@pytest.mark.parametrize("kinds", [KINDS, tuple(kind for kind in KINDS if kind != "network")])
def test_as_many_seeds_as_there_are_kinds_have_each_of_them(kinds: Any) -> None:
    for first in range(0, 10 * len(kinds), len(kinds)):
        assert {plan_trial(seed, kinds).kind for seed in range(first, first + len(kinds))} == set(kinds)


def test_a_job_that_was_over_too_soon_is_struck_sooner() -> None:
    plan = replace(plan_trial(0), units=3, delay=2.0)
    tries = [sooner(plan, misses) for misses in range(3)]
    assert [(each.units, each.delay) for each in tries] == [(3, 2.0), (1, 1.0), (0, 0.5)]
    assert sooner(plan, 2).kind == plan.kind


def test_blows_fall_in_every_stage_before_its_last_commit_and_cuts_are_short_and_long() -> None:
    plans = [plan_trial(seed) for seed in range(120)]
    assert {(plan.stage, plan.units) for plan in plans} == {(stage, n) for stage in UNITS for n in range(UNITS[stage])}
    assert min(plan.cut for plan in plans) < 10 < 40 < max(plan.cut for plan in plans) <= CUT_SECONDS[1]


# -------------------------------------------------------------------------------------------------- networks and nodes


@pytest.mark.slow
def test_a_node_whose_network_is_cut_reaches_nothing_until_it_is_healed() -> None:
    if lacks := missing():
        pytest.skip(f"network namespaces: {lacks}")
    with NodeNetworks() as networks, socket.socket() as server:
        networks.add(1)
        server.bind((networks.here, 0))
        server.listen()
        code = f"import socket; socket.create_connection({server.getsockname()}, timeout=0.5)"
        command = ["ip", "netns", "exec", networks.namespace(1), sys.executable, "-S", "-c", code]

        def reaches() -> bool:
            return subprocess.run(command, capture_output=True).returncode == 0

        before = reaches()
        networks.cut(1)
        meanwhile = reaches()
        networks.heal(1)
        assert (before, meanwhile, reaches()) == (True, False, True)
        names = [networks.bridge, networks.namespace(1)]
    left = subprocess.run("ip link; ip netns", shell=True, capture_output=True, text=True).stdout
    assert not any(name in left for name in names)


def test_a_raylet_is_told_the_port_of_its_agent_and_a_start_whose_raylet_has_ended_is_not_waited_for(
    tmp_path: Path,
) -> None:
    options = f"--node_id=ab12 --session_dir={tmp_path} --python_worker_command='python --node_id=other'"
    raylet = f"exec -a /ray/raylet {sys.executable} -S -c 'import time; time.sleep(600)' {options}"
    log, told = tmp_path / "log", tmp_path / "dashboard_agent_listen_port_ab12"
    log.write_text("Local node IP: 127.0.0.1")
    node = RayNode(subprocess.Popen(["bash", "-c", f"({raylet}) & sleep 600"]), log, 4711)

    def end_raylet() -> None:
        while not told.exists():
            time.sleep(0.01)
        for process in node.programs("raylet"):
            process.kill()

    thread = threading.Thread(target=end_raylet)
    thread.start()
    with pytest.raises(FoldtrainError, match=r"127\.0\.0\.1\nits raylet has ended"):
        node.wait_until_up()
    thread.join()
    assert told.read_text() == "4711"
    assert node.is_up
    node.lose()
    assert not node.is_up
    assert node.family() == []


def test_a_node_whose_raylet_ends_right_after_the_start_is_not_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cluster.drills.ray_nodes._SETTLES_SECONDS", 0.0)
    log = tmp_path / "log"
    log.write_text("Ray runtime started.")
    node = RayNode(subprocess.Popen(["sleep", "600"]), log, 4711)
    with pytest.raises(FoldtrainError, match=r"Ray runtime started\.\nits raylet has ended"):
        node.wait_until_up()
    node.lose()


class Node:
    """In place of a Ray node: it comes up, or it does not."""

    def __init__(self, *, fails: bool) -> None:
        self.fails, self.lost = fails, False

    def wait_until_up(self) -> None:
        if self.fails:
            raise FoldtrainError("a Ray node did not start:\nthe port is taken")

    def lose(self) -> None:
        self.lost = True


@pytest.mark.parametrize("failures", [0, 1, 2, 3])
def test_a_node_that_does_not_start_is_started_again_and_that_is_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], failures: int
) -> None:
    nodes, begun = RayNodes(), list[Node]()

    def start(*_: str, network: int) -> Node:
        assert network == 0
        begun.append(Node(fails=len(begun) < failures))
        nodes._nodes.append(begun[-1])  # type: ignore[arg-type]
        return begun[-1]

    monkeypatch.setattr(nodes, "_start", start)
    if failures < 3:
        assert nodes.add() is nodes.head is begun[-1]
    else:
        with pytest.raises(FoldtrainError, match="the port is taken"):
            nodes.add()
    assert [node.lost for node in begun] == [True] * failures + [False] * (failures < 3)
    assert nodes._nodes == begun[failures:]
    said = "a Ray node did not start, and is started again: the port is taken"
    assert capsys.readouterr().err.count(said) == min(failures, 2)


def test_a_process_whose_parent_is_gone_stays_in_the_family_if_it_was_seen() -> None:
    parent = subprocess.Popen(["sh", "-c", "sleep 600 & echo; wait"], stdout=subprocess.PIPE)
    assert parent.stdout is not None
    parent.stdout.readline()
    family = Family(parent.pid)
    seen = family.members()
    parent.kill()
    parent.wait()
    (orphan,) = family.members()
    assert orphan in seen
    orphan.kill()
    psutil.wait_procs([orphan], timeout=PATIENCE)
    assert family.members() == []


# ----------------------------------------------------------------------------------------------------- what is struck


class Process:
    """In place of a process: what it is called, and whether it was killed."""

    def __init__(self, title: str) -> None:
        self.title, self.killed = title, False

    def cmdline(self) -> list[str]:
        return self.title.split(" ")

    def send_signal(self, number: int) -> None:
        assert number == signal.SIGKILL
        self.killed = True


class Machine:
    """In place of a Ray node."""

    def __init__(self, network: int, *titles: str) -> None:
        self.network, self.processes = network, [Process(title) for title in titles]

    def family(self) -> list[Process]:
        return self.processes

    def workers(self, title: str) -> list[Process]:
        return [process for process in self.processes if title in process.title]

    def programs(self, name: str) -> list[Process]:
        return [process for process in self.processes if process.title == f"/ray/{name}"]


class Cluster:
    """In place of the nodes, the networks and the server: what was done to them, and how long was waited."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        stages = "python -P -m cluster.job_process --stages s3://bucket/run run-000000"
        self.head = Machine(0, "/ray/gcs_server", "/ray/raylet", "python -P -m cluster.job_process s3://b/run", stages)
        self.others = [Machine(1, "/ray/raylet"), Machine(2, "/ray/raylet", "ray::TrainWorker.wait", "ray::IDLE")]
        self.done: list[str] = []
        monkeypatch.setattr(cluster_striking.time, "sleep", lambda seconds: self.done.append(f"{seconds:g} s"))

    @property
    def killed(self) -> list[str]:
        return [each.title for node in (self.head, *self.others) for each in node.processes if each.killed]

    def strike(self, kind: Kind) -> str | None:
        plan = replace(plan_trial(0), kind=kind, cut=7.0, choice=0.99)
        return ClusterStriker(plan, self, self, self, 30.0).strike()  # type: ignore[arg-type]

    def cut(self, network: int) -> None:
        self.done.append(f"cut {network}")

    def heal(self, network: int) -> None:
        self.done.append(f"heal {network}")

    def kill(self) -> None:
        self.done.append("server killed")

    def start(self) -> None:
        self.done.append("server started")


@pytest.mark.parametrize(
    ("kind", "said", "killed", "done"),
    [
        ("worker", "worker ray::TrainWorker.wait", ["ray::TrainWorker.wait"], []),
        ("raylet", "raylet of a node with 1 worker", ["/ray/raylet"], []),
        ("network", "network of a node with 1 worker, for 7 s", [], ["cut 2", "7 s", "heal 2"]),
        ("storage", "storage, for 30 s", [], ["server killed", "30 s", "server started"]),
        ("driver", "driver", ["python -P -m cluster.job_process --stages s3://bucket/run run-000000"], []),
        ("head", "head", ["/ray/gcs_server"], []),
    ],
)
def test_each_kind_strikes_its_own_and_nothing_else(
    monkeypatch: pytest.MonkeyPatch, kind: Kind, said: str, killed: list[str], done: list[str]
) -> None:
    cluster = Cluster(monkeypatch)
    assert (cluster.strike(kind), cluster.killed, cluster.done) == (said, killed, done)


def test_what_is_struck_is_where_the_work_is(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = Cluster(monkeypatch)
    cluster.strike("raylet")
    assert [process.killed for process in cluster.others[1].processes] == [True, False, False]


@pytest.mark.parametrize("kind", ["worker", "driver"])
def test_what_is_not_there_is_not_struck(monkeypatch: pytest.MonkeyPatch, kind: Kind) -> None:
    cluster = Cluster(monkeypatch)
    cluster.head.processes.pop()
    cluster.others[1].processes.clear()
    assert (cluster.strike(kind), cluster.killed) == (None, [])


# ------------------------------------------------------------------------------------------------- what counts as wrong


class Jobs:
    """In place of a cluster's jobs: what becomes of each start."""

    def __init__(self, *statuses: str) -> None:
        self._left, self.told = list(statuses), []

    def submit(self, _name: str) -> str:
        return f"run-00000{4 - len(self._left)}"

    def record(self, _name: str, job: str) -> JobRecord:
        code = {"succeeded": 0, "failed": 1}.get(self._left[0])
        values = {"status": self._left.pop(0), "stage": "tokenize", "started": 1.0, "heartbeat": time.time()}
        return JobRecord(job, "run", None, state=State(exit_code=code, **values))

    def telling(self, record: JobRecord, stage: str) -> list[str]:
        self.told.append((record.id, record.status, stage))
        return []


@pytest.mark.parametrize(
    ("kind", "statuses", "codes", "problems"),
    [
        ("worker", ["succeeded"], [0], []),
        ("worker", ["failed"], [1], ["run-000003 failed, which it should not: it did not say why"]),
        ("driver", ["failed", "succeeded"], [1, 0], []),
        ("head", ["preempted", "succeeded"], [-1, 0], []),
        ("driver", ["failed"] * 4, [1] * 4, ["it was submitted 4 times, and ended early each time"]),
    ],
)
def test_only_after_a_fatal_blow_is_a_job_submitted_again(
    tmp_path: Path, kind: str, statuses: list[str], codes: list[int], problems: list[str]
) -> None:
    drill, again = ClusterDrill(tmp_path, 0), []
    drill._jobs = jobs = Jobs(*statuses)  # type: ignore[assignment]
    drill._nodes = type("Nodes", (), {"start_again": lambda _, further: again.append(further)})()
    plan = next(plan for seed in range(99) if (plan := plan_trial(seed)).kind == kind)
    trial = ClusterTrial(plan.seed, plan.stage, blows=[kind])
    drill._until_done(plan, "trial", trial)
    assert (trial.exit_codes, trial.problems) == (codes, problems)
    assert again == ([2] if kind == "head" else [])
    assert [told[1] for told in jobs.told] == statuses


def test_a_stage_is_struck_once_when_it_has_committed_as_much_as_the_plan_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drill, committed, struck = ClusterDrill(tmp_path, 0), [-1, 1, 2, 3], []
    drill._jobs = type("Jobs", (), {"units": lambda *_: committed.pop(0)})()  # type: ignore[assignment]
    drill._nodes = drill._server = None  # type: ignore[assignment]
    drill._networks = None
    monkeypatch.setattr(ClusterStriker, "strike", lambda self: struck.append(self) or "worker")
    plan = replace(plan_trial(0), stage="train-tokenizer", units=2, delay=0.0)
    trial = ClusterTrial(0, plan.stage)
    for left in (3, 2, 1, 1):
        drill._strike_when_due(plan, "trial", trial)
        assert len(committed) == left
    assert len(struck) == 1
    assert trial.blows == ["worker (0.0 s after 2 commits of train-tokenizer)"]


def test_tokens_and_trainings_that_are_not_those_of_the_reference_are_problems(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drill, trial = ClusterDrill(tmp_path, 0), ClusterTrial(0, "tokenize")
    one = Trained([1, 2], {1: {"loss": 1.0}, 2: {"loss": 0.5}}, {}, {}, {})
    other = Trained([1, 2], {1: {"loss": 1.0}, 2: {"loss": 0.25}}, {}, {}, {})
    drill._tokens, drill._trained = {"a": "1"}, {"tokenizer": one, "generator": one}
    monkeypatch.setattr(drill, "_tokens_of", lambda _: {"a": "2"})
    monkeypatch.setattr(drill, "_trained_of", lambda _: {"tokenizer": one, "generator": other})
    drill._bucket = type("Bucket", (), {"uri": staticmethod(lambda *parts: "/".join(parts))})()
    drill._jobs = type("Jobs", (), {"environment": {}})()
    monkeypatch.setattr(drill_module, "read_records", lambda *_: [{"event": "restart"}, {"event": "start"}])
    asked: list[tuple[str, ...]] = []

    def run(*command: str, environment: dict[str, str]) -> str:
        asked.append(command)
        if command[:2] == ("ledger", "audit"):
            raise FoldtrainError(f"{command[2]} has a step twice")
        return ""

    monkeypatch.setattr(drill_module, "run", run)
    found = list(drill._look_through("trial", trial))
    assert found[0] == "other bytes: a"
    assert found[1].startswith("generator: 1 records of metrics.jsonl differ, the first at step 2")
    assert found[2:] == ["trial has a step twice"]
    assert ("verify", "trial/tokens", "--against", "trial/images/train") in asked
    assert [each[:2] for each in asked].count(("checkpoint", "verify")) == 2
    assert trial.restarts == 2


@pytest.mark.slow
class TestWhatIsToldOfAJob:
    """By the commands themselves, of a job of a cluster that is gone."""

    ID = "run-0a1b2c"

    @pytest.fixture
    def jobs(self, tmp_path: Path) -> DrilledJobs:
        return DrilledJobs(tmp_path, tmp_path / "none", None, "http://127.0.0.1:1", {})  # type: ignore[arg-type]

    def record(self, run: Path, log: str) -> JobRecord:
        section = {"kind": "ray", "address": "http://127.0.0.1:1"}
        job = Submitted(
            id=self.ID, stages=("ingest",), run=str(run), target="ray", target_config=section, submitted=1.0, who="me"
        )
        records.write_job(job, "")
        values: dict[str, Any] = {
            "status": "failed",
            "stage": "tokenize",
            "started": 1.0,
            "heartbeat": 2.0,
            "ended": 2.0,
        }
        state = State(exit_code=1, message="the head of the Ray cluster is gone", **values)
        records.write_state(str(run), self.ID, state)
        writer = LogWriter(job_folder(str(run), self.ID))
        writer.write(log.encode())
        writer.flush()
        return records.read_job(str(run), self.ID)

    def test_its_cause_stages_and_log_are_there_without_the_cluster(self, jobs: DrilledJobs, tmp_path: Path) -> None:
        record = self.record(tmp_path / "run", "ingest: done in 3 s\n")
        assert list(jobs.telling(record, "ingest")) == []

    def test_a_log_that_is_lost_is_a_problem(self, jobs: DrilledJobs, tmp_path: Path) -> None:
        record = self.record(tmp_path / "run", "nothing\n")
        assert [each.partition(":")[0] for each in jobs.telling(record, "ingest")] == [
            f"the log of {self.ID} does not speak of ingest"
        ]
