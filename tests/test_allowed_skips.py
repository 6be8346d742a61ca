"""A skipped test that is not on the list fails the run, wherever it ran."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest_plugins = ["pytester"]

ROOT = Path(__file__).resolve().parents[1]
TESTS = {
    "test_some": """
import pytest

@pytest.mark.skipif(True, reason="needs root here")
def test_marked(): ...

def test_called():
    pytest.skip("needs a GPU here")

@pytest.mark.xfail(reason="known")
def test_fails():
    assert False

def test_passes(): ...
""",
    "test_module": """
import pytest

pytest.skip("needs a compiler here", allow_module_level=True)
""",
}
WHOLE = """
# a comment

test_some.py::test_marked | needs root | only root can
test_some.py::test_called | needs a GPU | not every machine has one
test_module.py | a compiler | not every machine has one
"""


def outcome(pytester: pytest.Pytester, listed: str, *options: str) -> pytest.RunResult:
    pytester.makepyfile(**TESTS)
    pytester.path.joinpath("list.txt").write_text(listed)
    command = ("-p", "tests.allowed_skips", "-p", "no:cacheprovider", "--allowed-skips", "list.txt", *options)
    return pytester.runpytest_subprocess(*command) if "-n" in options else pytester.runpytest_inprocess(*command)


@pytest.fixture(autouse=True)
def the_plugin_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """In processes that know the packages alone, as they are installed."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))


everywhere = pytest.mark.parametrize("options", [(), ("-n", "1")], ids=["one process", "xdist"])


@everywhere
def test_what_is_listed_may_be_skipped(pytester: pytest.Pytester, options: tuple[str, ...]) -> None:
    result = outcome(pytester, WHOLE, *options)
    assert result.ret == 0
    result.stdout.no_fnmatch_line("*not on the list*")


@everywhere
def test_what_is_not_listed_fails_the_run_and_is_named(pytester: pytest.Pytester, options: tuple[str, ...]) -> None:
    result = outcome(pytester, "", *options)
    assert result.ret == 1
    expected = [
        "*not on the list of what may be*",
        "test_module.py: Skipped: needs a compiler here",
        "test_some.py::test_called: Skipped: needs a GPU here",
        "test_some.py::test_marked: Skipped: needs root here",
    ]
    result.stdout.fnmatch_lines(expected)


@pytest.mark.parametrize("test", ["test_marked", "test_called", "test_module"])
def test_one_that_is_not_listed_is_enough(pytester: pytest.Pytester, test: str) -> None:
    listed = "\n".join(line for line in WHOLE.splitlines() if test not in line)
    assert outcome(pytester, listed).ret == 1


def test_another_reason_than_the_listed_one_fails_the_run(pytester: pytest.Pytester) -> None:
    result = outcome(pytester, WHOLE.replace("needs root", "needs a network"))
    assert result.ret == 1
    result.stdout.fnmatch_lines(["test_some.py::test_marked: Skipped: needs root here"])


def test_without_the_option_nothing_is_checked(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(**TESTS)
    assert pytester.runpytest_inprocess("-p", "tests.allowed_skips").ret == 0


@pytest.mark.parametrize("line", ["test_some.py", "test_some.py | needs root", "test_some.py | needs root | "])
def test_a_line_that_does_not_say_why_is_refused(pytester: pytest.Pytester, line: str) -> None:
    result = outcome(pytester, line)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*list.txt:1: give the test, its reason and why that may be*"])
