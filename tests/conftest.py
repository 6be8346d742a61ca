"""What all tests share: a quiet environment, and a real S3 server."""

from __future__ import annotations

import gc
import os
import secrets
import shutil
import signal
import tempfile
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import hypothesis
import pytest

from cluster.drills.s3_server import BUCKET, S3Server

pytest_plugins = ["tests.allowed_skips", "tests.fast_set", "tests.free_disk"]
ROOT = Path(__file__).resolve().parents[1]
CACHE = tempfile.TemporaryDirectory(prefix="foldtrain-cache-")

# Before anything imports torch, Ray, DeepSpeed or W&B; child processes inherit it.
os.environ.update(
    XDG_CACHE_HOME=CACHE.name,
    OMP_NUM_THREADS="1",
    RAY_USAGE_STATS_ENABLED="0",
    # Ray reads these when it is imported: clusters of our own in a test's process would set them too late.
    RAY_AUTH_MODE="token",
    RAY_AUTH_TOKEN=secrets.token_hex(32),
    RAY_ENABLE_AUTO_CONNECT="0",  # a test that asks Ray for something starts none by accident
    DS_ACCELERATOR="cpu",
    WANDB_MODE="disabled",  # a process of its own for each training: tests that are about it set it themselves
)


if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as a shell starts jobs in the background; children inherit it
    signal.signal(signal.SIGINT, signal.default_int_handler)

# How fast an example is says nothing on a busy machine. `--hypothesis-profile=default` tries 100 of them.
hypothesis.settings.register_profile("busy", deadline=None, max_examples=50)
hypothesis.settings.register_profile("few", deadline=None, max_examples=15)  # of `make test-fast`
hypothesis.settings.load_profile("busy")


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_collection() -> Generator[None, object, object]:
    """What the packages are made of stays: it is not searched for garbage while it grows, and never again after."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.collect()
        gc.freeze()
        gc.enable()


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist, which then reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep on one process the tests of a file that share what is made once, and those of all files that fork processes.

    A fixture of a module, or what one of its cached functions gives, would be made once on each process that runs a
    test of it. The server that gloo's processes are forked from imports for seconds (tests/trainer/gloo.py).
    """
    for item in items:
        if item.get_closest_marker("xdist_group") is not None:
            continue
        if isinstance(item, pytest.Function) and hasattr(item.module, "run_gloo"):
            item.add_marker(pytest.mark.xdist_group("gloo"))
        elif shares_with_its_module(item):
            item.add_marker(pytest.mark.xdist_group(f"{item.path.parent.name}_{item.path.stem}"))


def shares_with_its_module(item: pytest.Item) -> bool:
    """Whether a test uses, or may use, what is made once for its module: a fixture, or what a cached function gives."""
    if not isinstance(item, pytest.Function):
        return False
    fixtures = (found for definitions in item._fixtureinfo.name2fixturedefs.values() for found in definitions)
    own = (value for value in vars(item.module).values() if getattr(value, "__module__", None) == item.module.__name__)
    return any(found.scope == "module" for found in fixtures) or any(hasattr(value, "cache_clear") for value in own)


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
    server = S3Server(tmp_path_factory.mktemp("seaweedfs")).start()
    changed = server.environment()
    before = {name: os.environ.get(name) for name in changed}
    os.environ.update(changed)
    try:
        yield S3(server.endpoint, f"s3://{BUCKET}/{uuid4().hex}")
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})
        server.kill()  # its objects go, too: an orderly end would take seconds
        shutil.rmtree(server.folder, ignore_errors=True)


@pytest.fixture
def s3_uri(s3: S3) -> str:
    """A folder on the S3 server that no other test uses."""
    return f"{s3.uri}/{uuid4().hex}"
