"""What facts of nodes mean: facts in, findings out. No node is asked."""

from __future__ import annotations

from dataclasses import replace

import pytest

from cluster.preflight.checks import (
    clocks,
    conditional_put,
    devices,
    disk,
    limits,
    links,
    matmul,
    names,
    ports,
    versions,
)
from cluster.preflight.checks import storage as storage_check
from cluster.preflight.checks.devices import Devices, Gpu
from cluster.preflight.checks.disk import Room
from cluster.preflight.checks.matmul import Speed
from cluster.preflight.checks.storage import Access
from cluster.preflight.findings import EVERY, Finding
from cluster.preflight.nodes import Failure
from cluster.preflight.wanted import Wanted

WANTED = Wanted(run="s3://bucket/run", workers=4)
ON_GPUS = replace(WANTED, gpus_per_worker=1)


def only(findings: list[Finding]) -> Finding:
    assert len(findings) == 1, findings
    return findings[0]


def what(findings: list[Finding]) -> set[tuple[str, str]]:
    return {(finding.node, finding.level) for finding in findings}


# ------------------------------------------------------------------------------------------------------------ versions

SAME = {versions.PYTHON: "3.11.7", versions.CODE: "abc", "torch": "2.14.1", "rich": "14.0"}


def test_nodes_with_the_same_versions_are_well() -> None:
    found = only(versions.judge({"a": SAME, "b": dict(SAME)}, WANTED))
    assert (found.node, found.level) == (EVERY, "ok")
    assert "torch 2.14.1" in found.found


def test_another_torch_on_one_node_is_an_error_with_the_command_that_mends_it() -> None:
    found = only(versions.judge({"a": SAME, "b": SAME | {"torch": "2.13.0"}, "c": SAME}, WANTED))
    assert (found.node, found.level) == ("b", "error")
    assert found.found == "torch is 2.13.0, elsewhere 2.14.1"
    assert "pip install 'torch==2.14.1'" in found.remedy


def test_of_two_nodes_the_first_is_the_measure() -> None:
    assert only(versions.judge({"a": SAME, "b": SAME | {"torch": "2.13.0"}}, WANTED)).node == "b"


def test_a_package_that_decides_nothing_is_a_warning() -> None:
    found = only(versions.judge({"a": SAME, "b": SAME | {"rich": "13.0"}}, WANTED))
    assert found.level == "warning"


def test_a_package_that_only_one_node_has_is_to_be_removed_there() -> None:
    found = only(versions.judge({"a": SAME, "b": SAME | {"extra": "1.0"}}, WANTED))
    assert found.found == "extra is 1.0, elsewhere not installed"
    assert "pip uninstall extra" in found.remedy


def test_a_package_that_is_missing_on_one_node_is_to_be_installed_there() -> None:
    lacks = {name: version for name, version in SAME.items() if name != "torch"}
    found = only(versions.judge({"a": SAME, "b": lacks, "c": SAME}, WANTED))
    assert (found.node, found.level, found.found) == ("b", "error", "torch is not installed, elsewhere 2.14.1")


def test_another_nccl_is_an_error() -> None:
    with_nccl = SAME | {"nvidia-nccl-cu13": "2.28.3"}
    found = only(versions.judge({"a": with_nccl, "b": SAME | {"nvidia-nccl-cu13": "2.27.5"}}, WANTED))
    assert (found.node, found.level) == ("b", "error")


def test_other_code_of_foldtrain_is_an_error_that_no_version_shows() -> None:
    found = only(versions.judge({"a": SAME, "b": SAME | {versions.CODE: "def"}}, WANTED))
    assert (found.node, found.level) == ("b", "error")
    assert "the same commit" in found.remedy


# ------------------------------------------------------------------------------------------------------------- devices

H100 = Gpu("H100", 80 * 2**30, ecc=True, most_clock=1980)
EIGHT = Devices([H100] * 8, "580.1")


def test_alike_gpus_are_well() -> None:
    assert only(devices.judge({"a": EIGHT, "b": EIGHT}, ON_GPUS)).found == "16 x H100, driver 580.1"


def test_a_gpu_that_fell_off_its_bus_is_an_error() -> None:
    found = only(devices.judge({"a": EIGHT, "b": EIGHT, "c": replace(EIGHT, gpus=[H100] * 7)}, ON_GPUS))
    assert (found.node, found.level, found.found) == ("c", "error", "7 GPUs, others have 8")


def test_another_driver_is_named() -> None:
    found = only(devices.judge({"a": EIGHT, "b": EIGHT, "c": replace(EIGHT, driver="570.2")}, ON_GPUS))
    assert (found.node, found.found) == ("c", "driver 570.2, elsewhere 580.1")


def test_errors_that_ecc_cannot_correct_name_the_gpu() -> None:
    broken = replace(EIGHT, gpus=[*[H100] * 5, replace(H100, uncorrected=2), H100, H100])
    found = only(devices.judge({"a": EIGHT, "b": broken}, ON_GPUS))
    assert (found.node, found.level) == ("b", "error")
    assert found.found.startswith("GPU 5 (H100): 2 errors")


def test_ecc_that_is_off_on_one_node_is_named() -> None:
    off = replace(EIGHT, gpus=[replace(H100, ecc=False)] * 8)
    found = only(devices.judge({"a": EIGHT, "b": EIGHT, "c": off}, ON_GPUS))
    assert found.node == "c"
    assert "nvidia-smi -e 1" in found.remedy


@pytest.mark.parametrize(
    ("bits", "level"), [*[(bit, "warning") for bit in (0x08, 0x20, 0x40, 0x80)], (0x01, "ok"), (0x04, "ok")]
)
def test_clocks_that_a_fault_holds_down_are_a_warning_and_idle_ones_or_a_power_limit_are_not(
    bits: int, level: str
) -> None:
    slow = replace(EIGHT, gpus=[replace(H100, held_down=bits), *[H100] * 7])
    assert only(devices.judge({"a": EIGHT, "b": slow}, ON_GPUS)).level == level


def test_a_driver_that_does_not_answer_is_an_error() -> None:
    found = only(devices.judge({"a": EIGHT, "b": Devices(error="Driver/library version mismatch")}, ON_GPUS))
    assert (found.node, found.level) == ("b", "error")


def test_a_training_on_gpus_where_there_are_none_is_an_error_and_one_on_cpus_is_not() -> None:
    none = {"a": Devices(), "b": Devices()}
    assert only(devices.judge(none, ON_GPUS)).level == "error"
    assert only(devices.judge(none, WANTED)).level == "ok"


def test_a_node_of_cpus_beside_gpus_is_nothing_to_one_that_trains_on_cpus() -> None:
    assert only(devices.judge({"a": EIGHT, "b": Devices()}, WANTED)).level == "ok"


# -------------------------------------------------------------------------------------------------------------- clocks


def test_a_skewed_clock_names_the_node_and_how_far_off_it_is() -> None:
    found = only(clocks.judge({"a": (0.0, 0.01), "b": (0.02, 0.01), "c": (-90.0, 0.01)}, WANTED))
    assert (found.node, found.level) == ("c", "error")
    assert found.found == "90.0 s behind the others (± 0.01 s)"
    assert "timedatectl" in found.remedy


def test_a_driver_whose_own_clock_is_wrong_is_the_one_that_is_named() -> None:
    found = only(clocks.judge({"driver": (0.0, 0.0), "b": (5.0, 0.01), "c": (5.0, 0.01)}, WANTED))
    assert (found.node, found.level) == ("driver", "warning")


def test_a_clock_that_may_be_right_within_what_the_way_takes_is_no_finding() -> None:
    assert only(clocks.judge({"a": (0.0, 0.0), "b": (1.5, 1.0)}, WANTED)).level == "ok"


# ---------------------------------------------------------------------------------------------------------------- disk

ROOMY = Room(disk.CACHE, "/cache", 100 * disk.GIB, 200 * disk.GIB)


def test_a_full_disk_names_the_folder_and_the_setting_that_moves_it() -> None:
    found = only(disk.judge({"a": [ROOMY], "b": [replace(ROOMY, free=10 * 2**20)]}, WANTED))
    assert (found.node, found.level) == ("b", "error")
    assert "/cache has 10.0 MiB free of 200.0 GiB" in found.found
    assert "data.reading.cache_dir" in found.remedy


def test_a_disk_that_cannot_be_written_is_an_error_however_much_room_it_has() -> None:
    found = only(disk.judge({"a": [replace(ROOMY, error="Read-only file system")]}, WANTED))
    assert found.level == "error"
    assert "Read-only file system" in found.found


def test_a_cache_that_is_limited_to_less_than_there_is_needs_no_more() -> None:
    small = replace(ROOMY, free=disk.GIB)
    assert only(disk.judge({"a": [small]}, WANTED)).level == "warning"
    assert only(disk.judge({"a": [small]}, replace(WANTED, cache_bytes=disk.GIB // 2))).level == "ok"


def test_a_disk_that_ray_counts_as_full_is_a_warning_with_gigabytes_free() -> None:
    found = only(disk.judge({"a": [Room(disk.RAY, "/tmp/ray", 4 * disk.GIB, 100 * disk.GIB)]}, WANTED))
    assert found.level == "warning"
    assert "--temp-dir" in found.remedy


def test_shared_memory_as_containers_have_it_is_a_warning() -> None:
    found = only(disk.judge({"a": [Room(disk.MEMORY, "/dev/shm", 64 * 2**20, 64 * 2**20)]}, WANTED))
    assert found.level == "warning"
    assert "--shm-size" in found.remedy


# -------------------------------------------------------------------------------------------------------------- limits

WIDE = {"files": 65536, "processes": -1, "locked": -1, "adapters": 0}


def test_few_file_handles_on_one_node_are_an_error() -> None:
    found = only(limits.judge({"a": WIDE, "b": WIDE | {"files": 256}}, WANTED))
    assert (found.node, found.level) == ("b", "error")
    assert "256 open files" in found.found
    assert "LimitNOFILE" in found.remedy


def test_more_workers_need_more_file_handles() -> None:
    facts = {"a": WIDE | {"files": 8000}}
    assert only(limits.judge(facts, replace(WANTED, workers=4))).level == "ok"
    assert only(limits.judge(facts, replace(WANTED, workers=2000))).level == "error"


def test_locked_memory_matters_to_gpus_behind_infiniband_alone() -> None:
    facts = {"a": WIDE | {"locked": 65536, "adapters": 4}}
    assert only(limits.judge(facts, ON_GPUS)).level == "warning"
    assert only(limits.judge(facts, WANTED)).level == "ok"


# ------------------------------------------------------------------------------------------------------------- storage


def test_storage_that_refuses_one_node_names_that_node() -> None:
    facts = {"a": (Access(), []), "b": (Access(error="s3://bucket/run: AccessDenied"), [])}
    found = only(storage_check.judge(facts, WANTED))
    assert (found.node, found.level, found.found) == ("b", "error", "s3://bucket/run: AccessDenied")


def test_storage_that_refuses_all_is_one_finding() -> None:
    facts = dict.fromkeys("abc", (Access(error="AccessDenied"), []))
    assert only(storage_check.judge(facts, WANTED)).node == EVERY


def test_a_folder_that_is_each_nodes_own_is_an_error() -> None:
    facts = {"a": (Access(), ["b"]), "b": (Access(), ["a"])}
    findings = storage_check.judge(facts, replace(WANTED, run="/runs/x"))
    assert what(findings) == {("a", "error"), ("b", "error")}
    assert findings[0].found == "/runs/x: does not see what b wrote there"


def test_an_input_that_one_node_cannot_read_is_named() -> None:
    facts = {"a": (Access(), []), "b": (Access(unread={"/data": "is not there"}), [])}
    found = only(storage_check.judge(facts, replace(WANTED, reads=("/data",))))
    assert (found.node, found.found) == ("b", "/data: is not there")


def test_a_key_that_two_created_is_an_error_wherever_they_were() -> None:
    assert only(conditional_put.judge({"a": [1, 0], "b": [0, 1]}, WANTED)).level == "ok"
    assert only(conditional_put.judge({"a": [1, 0], "b": [1, 1]}, WANTED)).level == "error"
    assert only(conditional_put.judge({"a": [2, 1]}, WANTED)).level == "error"


def test_a_key_that_nobody_created_is_an_error() -> None:
    assert only(conditional_put.judge({"a": [1, 0], "b": [0, 0]}, WANTED)).level == "error"


# --------------------------------------------------------------------------------------------------------------- ports

RANGE = "32768 to 60999"


def reached(**failed: dict[str, str]) -> dict[str, tuple[dict[str, str], str]]:
    """Three nodes, and whom each does not reach."""
    return {
        name: ({other: failed.get(name, {}).get(other, "") for other in "abc" if other != name}, RANGE)
        for name in "abc"
    }


def test_nodes_that_reach_each_other_are_well() -> None:
    assert only(ports.judge(reached(), WANTED)).level == "ok"


def test_a_node_behind_a_firewall_is_the_only_one_that_is_named() -> None:
    found = only(ports.judge(reached(a={"c": "timed out"}, b={"c": "timed out"}), WANTED))
    assert (found.node, found.level) == ("c", "error")
    assert found.found == "is reached by no other node (a: timed out)"
    assert RANGE in found.remedy


def test_a_node_that_reaches_nobody_is_the_only_one_that_is_named() -> None:
    found = only(ports.judge(reached(c={"a": "No route to host", "b": "No route to host"}), WANTED))
    assert (found.node, found.level) == ("c", "error")
    assert found.found == "reaches no other node (a: No route to host)"


def test_a_pair_that_does_not_reach_each_other_is_told_apart_from_a_node() -> None:
    found = only(ports.judge(reached(a={"b": "timed out"}), WANTED))
    assert (found.node, found.found) == ("b", "is not reached by a (a: timed out)")


def test_of_two_nodes_the_one_that_is_not_reached_is_named() -> None:
    facts = {"a": ({"b": "timed out"}, RANGE), "b": ({"a": ""}, RANGE)}
    assert only(ports.judge(facts, WANTED)).node == "b"


# --------------------------------------------------------------------------------------------------------------- speed


def speeds(*tflops: float, device: str = "H100") -> dict[str, list[Speed]]:
    return {name: [Speed(device, 0, rate)] for name, rate in zip("abcdef", tflops, strict=False)}


def test_a_slow_device_is_measured_against_the_median() -> None:
    found = only(matmul.judge(speeds(600, 610, 300, 605), WANTED))
    assert (found.node, found.level) == ("c", "warning")
    assert found.found == "GPU 0: 300 TFLOP/s, 50% of the others' 602 TFLOP/s (H100)"


def test_of_two_devices_the_faster_is_the_measure() -> None:
    assert only(matmul.judge(speeds(300, 600), WANTED)).node == "a"


def test_devices_of_another_kind_are_not_compared() -> None:
    facts = speeds(600, 610) | {"c": [Speed("A100", 0, 250.0)]}
    assert only(matmul.judge(facts, WANTED)).level == "ok"


def test_rounds_pair_every_node_with_every_other_once() -> None:
    names = list("abcdef")
    found = links.rounds(names)
    pairs = [frozenset(pair) for each in found for pair in each]
    assert len(pairs) == len(set(pairs)) == 15
    assert all(len({name for pair in each for name in pair}) == 6 for each in found)


def test_an_odd_number_of_nodes_leaves_one_out_of_each_round() -> None:
    pairs = {frozenset(pair) for each in links.rounds(list("abcde")) for pair in each}
    assert len(pairs) == 10


def test_a_large_cluster_has_a_bounded_number_of_rounds() -> None:
    found = links.rounds([str(number) for number in range(100)])
    assert len(found) == 7
    assert all(len(each) == 50 for each in found)


FAST = 1e9


def test_a_node_that_is_slow_with_all_others_is_named_and_no_pair_of_it() -> None:
    found = only(links.judge({("a", "b"): FAST, ("a", "c"): 1e7, ("b", "c"): 1.2e7}, WANTED))
    assert (found.node, found.level) == ("c", "warning")
    assert "12 MB/s with the best of the others, which reach 1.00 GB/s" in found.found


def test_a_slow_way_between_two_sound_nodes_names_the_pair() -> None:
    facts = {("a", "b"): 1e8, ("a", "c"): FAST, ("b", "c"): FAST}
    found = only(links.judge(facts, WANTED))
    assert (found.node, found.level) == ("a and b", "warning")


APART = Failure("no answer within 14 s", is_silent=True)


def test_a_node_that_joins_nobody_is_the_only_one_that_is_named() -> None:
    found = only(links.judge({("a", "b"): FAST, ("a", "c"): APART, ("b", "c"): APART}, WANTED))
    assert (found.node, found.level) == ("c", "error")
    assert "a and c do not join" in found.found


def test_two_nodes_that_join_others_and_not_each_other_are_named_together() -> None:
    findings = links.judge({("a", "b"): APART, ("a", "c"): FAST, ("b", "c"): FAST}, WANTED)
    assert what(findings) == {("a and b", "error")}


def test_two_nodes_have_no_other_pair_to_be_measured_against_but_a_floor() -> None:
    assert only(links.judge({("a", "b"): 1.2e7}, WANTED)).node == "a and b"
    assert only(links.judge({("a", "b"): FAST}, WANTED)).level == "ok"


# ------------------------------------------------------------------------- thresholds, as docs/clusters/doctor.md


@pytest.mark.parametrize(("mebibytes", "level"), [(255, "error"), (257, "warning"), (2047, "warning"), (2049, "ok")])
def test_room_on_a_disk(mebibytes: int, level: str) -> None:
    room = Room(disk.TEMPORARY, "/tmp", mebibytes * 2**20, 10**12)
    assert only(disk.judge({"a": [room]}, WANTED)).level == level


@pytest.mark.parametrize(("mebibytes", "level"), [(47, "error"), (49, "warning"), (1023, "warning"), (1025, "ok")])
def test_room_in_shared_memory(mebibytes: int, level: str) -> None:
    room = Room(disk.MEMORY, "/dev/shm", mebibytes * 2**20, 10**12)
    assert only(disk.judge({"a": [room]}, WANTED)).level == level


@pytest.mark.parametrize(("seconds", "level"), [(0.9, "ok"), (1.1, "warning"), (59.0, "warning"), (61.0, "error")])
def test_the_difference_of_clocks(seconds: float, level: str) -> None:
    assert only(clocks.judge({"a": (0.0, 0.0), "b": (-seconds, 0.0)}, WANTED)).level == level


@pytest.mark.parametrize(("files", "level"), [(1055, "error"), (1056, "warning"), (4095, "warning"), (4096, "ok")])
def test_open_files_of_four_workers(files: int, level: str) -> None:
    assert only(limits.judge({"a": WIDE | {"files": files}}, WANTED)).level == level


@pytest.mark.parametrize(("processes", "level"), [(511, "error"), (512, "warning"), (4095, "warning"), (4096, "ok")])
def test_processes(processes: int, level: str) -> None:
    assert only(limits.judge({"a": WIDE | {"processes": processes}}, WANTED)).level == level


@pytest.mark.parametrize(("tflops", "level"), [(69.0, "warning"), (71.0, "ok")])
def test_the_speed_of_a_device(tflops: float, level: str) -> None:
    assert only(matmul.judge(speeds(100, 100, tflops, 100), WANTED)).level == level


@pytest.mark.parametrize(("share", "level"), [(0.49, "warning"), (0.51, "ok")])
def test_the_best_pair_of_a_node(share: float, level: str) -> None:
    facts = {("a", "b"): FAST, ("a", "c"): share * FAST, ("b", "c"): share * FAST}
    assert only(links.judge(facts, WANTED)).level == level


@pytest.mark.parametrize(("rate", "level"), [(59e6, "warning"), (61e6, "ok")])
def test_the_bytes_a_second_of_a_pair(rate: float, level: str) -> None:
    assert only(links.judge({("a", "b"): rate}, WANTED)).level == level


# --------------------------------------------------------------------------------------------------------------- names

ANSWERED = {"the name of 10.0.0.1": 0.001, "the address of a": 0.9}


def test_questions_that_are_answered_within_a_second_are_well() -> None:
    found = only(names.judge({"a": ANSWERED, "b": ANSWERED}, WANTED))
    assert (found.node, found.level, found.found) == (EVERY, "ok", "looked up within 0.9 s on 2")


def test_a_node_whose_questions_take_longer_is_named_with_what_was_asked_and_what_to_do() -> None:
    found = only(names.judge({"a": ANSWERED, "b": ANSWERED | {"the name of 10.0.0.2": 1.26}}, WANTED))
    assert (found.node, found.level) == ("b", "warning")
    assert found.found.startswith("1.3 s to look up the name of 10.0.0.2; torch asks for the name of each worker")
    assert "/etc/hosts" in found.remedy


def test_a_question_without_an_answer_is_said_before_slow_ones() -> None:
    slow = {"the name of 10.0.0.1": 2.0, "the name of 10.0.0.2": None}
    found = only(names.judge({"a": ANSWERED, "b": slow}, WANTED))
    assert found.found.startswith("no answer within 3 s to the question for the name of 10.0.0.2;")


def test_what_no_node_is_told_is_one_finding_and_other_questions_on_each_are_several() -> None:
    silent = {"the name of 10.0.0.1": None}
    assert what(names.judge({"a": silent, "b": dict(silent)}, WANTED)) == {(EVERY, "warning")}
    others = {"a": {"the address of a": None}, "b": {"the address of b": None}}
    assert what(names.judge(others, WANTED)) == {("a", "warning"), ("b", "warning")}
