"""Values and texts that do not belong in a file: what inputs are made of that should be refused."""

from __future__ import annotations

import json
import random
import re
from typing import Any

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
"""Lines of a config."""

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
