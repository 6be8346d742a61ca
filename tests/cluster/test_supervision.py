"""Workers are started again when one is lost, told of notices, and ended at once by what only a user can mend."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from cluster.config.run import ClusterConfig
from cluster.pool.scale import write_scale
from cluster.training import supervision
from cluster.training.failures import WorkersFailedError
from cluster.training.growth import Pace
from cluster.training.notices import Notice
from cluster.training.size_control import SizeControl
from cluster.training.supervision import Supervisor
from cluster.training.worker_group import NoRoomError
from cluster.training.worker_process import Outcome
from data_pipeline.errors import CorruptShardError, FoldtrainError
from trainer.config import TrainerConfig
from trainer.loop.ending import Ending

FINISHED, PAUSED, STOPPED = (Outcome(ending, 40) for ending in (Ending.FINISHED, Ending.PAUSED, Ending.STOPPED))
PEER = Outcome(error=RuntimeError("connection closed by peer"), trace="Traceback ...")
DAMAGED = Outcome(error=CorruptShardError("images-0001.tar is damaged"), trace="Traceback ...")
Looks = list[dict[int, Outcome | Exception]]


class Group:
    """Workers that end as a test says; an empty look waits until they are asked to end, and says how they do then."""

    def __init__(self, size: int, looks: Looks, nodes: tuple[str, ...] = ("a", "b")) -> None:
        self.size, self.nodes = size, nodes[:size]
        self._looks, self._left = looks, set(range(size))
        self.asked: list[Ending] = []
        self.notes: list[tuple[str, dict[str, Any]]] = []
        self.fate = ""

    def train(self, *_: Any) -> None:
        pass

    @property
    def is_training(self) -> bool:
        return bool(self._left)

    def ended(self, _seconds: float) -> dict[int, Outcome | Exception]:
        if not self._looks:
            found = dict.fromkeys(self._left, Outcome(self.asked[-1], 20)) if self.asked else {}
        else:
            found = self._looks.pop(0)
        self._left -= found.keys()
        return found

    def end(self, ending: Ending) -> None:
        self.asked.append(ending)

    def note(self, event: str, details: dict[str, Any]) -> None:
        self.notes.append((event, details))

    def dismiss(self) -> None:
        self.fate = "dismissed"


@dataclass(frozen=True)
class GeneratorSection:
    """The part of a stage's section that says how it is trained."""

    trainer: TrainerConfig

    def model_copy(self, update: dict[str, Any]) -> GeneratorSection:
        return replace(self, **update)


@dataclass(frozen=True)
class Job:
    """A stage."""

    stage: str
    folder: str
    checkpoints: str
    section: GeneratorSection


class NoDemand:
    """Of a cluster that nobody adds nodes to."""

    def __init__(self, *_: Any) -> None:
        self.asked: list[int] = []

    def ask(self, count: int) -> None:
        self.asked.append(count)

    def there(self) -> int:
        return 0

    def withdraw(self) -> None:
        self.asked.append(0)


class Cluster:
    """What a supervisor finds in place of Ray: groups, in the order in which it starts them."""

    def __init__(self, patch: pytest.MonkeyPatch, folder: Path) -> None:
        self.notice, self.groups, self.waiting = Notice(), [], []
        self.gone: set[str] = set()
        self.told: list[str] = []
        self.room = [0]
        self.clock = 0.0
        self.zero_stage = 2
        self._folder = folder
        self.demand = NoDemand()
        patch.setattr(supervision, "start_group", self._start)
        patch.setattr(supervision, "Reservations", lambda _needs: self.demand)
        patch.setattr(supervision.time, "monotonic", self._now)
        patch.setattr(supervision.time, "sleep", lambda _: None)
        patch.setattr(supervision.warm_workers, "take", lambda *_: None)
        patch.setattr(supervision.warm_workers, "park", lambda group: setattr(group, "fate", "parked"))

    groups: list[Group]
    waiting: list[Group | Exception]

    def has(self, *looks: Looks | Exception, size: int = 2) -> None:
        self.waiting += [each if isinstance(each, Exception) else Group(size, each) for each in looks]

    def supervisor(self, workers: Any = 2, max_failures: int = 2, own: str = "") -> Supervisor:
        config = ClusterConfig.model_validate({"workers": workers, "max_failures": max_failures, "grow_seconds": 5})
        section = GeneratorSection(TrainerConfig(steps=100, global_batch=12, zero_stage=self.zero_stage))
        folder = str(self._folder)
        job: Any = Job("generator", folder, folder, section)
        control = SizeControl(folder, section.trainer, config)
        return Supervisor(job, config, control, self.notice, self, self._folder, 0.0, lost=self.told.append, own=own)

    def free(self) -> dict[str, dict[str, float]]:
        return {"a": {"CPU": self.room[0] if len(self.room) == 1 else self.room.pop(0)}}

    def whole(self) -> dict[str, dict[str, float]]:
        return {"a": {"CPU": self.room[0]}}

    def leaving(self) -> set[str]:
        return self.gone

    def _start(self, _needs: Any, size: int, *_: Any) -> Group:
        found = self.waiting.pop(0)
        if isinstance(found, Exception):
            raise found
        assert found.size == size
        self.groups.append(found)
        return found

    def _now(self) -> float:
        self.clock += 0.25
        return self.clock


@pytest.fixture
def lost() -> Exception:
    """Ray's error for a worker that was killed."""
    from ray.exceptions import ActorDiedError  # here, as tests that start a cluster set Ray's environment before it

    return ActorDiedError()


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Cluster:
    return Cluster(monkeypatch, tmp_path)


def test_a_stage_that_finishes_leaves_its_workers_to_the_next_one(cluster: Cluster) -> None:
    cluster.has([{1: FINISHED}, {}, {0: FINISHED}])
    assert cluster.supervisor().run() == (Ending.FINISHED, 40)
    assert [group.fate for group in cluster.groups] == ["parked"]


def test_workers_in_which_deepspeed_replaced_a_function_of_torch_are_not_left_to_the_next_stage(
    cluster: Cluster,
) -> None:
    cluster.zero_stage = 3
    cluster.has([{0: FINISHED, 1: FINISHED}])
    assert cluster.supervisor().run() == (Ending.FINISHED, 40)
    assert [group.fate for group in cluster.groups] == ["dismissed"]


def test_after_a_lost_worker_all_are_started_again_and_the_reason_is_said(cluster: Cluster, lost: Exception) -> None:
    cluster.has([{0: PEER}, {1: lost}], [{0: FINISHED, 1: FINISHED}])
    assert cluster.supervisor().run() == (Ending.FINISHED, 40)
    assert [group.fate for group in cluster.groups] == ["dismissed", "parked"]
    assert cluster.notice.news() == ["starts again: rank 1: ActorDiedError"]


def test_a_worker_that_waits_for_a_lost_peer_for_ever_is_not_waited_for(cluster: Cluster, lost: Exception) -> None:
    cluster.has([{1: lost}, *({} for _ in range(50))], [{0: FINISHED, 1: FINISHED}])
    assert cluster.supervisor().run() == (Ending.FINISHED, 40)


def test_a_start_that_is_lost_counts_as_a_failure_and_too_many_end_the_stage(cluster: Cluster, lost: Exception) -> None:
    cluster.has(lost, [{1: lost}, {0: PEER}], lost)
    with pytest.raises(FoldtrainError, match=r"Ray lost a process that the stage needs \(ActorDiedError\)"):
        cluster.supervisor(max_failures=2).run()
    assert cluster.waiting == []


def test_a_bug_ends_the_stage_with_its_traceback_once_it_was_tried_again(cluster: Cluster) -> None:
    bug = Outcome(error=ValueError("a bug"), trace="Traceback: a bug")
    cluster.has([{0: bug, 1: bug}], [{0: bug, 1: bug}])
    with pytest.raises(WorkersFailedError, match="rank 1: Traceback: a bug"):
        cluster.supervisor(max_failures=1).run()


def test_an_error_that_a_user_mends_ends_the_stage_as_it_was_raised_after_one_start(cluster: Cluster) -> None:
    cluster.has([{0: PEER}, {}, {1: DAMAGED}])
    with pytest.raises(CorruptShardError) as raised:
        cluster.supervisor().run()
    assert raised.value is DAMAGED.error
    assert [group.fate for group in cluster.groups] == ["dismissed"]


def test_a_notice_stops_the_workers_with_a_checkpoint(cluster: Cluster) -> None:
    cluster.has([{}])
    group: Any = cluster.waiting[0]
    group.train = lambda *_: cluster.notice._on_signal(signal.SIGTERM, None)
    assert cluster.supervisor().run() == (Ending.STOPPED, 20)
    assert set(group.asked) == {Ending.STOPPED}
    assert group.fate == "dismissed"


def test_workers_that_are_lost_instead_of_saving_are_an_error(cluster: Cluster, lost: Exception) -> None:
    cluster.has([{0: lost, 1: lost}])
    cluster.waiting[0].train = lambda *_: cluster.notice._on_signal(signal.SIGTERM, None)  # type: ignore[union-attr]
    with pytest.raises(FoldtrainError, match="Ray lost a process"):
        cluster.supervisor().run()


@pytest.mark.parametrize("workers", [2, "1:2"])
def test_a_notice_before_there_are_workers_ends_the_stage(cluster: Cluster, workers: Any) -> None:
    cluster.notice._on_signal(signal.SIGTERM, None)
    assert cluster.supervisor(workers).run()[0] is Ending.STOPPED
    assert cluster.groups == []


def test_a_notice_while_workers_come_up_ends_the_stage(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    def start(_needs: Any, _size: int, _stage: str, _folder: Path, check: Callable[[], None], _: float) -> None:
        check()
        cluster.notice._on_signal(signal.SIGTERM, None)
        check()
        pytest.fail("it went on")

    monkeypatch.setattr(supervision, "start_group", start)
    assert cluster.supervisor().run()[0] is Ending.STOPPED


def test_a_node_that_leaves_pauses_the_stage_and_it_starts_elsewhere(cluster: Cluster) -> None:
    cluster.has([{}], [{0: FINISHED, 1: FINISHED}])
    cluster.gone = {"b"}
    assert cluster.supervisor().run() == (Ending.FINISHED, 40)
    first, second = cluster.groups
    assert (set(first.asked), first.fate, second.fate) == ({Ending.PAUSED}, "dismissed", "parked")
    assert cluster.notice.news() == ["a node will leave: saves a checkpoint, and goes on without it"]


def test_where_the_commands_own_node_leaves_the_workers_save_and_the_stage_ends(cluster: Cluster) -> None:
    cluster.has([{}])
    cluster.gone = {"a", "b"}
    assert cluster.supervisor(own="a").run()[0] is Ending.STOPPED
    assert [set(group.asked) for group in cluster.groups] == [{Ending.STOPPED}]
    said = ["this command's own node will leave: the workers save a checkpoint, and it ends"]
    assert (cluster.notice.news(), cluster.notice.received) == (said, True)


def test_an_elastic_stage_grows_when_there_is_room(cluster: Cluster) -> None:
    cluster.has([{} for _ in range(3)], size=1)
    cluster.has([{0: FINISHED, 1: FINISHED}], size=2)
    cluster.room = [1, 0, 1, 2]  # free: at the start; beside one worker, twice; for the next start
    assert cluster.supervisor("1:2").run() == (Ending.FINISHED, 40)
    assert [group.size for group in cluster.groups] == [1, 2]
    assert cluster.notice.news() == ["room for 2 workers: saves a checkpoint, and goes on with them"]


def test_workers_that_are_scaled_away_leave_at_a_checkpoint(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervision, "_CONTROL_SECONDS", 1.0)
    cluster.room = [3]
    cluster.has([{} for _ in range(3)], size=3)
    cluster.has([{0: FINISHED, 1: FINISHED}], size=2)
    cluster.waiting[0].train = lambda *_: write_scale(str(tmp_path), 1, 2)  # type: ignore[union-attr]
    assert cluster.supervisor(3).run() == (Ending.FINISHED, 40)
    first, second = cluster.groups
    assert (set(first.asked), first.fate, second.fate) == ({Ending.PAUSED}, "dismissed", "parked")
    assert first.notes == [("scale", {"min": 1, "max": 2})]
    assert cluster.notice.news() == [
        "1 to 2 workers, as `foldtrain scale` asked; the config says 3",
        "1 of 3 workers leaves: saves a checkpoint, and goes on",
    ]


def test_a_stage_of_a_fixed_size_grows_when_that_is_asked_for(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervision, "_CONTROL_SECONDS", 1.0)
    cluster.room = [1]
    cluster.has([{} for _ in range(40)], size=1)
    cluster.has([{0: FINISHED, 1: FINISHED}], size=2)

    def scale(*_: Any) -> None:
        write_scale(str(tmp_path), 2, 2)
        cluster.room = [0, 0, 1, 2]  # none for two looks, then a node comes; and for the next start

    cluster.waiting[0].train = scale  # type: ignore[union-attr]
    assert cluster.supervisor(1).run() == (Ending.FINISHED, 40)
    assert [group.size for group in cluster.groups] == [1, 2]
    assert cluster.demand.asked[:3] == [1, 1, 1]  # until there was room
    assert cluster.demand.asked[-1] == 0  # withdrawn


@pytest.mark.parametrize("workers", [3, "3:4"])
def test_a_stage_that_waits_for_room_starts_with_the_fewer_workers_that_are_asked_for_meanwhile(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: Any
) -> None:
    def start(_needs: Any, size: int, _stage: str, _folder: Path, check: Callable[[], None], _: float) -> Group:
        if size == 3:
            write_scale(str(tmp_path), 2, 2)
            for _look in range(100):
                check()
            pytest.fail("it went on waiting")
        return cluster._start(_needs, size)

    cluster.room = [2]
    cluster.has([{0: FINISHED, 1: FINISHED}], size=2)
    monkeypatch.setattr(supervision, "start_group", start)
    assert cluster.supervisor(workers).run() == (Ending.FINISHED, 40)
    assert "2 workers, as `foldtrain scale` asked" in "".join(cluster.notice.news())


def test_growth_that_does_not_pay_is_declined_on_record_and_nothing_is_asked_of_the_cluster(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervision, "read_pace", lambda _folder: Pace(10, 1.0, 60.0))
    cluster.room = [1]
    cluster.has([*({} for _ in range(60)), {0: FINISHED}], size=1)
    assert cluster.supervisor("1:2").run() == (Ending.FINISHED, 40)
    (group,) = cluster.groups
    assert (group.asked, [event for event, _ in group.notes]) == ([], ["growth_declined"])
    assert set(cluster.demand.asked) == {0}
    (said,) = cluster.notice.news()
    assert said.startswith("stays with 1 worker: a restart with 2 takes")


def test_an_elastic_start_for_which_there_was_no_room_is_tried_with_fewer(cluster: Cluster) -> None:
    cluster.room = [2]
    cluster.has(NoRoomError())
    cluster.has([{0: FINISHED}], size=1)
    assert cluster.supervisor("1:2").run() == (Ending.FINISHED, 40)


@pytest.mark.slow
def test_the_command_loads_neither_torch_nor_pandas_nor_ray_train() -> None:
    modules = "cluster.commands.stages cluster.stages.pipeline cluster.training.stage cluster.training.supervision"
    imports = "".join(f"import {module}\n" for module in [*modules.split(), "ray", "ray.util.placement_group"])
    found = "print(sorted({'torch', 'pandas', 'ray.train', 'deepspeed'} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", f"import sys\n{imports}{found}"], capture_output=True, check=True)
    assert done.stdout == b"[]\n"


def test_a_lost_process_is_told_and_a_failure_of_another_kind_is_not(cluster: Cluster, lost: Exception) -> None:
    cluster.has([{1: lost}], [{0: PEER, 1: PEER}], [{0: FINISHED, 1: FINISHED}])
    cluster.supervisor().run()
    assert cluster.told == ["a worker's process or its node is gone: rank 1: ActorDiedError"]


def test_a_node_that_leaves_is_told_once_however_long_its_workers_take(cluster: Cluster) -> None:
    cluster.has([{} for _ in range(60)], [{0: FINISHED, 1: FINISHED}])
    cluster.gone = {"b"}
    cluster.supervisor().run()
    assert len(cluster.groups[0].asked) > 1
    assert cluster.told == ["a node will leave: a checkpoint is saved, and training goes on without it"]
