"""A target's config: found by its name or as a file, and every mistake in it is answered with its place."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest
import yaml

from cluster.config.loading import load_config
from cluster.jobs.submitting import new_job
from cluster.targets import KINDS, JobSpec
from cluster.targets.opening import load_target, open_target, resolved_target, section_from
from data_pipeline.errors import UsageError

ADDRESS = "http://127.0.0.1:1"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    folder = tmp_path / ".config/foldtrain/cluster"
    folder.mkdir(parents=True)
    return folder


def write(folder: Path, name: str, text: str) -> str:
    (folder / name).write_text(text)
    return str(folder / name)


def test_a_target_of_ones_own_is_found_by_its_name(home: Path) -> None:
    write(home, "big.yaml", f"extends: package:cluster/ray.yaml\naddress: {ADDRESS}\nnodes: 2:16\n")
    name, section = load_target("big")
    assert (name, section.kind, section.fewest_nodes, section.most_nodes) == ("big", "ray", 2, 16)


def test_a_file_is_a_target_too_and_its_name_is_the_files(tmp_path: Path) -> None:
    path = write(tmp_path, "mine.v2.yaml", "kind: local\ngrace_seconds: 5\n")
    name, section = load_target(path)
    assert (name, section.grace_seconds) == ("mine.v2", 5)


def test_values_of_variables_are_taken_as_they_are_written(tmp_path: Path) -> None:
    path = write(tmp_path, "a.yaml", "kind: local\nenvironment: {YEAR: 2012, RATE: 1e3, FLAG: yes, EMPTY: ''}\n")
    assert load_target(path)[1].environment == {"YEAR": "2012", "RATE": "1e3", "FLAG": "yes", "EMPTY": ""}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("nodes: 2\n", r"kind is missing; choose from .*local, ray"),
        ("kind: lokal\n", r"'lokal' is no kind of target; did you mean local\?"),
        ("kind: ray\nadress: x\n", r"adress: unknown key; did you mean address\?"),
        ("kind: local\nnodes: 2\n", r"nodes: "),
        ("kind: ray\ngpus_per_node: -1\n", r"gpus_per_node: "),
        ("kind: ray\nenvironment: {'A B': x}\n", r"environment.A B"),
        ("kind: ray\nenvironment: {'A': \"x\\0y\"}\n", r"environment.A: holds the character NUL"),
        ("kind: ray\nsecrets: ['$(x)']\n", r"secrets.0"),
        ("kind: ray\ngrace_seconds: -5\n", r"grace_seconds: "),
        ("kind: ray\nprice_per_hour: .inf\n", r"price_per_hour: "),
        ("kind: [local]\n", r"is no kind of target"),
        ("- kind\n", r"a config is a set of sections"),
    ],
)
def test_a_mistake_is_named_with_its_file_and_key(tmp_path: Path, text: str, said: str) -> None:
    path = write(tmp_path, "a.yaml", text)
    with pytest.raises(UsageError, match=said) as caught:
        load_target(path)
    assert path in str(caught.value)


def test_a_resolved_target_loads_to_an_equal_one(tmp_path: Path) -> None:
    text = "kind: ray\nnodes: 1:3\naddress: http://h:8265\nenvironment: {A: '#1'}\nsecrets: [B]\n"
    section = load_target(write(tmp_path, "a.yaml", text))[1]
    assert load_target(write(tmp_path, "b.yaml", resolved_target(section)))[1] == section
    assert section_from(json.loads(json.dumps(section.model_dump(mode="json"))), "a record") == section


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "local"])
def test_a_kind_without_a_file_of_its_own_comes_with_one(kind: str) -> None:
    assert load_target(kind)[1].kind == kind


# -------------------------------------------------------------------------------------------------- what Ray is asked


def ray_job(config: Path, run: str) -> tuple[JobSpec, str]:
    name, section = load_target("ray", address=ADDRESS)
    job = new_job(["ingest"], load_config(config, [f"run={run}", "data.source.path=/pictures"]), section)
    [rendered] = open_target(name, section).render(job)
    return job, rendered.text


def test_the_request_names_the_run_and_the_job_and_holds_nothing_of_the_config(small_config: Path) -> None:
    job, text = ray_job(small_config, "s3://b/run")
    asked = json.loads(text)
    assert asked["submission_id"] == job.id
    assert "/pictures" not in text
    assert job.argv[-2:] == ("s3://b/run", job.id)


@pytest.mark.parametrize("name", ["a'b; touch x", "`id`", '"q" && id', "a\\nb", "ü &"])
def test_a_hostile_name_of_a_run_is_one_word_to_the_shell(small_config: Path, tmp_path: Path, name: str) -> None:
    job, text = ray_job(small_config, f"{tmp_path}/{name}")
    assert shlex.split(json.loads(text)["entrypoint"]) == list(job.argv)


def test_what_is_printed_as_a_request_is_the_same_each_time(small_config: Path) -> None:
    name, section = load_target("ray", address=ADDRESS)
    job = new_job(["ingest"], load_config(small_config, ["run=s3://b/run"]), section)
    target = open_target(name, section)
    assert target.render(job) == target.render(job)


def test_the_config_of_a_target_is_yaml_that_others_read(tmp_path: Path) -> None:
    section = load_target("local")[1]
    assert yaml.safe_load(resolved_target(section))["kind"] == "local"
