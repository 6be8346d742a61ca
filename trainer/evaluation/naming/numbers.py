"""A number with its name: what it measures, of what, and by what.

In this field a number rarely means what it seems: reference images, crop, network, rounding, label sampling, moving
average or raw weights move a FID by more than the differences that papers report. So each stands beside it:

    measured_by   how: reference images, crop, rounding, network, protocol. Two numbers may be compared only if it is
                  the same, and so is the number of images
    measured_of   what: generator, its weights, sampling, seed, labels, tokenizer, tokens, images. This is what a
                  comparison compares

number_names.py and metric_names.py put both into words, comparison.py compares them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError

from data_pipeline import storage
from data_pipeline.errors import UsageError
from data_pipeline.shards.versions import check_version
from data_pipeline.text.json_records import first_problem

VERSION = 1
MOST_NUMBERS = 2000
"""Of one file."""
SHOWN_ONLY = "uri"
"""A key whose value is shown and not compared: the same images may lie anywhere."""
_HASH = 8

Leaves = dict[str, Any]
"""Values of a nested record by dotted path."""


@dataclass(frozen=True)
class Number:
    """One number."""

    metric: str
    """fid, sfid, inception_score, precision, recall, frechet_distance, class_accuracy, mse, psnr, …"""
    value: float
    images: int
    """That it is computed from."""
    measured_by: dict[str, Any] = field(default_factory=dict)
    """JSON, by reference, crop, rounding, network, protocol."""
    measured_of: dict[str, Any] = field(default_factory=dict)
    """JSON, by generator, weights, sampling, seed, labels, tokenizer, keep, perturbation, tokens, images."""
    plus_minus: float | None = None
    """One standard error, where it is known; `measured_by.protocol` says how."""

    def to_json(self) -> dict[str, Any]:
        """As in evaluation.json, whose key `numbers` is a list of these."""
        return asdict(self)

    @classmethod
    def from_json(cls, record: Any) -> Self:
        """The inverse.

        Raises:
            pydantic.ValidationError: if it is none.
        """
        return cls(**dict(_Number.model_validate(record)))

    @property
    def method(self) -> str:
        """Hash of how it was measured, 8 digits: equal for numbers whose `measured_by` is the same."""
        return storage.fingerprint(leaves(self.measured_by))[:_HASH]

    @property
    def subject(self) -> str:
        """Hash of what was measured, 8 digits: equal for numbers whose `measured_of` is the same."""
        return storage.fingerprint(leaves(self.measured_of))[:_HASH]

    @property
    def pictures(self) -> Literal["samples", "reconstructions", "images"]:
        """What kind of images it is of: those of a generator, those of a tokenizer, or given ones."""
        of = {path.partition(".")[0] for path in leaves(self.measured_of)}
        if "generator" in of:
            return "samples"
        return "reconstructions" if of & {"tokenizer", "decoder"} else "images"


class _Number(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    metric: str = Field(max_length=100, pattern=r"^[a-z][a-z0-9_]*$")
    value: FiniteFloat
    images: int = Field(ge=0)
    measured_by: dict[str, Any] = {}
    measured_of: dict[str, Any] = {}
    plus_minus: Annotated[FiniteFloat, Field(ge=0)] | None = None


def leaves(record: Any) -> Leaves:
    """The values of a nested record by dotted path: what is compared of it, and hashed.

    Lists of objects are nested, too, by their places; other lists are values. What is null or empty is left out, as if
    it were not there, and so are keys called `uri`; 2.0 is 2.
    """
    return {path: value for path, value in _walk(record, "") if path.rpartition(".")[2] != SHOWN_ONLY}


def _walk(record: Any, path: str) -> Iterator[tuple[str, Any]]:
    if isinstance(record, Mapping):
        nested = {str(key): value for key, value in record.items()}
    elif isinstance(record, list) and any(isinstance(each, Mapping) for each in record):
        nested = {str(place): value for place, value in enumerate(record)}
    else:
        if record is not None and record != []:
            yield path, _plain(record)
        return
    for key, value in nested.items():
        yield from _walk(value, f"{path}.{key}" if path else key)


def _plain(value: Any) -> Any:
    if isinstance(value, list):
        return [_plain(each) for each in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def numbers_file(place: str) -> str:
    """The file with the numbers of a place: of a run its evaluation.json; any other .json is one itself."""
    return place if place.endswith(".json") else storage.join(place, "evaluation.json")


def read_numbers(uri: str) -> tuple[Number, ...]:
    """The numbers of a file, evaluation.json or another `{"numbers": [...]}`.

    Args:
        uri: of the file.

    Raises:
        FileNotFoundError: if there is none.
        UsageError: if it has no such numbers; it names the file, the number and its key.
    """
    record = storage.read_json(uri)
    if not isinstance(record, dict) or not isinstance(record.get("numbers"), list):
        raise UsageError(
            f'{uri} has no list "numbers", in which each number says how it was measured: if it is the evaluation.json '
            "of an earlier version, run `foldtrain evaluate` again"
        )
    check_version(uri, "a record of numbers", record.get("version", VERSION), VERSION, "evaluate again")
    found = record["numbers"]
    if len(found) > MOST_NUMBERS:
        raise UsageError(f"{uri} has {len(found):,} numbers, and at most {MOST_NUMBERS:,} are read: split it")
    return tuple(_number(uri, place, each) for place, each in enumerate(found))


def _number(uri: str, place: int, record: Any) -> Number:
    try:
        return Number.from_json(record)
    except ValidationError as error:
        metric = record.get("metric") if isinstance(record, dict) else None
        called = f" ({metric[:100]})" if isinstance(metric, str) else ""
        problem = first_problem(error)
        raise UsageError(f"{uri}: numbers.{place}{called} is no number: {problem}; evaluate again") from None
