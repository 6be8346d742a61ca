"""The packaged config of a cluster with KubeRay, and the one in the docs, are ones that load and render."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import yaml
from typer.testing import CliRunner

from cluster.cli import app
from cluster.config.run import RunConfig
from cluster.targets.kuberay_config import KubeRayConfig
from cluster.targets.opening import load_target, open_target
from cluster.targets.target import JobSpec
from tests.cluster.kuberay.schemas import faults

JOB = JobSpec("ingest-3fa9c1", ("ingest",), RunConfig.model_construct(run="s3://b/r"), "s3://b/r", ("python",))
PAGE = (Path(__file__).parents[3] / "docs" / "clusters" / "kuberay.md").read_text()


def test_the_packaged_config_makes_a_valid_job() -> None:
    (rendered,) = open_target(*load_target("kuberay")).render(JOB)
    assert faults(yaml.safe_load(rendered.text)) == []


def test_the_config_in_the_docs_makes_a_valid_job(tmp_path: Path) -> None:
    (text,) = re.findall(r"```yaml\n(# ~/.config.*?)```", PAGE, re.DOTALL)
    (tmp_path / "team.yaml").write_text(text)
    name, section = load_target(str(tmp_path / "team.yaml"))
    assert (name, section.nodes) == ("team", (2, 8))
    (rendered,) = open_target(name, section).render(JOB)
    assert faults(yaml.safe_load(rendered.text)) == []


def test_what_submit_would_send_is_a_file_for_kubectl(tmp_path: Path) -> None:
    run = "s3://bucket/it's `id` & <b>"
    text = "{extends: package:cluster/kuberay.yaml, cluster: standing}"
    (tmp_path / "team.yaml").write_text(text)
    arguments = ["submit", "configs/quickstart.yaml", f"run={run}", "--stage", "ingest", "--dry-run"]
    done = CliRunner().invoke(app, [*arguments, "--target", f"{tmp_path}/team.yaml"])
    assert done.exit_code == 0, done.output
    cluster, job = yaml.safe_load_all(done.output)
    assert [cluster["kind"], job["kind"]] == ["RayCluster", "RayJob"]
    assert faults(cluster) + faults(job) == []
    command = shlex.split(job["spec"]["entrypoint"])
    assert command[:5] == ["python", "-P", "-m", "cluster.job_process", run]
    assert command[5:] == [job["metadata"]["name"]]


def test_every_setting_that_the_docs_name_exists() -> None:
    table = PAGE.partition("## What is sent")[2].partition("## What happens")[0]
    named = {
        word for row in re.findall(r"^\| (`.*?) \|", table, re.MULTILINE) for word in re.findall(r"`(\w+)[`:]", row)
    }
    assert {"queue", "secret_environment", "non_root", "labels"} <= named
    assert named <= KubeRayConfig.model_fields.keys()
