"""The scripts that sbatch gets: what the config says becomes options, and no value is ever read as shell text."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from cluster.targets.slurm_config import Allocation, SlurmConfig
from cluster.targets.slurm_script import job_script, nodes_script

_HOSTILE = [
    "$(touch evil)",
    "`touch evil`",
    "a'b\"c\\",
    "x\n#SBATCH --partition=root\ny",
    "; exit 3 #",
    "*",
    "~",
    "",
    " ",
]
_VALUES = st.one_of(
    st.sampled_from(_HOSTILE), st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]))
)
_RECORDER = "#!/bin/sh\nfor word in \"$@\"; do printf '%s\\0' \"$word\"; done\nprintf 'ENVIRONMENT\\0'\nenv -0\n"


def directives(script: str) -> dict[str, str]:
    """The options of a script, up to its first command."""
    found = {}
    for line in script.splitlines()[1:]:
        if not line.startswith("#SBATCH --"):
            break
        name, _, value = line.removeprefix("#SBATCH --").partition("=")
        found[name] = value
    return found


def config(**fields: Any) -> SlurmConfig:
    return SlurmConfig.model_validate(fields)


@pytest.fixture(scope="module")
def recorder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("rec order's") / "python"  # with a blank and a quote, as a path may have
    path.write_text(_RECORDER)
    path.chmod(0o755)
    return path


@settings(max_examples=60)
@given(arguments=st.lists(_VALUES, min_size=1, max_size=4), value=_VALUES)
def test_words_and_variables_come_through_the_real_bash_as_they_were(
    recorder: Path, arguments: list[str], value: str
) -> None:
    """A run's name, a job's name or a value of the environment is one word, whatever it holds."""
    script = job_script(config(python=str(recorder), environment={"SOME_VALUE": value}), "generator-3fa9c1", arguments)
    done = subprocess.run(["bash"], input=script.encode(), capture_output=True, cwd=recorder.parent, check=True)
    words, _, environment = done.stdout.partition(b"ENVIRONMENT\0")
    assert words.split(b"\0")[-len(arguments) - 1 : -1] == [argument.encode() for argument in arguments]
    assert f"SOME_VALUE={value}".encode() in environment.split(b"\0")
    assert sorted(path.name for path in recorder.parent.iterdir()) == ["python"]


def test_what_the_target_says_becomes_options_of_sbatch() -> None:
    script = job_script(
        config(
            nodes=3, cpus_per_node=8, gpus_per_node=4, gpu_type="a100", memory_per_node=64, partition="gpu",
            account="vision", qos="high", time="2-00:00:00", constraint="ib&nvme", reservation="maintenance",
            options={"mail-type": "END", "contiguous": True, "priority": 7}, grace_seconds=300.5,
        ),
        "generator-3fa9c1",
        ["true"],
    )  # fmt: skip
    found = directives(script)
    assert found["nodes"] == "3"
    assert found["cpus-per-task"] == "8"
    assert found["gpus-per-node"] == "a100:4"
    assert found["mem"] == "61036M"  # 64e9 / 2**20 = 61,035.2 MiB
    assert [found[name] for name in ("partition", "account", "qos")] == ["gpu", "vision", "high"]
    assert found["time"] == "2-00:00:00"
    assert found["constraint"] == '"ib&nvme"'
    assert found["reservation"] == "maintenance"
    assert [found[name] for name in ("mail-type", "contiguous", "priority")] == ["END", "", "7"]
    assert found["signal"] == '"B:USR1@301"'
    assert "requeue" in found
    assert "exclusive" not in found


def test_without_a_number_of_cpus_a_job_has_its_nodes_for_itself() -> None:
    found = directives(job_script(config(), "a-1", ["true"]))
    assert "exclusive" in found
    assert "cpus-per-task" not in found


def test_a_job_begins_with_the_fewest_nodes() -> None:
    assert directives(job_script(config(nodes="2:8"), "a-1", ["true"]))["nodes"] == "2"


def test_further_nodes_are_an_array_of_allocations_that_waits_for_the_job_to_begin() -> None:
    found = directives(nodes_script(config(nodes="2:8", cpus_per_node=1), "foldtrain-join-17", "17", 3))
    assert (found["nodes"], found["array"], found["dependency"]) == ("1", "0-2", "after:17")


def test_a_job_of_one_of_several_clusters_is_joined_by_its_number_there() -> None:
    script = nodes_script(config(nodes="1:2", cpus_per_node=1, cluster="west"), "foldtrain-join-17", "17;west", 1)
    assert directives(script)["dependency"] == "after:17"
    assert directives(script)["clusters"] == "west"


def test_nothing_of_the_shell_that_submits_is_sent_and_nothing_of_a_shared_home_is_needed() -> None:
    found = directives(job_script(config(secrets=["WANDB_API_KEY"]), "a-1", ["true"]))
    assert found["export"] == "FOLDTRAIN"
    assert (found["output"], found["chdir"]) == ("/dev/null", '"/"')


def test_shell_lines_of_setup_stand_before_the_command_as_they_are() -> None:
    lines = job_script(config(setup=["module load cuda/12.4"]), "a-1", ["true"]).splitlines()
    assert lines[-2] == "module load cuda/12.4"
    assert lines[-1].startswith("exec ")


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"partition": "a\n#SBATCH --uid=0"}, "line break"),
        ({"options": {"nodes": "7"}}, "other keys of the target"),
        ({"options": {"signal": "KILL"}}, "other keys of the target"),
        ({"options": {"mail type": "END"}}, "pattern"),
        ({"options": {"comment": "a\rb"}}, "line break"),
        ({"options": {"exclusive": False}}, "leave it out"),
        ({"setup": ["a\nb"]}, "line break"),
        ({"gpu_type": "a100"}, "gpus_per_node"),
        ({"interface": "ib0; reboot"}, "pattern"),
        ({"partitions": "gpu"}, "partitions"),
    ],
)
def test_what_sbatch_could_misread_is_refused(fields: dict[str, Any], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        config(**fields)


def test_what_an_allocation_needs_to_know_travels_as_one_argument() -> None:
    there = Allocation.of(config(cpus_per_node=3, gpus_per_node=2, secrets=["A_KEY"], restarts=4, interface="ib0"))
    assert Allocation.from_text(there.to_text()) == there
    assert json.loads(there.to_text())["secrets"] == ["A_KEY"]
