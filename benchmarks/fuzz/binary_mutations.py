"""Changes of valid files with a binary layout: arrays, tars, weights, and what torch.save writes."""

from __future__ import annotations

import io
import random
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.fuzz.hostile_values import PICKLES, STRINGS
from benchmarks.fuzz.mutations import change_bytes, change_json


def npy(array: Any) -> bytes:
    """An array as numpy writes it."""
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def change_npy(rng: random.Random, data: bytes) -> bytes:
    """An .npy file with another header, or other data behind it."""
    length = struct.unpack("<H", data[8:10])[0]
    header, body = data[10 : 10 + length].decode("latin-1"), data[10 + length :]
    old = header[header.index("(") : header.index(")") + 1]
    shape = rng.choice(
        [
            "()",
            "(1,)",
            "(-1,)",
            "(1099511627776,)",
            "(4294967296, 4294967296)",
            "(0,)",
            "(2, 2, 2)",
            "((1,),)",
            "(1" * 900,
        ]
    )
    kinds = ["|O", "<f8", "|S0", "|S100000", "<u2", "<i8", "|V8", "<U9", "', 'x': __import__('os'), 'y': '"]
    match rng.randrange(6):
        case 0:
            header = header.replace(old, shape)
        case 1:
            header = header.replace(header.split("'")[3], rng.choice(kinds))
        case 2:
            header = rng.choice(["(" * 4000, "", "{}", "[1]", header * 3, header.replace("False", "True")])
        case 3:
            body = body[: rng.randrange(len(body) + 1)]
        case 4:
            rows = rng.choice([0, 1, 3, 5, 1000])
            return npy(
                rng.choice(
                    [
                        np.zeros(rows, np.int32),
                        np.full(rows, -7, np.int32),
                        np.array([b"../x"] * rows, "S"),
                        np.zeros((rows, 1, 5, 2), np.uint16),
                    ]
                )
            )
        case _:
            return change_bytes(rng, data)
    text = header.encode("latin-1")
    return data[:8] + struct.pack("<H", min(len(text), 65535)) + text + body


def _size_field(size: int) -> bytes:
    """As GNU tar writes a size, negative and large ones in base 256."""
    if 0 <= size < 8**11:
        return f"{size:011o}\0".encode()
    return (bytes([0o200]) if size >= 0 else bytes([0o377])) + (size % 256**11).to_bytes(11, "big")


def _with_checksum(header: bytes) -> bytes:
    blank = header[:148] + b" " * 8 + header[156:]
    return header[:148] + f"{sum(blank):06o}\0 ".encode() + header[156:]


def _change_header(rng: random.Random, header: bytes) -> bytes:
    match rng.randrange(5):
        case 0 | 1:
            size = rng.choice([0, 1, 511, 512, 513, -1, -512, -1024, -(2**60), 2**33, 2**60, 10**6])
            header = header[:124] + _size_field(size) + header[136:]
        case 2:
            header = (
                header[:156]
                + rng.choice([b"1", b"2", b"3", b"5", b"6", b"x", b"g", b"L", b"S", b"\x00", b"7"])
                + header[157:]
            )
        case 3:
            name = rng.choice(STRINGS[:24]).encode("utf-8", "surrogatepass")[:99]
            header = name.ljust(100, b"\0") + header[100:]
        case _:
            return change_bytes(rng, header)[:512].ljust(512, b"\0")
    return _with_checksum(header)


def change_tar(rng: random.Random, data: bytes, change_member: Callable[[random.Random, str, bytes], bytes]) -> bytes:
    """A tar with another header, another member, another order, or other bytes."""
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        members = [(info.name, info.offset, info.offset_data, info.size) for info in tar]
    name, offset, start, size = rng.choice(members)
    match rng.randrange(5):
        case 0 | 1:
            return data[:offset] + _change_header(rng, data[offset : offset + 512]) + data[offset + 512 :]
        case 2 | 3:
            changed = change_member(rng, name, data[start : start + size])
            header = _with_checksum(
                data[offset : offset + 124] + _size_field(len(changed)) + data[offset + 136 : offset + 512]
            )
            behind = start + -(-size // 512) * 512
            return data[:offset] + header + changed + bytes(-len(changed) % 512) + data[behind:]
        case _:
            return change_bytes(rng, data)


def change_safetensors(rng: random.Random, data: bytes) -> bytes:
    """Weights with another header, another length of it, or other bytes."""
    length = int.from_bytes(data[:8], "little")
    header, body = data[8 : 8 + length], data[8 + length :]
    match rng.randrange(4):
        case 0:
            return struct.pack("<Q", rng.choice([0, 1, length - 1, length + 1, 10**8, 2**60, 2**64 - 1])) + data[8:]
        case 1 | 2:
            header = change_json(rng, header.rstrip())
            return struct.pack("<Q", len(header)) + header + body
        case _:
            return change_bytes(rng, data)


def change_torch_file(rng: random.Random, data: bytes) -> bytes:
    """A file of torch.save whose pickle is another, or changed, as are its archive and the numbers of its shapes."""
    if rng.random() < 0.25:
        return change_bytes(rng, data)
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            held = {entry.filename: archive.read(entry) for entry in archive.infolist()}
    except zipfile.BadZipFile:  # it was changed before
        return change_bytes(rng, data)
    name = next(name for name in held if name.endswith("data.pkl"))
    if rng.random() < 0.2:
        held[name] = rng.choice(PICKLES)
    elif rng.random() < 0.5:
        numbers = [at for at in range(len(held[name])) if held[name][at : at + 1] in {b"K", b"M", b"J"}]
        changed = bytearray(held[name])
        for _ in range(rng.choice([1, 2, 8])):
            at = rng.choice(numbers)
            changed[at + 1] = rng.randrange(256)
        held[name] = bytes(changed)
    elif rng.random() < 0.7:
        held[name] = change_bytes(rng, held[name])
    else:
        other = rng.choice(sorted(held))
        held[other] = change_bytes(rng, held[other])
        if rng.random() < 0.3:
            del held[rng.choice(sorted(held))]
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", rng.choice([zipfile.ZIP_STORED] * 9 + [zipfile.ZIP_DEFLATED])) as archive:
        for each, content in held.items():
            archive.writestr(each, content)
    return buffer.getvalue()


def change_columns(rng: random.Random, data: bytes) -> bytes:
    """A file of columns: any bytes, bytes behind the head, or another head with the CRC-32 that belongs to it."""
    way = rng.random()
    if way < 0.2:
        return change_bytes(rng, data)
    magic, version, length, _ = struct.unpack_from("<8sIII", data)
    head, rest = data[20 : 20 + length], data[20 + length :]
    if way < 0.6:
        held = bytearray(rest)
        for _ in range(rng.randint(1, 8)):
            held[rng.randrange(len(held))] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))
        return data[: 20 + length] + bytes(held)
    head = change_json(rng, head)
    body = rest[-(20 + length) % 64 :]
    start = struct.pack("<8sIII", magic, version, len(head), zlib.crc32(head)) + head
    return start + bytes(-len(start) % 64) + body
