"""The stage `evaluate`: what a tokenizer and a generator of a run are worth, in numbers that say what they mean.

1. real images, reconstructions and samples are measured image by image, part by part (cluster/pool/measuring.py): here,
   or with `evaluation.workers` on Ray. A start goes on from the parts that are there
2. numbers are computed from the rows, in the order of the images (trainer/evaluation/set_numbers.py)
3. evaluation.json and samples/reconstructions.png are written; rows of real images stay for the next evaluation
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cluster.config.run import RunConfig
from cluster.pool.drawn_set import DrawnReader, DrawnSet
from cluster.stages.evaluation_inputs import (
    JUDGE,
    TEACHER,
    check_inputs,
    drawn_set,
    judges_of,
    networks_of,
    open_run_tokens,
    open_slots_of,
    timm_teacher,
)
from cluster.stages.evaluation_summary import print_summary
from cluster.stages.inputs import held_out_images
from cluster.stages.measuring import BATCH, Measuring
from cluster.stages.memorization import PICTURE, Memorized, Samples, memorization, memorization_network
from cluster.stages.results import (
    PIXELS_WIDE,
    asked,
    commit,
    device_of,
    fingerprints_of,
    node_cache,
    places,
    sampler_of,
)
from cluster.terminal.output import console
from data_pipeline import storage
from data_pipeline.errors import UsageError
from data_pipeline.images.transforms import Pixels, to_model
from data_pipeline.tools.preflight import check_images
from trainer.evaluation.naming.numbers import Number
from trainer.evaluation.networks.network_rows import NetworkRows, Slot
from trainer.evaluation.row_files import StoredRows
from trainer.evaluation.run_record import accuracy_record, distance_by, quality_record
from trainer.evaluation.samples.sampler import Sampler
from trainer.evaluation.set_numbers import (
    Judge,
    MetricOptions,
    Naming,
    Reference,
    accuracy_numbers,
    drawn_of,
    real_accuracy_number,
    set_numbers,
)
from trainer.evaluation.sets import ShardSet
from trainer.evaluation.tokenizers.tokenizer_measure import measured_prefixes
from trainer.evaluation.tokenizers.tokenizer_numbers import tokenizer_numbers
from trainer.evaluation.tokenizers.tokenizer_rows import TokenizerRows, columns_of
from trainer.registry import FOLDERS

if TYPE_CHECKING:
    import torch

    from data_pipeline.shards.manifest import ImageManifest
    from model.protocols import Tokenizer

_RECONSTRUCTED = 12


def evaluate(config: RunConfig) -> int:
    """Write evaluation.json and samples/reconstructions.png. Returns the number of samples judged.

    Raises:
        UsageError: if something that is needed is not there, or does not belong to the rest.
    """
    held_out = held_out_images(config)
    is_held_out = held_out != storage.absolute(config.product("images"))
    if not is_held_out:
        console().print("evaluate: no images were held out, so it compares with those that were trained on")
    cards, images, tokens = check_inputs(config, held_out)
    from trainer.evaluation.tokenizers.tokenizer_record import codebook_use, token_record

    device = device_of(config)
    sampler = sampler_of(config, device)
    slots = open_slots_of(networks_of(config, cards), device)
    size, count = cards["tokenizer"].config["image_size"], config.evaluation.samples
    real = ShardSet.of(held_out, size, config.data.fit, count, node_cache(config))
    near = memorization_network(config, slots, is_held_out)
    measured = _measure(config, sampler, slots, real)
    numbers = _numbers(config, sampler, slots, measured)
    beside = _beside_the_tokenizer(config, sampler.tokenizer, held_out, images, device)
    numbers += _probes(config, beside["probe"], measured)
    memorized = _memorization(config, sampler, near, measured)
    numbers += [memorized.number] if memorized else []
    tokens_read = open_run_tokens(config)
    timm = timm_teacher(config)
    first, _ = real.open(device).read(0, min(_RECONSTRUCTED, real.count))
    record: dict[str, Any] = {
        **_run_record(sampler, slots, measured, numbers),
        "numbers": [number.to_json() for number in numbers],
        "codebook_use": codebook_use(tokens_read),
        "tokens": token_record(tokens_read),
        **beside,
        "class_names": list(sampler.class_names),
        "fingerprints": fingerprints_of(cards | sampler.cards)
        | ({"teacher": timm} if timm else {})
        | {"tokens": tokens.fingerprint, "real_images": images.fingerprint},
        "inputs": places(config, FOLDERS),
        "sampling": asked(config),
        "tokenizer": sampler.tokenizer.layout.to_json() | {"fold_names": list(sampler.tokenizer.config.fold_names)},
        "real_images": {"samples": real.count, "fit": config.data.fit, "held_out": is_held_out},
    }
    pictures = {"samples/reconstructions.png": _reconstructions(sampler, first)}
    if memorized:
        record["memorization"], pictures[PICTURE] = memorized.record, memorized.png
    commit(config.run, "evaluation.json", record, pictures)
    measured.forget()
    print_summary(record)
    return count


@dataclass(frozen=True)
class _Measured:
    """Rows of all images of an evaluation."""

    real: ShardSet
    drawn: DrawnSet
    made_by: dict[str, str]
    """Fingerprints of the tokenizer whose reconstructions these are."""
    real_rows: StoredRows
    drawn_rows: StoredRows
    made_rows: StoredRows
    """Of reconstructions of the real images."""

    def forget(self) -> None:
        """Remove the rows that no other evaluation needs."""
        for rows in (self.drawn_rows, self.made_rows):
            storage.remove_tree(rows.plan.folder)


def _measure(config: RunConfig, sampler: Sampler, slots: Sequence[Slot], real: ShardSet) -> _Measured:
    measuring = Measuring.of_run(config, sampler.device)
    drawn = drawn_set(config, sampler, config.evaluation.samples)
    looked = NetworkRows(tuple(slots))
    distances = _without_judge(slots)
    tokenizer = storage.absolute(config.product("tokenizer"))
    made = TokenizerRows.of(tokenizer, sampler.cards["tokenizer"], config.evaluation.rounding, distances)
    return _Measured(
        real,
        drawn,
        made.tokenizer,
        measuring.rows("real", real, looked),
        measuring.rows("samples", drawn, looked, drawn_batch(sampler)),
        measuring.rows("reconstructions", real, made),
    )


def _numbers(config: RunConfig, sampler: Sampler, slots: Sequence[Slot], measured: _Measured) -> list[Number]:
    """All that is measured of samples, of real images, and of reconstructions."""
    real, rounding = measured.real, config.evaluation.rounding
    reference, options = reference_of(real, measured.real_rows), options_of(config)
    made = Naming({"tokenizer": measured.made_by, "images": named_images(real)}, rounding)
    judges = judges_of(slots, sampler.class_names)
    numbers = list(drawn_numbers(measured.drawn, measured.drawn_rows, slots, judges, reference, options))
    numbers += [real_accuracy_number(judge, reference) for judge in judges]
    numbers += set_numbers(_without_judge(slots), measured.made_rows, reference, made, options)
    return numbers + tokenizer_numbers(
        measured.made_rows, columns_of(sampler.tokenizer), {"crop": real.how_cut}, made.of
    )


def _memorization(config: RunConfig, sampler: Sampler, slot: Slot | None, measured: _Measured) -> Memorized | None:
    """Training images that are nearest to samples, if they are asked for."""
    asked, drawn = config.evaluation.memorization, measured.drawn
    if asked is None or slot is None:
        return None
    training = ShardSet.of(
        storage.absolute(config.product("images")), measured.real.size, config.data.fit, None, node_cache(config)
    )
    naming = Naming(drawn_of(drawn.made_by), drawn.rounding)
    samples = Samples(DrawnReader(drawn.work, sampler, drawn.rounding), measured.drawn_rows, naming)
    measuring = Measuring.of_run(config, sampler.device)
    return memorization(asked, slot, measuring, samples, (measured.real, measured.real_rows), training)


def reference_of(real: ShardSet, rows: StoredRows) -> Reference:
    """Real images as what others are compared with."""
    return Reference({"reference": named_images(real), "crop": real.how_cut}, rows)


def options_of(config: RunConfig) -> MetricOptions:
    """What a config chooses of metrics."""
    asked = config.evaluation
    return MetricOptions(resamples=asked.resamples, precision_recall=asked.precision_recall)


def named_images(images: ShardSet) -> dict[str, Any]:
    """Image shards in the name of a number."""
    return {"images": images.fingerprint, "count": images.count}


def drawn_numbers(
    drawn: DrawnSet,
    rows: StoredRows,
    slots: Sequence[Slot],
    judges: Sequence[Judge],
    reference: Reference,
    options: MetricOptions | None = None,
) -> Iterator[Number]:
    """All that is measured of samples."""
    naming = Naming(drawn_of(drawn.made_by), drawn.rounding)
    yield from set_numbers(_without_judge(slots), rows, reference, naming, options)
    for judge in judges:
        yield from accuracy_numbers(judge, rows, naming)


def _without_judge(slots: Sequence[Slot]) -> tuple[Slot, ...]:
    return tuple(slot for slot in slots if slot.name != JUDGE)


def _slot(slots: Sequence[Slot], name: str) -> Slot | None:
    return next((slot for slot in slots if slot.name == name), None)


def _run_record(
    sampler: Sampler, slots: Sequence[Slot], measured: _Measured, numbers: Sequence[Number]
) -> dict[str, Any]:
    """The parts `reconstruction` and `generation`, which the report shows."""
    teacher, judge, rows = _slot(slots, TEACHER), _slot(slots, JUDGE), measured.drawn_rows
    of = {kind: [number for number in numbers if number.pictures == kind] for kind in ("samples", "reconstructions")}
    made = {"frechet_distance": distance_by(of["reconstructions"], teacher)}
    drawn = {"samples": rows.count, "frechet_distance": distance_by(of["samples"], teacher)}
    return {
        "reconstruction": {"prefixes": list(measured_prefixes(sampler.tokenizer))} | quality_record(numbers) | made,
        "generation": drawn | accuracy_record(rows, measured.real_rows, judge, len(sampler.class_names)),
    }


def drawn_batch(sampler: Sampler) -> int:
    """Images that networks see at once: whole batches of the sampler."""
    at_once = sampler.config.cpu_batch if sampler.device.type == "cpu" else sampler.config.batch
    return at_once * max(1, round(BATCH / at_once))


def _beside_the_tokenizer(
    config: RunConfig, tokenizer: Tokenizer, held_out: str, images: ImageManifest, device: torch.device
) -> dict[str, Any]:
    """What its bits are worth without it, and what linear probes find in its branches, as far as is asked for.

    Baselines that the last evaluation has of the same images, at the same bits, are taken from its record.
    """
    from trainer.evaluation.tokenizers import tokenizer_record as records
    from trainer.evaluation.tokenizers.baselines import images_needed

    asked, size, fit = config.evaluation, tokenizer.config.image_size, config.data.fit
    training_images = check_images(storage.absolute(config.product("images")))
    bits = records.bits_of_prefixes(tokenizer.layout, measured_prefixes(tokenizer))
    most = records.most_images(size)
    counts = (min(training_images.samples, images_needed(size), most), min(images.samples, asked.samples, most))
    probed = min(asked.probe_images, most)
    fingerprints = (training_images.fingerprint, images.fingerprint)
    key = records.baseline_key(fingerprints, size, fit, counts, bits)
    known = _known_baselines(config.run, key) if asked.baselines else None
    needed = max(probed, counts[0] if asked.baselines and known is None else 0)
    load = functools.partial(records.LabelledPixels.load, size=size, fit=fit, cache=node_cache(config))
    training, shown = (
        load(uri, most=count) for uri, count in ((config.product("images"), needed), (held_out, counts[1]))
    )
    found: dict[str, Any] = {"baselines": None, "probe": None}
    if asked.baselines:
        made = known or records.baseline_record(training.pixels_NHWC[: counts[0]], shown.pixels_NHWC, bits)
        found["baselines"] = made | {"key": key, "training_images": counts[0]}
    if asked.probe_images:
        found["probe"] = records.probe_record(tokenizer, training.first(probed), shown, device)
    return found


def _probes(config: RunConfig, probe: dict[str, Any] | None, measured: _Measured) -> list[Number]:
    """Linear probes, if there are any."""
    from trainer.evaluation.tokenizers.tokenizer_record import probe_numbers

    if probe is None:
        return []
    training = {"images": check_images(storage.absolute(config.product("images"))).fingerprint}
    real = measured.real
    return list(probe_numbers(probe, training, {"images": real.fingerprint}, real.how_cut, measured.made_by))


def _known_baselines(run: str, key: str) -> dict[str, Any] | None:
    """Those of the last evaluation, if they follow from the same."""
    try:
        record = storage.read_json(storage.join(run, "evaluation.json"))
    except (FileNotFoundError, UsageError):
        return None
    found = record.get("baselines") if isinstance(record, dict) else None
    return found if isinstance(found, dict) and found.get("key") == key else None


def _reconstructions(sampler: Sampler, pixels_NHWC: Pixels) -> bytes:
    """A PNG of some originals beside what is made of each prefix of their tokens."""
    import torch

    from trainer.evaluation.images import image_grid, to_png, to_uint8

    originals = torch.from_numpy(to_model(pixels_NHWC)).to(sampler.device)
    prefixes = sampler.tokenizer.prefixes
    with torch.inference_mode():
        tokens_BLF = sampler.tokenizer.tokenize(originals)
        columns = [originals] + [sampler.tokenizer.detokenize(tokens_BLF, keep) for keep in prefixes]
    pixels = to_uint8(torch.stack(columns, 1).flatten(0, 1))
    labels = ["original"] + [f"{keep} position{'s' * (keep > 1)}" for keep in prefixes]
    grid = image_grid(pixels, len(columns), upscale=max(1, PIXELS_WIDE // pixels.shape[1]), column_labels=labels)
    return to_png(grid)
