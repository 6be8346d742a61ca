"""A run to report on, as its stages leave it, and a page as a reader meets it."""

from __future__ import annotations

import hashlib
import json
import re
from html.parser import HTMLParser
from typing import Any

PNG = b"\x89PNG\r\n\x1a\n not decoded by the report"
EVALUATION: dict[str, Any] = {
    "reconstruction": {"prefixes": [1, 5, 21], "mse_of_prefixes": [0.2, 0.1, 0.05], "frechet_distance": 1.234},
    "generation": {
        "frechet_distance": 5.678,
        "samples": 1000,
        "class_accuracy": 0.8123,
        "class_accuracy_per_class": [0.9, 0.7246],
        "judge_accuracy_on_real": 0.866,
    },
    "codebook_use": [[0.25, 0.5, 1.0], [0.125, 0.5, 0.75]],
    "class_names": ["Coat", "Bag"],
    "fingerprints": {"tokenizer": "ab12", "generator": {"weights": "cd34"}},
    "sampling": {"guidance": 2.5, "classes": None, "seed": 0},
    "tokenizer": {"groups": [1, 4, 16], "vocabularies": [64, 64], "fold_names": ["detail", "semantic"]},
    "files": {"samples/reconstructions.png": hashlib.sha256(PNG + b"2").hexdigest()},
}
SAMPLES: dict[str, Any] = {
    "sampling": {"guidance": 2.5, "classes": None, "seed": 0},
    "fingerprints": {"tokenizer": "ab12", "generator": {"weights": "cd34"}},
    "files": {"samples/grid.png": hashlib.sha256(PNG).hexdigest()},
}
CONFIG = "seed: 0\ntokenizer:\n  trainer:\n    steps: 30\ngenerator: {trainer: {steps: 4711}}\n"
HOSTILE = "\"'><script>alert(1)</script><img src=x onerror=y>&{{ 71 * 857 }}"
COMPUTED = str(71 * 857)
"""What a page has that takes that text for a template; no clock shows it."""


def changed(record: dict[str, Any], section: str, **values: Any) -> str:
    """A record as JSON, with other values in one of its sections."""
    return json.dumps(record | {section: record[section] | values})


class Page(HTMLParser):
    """A page's tags, and its text without style."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        while self.open and self.open.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.text += data + " "

    @property
    def words(self) -> str:
        return " ".join(self.text.split())


def charts_of(html: str) -> str:
    """What charts are called, for screen readers."""
    return "\n".join(re.findall(r"aria-label=\"([^\"]*)\"", html))
