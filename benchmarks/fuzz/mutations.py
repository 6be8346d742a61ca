"""Changes of valid bytes and texts. Each is a function of its random numbers alone, so that it can be made again."""

from __future__ import annotations

import json
import random
from typing import Any

from benchmarks.fuzz.hostile_values import STRINGS, YAMLS, hostile, json_bytes


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
