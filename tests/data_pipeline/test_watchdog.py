"""A wait that takes too long is reported, with what is being read."""

from __future__ import annotations

import queue
import threading

from data_pipeline.storage.watchdog import Watchdog, describe_wait, pending_reads, reading


def test_a_report_names_what_is_being_read() -> None:
    with reading("s3://data/images-00003.tar"):
        assert "step 7 is late: 130 s so far; being read: s3://data/images-00003.tar" in describe_wait("step 7", 130)
    assert pending_reads() == []
    assert describe_wait("step 7", 130).endswith("being read: nothing")


def test_reads_of_all_threads_are_known_the_longest_first() -> None:
    inside, leave = threading.Event(), threading.Event()

    def read() -> None:
        with reading("first"):
            inside.set()
            leave.wait()

    thread = threading.Thread(target=read)
    thread.start()
    inside.wait()
    with reading("second"):
        assert [name for name, _ in pending_reads()] == ["first", "second"]
    leave.set()
    thread.join()


def test_a_late_wait_is_reported_again_and_again_and_dumps_the_stacks() -> None:
    reports: queue.Queue[str] = queue.Queue()
    dumps: list[int] = []
    watchdog = Watchdog(0.01, reports.put, lambda: dumps.append(1))
    with watchdog.waiting("the batch of step 3"), reading("shard"):
        first, second = reports.get(timeout=30), reports.get(timeout=30)
    watchdog.close()
    assert "the batch of step 3 is late" in first
    assert "being read: shard" in second
    assert len(dumps) >= 2


def test_a_wait_that_may_take_longer_is_not_reported_as_early() -> None:
    reports: queue.Queue[str] = queue.Queue()
    dogs = [Watchdog(0.01, reports.put, lambda: None) for _ in range(2)]
    with dogs[0].waiting("a start", times=1e6), dogs[1].waiting("a batch"):
        assert ["a batch is late" in reports.get(timeout=30) for _ in range(3)] == [True] * 3
    for dog in dogs:
        dog.close()


def test_a_wait_that_ends_in_time_is_not_reported() -> None:
    reports: queue.Queue[str] = queue.Queue()
    watchdog = Watchdog(3600, reports.put)
    for step in range(100):
        with watchdog.waiting(f"step {step}"):
            pass
    watchdog.close()
    assert reports.empty()
