"""Alerts to webhooks and commands: real servers and processes, those that never answer among them."""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from cluster.alerts.delivery import MOST_WAITING, Command, Message, NotDeliveredError, Sender, Webhook
from data_pipeline.errors import UsageError
from tests.cluster.alerts.receivers import Answering, Silent

MESSAGE = Message("spike", "run: generator spike\ns3://b/r", "s3://b/r", "train-generator", 7, "s3://b/r", 12.5)


@contextlib.contextmanager
def open_(server: Any) -> Iterator[Any]:
    try:
        yield server
    finally:
        server.close()


def webhook(url: str, monkeypatch: pytest.MonkeyPatch, seconds: float = 5) -> Webhook:
    monkeypatch.setenv("MY_WEBHOOK", url)
    return Webhook("env:MY_WEBHOOK", seconds)


def test_a_webhook_gets_json_that_chat_systems_show(monkeypatch: pytest.MonkeyPatch) -> None:
    with open_(Answering()) as server:
        webhook(server.url, monkeypatch).send(MESSAGE)
        got = server.got.get_nowait()
    assert (got["path"], got["content-type"]) == ("/services/T0P53CR3T", "application/json")
    assert got["text"] == MESSAGE.text
    wanted = {"alert": "spike", "run": "s3://b/r", "stage": "train-generator", "step": 7, "time": 12.5}
    assert wanted.items() <= got.items()


def test_its_address_may_be_in_a_file_and_is_read_when_it_is_needed(tmp_path: Path) -> None:
    with open_(Answering()) as server:
        (tmp_path / "url").write_text("http://127.0.0.1:9/\n")
        mine = Webhook(f"file:{tmp_path}/url", 5)
        (tmp_path / "url").write_text(f"{server.url}\n")
        mine.send(MESSAGE)
        assert server.got.get_nowait()["alert"] == "spike"


@pytest.mark.parametrize(
    ("value", "sentence"),
    [(None, "MY_WEBHOOK is not set"), ("", "MY_WEBHOOK is not set"), ("ftp://T0P53CR3T", "MY_WEBHOOK holds no URL")],
)
def test_an_address_that_is_nowhere_is_said_before_the_run_starts(
    value: str | None, sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MY_WEBHOOK", raising=False)
    if value is not None:
        monkeypatch.setenv("MY_WEBHOOK", value)
    with pytest.raises(UsageError, match=sentence) as caught:
        Webhook("env:MY_WEBHOOK", 5)
    assert "T0P53CR3T" not in str(caught.value)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="none cannot be read"):
        Webhook(f"file:{tmp_path}/none", 5)


def test_a_server_that_refuses_is_said_without_its_address(monkeypatch: pytest.MonkeyPatch) -> None:
    with open_(Answering(403)) as server:
        mine = webhook(server.url, monkeypatch)
        with pytest.raises(NotDeliveredError, match="HTTP 403") as caught:
            mine.send(MESSAGE)
    assert "T0P53CR3T" not in repr(caught.value)
    with pytest.raises(NotDeliveredError, match="cannot be reached") as caught:
        mine.send(MESSAGE)
    assert "T0P53CR3T" not in repr(caught.value)
    assert caught.value.__cause__ is None


def test_it_is_not_followed_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    with open_(Answering()) as other, open_(Answering(302, location=other.url)) as server:
        with pytest.raises(NotDeliveredError, match="HTTP 302"):
            webhook(server.url, monkeypatch).send(MESSAGE)
        assert other.got.empty()


def test_one_that_never_answers_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    with open_(Silent()) as server, pytest.raises(NotDeliveredError, match="TimeoutError"):
        webhook(server.url, monkeypatch, seconds=0.1).send(MESSAGE)


def test_a_command_gets_the_text_on_its_stdin_and_no_shell_reads_anything(tmp_path: Path) -> None:
    script = (
        "import os, sys; open(sys.argv[1], 'w').write(os.environ['FOLDTRAIN_ALERT'] + sys.argv[2] + sys.stdin.read())"
    )
    Command([sys.executable, "-c", script, f"{tmp_path}/got", "$(id); *"], 60).send(MESSAGE)
    assert (tmp_path / "got").read_text() == f"spike$(id); *{MESSAGE.text}"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [(["/no/such/program"], "FileNotFoundError"), ([sys.executable, "-c", "raise SystemExit(3)"], "exit code is 3")],
)
def test_a_command_that_does_not_work_says_so(arguments: list[str], sentence: str) -> None:
    with pytest.raises(NotDeliveredError, match=sentence):
        Command(arguments, 60).send(MESSAGE)


def test_a_command_that_hangs_is_killed_with_what_it_started() -> None:
    with pytest.raises(NotDeliveredError, match="was killed"):
        Command(["sh", "-c", "sleep 1000 & sleep 1000"], 0.1).send(MESSAGE)
    assert not [child for child in psutil.Process().children() if child.status() == psutil.STATUS_ZOMBIE]


class Receiver:
    """Does as a test says."""

    name = "receiver"

    def __init__(self, failures: int = 0, free: threading.Event | None = None) -> None:
        self.got: list[str] = []
        self._failures, self._free = failures, free

    def send(self, message: Message) -> None:
        if self._free:
            self._free.wait(60)
        if self._failures:
            self._failures -= 1
            raise NotDeliveredError("not today")
        self.got.append(message.alert)


def test_a_sender_tries_again_and_keeps_the_order() -> None:
    receiver, said = Receiver(failures=2), list[str]()
    sender = Sender(receiver, said.append, pause=0)
    sender.send(MESSAGE)
    sender.send(Message("finished", "", "", "", None, "", 0.0))
    sender.finish()
    sender.join(60)
    assert (receiver.got, said) == (["spike", "finished"], [])


def test_one_that_fails_each_time_is_said_once_and_the_next_is_tried() -> None:
    receiver, said = Receiver(failures=3), list[str]()
    sender = Sender(receiver, said.append, pause=0)
    sender.send(MESSAGE)
    sender.send(Message("finished", "", "", "", None, "", 0.0))
    sender.finish()
    sender.join(60)
    assert receiver.got == ["finished"]
    assert said == ["receiver: spike is not delivered: not today"]


def test_a_receiver_that_hangs_holds_nothing_up_and_the_end_waits_for_a_bounded_time() -> None:
    free, said = threading.Event(), list[str]()
    receiver = Receiver(free=free)
    sender = Sender(receiver, said.append)
    for _ in range(MOST_WAITING + 5):
        sender.send(MESSAGE)
    assert any("100 alerts wait already" in each for each in said)
    sender.finish()
    sender.join(0.01)
    assert said[-1] == "receiver: does not answer, so not all alerts are sent"
    free.set()
    sender.join(60)
    assert MOST_WAITING <= len(receiver.got) <= MOST_WAITING + 1
