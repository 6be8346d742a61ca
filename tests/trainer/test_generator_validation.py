"""A look at held-out tokens while a generator trains: its numbers, its pictures, and that it changes nothing."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from data_pipeline.config import ReadingConfig, TokensConfig
from data_pipeline.errors import UsageError
from data_pipeline.shards import weights
from data_pipeline.shards.image_shards import ImageShards
from data_pipeline.shards.manifest import TokenManifest
from data_pipeline.shards.tokenizers import load_tokenizer
from data_pipeline.tokens.tokenizing import finish, missing, plan_tokens, tokenize_shard
from model.config import NextScaleConfig
from model.generators.next_scale import FoldedGenerator
from model.protocols import SamplingPlan
from model.tokenizers.imagefolder import ImageFolderTokenizer
from tests.trainer import small_runs
from tests.trainer.gloo import run_gloo
from tests.trainer.small_training import EVERYTHING_PARTITIONED
from tests.trainer.test_generator_training import MODEL, TOKENIZER, first_scale
from trainer.checkpoints.catalog import complete_steps
from trainer.config import (
    GeneratorStageConfig,
    GeneratorValidationConfig,
    PicturesConfig,
    SampleDistanceConfig,
    SamplingConfig,
    TrackingConfig,
)
from trainer.evaluation.samples.sampler import UNCONDITIONAL, Sampler, asked_classes, class_names
from trainer.job import HELD_OUT, HELD_OUT_IMAGES, TrainJob
from trainer.loop.worker import run_worker
from trainer.networks import load_generator
from trainer.stages.generator_validation import Drawn, Pictures
from trainer.stages.sample_distance import sample_distance

STEPS, EVERY = 6, 4
SEEN = 11
"""Of 16 samples: four batches of 3, the last of which is smaller."""
LOOKS: dict[str, Any] = {"every": EVERY, "samples": SEEN, "training_samples": 5, "batch": 3}
SHOWN: dict[str, Any] = {"every": 3, "samples_per_class": 2, "classes": [1, 7, 4], "guidance": 1.5, "batch": 4}
SHOWN |= {"most_seconds": None}
COMPARED: dict[str, Any] = {"every": 3, "samples": 9, "guidance": 1.5, "most_seconds": 600}
DISTANCE = "validation_frechet_distance_9"
SAMPLING = {"guidance": 4.0, "temperature": 1.25, "cpu_batch": 4}
"""Of the run; `COMPARED` has another guidance."""

pytestmark = [pytest.mark.xdist_group("gloo"), pytest.mark.slow]


def tokens_of(number: int, salt: int) -> np.ndarray:
    shape = (TOKENIZER.layout.positions, TOKENIZER.layout.folds)
    return np.random.default_rng([number, salt]).integers(0, TOKENIZER.quantizer.vocabulary, shape)


def _encode(left: Iterator[int], salt: int, image_BCHW: np.ndarray) -> np.ndarray:
    return np.stack([tokens_of(next(left), salt) for _ in image_BCHW])


def write(images: str, card: weights.Card, output: str, salt: int) -> str:
    """Tokens that follow from the place of an image, the view and a salt."""
    plan, data = plan_tokens(images, card, TokensConfig(), output, "crop"), ImageShards(images)
    for shard in missing(plan):
        left = iter(range(shard.start, shard.stop))
        tokenize_shard(plan, shard, data, partial(_encode, left, salt))
    finish(plan)
    return output


FREE = MODEL.model_copy(update={"num_classes": 0})


def section(validation: dict[str, Any] | None, model: NextScaleConfig = MODEL, **changes: Any) -> GeneratorStageConfig:
    asked = {"steps": STEPS, "ema_decay": 0.9, "learning_rate": 0.01} | changes
    looks = None if validation is None else GeneratorValidationConfig.model_validate(validation)
    return GeneratorStageConfig(model=model, trainer=small_runs.trainer(**asked), validation=looks)


def job(folder: Path, name: str, asked: GeneratorStageConfig) -> TrainJob:
    inputs = {each: str(folder / each) for each in ("tokens", "tokenizer")} | {HELD_OUT: str(folder / "other")}
    inputs |= {HELD_OUT_IMAGES: str(folder / "images" / "train"), "teacher": str(folder / "teacher" / "export")}
    classes = small_runs.CLASSES if asked.model.classes else ()
    reading, config = ReadingConfig(cache_dir=str(folder / "cache")), {"sampling": SAMPLING}
    arguments = (asked, small_runs.SEED, "pad", reading, inputs, {}, config)
    return TrainJob("generator", str(folder / name), *arguments, classes=classes, tracking=TrackingConfig(wandb="off"))


def train(folder: Path, name: str, asked: GeneratorStageConfig) -> None:
    run_worker(job(folder, name, asked), torch.device("cpu"))


def begin(folder: Path) -> None:
    images = small_runs.write_images(folder)
    torch.manual_seed(0)
    state, config = ImageFolderTokenizer(TOKENIZER).state_dict(), TOKENIZER.model_dump(mode="json")
    card = weights.write_weights(str(folder / "tokenizer"), "tokenizer", config, {"model": state}, {})
    write(images, card, str(folder / "tokens"), 0)
    write(images, card, str(folder / "other"), 1)
    small_runs.train("teacher", folder / "teacher", small_runs.classifier(learning_rate=0.05), images=images)
    train(folder, "blind", section(None))
    train(folder, "watched", section(LOOKS | {"pictures": SHOWN, "distance": COMPARED}))
    train(folder, "pictures", section({"every": 5, "samples": 0, "pictures": {"samples_per_class": 1}}))
    free = LOOKS | {"pictures": SHOWN | {"classes": None}, "distance": COMPARED | {"every": STEPS}}
    train(folder, "free", section(free, model=FREE))
    best = {"keep_best": {"metric": "validation_loss"}, "checkpoint_every": 1, "keep_checkpoints": 1}
    train(folder, "best", section(LOOKS | {"every": 1}, learning_rate=0.3, **best))
    measure(folder, 0)


def on_two(folder: Path) -> None:
    watched = LOOKS | {"pictures": SHOWN, "distance": COMPARED}
    train(folder, "watched-on-two", section(watched, zero_stage=2, micro_batch=4))
    for stage in (0, 3):
        measure(folder, stage)


def measure(folder: Path, stage: int) -> None:
    """Look at the first weights, which do not move."""
    changes: dict[str, Any] = {"zero_stage": stage, "steps": 1, "learning_rate": small_runs.NO_STEP}
    changes |= {"extra": EVERYTHING_PARTITIONED} if stage == 3 else {}
    train(folder, f"measured-{stage}-{dist.get_world_size()}", section(LOOKS | {"distance": COMPARED}, **changes))


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    run_gloo(1, folder, begin, folder)
    run_gloo(2, folder, on_two, folder)
    return folder


def looks(run: Path) -> dict[int, dict[str, Any]]:
    events = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    return {event["step"]: event for event in events if event["event"] == "validation"}


def records(run: Path) -> dict[int, dict[str, Any]]:
    found = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {record["step"]: record for record in found}


def plain_losses(run: Path, salt: int, count: int, model: NextScaleConfig = MODEL) -> np.ndarray:
    """Minus the log of the probability of each true token, [samples, positions, folds], no label hidden."""
    network = FoldedGenerator(model, TOKENIZER.layout, TOKENIZER.forcing_width)
    network.load_state_dict(small_runs.exported(run, "ema"))
    _, state = weights.read_weights(str(run.parent / "tokenizer"), "tokenizer")
    label_B = torch.from_numpy(ImageShards(str(run.parent / "images" / "train")).labels[:count].astype(np.int64))
    label_B = label_B if model.classes else torch.zeros_like(label_B)
    tokens_BLF: Tensor = torch.from_numpy(np.stack([tokens_of(number, salt) for number in range(count)]))
    with torch.no_grad():
        probability = network.eval()(label_B, first_scale(state, tokens_BLF)).double().softmax(-1)
    return -torch.log(probability.gather(-1, tokens_BLF[..., None])[..., 0]).numpy()


def test_the_held_out_loss_is_the_mean_over_held_out_tokens_with_averaged_weights(runs: Path) -> None:
    losses, found = plain_losses(runs / "watched", 1, SEEN), records(runs / "watched")[STEPS]
    assert found["validation_loss"] == pytest.approx(losses.mean(), rel=1e-5)
    for scale, positions in enumerate((slice(0, 1), slice(1, 5))):
        for branch in (0, 1):
            plain = losses[:, positions, branch].mean()
            assert found[f"validation_loss_group{scale}_fold{branch}"] == pytest.approx(plain, rel=1e-5)


def test_training_tokens_are_looked_at_in_the_same_way(runs: Path) -> None:
    found = records(runs / "watched")[STEPS]["validation_training_loss"]
    assert found == pytest.approx(plain_losses(runs / "watched", 0, 5).mean(), rel=1e-5)
    assert looks(runs / "watched")[STEPS]["training"]["loss"] == found


def test_looks_are_at_multiples_of_a_step_and_after_the_last(runs: Path) -> None:
    found = {step: "held_out" in event for step, event in looks(runs / "watched").items()}
    assert found == {3: False, 4: True, 6: True}, "pictures are due at 3 and 6"
    assert [step for step, record in records(runs / "watched").items() if "validation_loss" in record] == [4, 6]


def test_the_event_says_what_was_looked_at(runs: Path) -> None:
    event = looks(runs / "watched")[STEPS]
    assert (event["samples"], event["tokens_per_sample"]) == (SEEN, 10)
    assert event["tokens"] == TokenManifest.read(str(runs / "other")).fingerprint
    assert event["seconds"] >= event["pictures_seconds"] >= 0


@pytest.mark.parametrize("weights_of", ["model", "ema"])
def test_the_run_with_validation_is_the_run_without(runs: Path, weights_of: str) -> None:
    blind, watched = (small_runs.exported(runs / name, weights_of) for name in ("blind", "watched"))
    assert all(torch.equal(blind[name], watched[name]) for name in blind)


@pytest.mark.parametrize("other", ["measured-0-2", "measured-3-2"])
def test_the_numbers_are_the_same_at_any_number_of_ranks(runs: Path, other: str) -> None:
    one, two = (records(runs / name)[1] for name in ("measured-0-1", other))
    assert {name for name in one if name.startswith("validation_")} == {
        name for name in two if name.startswith("validation_")
    }
    for name in (name for name in one if name.startswith("validation_") and name != "validation_seconds"):
        assert one[name] == two[name], name


def test_looks_do_not_depend_on_accumulation_or_ranks(runs: Path) -> None:
    assert looks(runs / "watched-on-two").keys() == looks(runs / "watched").keys()


def frames(run: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((run / "pictures").iterdir())}


def test_pictures_are_files_of_the_run_by_step(runs: Path) -> None:
    assert list(frames(runs / "watched")) == ["samples-000000003.png", "samples-000000006.png"]
    assert list(frames(runs / "pictures")) == ["samples-000000005.png", "samples-000000006.png"]
    assert list(frames(runs / "watched-on-two")) == list(frames(runs / "watched"))
    assert all("validation_loss" not in record for record in records(runs / "pictures").values())


def test_the_last_picture_is_what_the_export_draws(runs: Path) -> None:
    network, _ = load_generator(str(runs / "watched" / "export"), True, torch.device("cpu"))
    tokenizer, _ = load_tokenizer(str(runs / "tokenizer"), "cpu")
    again = Pictures(PicturesConfig.model_validate(SHOWN), tokenizer, small_runs.CLASSES, small_runs.SEED)
    assert again.names == ["class01", "class07", "class04"]
    assert again.draw(network).png == frames(runs / "watched")["samples-000000006.png"]


def by_hand(run: Path, classes: bool = True) -> float:
    """The distance of what the export draws from the held-out images, by plain torch and numpy."""
    network, _ = load_generator(str(run / "export"), True, torch.device("cpu"))
    tokenizer, _ = load_tokenizer(str(run.parent / "tokenizer"), "cpu")
    shards = ImageShards(str(run.parent / "images" / "train"))
    label_N = [int(str(shards.key(index)).split("class")[1][:2]) for index in range(9)]
    sampling = SamplingConfig.model_validate(SAMPLING | {"guidance": 1.5})
    asked_N = torch.tensor(label_N if classes else [0] * 9)
    drawn = torch.cat(list(Sampler(network, tokenizer, {}, sampling, small_runs.SEED).draw(asked_N)))
    drawn = ((drawn.double() + 1) * 127.5 + 0.5).floor().clip(0, 255).float() / 127.5 - 1
    teacher = small_runs.exported(run.parent / "teacher")
    made, real = (
        small_runs.plain_features(teacher, each).double().numpy() for each in (drawn, small_runs.images()[label_N])
    )
    means, covariances = [each.mean(0) for each in (made, real)], [np.cov(each.T) for each in (made, real)]
    roots = np.sqrt(np.linalg.eigvals(covariances[0] @ covariances[1]).real.clip(0)).sum()
    return float(((means[0] - means[1]) ** 2).sum() + np.trace(covariances[0]) + np.trace(covariances[1]) - 2 * roots)


def test_the_last_distance_is_that_of_what_the_export_draws_from_the_held_out_images(runs: Path) -> None:
    assert records(runs / "watched")[STEPS][DISTANCE] == pytest.approx(by_hand(runs / "watched"), rel=1e-4)
    assert looks(runs / "watched")[STEPS]["distance"]["value"] == records(runs / "watched")[STEPS][DISTANCE]


def test_a_distance_of_a_generator_that_learns_no_classes_is_of_samples_without_one(runs: Path) -> None:
    assert records(runs / "free")[STEPS][DISTANCE] == pytest.approx(by_hand(runs / "free", False), rel=1e-4)


def test_samples_of_a_distance_have_the_classes_of_the_held_out_images_and_the_settings_of_sampling(runs: Path) -> None:
    """Of so short a training classes change few tokens: what the network is asked tells."""
    network, _ = load_generator(str(runs / "watched" / "export"), True, torch.device("cpu"))
    tokenizer, card = load_tokenizer(str(runs / "tokenizer"), "cpu")
    config = SampleDistanceConfig.model_validate(COMPARED)
    distance = sample_distance(job(runs, "watched", section(None)), config, tokenizer, card, torch.device("cpu"))
    asked: list[SamplingPlan] = []
    sample = network.sample
    network.sample = lambda plan, forcing: asked.append(plan) or sample(plan, forcing)  # type: ignore[method-assign,func-returns-value]
    numbers = distance.measure(network, STEPS).numbers
    shards = ImageShards(str(runs / "images" / "train"))
    labels = [int(str(shards.key(index)).split("class")[1][:2]) for index in range(9)]
    assert torch.cat([plan.condition_B for plan in asked])[:9].tolist() == labels
    assert {(plan.guidance, plan.temperature, len(plan.condition_B)) for plan in asked} == {(1.5, 1.25, 4)}
    assert numbers == {DISTANCE: records(runs / "watched")[STEPS][DISTANCE]}, "the same weights have the same distance"


def test_distances_have_steps_of_their_own_and_the_last(runs: Path) -> None:
    for name in ("watched", "watched-on-two"):
        assert [step for step, record in records(runs / name).items() if DISTANCE in record] == [3, 6]


def test_the_event_names_what_is_compared_by_what(runs: Path) -> None:
    found = looks(runs / "watched")[STEPS]["distance"]
    card = weights.read_card(str(runs / "teacher" / "export"), "teacher")
    assert found["measured_by"]["network"]["sha256"] == card.files["model"]
    assert (
        found["measured_by"]["reference"]["images"] == ImageShards(str(runs / "images" / "train")).manifest.fingerprint
    )
    assert (found["images"], found["measured_by"]["reference"]["count"]) == (9, 9)
    of = found["measured_of"]
    assert (of["generator"], of["weights"], of["seed"]) == ({"step": STEPS}, "ema", small_runs.SEED)
    assert (of["sampling"]["guidance"], of["sampling"]["temperature"]) == (1.5, 1.25)
    assert of["tokenizer"]["decoder"] == weights.read_card(str(runs / "tokenizer"), "tokenizer").decoder()


def test_each_row_of_a_picture_has_its_class(runs: Path) -> None:
    network, _ = load_generator(str(runs / "watched" / "export"), True, torch.device("cpu"))
    tokenizer, _ = load_tokenizer(str(runs / "tokenizer"), "cpu")
    config = PicturesConfig.model_validate(SHOWN)
    asked: list[Tensor] = []
    sample = network.sample
    network.sample = lambda plan, forcing: asked.append(plan.condition_B) or sample(plan, forcing)  # type: ignore[method-assign,func-returns-value]
    Pictures(config, tokenizer, small_runs.CLASSES, 0).draw(network)
    assert torch.cat(asked)[:6].tolist() == [1, 1, 7, 7, 4, 4], "a batch on a CPU is filled up behind them"


def test_after_the_time_that_pictures_may_take_no_further_batch_is_begun_and_that_is_said(runs: Path) -> None:
    network, _ = load_generator(str(runs / "watched" / "export"), True, torch.device("cpu"))
    tokenizer, _ = load_tokenizer(str(runs / "tokenizer"), "cpu")
    config = PicturesConfig.model_validate(SHOWN | {"most_seconds": 4.5, "cpu_batch": 1})
    seconds = iter(range(100))
    drawn = Pictures(config, tokenizer, small_runs.CLASSES, small_runs.SEED, lambda: float(next(seconds))).draw(network)
    assert drawn.details == {"pictures_seconds": 6.0, "pictures_left_out": 1}
    assert drawn.png not in {None, frames(runs / "watched")["samples-000000006.png"]}


def test_a_picture_for_which_there_is_no_memory_is_left_out_with_the_reason(runs: Path) -> None:
    network, _ = load_generator(str(runs / "watched" / "export"), True, torch.device("cpu"))
    tokenizer, _ = load_tokenizer(str(runs / "tokenizer"), "cpu")

    def full(*_: object) -> Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory.\nSee the docs")

    network.sample = full  # type: ignore[method-assign]
    drawn = Pictures(PicturesConfig.model_validate(SHOWN), tokenizer, small_runs.CLASSES, 0).draw(network)
    assert drawn == Drawn(None, {"pictures_failed": "CUDA out of memory."})


def test_of_many_classes_some_at_even_distances_are_drawn(runs: Path) -> None:
    tokenizer, _ = load_tokenizer(str(runs / "tokenizer"), "cpu")
    names = tuple(map(str, range(1000)))
    assert Pictures(PicturesConfig(most_classes=4), tokenizer, names, 0).labels == (0, 333, 666, 999)
    assert Pictures(PicturesConfig(most_classes=4), tokenizer, names[:3], 0).labels == (0, 1, 2)


def test_a_generator_that_learns_no_classes_trains_its_single_row(runs: Path) -> None:
    losses = plain_losses(runs / "free", 1, SEEN, FREE)
    assert records(runs / "free")[STEPS]["validation_loss"] == pytest.approx(losses.mean(), rel=1e-5)
    assert small_runs.exported(runs / "free")["class_embed.weight"].shape[0] == 1


def test_a_generator_that_learns_no_classes_is_drawn_from_like_any_other(runs: Path) -> None:
    network, card = load_generator(str(runs / "free" / "export"), True, torch.device("cpu"))
    tokenizer, _ = load_tokenizer(str(runs / "tokenizer"), "cpu")
    assert (class_names(card), asked_classes(card, SamplingConfig())) == ((UNCONDITIONAL,), (0,))
    with pytest.raises(UsageError, match=r"\[3\] are not among"):
        asked_classes(card, SamplingConfig(classes=(3,)))
    config = PicturesConfig.model_validate(SHOWN | {"classes": None})
    drawn = Pictures(config, tokenizer, card.classes, small_runs.SEED).draw(network).png
    assert drawn == frames(runs / "free")["samples-000000006.png"]


def test_the_checkpoint_with_the_least_held_out_loss_is_kept(runs: Path) -> None:
    losses = {step: record["validation_loss"] for step, record in records(runs / "best").items()}
    least = min(losses, key=lambda step: losses[step])
    assert least < STEPS, "so fast a training gets worse"
    assert complete_steps(str(runs / "best" / "checkpoints")) == [least, STEPS]


def test_a_best_checkpoint_is_only_looked_for_where_the_number_is_known() -> None:
    best = {"keep_best": {"metric": "validation_loss"}, "steps": 100}
    with pytest.raises(ValueError, match="none are asked for: add the section validation"):
        section(None, **best)
    with pytest.raises(ValueError, match=r"every 4 steps .*every 6 .*make the second a multiple of the first"):
        section(LOOKS, checkpoint_every=6, **best)
    assert section(LOOKS, checkpoint_every=8, **best)


def test_pictures_of_other_weights_or_of_too_many_classes_are_refused() -> None:
    with pytest.raises(ValueError, match="the moving average is looked at"):
        PicturesConfig(ema=False)
    with pytest.raises(ValueError, match="65 classes are more rows than a picture has: name at most 64"):
        PicturesConfig(classes=tuple(range(65)))


def test_nothing_to_look_at_is_refused() -> None:
    with pytest.raises(ValueError, match="so nothing is looked at: set validation to null"):
        GeneratorValidationConfig(samples=0)
