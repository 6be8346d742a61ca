"""The full name of a number in words, as it may stand below a table.

    FID 2.61 ± 0.03 (50,000 samples, reference 3f2a91c0, crop 256 px, rounding nearest, inception-2015; generator
    8d1c22e9 at step 4,000, EMA weights, guidance 2.5, seed 7, tokenizer 77aa0b13)

Before the semicolon stands how it was measured, after it what. Hashes are their first 8 digits. Settings of sampling
that do nothing are left out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from data_pipeline import storage
from data_pipeline.text.counted import counted
from data_pipeline.text.printable import printable
from trainer.evaluation.naming.metric_names import INCEPTION, shown_value, title, without_part
from trainer.evaluation.naming.numbers import Leaves, Number, leaves

_DIGITS = 4
"""Significant digits of a value whose standard error is not known."""
_DOES_NOTHING: Leaves = {"temperature": 1, "top_k": 0, "top_p": 1, "precision": "fp32"}
_LEFT_OUT = frozenset({"batch", "cpu_batch"})
"""Of sampling: they change the last bits alone."""

Words = Callable[[Any], Iterator[str]]


def value_text(number: Number) -> str:
    """Its value, to the first digit of its standard error; to 4 significant digits, where none is known."""
    return rounded(number.value, number.plus_minus)


def rounded(value: float, error: float | None) -> str:
    """A value and its standard error, as 2.61 ± 0.03."""
    if not error:
        return _significant(value)
    decimals = -math.floor(math.log10(error))
    if decimals > 12 or abs(value) >= 1e12:
        return f"{value:.{_DIGITS}g} ± {error:.1g}"
    decimals = max(0, decimals)
    return f"{value:,.{decimals}f} ± {error:,.{decimals}f}"


def _significant(value: float) -> str:
    if value == 0:
        return "0"
    if not 1e-4 <= abs(value) < 1e6:
        return f"{value:.{_DIGITS - 1}e}"
    decimals = max(0, _DIGITS - 1 - math.floor(math.log10(abs(value))))
    return f"{value:,.{decimals}f}"


def full_name(number: Number) -> str:
    """Title, value, how it was measured and of what, on one line."""
    subject = "; ".join(filter(None, (method_text(number), subject_text(number))))
    return f"{title(number)} {value_text(number)} ({subject})"


def method_text(number: Number) -> str:
    """How many images it is of, and how it was measured, but for what the title says."""
    words = _in_words(without_part(number), _METHOD)
    return ", ".join([counted(number.images, number.pictures.removesuffix("s")), *words])


def subject_text(number: Number) -> str:
    """What was measured; empty if that is not on record."""
    return ", ".join(_in_words(number.measured_of, _SUBJECT))


def words_of(record: dict[str, Any], keys: Iterable[str]) -> list[str]:
    """Some parts of a name in words, those that are on record."""
    chosen = {key: record[key] for key in keys if key in record}
    return list(_in_words(chosen, PARTS))


def _in_words(record: dict[str, Any], known: dict[str, Words]) -> Iterator[str]:
    """Of each part that is known its own words, in their order, then each other value with its path."""
    for key, words in known.items():
        if leaves(record.get(key)):
            yield from words(record[key])
    for key in record:
        if key not in known:
            yield from _plainly(record[key], key)


def _plainly(record: Any, prefix: str) -> Iterator[str]:
    for path, value in leaves(record).items():
        name = ".".join(filter(None, (prefix, path)))
        yield f"{printable(name).replace('_', ' ')} {shown_value(value)}"


def _named(name: str) -> Words:
    return lambda value: _plainly(value, name)


def _settings(record: Any) -> Iterator[str]:
    """Those that do something, by their own names."""
    for path, value in leaves(record).items():
        if path not in _LEFT_OUT and _DOES_NOTHING.get(path) != value:
            yield from _plainly(value, path)


def _image_set(name: str) -> Words:
    """A set of images, or statistics of one: its hash, its kind where it is no data set of shards, its size."""

    def words(record: Any) -> Iterator[str]:
        found = leaves(record)
        digest = found.pop("images", None) or found.pop("sha256", None)
        kind, count = found.pop("kind", "shards"), found.pop("count", None)
        shown = [] if digest is None else [shown_value(digest)]
        shown += [] if kind == "shards" else [f"({shown_value(kind)})"]
        shown += [f"of {count:,} images"] if isinstance(count, int) else []
        if shown:
            yield " ".join([name, *shown])
        yield from _plainly(found, name)

    return words


def _crop(record: Any) -> Iterator[str]:
    found = leaves(record)
    if "fit" in found and "size" in found:
        words = [found.pop(key) for key in ("crop.kind", "fit", "size") if key in found]
        yield f"{' '.join(map(shown_value, words))} px"
    yield from _plainly(found, "crop")


def _network(record: Any) -> Iterator[str]:
    found = leaves(record)
    name, kind, digest = (found.pop(key, None) for key in ("name", "kind", "sha256"))
    called = [name or kind or "network"] if name or kind or digest else []
    if digest is not None and name != INCEPTION:
        called.append(digest)
    yield from filter(None, [" ".join(map(shown_value, called))])
    yield from _plainly(found, "network")


def _generator(record: Any) -> Iterator[str]:
    found = leaves(record)
    digest, step = found.pop("sha256", None), found.pop("step", None)
    words = [] if digest is None else [shown_value(digest)]
    if step is not None:
        words.append(f"at step {step:,}" if isinstance(step, int) else f"at step {shown_value(step)}")
    if words:
        yield " ".join(["generator", *words])
    yield from _plainly(found, "generator")


def _weights(value: Any) -> Iterator[str]:
    yield f"{'EMA' if value == 'ema' else shown_value(value)} weights"


def _labels(plan: Any) -> Iterator[str]:
    """A plan is as long as its classes are many: its hash names it."""
    yield f"labels {shown_value(storage.fingerprint(leaves(plan)) if isinstance(plan, dict | list) else plan)}"


def _tokenizer(record: Any) -> Iterator[str]:
    found = leaves(record)
    encoder, decoder = found.get("encoder"), found.get("decoder")
    if encoder is not None and encoder == decoder:
        yield f"tokenizer {shown_value(encoder)}"
        encoder = decoder = None
    yield from (f"{half} {shown_value(value)}" for half, value in (("encoder", encoder), ("decoder", decoder)) if value)
    yield from _plainly(
        {path: value for path, value in found.items() if path not in {"encoder", "decoder"}}, "tokenizer"
    )


def _keep(value: Any) -> Iterator[str]:
    yield f"first {counted(value, 'position')}" if isinstance(value, int) else f"keep {shown_value(value)}"


_METHOD: dict[str, Words] = {
    "reference": _image_set("reference"),
    "crop": _crop,
    "rounding": _named("rounding"),
    "network": _network,
    "protocol": _settings,
}
_SUBJECT: dict[str, Words] = {
    "generator": _generator,
    "weights": _weights,
    "sampling": _settings,
    "seed": _named("seed"),
    "labels": _labels,
    "tokenizer": _tokenizer,
    "encoder": _named("encoder"),
    "decoder": _named("decoder"),
    "keep": _keep,
    "perturbation": _named("perturbation"),
    "tokens": _named("tokens"),
    "images": _image_set("images"),
}
PARTS = {**_METHOD, **_SUBJECT}
"""Words for what is known of a number's name, by its key."""
