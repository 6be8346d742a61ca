"""The YAML that configs are written in: scalars as in YAML 1.2, so that `3e-5` is a number and `no` is a word.

PyYAML follows YAML 1.1, where `3e-5` is a string, `010` is 8, `no` is false and a key given twice silently wins.
"""

from __future__ import annotations

import re
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

import yaml

MOST_BYTES = 2**20
"""Largest config. Whoever reads one asks storage for no more."""
DEEPEST, MOST_VALUES, MOST_DIGITS = 50, 50_000, 40
"""Most levels of nesting, values with aliases written out (21,841 classes may have names), and digits of a number."""

_INT = re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
_SCALARS = [  # in order: what is an integer is a float too
    ("null", re.compile(r"~|null|Null|NULL|"), ["~", "n", "N", ""]),
    ("bool", re.compile(r"true|True|TRUE|false|False|FALSE"), list("tTfF")),
    ("int", _INT, list("-+0123456789")),
    ("float", _FLOAT, list("-+.0123456789")),
    ("merge", re.compile(r"<<"), ["<"]),
]


@dataclass(frozen=True)
class Written:
    """A number or a truth value, and how it was written: a field of text takes `2012` and `1e3` to the letter."""

    text: str
    value: int | float | bool


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012 - PyYAML's own declaration

    def __init__(self, stream: str | bytes) -> None:
        super().__init__(stream)
        self._depth = self._values = 0
        self._within: dict[int, int] = {}

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """A value and those below it. Aliases count as what they stand for: nine levels of nine are 387,420,489."""
        event: yaml.Event = self.peek_event()  # type: ignore[no-untyped-call]
        mark: Any = event.start_mark
        before = self._values
        self._depth += 1
        if self._depth > DEEPEST:
            raise yaml.composer.ComposerError(None, None, f"more than {DEEPEST} levels of nesting", mark)
        node = super().compose_node(parent, index)
        self._depth -= 1
        if isinstance(event, yaml.AliasEvent):
            if id(node) not in self._within:
                raise yaml.composer.ComposerError(None, None, f"*{event.anchor} holds itself", mark)
            self._values += self._within[id(node)]
        else:
            self._values += 1
            self._within[id(node)] = self._values - before
        if self._values > MOST_VALUES:
            raise yaml.composer.ComposerError(None, None, f"more than {MOST_VALUES:,} values", mark)
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(None, None, _why_no_key(key), key.start_mark)
            if key.tag != "tag:yaml.org,2002:merge" and key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"{key.value} is given twice", key.start_mark)
            seen.add(str(key.value))
        return super().construct_mapping(node, deep)


def _why_no_key(key: yaml.Node) -> str:
    """What to say of a key that is no text: `{{ RUN }}` is YAML for a section whose key is a section."""
    if not isinstance(key, yaml.MappingNode) or not key.flow_style:
        return "a key has to be text"
    name = key.value[0][0].value if key.value else ""
    shown = f"{{{{ {name} }}}}" if isinstance(name, str) else "{{ … }}"
    return f"{shown} is a template that nothing has filled in: write the value itself"


class _WrittenLoader(_Loader):
    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        found = super().construct_mapping(node, deep)
        return {key.value if isinstance(key, Written) else key: value for key, value in found.items()}


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
    if len(text) > MOST_DIGITS:
        raise yaml.constructor.ConstructorError(None, None, f"a number of {len(text)} digits", node.start_mark)
    return int(text, 0) if text.startswith(("0x", "0o")) else int(text)


_Loader.add_constructor("tag:yaml.org,2002:int", _construct_int)


def _construct_written(loader: _WrittenLoader, node: yaml.ScalarNode) -> Written:
    return Written(str(node.value), _Loader.yaml_constructors[node.tag](loader, node))


for _name in ("int", "float", "bool"):
    _WrittenLoader.add_constructor(f"tag:yaml.org,2002:{_name}", _construct_written)


def parse(text: str | bytes) -> Any:
    """The value that a YAML text stands for.

    Raises:
        yaml.YAMLError: if it is not YAML, gives a key twice, or stands for more than any config.
    """
    return _parse(text, _Loader)


def parse_written(text: str | bytes) -> Any:
    """As `parse`, with `Written` for numbers and truth values: whoever knows the types of the fields chooses."""
    return _parse(text, _WrittenLoader)


def _parse(text: str | bytes, loader: type[_Loader]) -> Any:
    try:
        return yaml.load(text, Loader=loader)  # noqa: S506 - both are SafeLoaders
    except yaml.YAMLError:
        raise
    except Exception as error:
        # what PyYAML lets through: `!!timestamp 2026-99-99`, `!!bool x`, `!!float ''`
        raise yaml.constructor.ConstructorError(None, None, f"a value that does not fit its tag: {error}") from error


def comment_in(text: str) -> int | None:
    """Where a comment begins in a YAML text of one line; None if it has none."""
    inside = [(token.start_mark.index, token.end_mark.index) for token in yaml.scan(text)]
    starts = (at for at, sign in enumerate(text) if sign == "#" and (at == 0 or text[at - 1].isspace()))
    return next((at for at in starts if not any(start <= at < end for start, end in inside)), None)


def dump(value: Any) -> str:
    """A YAML text that `parse` reads back to the same value; keys stay in their order."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)
