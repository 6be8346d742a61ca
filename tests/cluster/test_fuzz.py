"""Hostile files are read or refused, within a bound of memory and time, and lead nowhere."""

from __future__ import annotations

import random
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from benchmarks.fuzz.mutations import change_json, change_lines, change_yaml

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_no_hostile_input_does_what_none_may_do(tmp_path: Path) -> None:
    """The command of docs/formats.md, short."""
    command = [sys.executable, "-m", "benchmarks.fuzz", "--inputs", "300", "--seed", "1"]
    done = subprocess.run(command, cwd=ROOT, env=environment(tmp_path), capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    assert "300 inputs" in done.stdout
    assert "tracebacks that are no FoldtrainError: 0; over the memory: 0; over the time: 0;" in done.stdout


def environment(tmp_path: Path) -> dict[str, str]:
    import os

    return os.environ | {"TMPDIR": str(tmp_path)}


PLANTED = """
    import json, os, time
    from benchmarks.fuzz import guard, running
    from benchmarks.fuzz.targets import Target
    from data_pipeline.errors import UsageError

    guard.SECONDS, guard.WAITS = 0.2, 10

    def refuse(): raise UsageError("no")
    def break_(): raise KeyError("x")
    def leave(): open("/etc/passwd").close()
    def list_(): os.listdir("/")
    def wait(): time.sleep(60)
    def spin():
        while True: pass
    def take(): bytearray(3 * 2**30)
    def die(): os._exit(3)
    def read(root): return lambda: (root / "x").read_bytes()

    planted = {"good": None, "refuse": refuse, "break": break_, "leave": leave, "list": list_, "wait": wait}
    planted |= {"take": take, "die": die, "spin": spin}
    running.warm_up = lambda *_: None
    targets = tuple(
        Target(name, "x", lambda rng, data: data, lambda root, does=does: iter([does or read(root)]))
        for name, does in planted.items()
    )
    found = running.run(range(18), 0, {"x": b"1"}, targets)
    kinds = {(finding.number, finding.target, finding.kind) for finding in found.findings}
    print(json.dumps([sorted(kinds), dict(found.inputs), found.refused["refuse"], found.refused["good"]]))
"""


@pytest.mark.slow
def test_whatever_an_input_does_is_found(tmp_path: Path) -> None:
    import json

    command = [sys.executable, "-c", textwrap.dedent(PLANTED)]
    done = subprocess.run(command, cwd=ROOT, env=environment(tmp_path), capture_output=True, text=True, check=True)
    kinds, inputs, refused, good = json.loads(done.stdout)
    does = {2: ("break", "traceback"), 3: ("leave", "outside"), 4: ("list", "outside"), 5: ("wait", "seconds")}
    does |= {6: ("take", "memory"), 7: ("die", "died"), 8: ("spin", "seconds")}
    assert kinds == sorted([number + again, *what] for number, what in does.items() for again in (0, 9))
    assert set(inputs.values()) == {2}
    assert (refused, good) == (2, 0)


@pytest.mark.parametrize(
    ("change", "data"),
    [
        (change_json, b'{"name": "images-00000.tar", "samples": 3, "shards": [{"a": [1, 2]}]}'),
        (change_lines, b'{"step": 1}\n{"step": 2}\n'),
        (change_yaml, b"extends: base.yaml\nrun: x\n"),
    ],
)
def test_a_number_makes_the_same_input_again_and_nearly_all_are_changed(change: object, data: bytes) -> None:
    assert callable(change)
    made = [change(random.Random(f"0-{number}"), data) for number in range(200)]
    assert made == [change(random.Random(f"0-{number}"), data) for number in range(200)]
    assert sum(one != data for one in made) > 160
    assert len(set(made)) > 80
