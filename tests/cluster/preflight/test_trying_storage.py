"""Storage as nodes find it when they try: real requests, to a server that can be told to be wrong."""

from __future__ import annotations

import re
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from cluster.drills.fault_proxy import Fault, FaultProxy
from cluster.preflight.checks import conditional_put
from cluster.preflight.checks import storage as storage_check
from cluster.preflight.findings import EVERY, Finding
from cluster.preflight.running import run_checks
from cluster.preflight.wanted import Wanted
from data_pipeline import storage
from tests.cluster.preflight.several import Several
from tests.conftest import S3
from tests.data_pipeline.stub_s3 import Answer, Request, page, refusal, stub_s3

CHECKS = (storage_check.CHECK, conditional_put.CHECK)
NODES = ("a", "b")


def tried(run: str, *reads: str) -> list[Finding]:
    return run_checks(Several(*NODES), Wanted(run=run, reads=reads), checks=CHECKS)


def levels(findings: list[Finding]) -> list[tuple[str, str, str]]:
    return [(found.node, found.check, found.level) for found in findings]


WELL = [(EVERY, "storage", "ok"), (EVERY, "conditional write", "ok")]


@dataclass
class Store:
    """What a bucket holds, and how it treats a PUT with If-None-Match."""

    conditional: Callable[[Store, str], bool]
    """Whether it is answered that the object was created."""
    objects: dict[str, bytes] = field(default_factory=dict)
    tries: Counter[str] = field(default_factory=Counter)
    lock: threading.Lock = field(default_factory=threading.Lock)
    second: dict[str, threading.Event] = field(default_factory=dict)

    def respond(self, request: Request) -> Answer:
        key = request.path.removeprefix("/bucket").removeprefix("/")
        if request.method == "PUT":
            if "if-none-match" in request.headers and not self.conditional(self, key):
                return refusal(412, "PreconditionFailed")
            self.objects[key] = request.body
            return Answer()
        if request.method == "POST":
            for gone in re.findall(rb"<Key>([^<]*)</Key>", request.body):
                self.objects.pop(gone.decode(), None)
            return Answer(200, b"<DeleteResult></DeleteResult>", {"Content-Type": "application/xml"})
        if "list-type" in request.query:
            prefix = request.query.get("prefix", "")
            return page(sorted(found for found in list(self.objects) if found.startswith(prefix)))
        return Answer(200, self.objects[key]) if key in self.objects else refusal(404, "NoSuchKey")


def atomic(store: Store, key: str) -> bool:
    with store.lock:
        store.tries[key] += 1
        return store.tries[key] == 1


def ignored(_: Store, key: str) -> bool:
    return True


def looks_first(store: Store, key: str) -> bool:
    """Looks whether the object is there, and writes a moment later: right for one writer after another."""
    with store.lock:
        store.tries[key] += 1
        second = store.second.setdefault(key, threading.Event())
        if store.tries[key] > 1:
            second.set()
        is_there = key in store.objects
    if not is_there:
        second.wait(20)  # until another has looked, too
    return not is_there


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Store], str]]:
    """Serves a store, and gives the URI of a run on it."""
    names = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_EC2_METADATA_DISABLED": "true"}
    for name, value in names.items():
        monkeypatch.setenv(name, value)
    open_: list = []

    def start(store: Store) -> str:
        server = stub_s3(store.respond)
        url, _ = server.__enter__()
        open_.append(server)
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        return "s3://bucket/run"

    yield start
    for server in open_:
        server.__exit__(None, None, None)


@pytest.mark.xdist_group("stub_s3")
def test_a_store_that_creates_a_key_once_is_well(serve: Callable[[Store], str]) -> None:
    store = Store(atomic)
    run = serve(store)
    with storage.counted() as requests:
        assert levels(tried(run)) == WELL
    assert requests["put"] == 2 + 40
    assert sum(requests.values()) <= 100, requests
    assert store.objects == {}, "what was tried is removed again"


@pytest.mark.xdist_group("stub_s3")
@pytest.mark.parametrize("conditional", [ignored, looks_first])
def test_a_store_whose_conditional_put_is_not_atomic_is_an_error_with_a_remedy(
    serve: Callable[[Store], str], conditional: Callable[[Store, str], bool]
) -> None:
    first, second = tried(serve(Store(conditional)))
    assert (first.check, first.level) == ("storage", "ok")
    assert (second.node, second.check, second.level) == (EVERY, "conditional write", "error")
    assert "of 8 writers that raced for them; one may" in second.found
    assert "If-None-Match" in second.remedy
    assert "cluster.preflight=never" in second.remedy


PART = "bytes=1-2"


def is_read(asked: Request) -> bool:
    return asked.method == "GET" and "list-type" not in asked.query


@pytest.mark.xdist_group("stub_s3")
@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (lambda asked: is_read(asked) and asked.headers.get("range") != PART, "what is read is not what was written"),
        (lambda asked: is_read(asked) and asked.headers.get("range") == PART, "what is read is not what was written"),
        (lambda asked: "list-type" in asked.query, "its listing leaves out what was just written"),
    ],
)
def test_a_store_that_gives_other_than_it_was_given_is_an_error(
    serve: Callable[[Store], str], wrong: Callable[[Request], bool], said: str
) -> None:
    class Wrong(Store):
        def respond(self, request: Request) -> Answer:
            answer = super().respond(request)
            if not wrong(request) or answer.status != 200:
                return answer
            return page([]) if "list-type" in request.query else Answer(200, bytes(len(answer.body)))

    (found,) = tried(serve(Wrong(atomic)))
    assert (found.node, found.level) == (EVERY, "error")
    assert said in found.found


@pytest.mark.xdist_group("s3")
def test_a_real_store_is_well_and_nothing_is_left_in_it(s3_uri: str) -> None:
    assert levels(tried(s3_uri)) == WELL
    assert storage.walk(s3_uri) == {}


@pytest.mark.xdist_group("s3")
def test_storage_that_refuses_writes_is_an_error_that_says_what_is_missing(
    s3: S3, s3_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def only_reads(method: str, _path: str, _headers: dict[str, str]) -> Fault | None:
        return Fault.FORBIDDEN if method in {"PUT", "POST", "DELETE"} else None

    with FaultProxy(s3.endpoint, seed=0, rule=only_reads) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        (found,) = tried(s3_uri)  # a race for keys would only wait
    assert (found.node, found.check, found.level) == (EVERY, "storage", "error")
    assert "AccessDenied, HTTP 403" in found.found
    assert "s3:PutObject" in found.found
    assert "credentials" in found.remedy


def test_a_folder_that_is_mounted_on_all_nodes_is_well_and_stays_as_it_was(tmp_path: Path) -> None:
    assert levels(tried(str(tmp_path / "runs" / "new"))) == WELL
    assert list(tmp_path.rglob("*")) == [tmp_path / "runs"]


def test_an_input_that_is_not_there_is_named(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    findings = tried(str(tmp_path / "run"), str(tmp_path / "images"), str(tmp_path / "gone"))
    assert (findings[0].node, findings[0].level) == (EVERY, "error")
    assert findings[0].found == f"{tmp_path / 'gone'}: is not there"


def test_a_folder_of_each_nodes_own_disk_is_found_by_what_the_others_do_not_see(tmp_path: Path) -> None:
    """Two nodes with a folder of the same name, on two disks."""

    class Apart(Several):
        def each(self, function, arguments, seconds):  # type: ignore[no-untyped-def]
            own = {
                node: tuple(
                    str(each).replace("/runs/", f"/{node}/") if isinstance(each, str) else each for each in given
                )
                for node, given in arguments.items()
            }
            return super().each(function, own, seconds)

    findings = run_checks(Apart(*NODES), Wanted(run=f"{tmp_path}/runs/x"), checks=[storage_check.CHECK])
    assert [(found.node, found.found) for found in findings] == [
        ("a", f"{tmp_path}/runs/x: does not see what b wrote there"),
        ("b", f"{tmp_path}/runs/x: does not see what a wrote there"),
    ]
    assert "all nodes share" in findings[0].remedy


def test_a_race_on_a_disk_has_one_winner(tmp_path: Path) -> None:
    uris = [str(tmp_path / str(number)) for number in range(8)]
    assert conditional_put.race(uris, 0) == [1] * 8
