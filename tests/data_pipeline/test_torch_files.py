"""Files of torch.save are read without running any of them, and none takes more memory than it has bytes."""

from __future__ import annotations

import argparse
import io
import os
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from data_pipeline.tokens.importing.torch_files import ALLOWED, check_pickle, check_sizes, load_torch_file, options_of


class Runs:
    """A pickle of it creates a file as it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return os.system, (f"touch {self.path}",)


def saved(path: Path, record: object) -> Path:
    torch.save(record, path)
    return path


def rewritten(path: Path, change: Callable[[str, bytes], bytes | None], compression: int = zipfile.ZIP_STORED) -> Path:
    """The archive once more, with other contents of some of its files."""
    with zipfile.ZipFile(path) as archive:
        held = {entry.filename: archive.read(entry) for entry in archive.infolist()}
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in held.items():
            changed = change(name, data)
            if changed is not None:
                archive.writestr(name, changed)
    return path


def test_what_training_scripts_save_is_read(tmp_path: Path) -> None:
    weight = torch.nn.Linear(2, 3)
    record = {
        "model": OrderedDict(weight.state_dict()),
        "half": torch.ones(2, dtype=torch.bfloat16),
        "parameter": weight.weight,
        "optimizer": torch.optim.AdamW(weight.parameters()).state_dict(),
        "args": argparse.Namespace(lr=1e-4, sides=[1, 2], vit={"heads": 3}),
        "dtype": torch.float16,
        "size": torch.Size([2, 3]),
        "device": torch.device("cpu"),
        "seen": {1, 2},
        "steps": 3,
        "rng": torch.get_rng_state(),
    }
    read: Any = load_torch_file(saved(tmp_path / "a.pt", record))
    assert torch.equal(read["model"]["weight"], weight.weight)
    assert read["args"].vit == {"heads": 3}
    assert options_of(read) == {"lr": 1e-4, "sides": [1, 2], "vit": {"heads": 3}}


def test_a_pickle_that_would_run_something_is_refused_by_name_and_nothing_runs(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.pt", {"model": {"a": torch.zeros(1)}, "x": Runs(tmp_path / "ran")})
    with pytest.raises(ValueError, match=r"its pickle wants (posix|nt|os)\.system, which is no plain data"):
        load_torch_file(path)
    assert not (tmp_path / "ran").exists()
    with path.open("rb") as file:  # the file does what it is said to do, where it is trusted
        torch.load(file, weights_only=False)
    assert (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("value", "name"),
    [
        (Fraction(1, 2), r"fractions\.Fraction"),
        (np.float64(1.5), r"numpy.*scalar"),
        (Path("x"), "pathlib"),
        (bytearray(b"ab"), "bytearray"),
        (eval, r"builtins\.eval"),
        (torch.load, r"torch\.serialization\.load"),
        (torch.zeros(2).to_sparse(), "_rebuild_sparse_tensor"),
        (torch.zeros(2, dtype=torch.complex64), "torch.ComplexFloatStorage"),
    ],
)
def test_all_that_a_pickle_wants_beyond_data_is_named(tmp_path: Path, value: object, name: str) -> None:
    path = saved(tmp_path / "a.pt", {"a": torch.zeros(1), "x": value, "y": Runs(tmp_path / "ran")})
    with pytest.raises(ValueError, match=rf"its pickle wants .*{name}.*system"):
        load_torch_file(path)


@pytest.mark.parametrize(
    "name", ["argparse\nArgumentParser", "argparse.Namespace\nx", "torch\nload", "torch\nnn.Linear"]
)
def test_names_beside_an_allowed_one_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="its pickle wants"):
        check_pickle(f"c{name}\n.".encode())


@pytest.mark.parametrize("protocol", [4, 5])
def test_names_that_a_pickle_makes_up_as_it_runs_are_refused(protocol: int) -> None:
    with pytest.raises(ValueError, match="STACK_GLOBAL"):
        check_pickle(pickle.dumps(argparse.Namespace(), protocol=protocol))
    with pytest.raises(ValueError, match=r"INST|os\.system"):
        check_pickle(b"(S'true'\nios\nsystem\n.")


def test_nothing_that_is_allowed_takes_a_size_from_the_file() -> None:
    assert not {name for name in ALLOWED if name.endswith(("Tensor", "UntypedStorage", "bytearray"))}


def test_a_shape_beyond_the_bytes_of_its_tensor_is_refused(tmp_path: Path) -> None:
    wide = torch.zeros(1).expand(10**6, 10**6)
    held: Any = load_torch_file(saved(tmp_path / "a.pt", {"wide": wide}))
    size = (tmp_path / "a.pt").stat().st_size
    with pytest.raises(ValueError, match=r"wide of shape \[1000000, 1000000\] is larger than its bytes"):
        check_sizes(held, size)


def test_many_tensors_of_the_same_bytes_are_refused_and_tied_ones_are_not(tmp_path: Path) -> None:
    one = torch.zeros(1000)
    size = saved(tmp_path / "a.pt", {"one": one, "two": one}).stat().st_size
    check_sizes({"one": one, "two": one}, size)
    with pytest.raises(ValueError, match="larger than its bytes"):
        check_sizes({str(number): one for number in range(20)}, size)


def test_a_number_of_elements_that_the_file_does_not_have_is_refused(tmp_path: Path) -> None:
    """The pickle says 10^12 floats; the storage has 8."""
    path = saved(tmp_path / "a.pt", {"a": torch.zeros(300)})

    def lie(name: str, data: bytes) -> bytes:
        many = b"\x8a\x06" + (10**12).to_bytes(6, "little")
        return data.replace(b"M" + (300).to_bytes(2, "little"), many) if name.endswith("data.pkl") else data

    with pytest.raises(ValueError, match="torch cannot load it"):
        load_torch_file(rewritten(path, lie))


def test_tensors_are_mapped_and_not_read(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.pt", {"a": torch.arange(100_000.0)})
    before = load_torch_file(path)
    with path.open("r+b") as file:  # what is mapped follows the file
        data = file.read()
        at = data.index(np.arange(100_000, dtype=np.float32)[:64].tobytes())
        file.seek(at)
        file.write(np.full(4, 7.0, np.float32).tobytes())
    assert before["a"][:4].tolist() == [7, 7, 7, 7]  # type: ignore[index]


def test_compressed_archives_are_refused(tmp_path: Path) -> None:
    path = rewritten(saved(tmp_path / "a.pt", {"a": torch.zeros(10**6)}), lambda _, data: data, zipfile.ZIP_DEFLATED)
    with pytest.raises(ValueError, match=r"is compressed, which torch\.save does not"):
        load_torch_file(path)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda data: b"#!" + data, "before or behind its archive"),
        (lambda data: data[: len(data) // 2], "no archive of torch.save"),
        (lambda data: data[:-2] + b"\x03\x00abc", "before or behind its archive"),
    ],
)
def test_an_archive_that_is_not_whole_is_refused(tmp_path: Path, make: Callable[[bytes], bytes], words: str) -> None:
    path = saved(tmp_path / "a.pt", {"a": torch.zeros(100)})
    path.write_bytes(make(path.read_bytes()))
    with pytest.raises(ValueError, match=words):
        load_torch_file(path)


@pytest.mark.parametrize(("field", "value"), [(42, b"\xff\xff\xff\x7f"), (8, b"\x01\x00"), (12, b"\xff\xff")])
def test_an_entry_that_leads_nowhere_or_is_encrypted_is_refused(tmp_path: Path, field: int, value: bytes) -> None:
    """Offset, flags and time of the pickle's entry in the list at the archive's end; the time does not matter."""
    path = saved(tmp_path / "a.pt", {"a": torch.zeros(100)})
    data = bytearray(path.read_bytes())
    at = data.index(b"PK\x01\x02")
    data[at + field : at + field + len(value)] = value
    path.write_bytes(data)
    if field == 12:
        load_torch_file(path)
        return
    with pytest.raises(ValueError, match=r"no archive of torch\.save"):
        load_torch_file(path)


def test_an_archive_cut_within_stays_an_error_of_the_file(tmp_path: Path) -> None:
    """What is left ends as an archive does, and its offsets lead before the start."""
    path = saved(tmp_path / "a.pt", {"a": torch.zeros(3000)})
    data = path.read_bytes()
    path.write_bytes(data[:1000] + data[1048:])
    with pytest.raises(ValueError, match=r"no archive of torch\.save|before or behind"):
        load_torch_file(path)


def test_an_archive_without_a_pickle_or_with_a_name_twice_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.pt", {"a": torch.zeros(100)})
    twice = tmp_path / "b.pt"
    twice.write_bytes(path.read_bytes())
    with zipfile.ZipFile(twice, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr(archive.namelist()[0], b"other")
    with pytest.raises(ValueError, match="files of"):
        load_torch_file(twice)
    with pytest.raises(ValueError, match=r"0 files data\.pkl"):
        load_torch_file(rewritten(path, lambda name, data: None if name.endswith("data.pkl") else data))


def test_a_pickle_is_bounded_before_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("data_pipeline.tokens.importing.torch_files.MOST_PICKLE", 50)
    with pytest.raises(ValueError, match=r"data\.pkl has more than 50 bytes"):
        load_torch_file(saved(tmp_path / "a.pt", {"a": torch.zeros(100)}))


def test_what_was_saved_before_torch_1_6_is_named(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(1)}, tmp_path / "a.pt", _use_new_zipfile_serialization=False)
    with pytest.raises(ValueError, match=r"before torch 1\.6"):
        load_torch_file(tmp_path / "a.pt")


def test_options_are_plain_and_bounded() -> None:
    nested: list[object] = []
    for _ in range(60):
        nested = [nested, nested]  # walked to its ends it has 2^60
    options = options_of({"args": {"a": nested, "b": object(), 3: 4, "c": "x", "d": (1, None)}})
    assert options["c"] == "x"
    assert options["b"] is None
    assert options["d"] == [1, None]
    assert options.keys() == {"a", "b", "c", "d"}
    assert options_of({"config": {"x": 1}}) == {"x": 1}
    assert options_of({"args": [1]}) == options_of([1]) == {}


def test_a_damaged_pickle_is_no_traceback() -> None:
    data = io.BytesIO()
    pickle.dump({"a": [1, 2]}, data, protocol=2)
    with pytest.raises(ValueError, match="damaged"):
        check_pickle(data.getvalue()[:-4])
