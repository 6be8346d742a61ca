"""Another user of the machine, against a local head with a job that trains and has secrets, and against a shared cache.

Played for real: what the second user does runs under another uid. The first user is root without the capabilities that
let root pass by permissions, so that files are closed to it as to anybody.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
from PIL import Image
from tenacity import Retrying, retry_if_result, stop_after_delay, wait_fixed

from tests.cluster.conftest import SMALL

ROOT = Path(__file__).parents[2]
SECOND = 64_321
"""The second user's uid, which nobody has."""
_PYTHON = shutil.which("python3", path="/usr/bin:/bin:/usr/local/bin")
"""An interpreter that every user may run; this one may lie in root's home."""
_LACKING = "--bounding-set=-dac_override,-dac_read_search,-fowner,-chown"

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="only root can play two users"),
    pytest.mark.skipif(shutil.which("setpriv") is None or _PYTHON is None, reason="needs setpriv and /usr/bin/python3"),
    pytest.mark.slow,
    pytest.mark.xdist_group("second user"),
]

TAKEN = ("ray", "foldtrain", "foldtrain-ray-train", "foldtrain-0", "ft-", "ray_current_cluster", "wandb", "torch")
"""Names in the shared folder for temporary files that the second user takes first."""


def as_first(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Python as the first user."""
    command = ["setpriv", _LACKING, sys.executable, "-P", *arguments]
    variables = os.environ | environment
    return subprocess.run(command, env=variables, cwd="/", capture_output=True, text=True, timeout=180, check=False)


def as_second(code: str, *arguments: object, given: str = "") -> Any:
    """What Python code prints as JSON, as the second user; `given` is its standard input."""
    assert _PYTHON is not None
    command = [_PYTHON, "-I", "-c", textwrap.dedent(code), *map(str, arguments)]
    done = subprocess.run(
        command,
        input=given,
        env={},
        cwd="/",
        user=SECOND,
        group=SECOND,
        extra_groups=[],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@dataclass(frozen=True)
class Scene:
    """A head with a job that trains."""

    shared: Path
    """The folder for temporary files of all users, as /tmp is."""
    run: Path
    """Of the training, in a place where everybody may look."""
    environment: dict[str, str]
    """Of the first user's commands."""
    job: str
    """The job that trains."""
    head: dict[str, Any]
    """What the first user's state file says."""

    def foldtrain(self, *arguments: str) -> str:
        """What a command prints, as the first user."""
        done = as_first("-m", "foldtrain", *arguments, **self.environment)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    @property
    def home(self) -> Path:
        """Where foldtrain keeps what it started."""
        return Path(self.environment["FOLDTRAIN_HOME"])

    @property
    def variables(self) -> Path:
        """The file with the variables of the job."""
        return self.home / "variables" / f"{self.job}.json"

    def processes(self) -> list[psutil.Process]:
        first = psutil.Process(self.head["pid"])
        return [first, *first.children(recursive=True)]


@pytest.fixture(scope="module")
def shared() -> Iterator[Path]:
    """Everybody may write there; the second user was here first."""
    folder = Path(tempfile.mkdtemp(prefix="u2-", dir="/tmp"))
    folder.chmod(0o1777)
    as_second("import os, sys\nfor n in sys.argv[2:]: os.mkdir(f'{sys.argv[1]}/{n}', 0o700)\nprint(1)", folder, *TAKEN)
    as_second("import sys\nopen(f'{sys.argv[1]}/torchinductor_root', 'w').close()\nprint(1)", folder)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def scene(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    home, run = tmp_path_factory.mktemp("home"), shared / "run"
    for name in ("cat", "dog"):
        (home / "pictures" / name).mkdir(parents=True)
        for number in range(4):
            Image.new("RGB", (32, 32), (40 * number, 9, 9)).save(home / "pictures" / name / f"{number}.png")
    config = home / "small.yaml"
    config.write_text(SMALL)
    secret = secrets.token_hex(16)
    environment = dict.fromkeys(("AWS_SECRET_ACCESS_KEY", "WANDB_API_KEY", "HF_TOKEN"), secret)
    environment |= {"TMPDIR": str(shared), "FOLDTRAIN_HOME": str(home / "home"), "HOME": str(home)}
    environment |= {"WANDB_MODE": "offline"}
    asked = [str(config), f"run={run}", f"data.source.path={home / 'pictures'}", "cluster.workers=2"]
    asked += ["tokenizer.trainer.steps=1000000", "tokenizer.trainer.log_every=1"]
    before = Scene(shared, run, environment, "", {})
    try:
        before.foldtrain("submit", "-f", *asked, "--stage", "ingest")
        job = before.foldtrain("submit", *asked, "--stage", "train-tokenizer").split()[1].strip(";")
        metrics = run / "tokenizer" / "metrics.jsonl"
        waiting = Retrying(
            retry=retry_if_result(lambda trains: not trains), stop=stop_after_delay(150), wait=wait_fixed(0.5)
        )
        waiting(lambda: metrics.exists() and metrics.stat().st_size > 0)
        (state,) = (home / "home").glob("local-head-*.json")
        yield Scene(shared, run, environment, job, json.loads(state.read_text()))
    finally:
        print(before.foldtrain("jobs"))
        before.foldtrain("shutdown")


def test_the_second_user_reads_no_secret(scene: Scene) -> None:
    found = as_second(
        """
        import json, os, sys
        secrets, seen, places = [each.encode() for each in sys.stdin.read().split()], [0, 0], []
        def look(path, kind):
            try:
                data = open(path, "rb").read(50_000_000)
            except OSError:
                return
            seen[kind] += 1
            places.extend([path] if any(secret in data for secret in secrets) else [])
        for top in (sys.argv[1], "/dev/shm"):
            for folder, _, names in os.walk(top):
                for name in names:
                    path = os.path.join(folder, name)
                    if os.path.isfile(path) and not os.path.islink(path):
                        look(path, 0)
        for pid in filter(str.isdigit, os.listdir("/proc")):
            for name in ("cmdline", "environ"):
                look(f"/proc/{pid}/{name}", 1)
        print(json.dumps([places, seen]))
        """,
        scene.shared,
        given=f"{scene.environment['HF_TOKEN']} {scene.head['token']}",
    )
    places, (files, processes) = found
    assert places == []
    assert files > 5, "the run can be read, so that there was something to look at"
    assert processes > 5


def test_no_log_of_the_head_or_its_jobs_holds_a_secret(scene: Scene) -> None:
    """Not even where the second user cannot look: logs are mailed and mounted elsewhere."""
    secret, folders = scene.environment["HF_TOKEN"].encode(), (Path(scene.head["folder"]), scene.home, scene.run)
    files = [path for folder in folders for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]
    assert scene.run / "jobs" / scene.job / "state.json" in files
    assert [path for path in files if secret in path.read_bytes()] == [scene.variables]


def test_the_second_user_writes_nothing(scene: Scene) -> None:
    writable = as_second(
        """
        import json, os, sys
        top, found = sys.argv[1], []
        for folder, names, files in os.walk(top):
            for path in (os.path.join(folder, name) for name in names + files):
                if os.lstat(path).st_uid != os.getuid() and not os.path.islink(path) and os.access(path, os.W_OK):
                    found.append(path)
        print(json.dumps(found))
        """,
        scene.shared,
    )
    assert writable == []


def test_all_that_ray_keeps_is_behind_a_folder_of_the_first_user_alone(scene: Scene) -> None:
    kept = [path for path in scene.shared.glob("ft-*") if path.stat().st_uid == 0]
    assert Path(scene.head["folder"]) in kept
    assert len(kept) == 2, "the head's and the training's"
    assert {path.stat().st_mode & 0o777 for path in kept} == {0o700}


def test_names_that_the_second_user_took_first_stop_nothing(scene: Scene) -> None:
    """The job trains: the fixture waited for it. What was taken is as it was."""
    taken = as_second(
        "import os, sys\nprint([len(os.listdir(f'{sys.argv[1]}/{n}')) for n in sys.argv[2:]])", scene.shared, *TAKEN
    )
    assert taken == [0] * len(TAKEN)


def test_the_second_user_runs_and_ends_nothing(scene: Scene) -> None:
    pids = [process.pid for process in scene.processes()]
    answers, killed = as_second(
        """
        import json, os, sys, urllib.error, urllib.request
        answers, killed = [], []
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        job = json.dumps({"entrypoint": "touch pwned"}).encode()
        for path, data in (("/api/jobs/", None), ("/api/jobs/", job), ("/api/version", None)):
            headers = {"Content-Type": "application/json"}
            try:
                with direct.open(urllib.request.Request(sys.argv[1] + path, data, headers), timeout=30) as answer:
                    answers.append(answer.status)
            except urllib.error.HTTPError as error:
                answers.append(error.code)
        for pid in sys.argv[2].split():
            try:
                os.kill(int(pid), 0)
                killed.append(pid)
            except (PermissionError, ProcessLookupError):
                pass
        print(json.dumps([answers, killed]))
        """,
        scene.head["dashboard"],
        " ".join(map(str, pids)),
    )
    assert answers[:2] == [401, 401]
    assert killed == []


def test_workers_that_train_on_one_machine_listen_for_each_other_on_loopback_alone(scene: Scene) -> None:
    told = json.loads((scene.run / "tokenizer" / "environment.json").read_text())
    assert told["workers"] == 2
    assert list(scene.shared.glob("ft-*/r/rendezvous-*")), "they met in a file"


def test_the_end_of_a_job_takes_its_secrets_and_its_temporary_folder_with_it(scene: Scene) -> None:
    folder = Path(scene.head["folder"])
    assert (scene.variables.stat().st_mode & 0o777, scene.variables.parent.stat().st_mode & 0o777) == (0o600, 0o700)
    scene.foldtrain("stop", scene.job)
    assert list(scene.variables.parent.iterdir()) == []
    assert [path for path in scene.shared.glob("ft-*") if path.stat().st_uid == 0] == [folder]


def test_a_folder_for_the_state_file_that_is_the_second_users_is_refused(shared: Path) -> None:
    as_second(
        "import os, sys\nos.mkdir(sys.argv[1])\nos.chmod(sys.argv[1], 0o777)\nprint(1)", shared / "home-of-second"
    )
    done = as_first("-m", "foldtrain", "shutdown", FOLDTRAIN_HOME=str(shared / "home-of-second"))
    assert done.returncode == 1
    assert "belongs to another user: set FOLDTRAIN_HOME" in done.stderr


@pytest.mark.parametrize("trap", ["folder", "open folder", "link"])
def test_a_shared_cache_takes_no_copy_of_the_second_user(shared: Path, trap: str) -> None:
    cache = shared / f"cache with a {trap}"
    cache.mkdir()
    cache.chmod(0o1777)
    as_second(
        """
        import os, sys
        cache, trap = sys.argv[1:]
        own = f"{cache}/of-second"
        os.mkdir(own)
        os.chmod(own, 0o777 if trap != "folder" else 0o700)
        for name in ("one", "one.lock", ".one"):
            with open(f"{own}/{name}", "wb") as file:
                file.write(b"evil" * 100)
            os.chmod(f"{own}/{name}", 0o666)
        if trap == "link":
            os.symlink(own, f"{cache}/uid-0")
        else:
            os.rename(own, f"{cache}/uid-0")
        print(1)
        """,
        cache,
        trap,
    )
    code = """
import sys
from data_pipeline.node.node_cache import NodeCache
for _ in range(2):
    with NodeCache(sys.argv[1]).open("one", 10, lambda draft: draft.write(b"0123456789")) as file:
        print(file.read(10).decode())
"""
    done = as_first("-c", code, str(cache), PYTHONPATH=str(ROOT))
    assert (done.stdout, done.returncode) == ("0123456789\n" * 2, 0), done.stderr
    seen = as_second(
        """
        import json, os, sys
        found = []
        for folder, _, names in os.walk(sys.argv[1]):
            for name in names:
                path = os.path.join(folder, name)
                try:
                    found.extend([path] if open(path, "rb").read(10) == b"0123456789" else [])
                except OSError:
                    pass
        print(json.dumps(found))
        """,
        cache,
    )
    assert seen == []
