"""`foldtrain evaluate CONFIG --sweep guidance=1:5:0.5`: numbers of a run's samples at many settings of sampling.

    RUN/evaluation/sweep-NAME/points/…json    the numbers of one setting, once they are known
    RUN/evaluation/sweep-NAME/sweep.json      all of them, and the best setting by each metric; written last
    RUN/evaluation/sweep-NAME/METRIC.svg      its curve, where one setting is swept; also FID-by-IS, precision-by-recall

A start goes on with the settings, and within one with the parts, that are missing.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import yaml
from pydantic import ValidationError

from cluster.config.run import RunConfig
from cluster.stages.evaluating import drawn_batch, drawn_numbers, options_of, reference_of
from cluster.stages.evaluation_inputs import check_inputs, drawn_set, judges_of, networks_of, open_slots_of
from cluster.stages.inputs import held_out_images
from cluster.stages.measuring import FOLDER, Measuring
from cluster.stages.results import device_of, node_cache, sampler_of
from cluster.terminal.output import console
from data_pipeline import storage
from data_pipeline.errors import UsageError
from data_pipeline.text.json_records import first_problem
from trainer.config import SamplingConfig
from trainer.evaluation.naming.metric_names import title
from trainer.evaluation.naming.number_names import value_text
from trainer.evaluation.naming.numbers import VERSION, Number, read_numbers
from trainer.evaluation.networks.network_rows import NetworkRows
from trainer.evaluation.samples.sampler import check_order, class_names
from trainer.evaluation.sets import ShardSet
from trainer.report.charts import chart_file
from trainer.report.sweeps import SWEEP, Settings, SweepPoint, best_of, curves_of, settings_text, tradeoffs_of

MOST_POINTS = 1000
"""Settings of a sweep."""


# ------------------------------------------------------------------------------------------------- what is asked for


def parse_sweep(given: Sequence[str]) -> list[Settings]:
    """All combinations of what was typed: KEY=START:STOP:STEP, or KEY=VALUE,VALUE.

    Keys are those of `sampling`; a part of the order is order.KEY. The end of a range belongs to it.

    Raises:
        UsageError: if that cannot be read; it shows how to write it.
    """
    axes: dict[str, list[Any]] = {}
    for text in given:
        key, equals, values = text.partition("=")
        if not equals or not key or key in axes:
            raise UsageError(f"--sweep {text}: give KEY=START:STOP:STEP or KEY=VALUE,VALUE, each key once")
        axes[key] = _values(text, values)
    points = [dict(zip(axes, each, strict=True)) for each in itertools.product(*axes.values())]
    if len(points) > MOST_POINTS:
        raise UsageError(f"--sweep: these are {len(points):,} settings, and {MOST_POINTS:,} are possible at once")
    return points


def _values(text: str, values: str) -> list[Any]:
    parts = values.split(":")
    if len(parts) == 1:
        return [yaml.safe_load(each) for each in values.split(",")]
    try:
        start, stop, step = map(float, parts)
        steps = round((stop - start) / step)
        if steps < 0 or steps > MOST_POINTS or abs(start + steps * step - stop) > 1e-6 * abs(step):
            raise ValueError  # noqa: TRY301 - said below, as what cannot be read is
    except (ValueError, ZeroDivisionError):
        raise UsageError(
            f"--sweep {text}: a range is START:STOP:STEP in numbers, with STOP a whole number of steps away"
        ) from None
    return [round(start + number * step, 9) for number in range(steps + 1)]


def _sampling(base: SamplingConfig, settings: Settings) -> SamplingConfig:
    record = base.model_dump()
    for key, value in settings.items():
        section, dot, name = key.partition(".")
        if dot:
            record[section] = {**(record.get(section) or {}), name: value}
        else:
            record[key] = value
    try:
        return SamplingConfig.model_validate(record)
    except ValidationError as error:
        raise UsageError(f"--sweep: sampling.{first_problem(error)}") from None


# ------------------------------------------------------------------------------------------------------------ running


def sweep(config: RunConfig, points: Sequence[Settings]) -> list[SweepPoint]:
    """Measure samples at each setting, and write sweep.json.

    Args:
        config: of the run.
        points: settings of `sampling` in place of the run's.

    Raises:
        UsageError: if something that is needed is not there, or a setting cannot be; before anything is drawn.
    """
    held_out = held_out_images(config)
    cards, images, _ = check_inputs(config, held_out)
    configs = [config.model_copy(update={"sampling": _sampling(config.sampling, each)}) for each in points]
    for each in configs:
        check_order(config.product("generator"), cards["generator"], each.sampling)
    device = device_of(config)
    slots = open_slots_of(networks_of(config, cards), device)
    size, count = cards["tokenizer"].config["image_size"], config.evaluation.samples
    real = ShardSet.of(held_out, size, config.data.fit, count, node_cache(config))
    looked, measuring = NetworkRows(slots), Measuring.of_run(config, device)
    judges = judges_of(slots, class_names(cards["generator"]))
    reference = reference_of(real, measuring.rows("real", real, looked))
    options = options_of(config)
    keys = [cards[name].fingerprint() for name in ("generator", "tokenizer")] + [images.fingerprint]
    networks = [slot.identity for slot in slots]
    measured_by = [keys, networks, reference.named, asdict(options)]
    folder = storage.join(config.run, FOLDER, f"sweep-{storage.fingerprint([measured_by, list(points)])[:12]}")
    found = []
    for settings, each in zip(points, configs, strict=True):
        sampler = sampler_of(each, device)
        drawn = drawn_set(each, sampler, count)
        where = storage.join(folder, "points", f"{storage.fingerprint([drawn.identity(), networks])[:16]}.json")
        numbers = _known(where)
        if numbers is None:
            rows = measuring.rows("samples", drawn, looked, drawn_batch(sampler))
            numbers = tuple(drawn_numbers(drawn, rows, slots, judges, reference, options))
            storage.write_json(where, {"version": VERSION} | SweepPoint(settings, numbers).to_json())
            storage.remove_tree(rows.plan.folder)
        found.append(SweepPoint(settings, numbers))
        console().print(f"{settings_text(settings)}: {', '.join(map(_short, numbers))}")
    _finish(folder, found)
    return found


def _known(uri: str) -> tuple[Number, ...] | None:
    return read_numbers(uri) if storage.exists(uri) else None


def _short(number: Number) -> str:
    return f"{title(number)} {value_text(number)}"


# ------------------------------------------------------------------------------------------------------------- record


def _finish(folder: str, points: Sequence[SweepPoint]) -> None:
    best = best_of(points)
    for curve in (*curves_of(points), *tradeoffs_of(points)):
        svg = chart_file(curve.lines, title=curve.title, x_label=curve.x_label, y_label=curve.y_label)
        name = "".join(letter if letter.isalnum() else "-" for letter in curve.title.lower()).strip("-")
        storage.write_bytes(storage.join(folder, f"{name}.svg"), svg.encode())
    record = {"version": VERSION, "points": [point.to_json() for point in points], "best": best}
    storage.write_json(storage.join(folder, SWEEP), record)
    for metric, settings in best.items():
        console().print(f"best {metric}: at {settings_text(settings)}")
    console().print(f"sweep: {storage.join(folder, SWEEP)}", markup=False)
