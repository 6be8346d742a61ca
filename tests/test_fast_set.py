"""Of a run with `--dear` the tests that cost more are named, and what all cost; no cost fails it."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest_plugins = ["pytester"]

ROOT = Path(__file__).resolve().parents[1]
TESTS = """
import multiprocessing as mp
import subprocess
import sys
import time

BURN = "import time\\nwhile time.process_time() < 0.3: pass"

def burn():
    began = time.process_time()
    while time.process_time() - began < 0.3:
        pass

def test_that_computes():
    burn()

def test_that_has_a_process_compute():
    subprocess.run([sys.executable, "-c", BURN], check=True)

def test_that_has_a_forked_process_compute():
    process = mp.get_context("forkserver").Process(target=exec, args=(BURN,))
    process.start()
    process.join()

def test_that_does_nothing(): ...

def test_that_sleeps():
    time.sleep(0.3)
"""


@pytest.mark.slow
@pytest.mark.parametrize("options", [(), ("-n", "1")], ids=["one process", "xdist"])
def test_what_computes_for_long_is_named_wherever_it_computes(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...]
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    pytester.makepyfile(test_some=TESTS)
    result = pytester.runpytest_subprocess("-p", "tests.fast_set", "-p", "no:cacheprovider", "--dear", "0.25", *options)
    assert result.ret == 0
    _, listed = result.stdout.str().split("tests/fast_set.py")
    assert "test_that_computes" in listed
    assert "test_that_has_a_process_compute" in listed
    assert "test_that_has_a_forked_process_compute" in listed
    assert "test_that_does_nothing" not in listed
    assert "test_that_sleeps" not in listed
    result.stdout.re_match_lines([r"[\d.]+ s of CPU in tests, [\d.]+ s in all processes"])


def test_without_the_option_nothing_is_measured(pytester: pytest.Pytester) -> None:
    pytester.makepyfile("def test_it(): ...")
    result = pytester.runpytest_inprocess("-p", "tests.fast_set", "-p", "no:cacheprovider")
    result.stdout.no_fnmatch_line("*of CPU*")


MARKS = """
import pytest

@pytest.fixture
def s3(): ...

@pytest.mark.drill
def test_drill(): ...

@pytest.mark.xdist_group("ray")
def test_ray(): ...

def test_server(s3): ...

@pytest.mark.xdist_group("planning")
def test_other_group(): ...

def test_plain(): ...
"""


def test_what_starts_ray_or_a_server_or_kills_is_slow_by_itself(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(MARKS)
    pytester.makeini("[pytest]\nmarkers = drill:\n    slow:\n    xdist_group:")
    result = pytester.runpytest_inprocess("-p", "tests.fast_set", "-p", "no:cacheprovider", "-m", "not slow", "-v")
    result.assert_outcomes(passed=2, deselected=3)
    result.stdout.fnmatch_lines(["*test_other_group PASSED*", "*test_plain PASSED*"])
