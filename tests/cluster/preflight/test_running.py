"""Checks run one after the other on the nodes that answer, and each node that does not is a finding."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from cluster.preflight.checks.check import Check
from cluster.preflight.findings import EVERY, Finding
from cluster.preflight.nodes import Failure, Nodes, Some, ThisMachine, ask_all, silent
from cluster.preflight.running import run_checks
from cluster.preflight.verdict import decide
from cluster.preflight.wanted import Wanted
from tests.cluster.preflight.several import Several

WANTED = Wanted()
NEVER = threading.Event()


def hang() -> None:
    NEVER.wait()


def fail() -> None:
    raise OSError("the bus is gone\nand more")


def named(name: str) -> str:
    return name


def check(name: str, answers: Mapping[str, Any], *, after: tuple[str, ...] = (), fewest: int = 1) -> Check:
    """One whose nodes answer so, and that finds for each node what it answered."""

    def measure(nodes: Nodes, _: Wanted) -> dict[str, Any]:
        return {node: answers.get(node, "well") for node in nodes.addresses}

    def judge(facts: Mapping[str, Any], _: Wanted) -> list[Finding]:
        return [Finding(node, name, "error" if it == "bad" else "ok", it) for node, it in facts.items()]

    return Check(name, measure, judge, remedy="mend it", fewest=fewest, after=after)


def found(findings: list[Finding]) -> list[tuple[str, str, str]]:
    return [(finding.node, finding.check, finding.level) for finding in findings]


def test_what_hangs_on_a_node_is_given_up_in_time_and_says_so() -> None:
    assert ThisMachine().each(hang, {"a": ()}, 0.05) == {"a": silent(0.05)}


def test_what_fails_on_a_node_is_told_in_a_line() -> None:
    assert ask_all(Several("a"), fail, seconds=60) == {"a": Failure("OSError: the bus is gone and more")}


def test_each_node_is_asked_its_own_question() -> None:
    assert Several("a", "b").each(named, {"a": ("x",), "b": ("y",)}, 60) == {"a": "x", "b": "y"}


def test_some_of_the_nodes_keep_their_addresses() -> None:
    assert list(Some(Several("a", "b", "c"), ("a", "c")).addresses) == ["a", "c"]


def test_what_is_found_once_and_not_again_was_a_moments() -> None:
    rounds = iter([{"a": "bad", "b": "bad"}, {"a": "bad", "b": "well"}])
    once = check("speed", {})
    again = replace(once, measure=lambda *_: next(rounds), again=True)
    assert found(run_checks(Several("a", "b"), WANTED, checks=[again])) == [
        ("a", "speed", "error"),
        ("b", "speed", "ok"),
    ]
    assert next(rounds, None) is None


def test_what_is_well_is_not_measured_twice() -> None:
    rounds = iter([{"a": "well"}, {"a": "bad"}])
    again = replace(check("speed", {}), measure=lambda *_: next(rounds), again=True)
    assert found(run_checks(Several("a"), WANTED, checks=[again])) == [("a", "speed", "ok")]


def test_another_node_in_the_second_round_is_none_that_was_found_twice() -> None:
    rounds = iter([{"a": "bad", "b": "well"}, {"a": "well", "b": "bad"}])
    again = replace(check("speed", {}), measure=lambda *_: next(rounds), again=True)
    levels = {level for _, _, level in found(run_checks(Several("a", "b"), WANTED, checks=[again]))}
    assert levels == {"ok"}


def test_a_node_that_fails_a_check_is_a_finding_with_its_remedy_and_the_others_are_judged() -> None:
    findings = run_checks(Several("a", "b"), WANTED, checks=[check("x", {"b": Failure("no disk")})])
    assert findings == [Finding("b", "x", "error", "no disk", "mend it"), Finding("a", "x", "ok", "well")]


def test_a_node_that_was_silent_and_answers_again_stays() -> None:
    checks = [check("x", {"b": silent(1)}), check("y", {})]
    assert ("b", "y", "ok") in found(run_checks(Several("a", "b"), WANTED, checks=checks))


def test_a_node_that_answers_nothing_any_more_is_asked_no_further() -> None:
    class Lost(Several):
        def each(self, function: Any, arguments: Any, seconds: float) -> dict[str, Any]:
            return {name: silent(seconds) if name == "b" else True for name in arguments}

    checks = [check("x", {"b": silent(1)}), check("y", {})]
    findings = found(run_checks(Lost("a", "b"), WANTED, checks=checks))
    assert ("b", "node", "error") in findings
    assert ("b", "y", "ok") not in findings


def test_a_node_on_which_nothing_came_up_is_a_finding() -> None:
    (finding,) = run_checks(Several(), WANTED, unanswered={"b": silent(12)}, checks=[])
    assert (finding.node, finding.check, finding.level) == ("b", "node", "error")
    assert finding.found == "does not answer: no answer within 12 s"


def test_a_check_that_would_only_wait_for_a_broken_node_leaves_it_out() -> None:
    checks = [check("ports", {"b": "bad"}), check("links", {}, after=("ports",))]
    assert ("b", "links", "ok") not in found(run_checks(Several("a", "b"), WANTED, checks=checks))


def test_a_check_that_fails_by_itself_is_a_warning_and_the_others_run() -> None:
    def broken(*_: Any) -> dict[str, Any]:
        raise KeyError("a mistake of ours")

    findings = run_checks(Several("a"), WANTED, checks=[replace(check("x", {}), measure=broken), check("y", {})])
    assert found(findings) == [("all nodes", "x", "warning"), ("a", "y", "ok")]
    assert "could not be checked: KeyError" in findings[0].found


def test_a_check_between_nodes_needs_two_of_them() -> None:
    assert run_checks(Several("a"), WANTED, checks=[check("links", {}, fewest=2)]) == []


# ------------------------------------------------------------------------------------------------------------- verdict

BROKEN = Finding("b", "versions", "error", "torch is another")
SLOW = Finding("c", "bandwidth", "warning", "10 MB/s")
NAMES = ("a", "b", "c")


def room(*nodes: str) -> Any:
    """One worker fits on each of these nodes."""
    return lambda without: len(set(nodes) - set(without))


def test_a_broken_node_is_left_out_where_there_is_a_spare_one() -> None:
    verdict = decide([BROKEN], NAMES, room(*NAMES), needed=2)
    assert (verdict.left_out, verdict.refused) == (("b",), ())


def test_a_broken_node_that_is_needed_refuses_the_training() -> None:
    verdict = decide([BROKEN], NAMES, room(*NAMES), needed=3)
    assert (verdict.left_out, verdict.refused) == ((), (BROKEN,))


def test_a_slow_node_is_left_out_where_there_is_a_spare_one_and_else_only_told() -> None:
    assert decide([SLOW], NAMES, room(*NAMES), needed=2).left_out == ("c",)
    verdict = decide([SLOW], NAMES, room(*NAMES), needed=3)
    assert (verdict.left_out, verdict.refused) == ((), ())


def test_with_one_spare_node_the_broken_one_goes_before_the_slow_one() -> None:
    assert decide([SLOW, BROKEN], NAMES, room(*NAMES), needed=2).left_out == ("b",)


def test_another_warning_leaves_no_node_out() -> None:
    assert decide([Finding("b", "disk", "warning", "2 GiB")], NAMES, room(*NAMES), needed=1).left_out == ()


def test_what_is_wrong_with_all_nodes_or_between_two_is_not_mended_by_leaving_one_out() -> None:
    shared = [Finding("all nodes", "storage", "error", "refused"), Finding("a and b", "bandwidth", "error", "apart")]
    assert decide(shared, NAMES, room(*NAMES), needed=1).refused == tuple(shared)


def test_a_warning_of_a_check_that_says_so_keeps_a_node_out_of_another_and_no_warning_else() -> None:
    warned = replace(check("names", {}), judge=lambda *_: [Finding("a", "names", "warning", "slow")])
    speed = check("speed", {})
    for later, asked in ((replace(speed, unless=("names",)), ["b"]), (replace(speed, after=("names",)), ["a", "b"])):
        findings = run_checks(Several("a", "b"), WANTED, checks=[warned, later])
        assert [finding.node for finding in findings if finding.check == "speed"] == asked
    of_all = replace(warned, judge=lambda *_: [Finding(EVERY, "names", "warning", "slow")])
    left = run_checks(Several("a", "b"), WANTED, checks=[of_all, replace(speed, unless=("names",), fewest=2)])
    assert found(left) == [(EVERY, "names", "warning")]
