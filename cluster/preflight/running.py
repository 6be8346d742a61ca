"""Runs the checks one after the other, and says what they found."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from cluster.preflight.checks import CHECKS
from cluster.preflight.checks.check import Check
from cluster.preflight.findings import EVERY, Finding
from cluster.preflight.nodes import Failure, Nodes, Some, ask_all, failed
from cluster.preflight.wanted import Wanted

NODE = "node"
"""Name of the check that a node answers at all."""
_AGAIN_SECONDS = 3.0
_SAME = "install on every node what the others have (pip install -c constraints.txt, or one image for all of them)"


def run_checks(
    nodes: Nodes,
    wanted: Wanted,
    *,
    unanswered: Mapping[str, Failure] | None = None,
    checks: Iterable[Check] = CHECKS,
    say: Callable[[str], object] = lambda _: None,
) -> list[Finding]:
    """Run all checks on some nodes.

    Args:
        nodes: that answer.
        wanted: what they are checked for.
        unanswered: nodes that did not answer already, by name.
        checks: in their order.
        say: is told the name of each check before it runs.

    Returns:
        What they found, in their order: of each check at least one finding, if it had nodes to run on.
    """
    findings = [_gone(name, failure) for name, failure in (unanswered or {}).items()]
    left = tuple(nodes.addresses)
    for check in checks:
        fit = Some(nodes, tuple(name for name in left if _is_fit(name, check, findings)))
        if len(fit.names) < check.fewest or not check.applies(wanted):
            continue
        say(check.name)
        found, late = _run(check, fit, wanted)
        if check.again and _are_bad(found):
            again, late = _run(check, fit, wanted)
            found = _twice(check.name, found, again)
        findings += found
        gone = _gone_since(nodes, late)
        findings += [_gone(name, failure) for name, failure in gone.items()]
        left = tuple(name for name in left if name not in gone)
    return findings


def _run(check: Check, nodes: Nodes, wanted: Wanted) -> tuple[list[Finding], list[str]]:
    """What a check finds, and the nodes that did not answer it in time. One that fails by itself stops no training."""
    try:
        facts = check.measure(nodes, wanted)
    except Exception as error:  # whatever it is
        return [
            Finding(EVERY, check.name, "warning", f"could not be checked: {failed(error).reason}", check.remedy)
        ], []
    failures = {name: found for name, found in facts.items() if isinstance(name, str) and isinstance(found, Failure)}
    findings = [Finding(name, check.name, "error", it.reason, check.remedy) for name, it in failures.items()]
    findings += check.judge({name: found for name, found in facts.items() if name not in failures}, wanted)
    return findings, [name for name, failure in failures.items() if failure.is_silent]


def _are_bad(findings: Iterable[Finding]) -> bool:
    return any(finding.level != "ok" for finding in findings)


def _twice(check: str, first: Iterable[Finding], second: Iterable[Finding]) -> list[Finding]:
    """Of the second round what is well, and what was bad in the first, too."""
    bad = {finding.node for finding in first if finding.level != "ok"}
    kept = [finding for finding in second if finding.level == "ok" or finding.node in bad]
    return kept or [Finding(EVERY, check, "ok", "the second time nothing differed that had differed the first time")]


def _is_fit(name: str, check: Check, findings: Iterable[Finding]) -> bool:
    of_node = [found for found in findings if found.node in {name, EVERY} and found.level != "ok"]
    return not any(
        found.check in check.unless or (found.check in check.after and found.level == "error") for found in of_node
    )


def _gone_since(nodes: Nodes, names: Iterable[str]) -> dict[str, Failure]:
    """Those of the nodes that answer nothing any more."""
    known = tuple(name for name in names if name in nodes.addresses)
    found = ask_all(Some(nodes, known), _here, seconds=_AGAIN_SECONDS) if known else {}
    return {name: answer for name, answer in found.items() if isinstance(answer, Failure)}


def _here() -> bool:
    return True


def _gone(name: str, failure: Failure) -> Finding:
    if failure.is_silent:
        remedy = "end the node and start it again, or look at its load and its network; Ray still counts it as alive"
    else:
        remedy = f"see the logs of Ray on it; if a module is missing there, {_SAME}"
    return Finding(name, NODE, "error", f"does not answer: {failure.reason}", remedy)
