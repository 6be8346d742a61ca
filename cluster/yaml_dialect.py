"""The YAML that configs are written in: scalars as in YAML 1.2, so that `3e-5` is a number and `no` is a word.

PyYAML follows YAML 1.1, where `3e-5` is a string, `010` is 8, `no` is false and a key given twice silently wins.
"""

from __future__ import annotations

import re
from collections.abc import Hashable
from typing import Any

import yaml

_INT = re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
_SCALARS = [  # in order: what is an integer is a float too
    ("null", re.compile(r"~|null|Null|NULL|"), ["~", "n", "N", ""]),
    ("bool", re.compile(r"true|True|TRUE|false|False|FALSE"), list("tTfF")),
    ("int", _INT, list("-+0123456789")),
    ("float", _FLOAT, list("-+.0123456789")),
    ("merge", re.compile(r"<<"), ["<"]),
]


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012 - PyYAML's own declaration

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if key.tag != "tag:yaml.org,2002:merge" and key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"{key.value} is given twice", key.start_mark)
            seen.add(str(key.value))
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012 - PyYAML's own declaration

    def ignore_aliases(self, data: Any) -> bool:  # noqa: ARG002 - a config reads better with each value in its place
        return True


_UNICODE_BREAKS = re.compile("[\x85\u2028\u2029]")


def _represent_str(dumper: _Dumper, text: str) -> yaml.ScalarNode:
    # PyYAML folds these as if they were line breaks; between double quotes it escapes them.
    style = '"' if _UNICODE_BREAKS.search(text) else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _represent_str)

for _name, _pattern, _first in _SCALARS:
    for _class in (_Loader, _Dumper):
        _anchored = re.compile(f"^(?:{_pattern.pattern})$")
        _class.add_implicit_resolver(f"tag:yaml.org,2002:{_name}", _anchored, _first)


def _construct_int(loader: _Loader, node: yaml.ScalarNode) -> int:
    text = str(loader.construct_scalar(node))
    return int(text, 0) if text.startswith(("0x", "0o")) else int(text)


_Loader.add_constructor("tag:yaml.org,2002:int", _construct_int)


def parse(text: str | bytes) -> Any:
    """The value that a YAML text stands for.

    Raises:
        yaml.YAMLError: if it is not YAML, or gives a key twice.
    """
    return yaml.load(text, Loader=_Loader)  # noqa: S506 - _Loader is a SafeLoader


def dump(value: Any) -> str:
    """A YAML text that `parse` reads back to the same value; keys stay in their order."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)
