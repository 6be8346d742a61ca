"""Changes of valid files. Each is a function of its random numbers alone, so that an input can be made again."""

from __future__ import annotations

import io
import json
import random
import re
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np

RAW, END = "@@raw<", ">raw@@"
"""Stand around text that goes into a JSON file as it is."""
_STANDING = re.compile(rf'"{RAW}((?:[^"\\]|\\.)*?){END}"')
LONG = 100_000

STRINGS = (
    *(
        "",
        ".",
        "..",
        "/",
        "../../etc/passwd",
        "/etc/passwd",
        "a/../../b",
        "a//b",
        "..\\..\\x",
        "C:\\x",
        "~",
        "s3://b/x",
    ),
    *(
        "a\x00b",
        "a\nb",
        "\x1b]0;x\x07",
        "\x9b31m",
        "\u202egpj",
        "[red]x[/red]",
        "\ufeff",
        "é" * 300,
        "x" * LONG,
        "%s%n",
    ),
    *(
        "images-00000.tar",
        "tokens-00000.tar",
        "nan",
        "0",
        "-1",
        "0" * 64,
        "null",
        "\u2028",
        "\U0001f600",
        "model",
        "ema",
    ),
)
NUMBERS = (
    *(
        0,
        1,
        -1,
        2,
        7,
        255,
        256,
        65535,
        65536,
        2**31 - 1,
        2**31,
        2**32,
        2**40,
        2**53,
        2**62,
        2**63,
        2**64,
        10**30,
        -(2**63),
    ),
    *(0.5, -0.0, 1e308, 1.0),
)
RAWS = (
    *("NaN", "Infinity", "-Infinity", "1e999", "-1e999", "9" * 5000, "0x10", "01", "1.", "'a'", "\\u0000", '"\\ud800"'),
    *("[" * LONG + "]" * LONG, "[" * LONG, '{"a":' * LONG, "[" * 65 + "]" * 65, "[" + "[]," * LONG + "[]]", "tru", ""),
)
OTHERS = ("null", "true", "false", "[]", "{}", "[[]]", '{"": {}}', f"[{'null,' * 999}null]", f"[{'0,' * 9999}0]")
"""As JSON, so that each is a new one that may be changed."""


def json_bytes(record: Any) -> bytes:
    """A record as JSON, in which raw text stands as it is."""
    text = json.dumps(record, ensure_ascii=False, default=str)
    text = _STANDING.sub(lambda match: json.loads(f'"{match[1]}"'), text)
    return text.encode("utf-8", "surrogatepass")


def hostile(rng: random.Random, old: Any = None) -> Any:
    """A value that does not belong, or one near to what was there."""
    kind = rng.randrange(8)
    if kind < 2 and isinstance(old, int | float) and not isinstance(old, bool):
        return rng.choice(
            [
                old + 1,
                old - 1,
                -old,
                old * 2,
                old * 1000,
                float(old),
                str(old),
                old << 40 if isinstance(old, int) else old,
            ]
        )
    if kind < 2 and isinstance(old, str):
        return rng.choice(
            [old + "x", old[:-1], old.upper(), "../" + old, "/" + old, old + "\x00", old * 50, old.replace("0", "1", 1)]
        )
    if kind < 2 and isinstance(old, list):
        return rng.choice([old + old[:1], old[1:], old[::-1], old * 3, [old], [*old, None], dict(enumerate(old))])
    if kind == 2:
        return f"{RAW}{rng.choice(RAWS)}{END}"
    if kind == 3:
        return json.loads(rng.choice(OTHERS))
    return rng.choice(STRINGS) if kind < 6 else rng.choice(NUMBERS)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The paths of all values in a record."""
    found = [path]
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        found += places(inner, (*path, key))
    return found


def change_record(rng: random.Random, record: Any) -> Any:
    """A record with one to three values replaced, removed, added or doubled."""
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        path = rng.choice(places(record))
        if not path:
            if rng.random() < 0.05:
                return hostile(rng, record)
            continue
        holder = record
        for key in path[:-1]:
            holder = holder[key]
        key, action = path[-1], rng.randrange(10)
        if action == 0 and isinstance(holder, dict):
            del holder[key]
        elif action == 1 and isinstance(holder, dict):
            holder[rng.choice(STRINGS[:24])] = hostile(rng)
        elif action == 2 and isinstance(holder, list):
            holder.insert(key, holder[key])
        else:
            holder[key] = hostile(rng, holder[key])
    return record


def change_bytes(rng: random.Random, data: bytes) -> bytes:
    """Bytes flipped, cut out, put in, doubled, or made other text."""
    data = bytearray(data)
    for _ in range(rng.choice([1, 1, 2, 5, 20])):
        at = rng.randrange(len(data) + 1)
        match rng.randrange(8):
            case 0 | 1 | 2 if data:
                data[at % len(data)] ^= 1 << rng.randrange(8)
            case 3:
                del data[at : at + rng.choice([1, 2, 16, 512, 4096])]
            case 4:
                data[at:at] = rng.choice(
                    [b"\x00", b"\xff", b"\xed\xa0\x80", b"[", b"{", b'"', b"\n", b"\xef\xbb\xbf", b"-", b"9"]
                )
            case 5:
                data[at:at] = data[at : at + rng.choice([1, 16, 512])]
            case 6:
                data = data[:at]
            case _ if data:
                data[at % len(data)] = rng.randrange(256)
    return bytes(data)


def change_json(rng: random.Random, data: bytes) -> bytes:
    """A JSON file, changed by its structure more often than by its bytes."""
    if rng.random() < 0.2:
        return change_bytes(rng, data)
    try:
        record = json.loads(data)
    except (ValueError, RecursionError):  # it was changed before
        return change_bytes(rng, data)
    changed = json_bytes(change_record(rng, record))
    if rng.random() < 0.03:  # a key twice
        changed = changed.replace(b"{", b'{"version": 2, ', 1)
    return changed.decode().encode("utf-16") if rng.random() < 0.01 else changed


def change_lines(rng: random.Random, data: bytes) -> bytes:
    """A file of JSON lines, some of which are changed, doubled, joined or swapped."""
    lines = data.splitlines(keepends=True)
    for _ in range(rng.choice([1, 1, 2, 4])):
        at = rng.randrange(len(lines))
        match rng.randrange(6):
            case 0:
                lines[at] = change_bytes(rng, lines[at])
            case 1:
                lines.insert(at, json_bytes(hostile(rng)) + b"\n")
            case 2:
                lines[at], lines[0] = lines[0], lines[at]
            case 3:
                lines[at] = lines[at].rstrip(b"\n")
            case _:
                lines[at] = change_json(rng, lines[at]) + b"\n"
    return b"".join(lines)


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


PICKLES = (
    *(b"cos\nsystem\n(X\x02\x00\x00\x00idtR.", b"cposix\nsystem\n(S'id'\ntR.", b"(S'id'\nios\nsystem\n."),
    *(b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x02id\x85R.", b"cbuiltins\neval\n(X\x01\x00\x00\x001tR."),
    *(b"cbuiltins\nbytearray\n(J\x00\x00\x00\x7ftR.", b"ctorch\nTensor\n(J\x00\x00\x00\x7ftR."),
    *(b"ctorch.storage\nUntypedStorage\n(J\x00\x00\x00\x7ftR.", b"cargparse\nNamespace\n)R}X\x01\x00\x00\x00aK\x01sb."),
    *(
        b"\x80\x02]q\x00" + b"h\x00a" * 1000 + b".",
        b"(" * 100_000 + b"t" * 99_999 + b".",
        b"}N]s.",
        b"\x80\x02.",
        b"",
        b"N.",
    ),
    *(b"\x80\x02}(X\x03\x00\x00\x00emah\x00X\x05\x00\x00\x00modelh\x00u.", b"K\x01" * 200_000 + b"."),
)
"""In place of what torch.save has written."""


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


BOMB = (
    "a0: &a0 [x, x]\n"
    + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12))
    + "run: *a11\n"
)
YAMLS = (
    *(
        "extends: /dev/zero",
        "extends: base.yaml",
        "extends: [base.yaml, base.yaml]",
        "extends: config.yaml",
        "extends: ../x.yaml",
    ),
    *(
        "run: !!python/object/apply:os.system [id]",
        "run: !!binary x",
        "? [a]: b",
        "run: &a [*a]",
        "<<: {a: 1}",
        "a: b: c",
        "\t",
    ),
    *(
        "run: ${HOME}",
        "run: {{ RUN }}",
        "run: ~/x",
        "run: s3://",
        "run: 's3:/x'",
        "seed: .nan",
        "seed: -1",
        "seed: 1e400",
        "- a",
    ),
    *(
        "run: " + "[" * 5000,
        "run: " + "{a: " * 5000,
        "[" * LONG,
        "a:" * 20000,
        "run: " + "x" * LONG,
        "%YAML 9.9",
        "--- a\n--- b",
    ),
    *(
        BOMB,
        "<<: *x",
        "run: *nothing",
        "data: 7",
        "tokenizer: []",
        "generator: {trainer: {steps: 1_000}}",
        "seed: 0o17",
        "\ufeff",
    ),
)


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


def change_yaml(rng: random.Random, data: bytes) -> bytes:
    """A config with a line more, less, or other; or other bytes."""
    lines = data.decode().splitlines()
    for _ in range(rng.choice([1, 1, 2, 4])):
        at = rng.randrange(len(lines))
        match rng.randrange(6):
            case 0:
                del lines[at]
            case 1 | 2:
                lines.insert(rng.choice([0, at]), rng.choice(YAMLS))
            case 3:
                key, colon, _ = lines[at].partition(":")
                value = json_bytes(hostile(rng)).decode("utf-8", "replace")
                lines[at] = f"{key}{colon} {value}"
            case 4:
                lines[at] = "  " * rng.randrange(4) + lines[at]
            case _:
                return change_bytes(rng, "\n".join(lines).encode())
        lines = lines or [""]
    return "\n".join(lines).encode("utf-8", "surrogatepass")
