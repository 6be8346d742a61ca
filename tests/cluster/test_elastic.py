"""An elastic stage loses a node of its Ray cluster, goes on with two, with three again, and without one that leaves."""

from __future__ import annotations

import pytest

from cluster.drills.elastic import ADD_AT, CHECKPOINT_EVERY, DRAIN_AT, LOSE_AT, STEPS, ElasticRun, run_elastic

pytestmark = [pytest.mark.drill, pytest.mark.xdist_group("elastic")]


@pytest.fixture(scope="module")
def elastic(tmp_path_factory: pytest.TempPathFactory) -> ElasticRun:
    return run_elastic(tmp_path_factory.mktemp("elastic") / "run", workers=1)


def test_it_went_on_with_the_workers_that_there_was_room_for(elastic: ElasticRun) -> None:
    assert [workers for _, workers in elastic.sizes] == [3, 2, 3, 2]
    assert [(each["workers_before"], each["workers"]) for each in elastic.restarts] == [(3, 2), (2, 3), (3, 2)]


def test_only_the_steps_after_the_last_checkpoint_were_lost_and_none_to_what_was_announced(elastic: ElasticRun) -> None:
    lost, grown, drained = elastic.restarts
    assert lost["step"] % CHECKPOINT_EVERY == 0
    assert lost["step"] + lost["lost_steps"] >= LOSE_AT
    assert grown["step"] >= ADD_AT
    assert drained["step"] >= DRAIN_AT
    assert grown["lost_steps"] == drained["lost_steps"] == 0
    stops = [(event["step"], event["ending"]) for event in elastic.events if event["event"] == "stop"]
    assert stops == [(grown["step"], "paused"), (drained["step"], "paused")]


def test_what_foldtrain_scale_asked_for_is_on_record(elastic: ElasticRun) -> None:
    asked = [(event["min"], event["max"]) for event in elastic.events if event["event"] == "scale"]
    assert asked == [(3, 3), (1, 3)]
    assert "3 workers, as `foldtrain scale` asked; the config says 1 to 3" in elastic.output


def test_each_restart_has_its_cost_on_record(elastic: ElasticRun) -> None:
    account = [event for event in elastic.events if event["event"] == "goodput"][-1]
    gaps = sum(restart["seconds"] for restart in elastic.restarts)
    assert account["shares"]["restart_gap"] * account["wall_seconds"] == pytest.approx(gaps, abs=0.5)
    assert elastic.output.count("goes on from step") == 3


def test_each_sample_was_consumed_once(elastic: ElasticRun) -> None:
    assert elastic.audit["problems"] == []
    assert elastic.audit["steps"] == STEPS
    assert [start["world"] for start in elastic.audit["starts"]] == [3, 2, 3, 2]
    assert {epoch["most"] for epoch in elastic.audit["epochs"]} == {1}


def test_the_losses_are_those_of_the_unbroken_run(elastic: ElasticRun) -> None:
    assert elastic.difference <= 1e-5
