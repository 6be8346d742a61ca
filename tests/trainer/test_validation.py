"""A look at held-out images while a tokenizer trains: its numbers, and that it changes nothing of the training."""

from __future__ import annotations

import itertools
import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from PIL import Image
from safetensors.torch import load_file

from data_pipeline.config import ReadingConfig
from data_pipeline.shards.image_shards import ImageShards
from data_pipeline.shards.weights import read_card
from model.tokenizers.imagefolder import ImageFolderTokenizer
from tests.trainer import small_runs
from tests.trainer.gloo import run_gloo
from tests.trainer.small_training import EVERYTHING_PARTITIONED
from tests.trainer.test_tokenizer_training import MODEL
from trainer.config import TokenizerLossConfig, TokenizerStageConfig, TrackingConfig, TrainerConfig, ValidationConfig
from trainer.engine.deepspeed_engine import DeepSpeedEngine, prepare_deepspeed
from trainer.engine.engine import train
from trainer.engine.gathering import NetworkCopy
from trainer.engine.trainable import Trainable
from trainer.job import HELD_OUT, TrainJob
from trainer.loop.compose import build_loop
from trainer.stages.image_losses import ImageLosses
from trainer.stages.tokenizer import TokenizerStage
from trainer.stages.validation import spread

STEPS, EVERY = 6, 2
LOOKS = {"every": EVERY, "images": 11, "training_images": 5, "batch": 3, "strip": 4}
"""Of 16 images: four batches, the last of which is smaller."""
COMPARED: dict[str, Any] = {"every": 3, "images": 10, "most_seconds": 600}
DISTANCE = "validation_frechet_distance_10"


def section(validation: dict[str, Any] | None, **changes: Any) -> TokenizerStageConfig:
    trainer = small_runs.trainer(steps=STEPS, ema_decay=0.9, learning_rate=0.01, **changes)
    loss = TokenizerLossConfig.model_validate(
        {"semantic": {"weight": 0.2}, "perceptual": [{"kind": "teacher", "weight": 0.5}]}
    )
    looks = None if validation is None else ValidationConfig.model_validate(validation)
    model = MODEL.model_copy(update={"quantizer_dropout": 0.3})
    return TokenizerStageConfig(model=model, loss=loss, trainer=trainer, dead_code_steps=2, validation=looks)


def job(folder: Path, name: str, asked: TokenizerStageConfig) -> TrainJob:
    """Validation looks at the training images: what they are matters to nobody here."""
    images, teacher = str(folder / "images" / "train"), str(folder / "teacher" / "export")
    inputs = {"images": images, "teacher": teacher, HELD_OUT: images}
    arguments = (asked, small_runs.SEED, "pad", ReadingConfig(cache_dir=str(folder / "cache")), inputs, {}, {})
    shown = {"classes": small_runs.CLASSES, "tracking": TrackingConfig(wandb="off")}
    return TrainJob("tokenizer", str(folder / name), *arguments, **shown)


def train_job(asked: TrainJob, stop_at: int | None = None) -> None:
    torch.manual_seed(asked.seed)
    stage = TokenizerStage(asked, torch.device("cpu"))
    loop = build_loop(asked, stage, torch.device("cpu"))
    if stop_at is not None and stage.validation is not None:
        look = stage.validation.look

        def killed(engine: DeepSpeedEngine, step: int) -> Any:
            if loop.step == stop_at:
                loop.writer.finish()  # the checkpoint of step 3 is complete
                raise KeyboardInterrupt
            return look(engine, step)

        stage.validation.look = killed  # type: ignore[method-assign]
    torch.manual_seed(99)
    loop.run()
    assert torch.rand(1) == torch.rand(1, generator=torch.Generator().manual_seed(99)), "a random number was drawn"


def begin(folder: Path) -> None:
    images = small_runs.write_images(folder)
    small_runs.train("teacher", folder / "teacher", small_runs.classifier(learning_rate=0.05, steps=3), images=images)
    train_job(job(folder, "blind", section(None)))
    train_job(job(folder, "watched", section(LOOKS | {"distance": COMPARED})))
    killed = job(folder, "killed", section(LOOKS | {"distance": COMPARED}, checkpoint_every=3))
    with pytest.raises(KeyboardInterrupt):
        train_job(killed, stop_at=4)
    train_job(killed)
    measure(folder, 0)


def on_two(folder: Path) -> None:
    train_job(job(folder, "blind-on-two", section(None, zero_stage=2)))
    train_job(job(folder, "watched-on-two", section(LOOKS | {"distance": COMPARED}, zero_stage=2)))
    for stage in (0, 3):
        measure(folder, stage)


def measure(folder: Path, stage: int) -> None:
    """Look at the first weights, which do not move, on all ranks."""
    changes = {"zero_stage": stage} | ({"extra": EVERYTHING_PARTITIONED} if stage == 3 else {})
    trainer = small_runs.trainer(steps=1, ema_decay=0.9, learning_rate=small_runs.NO_STEP, **changes)
    asked = section(LOOKS | {"distance": COMPARED}).model_copy(update={"trainer": trainer, "dead_code_steps": 0})
    train_job(job(folder, f"measured-{stage}-{dist.get_world_size()}", asked))


pytestmark = [pytest.mark.xdist_group("gloo"), pytest.mark.slow]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    run_gloo(1, folder, begin, folder, patience=400)
    run_gloo(2, folder, on_two, folder, patience=400)
    return folder


def weights(folder: Path) -> dict[str, bytes]:
    return {each.name: each.read_bytes() for each in (folder / "export").glob("*.safetensors")}


def looks(folder: Path, key: str = "mse") -> list[dict[str, Any]]:
    records = map(json.loads, (folder / "events.jsonl").read_text().splitlines())
    return [record for record in records if record["event"] == "validation" and key in record]


def metrics(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("where", ["", "-on-two"])
def test_a_run_with_validation_equals_one_without_bit_for_bit(runs: Path, where: str) -> None:
    watched, blind = weights(runs / f"watched{where}"), weights(runs / f"blind{where}")
    assert watched.keys() == {"model.safetensors", "ema.safetensors"}
    assert watched == blind


def test_a_run_that_was_killed_within_a_look_ends_as_if_it_had_not_been(runs: Path) -> None:
    assert weights(runs / "killed") == weights(runs / "blind")
    steps = [each["step"] for each in looks(runs / "killed")]
    assert steps == [2, 4, 6]
    assert metrics(runs / "killed")[-1][DISTANCE] == metrics(runs / "watched")[-1][DISTANCE]
    for name in ("mse", "psnr", "ssim", "perceptual", "codes", "training"):
        assert [each[name] for each in looks(runs / "killed")] == [each[name] for each in looks(runs / "watched")]


def test_a_look_is_had_every_so_many_steps_and_has_its_record(runs: Path) -> None:
    found = {each["step"]: each for each in metrics(runs / "watched") if "validation_mse" in each}
    assert sorted(found) == [2, 4, 6]
    for event in looks(runs / "watched"):
        record = found[event["step"]]
        assert record["validation_mse"] == event["mse"][-1]
        assert record["validation_mse_of_1"] == event["mse"][0]
        assert record["validation_psnr"] == event["psnr"][-1]
        assert record["validation_training_mse"] == event["training"]["mse"][-1]
        assert record["validation_use_semantic"] == event["codes"]["semantic"]["use"][-1]
        assert record["validation_seconds"] > 0
    assert not any("validation_seconds" in each for each in metrics(runs / "watched") if each["step"] in {1, 5})


def test_epochs_are_counted_in_images(runs: Path) -> None:
    assert [each["epoch"] for each in metrics(runs / "watched")] == [1, 2, 3, 4, 5, 6]


def expected(runs: Path, count: int) -> dict[str, Any]:
    """The numbers of the exported moving average, image by image."""
    network = ImageFolderTokenizer(MODEL).eval()
    network.load_state_dict(load_file(runs / "watched" / "export" / "ema.safetensors"))
    shards = ImageShards(str(runs / "images" / "train"))
    order = [int(str(shards.key(index)).split("class")[1][:2]) for index in range(count)]
    image = small_runs.images()[order]
    teacher = small_runs.exported(runs / "teacher")
    with torch.no_grad():
        tokens = torch.cat([network.tokenize(each[None]) for each in image])
        made = [torch.cat([network.detokenize(each[None], keep) for each in tokens]) for keep in (1, 5)]
    errors = [(each - image).square().mean((1, 2, 3)).double() for each in made]
    features = [small_runs.plain_features(teacher, each) for each in (*made, image)]
    used = [[len(tokens[:, span, fold].unique()) / 12 for span in (slice(0, 1), slice(1, 5))] for fold in (0, 1)]
    return {
        "mse": [float(error.mean()) for error in errors],
        "psnr": [float((10 * torch.log10(4 / error)).mean()) for error in errors],
        "perceptual": [float((each - features[-1]).square().mean(1).mean()) for each in features[:-1]],
        "used": used,
    }


def test_the_last_look_has_the_numbers_of_the_exported_average(runs: Path) -> None:
    found, wanted = looks(runs / "watched")[-1], expected(runs, LOOKS["images"])
    assert found["images"] == 11
    assert found["prefixes"] == [1, 5]
    for name in ("mse", "psnr", "perceptual"):
        assert found[name] == pytest.approx(wanted[name], rel=1e-5), name
    assert [found["codes"][name]["use"] for name in ("detail", "semantic")] == wanted["used"]
    assert found["training"]["mse"] == pytest.approx(expected(runs, 5)["mse"], rel=1e-5)


def test_the_last_distance_is_that_of_the_averages_reconstructions_from_the_originals(runs: Path) -> None:
    """In plain torch and numpy: mean and covariance of the teacher's features of bytes."""
    network = ImageFolderTokenizer(MODEL).eval()
    network.load_state_dict(load_file(runs / "watched" / "export" / "ema.safetensors"))
    shards = ImageShards(str(runs / "images" / "train"))
    image = small_runs.images()[[int(str(shards.key(index)).split("class")[1][:2]) for index in range(10)]]
    with torch.no_grad():
        made = torch.cat([network.detokenize(network.tokenize(each[None])) for each in image])
    made = ((made.double() + 1) * 127.5 + 0.5).floor().clip(0, 255).float() / 127.5 - 1
    teacher = small_runs.exported(runs / "teacher")
    features = [small_runs.plain_features(teacher, each).double().numpy() for each in (made, image)]
    (one, other), (first, second) = [each.mean(0) for each in features], [np.cov(each.T) for each in features]
    roots = np.sqrt(np.linalg.eigvals(first @ second).real.clip(0)).sum()
    wanted = float(((one - other) ** 2).sum() + np.trace(first) + np.trace(second) - 2 * roots)
    assert metrics(runs / "watched")[-1][DISTANCE] == pytest.approx(wanted, rel=1e-4)


def test_distances_have_steps_of_their_own_and_events_with_their_names(runs: Path) -> None:
    for name in ("watched", "watched-on-two", "killed"):
        assert [each["step"] for each in metrics(runs / name) if DISTANCE in each] == [3, 6]
    event = looks(runs / "watched", "distance")[0]
    assert (event["step"], "mse" in event, event["distance"]["name"]) == (3, False, DISTANCE)
    assert event["distance"]["measured_of"]["tokenizer"] == {"step": 3}
    assert event["distance"]["measured_by"]["reference"]["count"] == 10


@pytest.mark.parametrize("name", ["watched", "killed"])
def test_the_card_of_the_network_has_what_the_last_look_found(runs: Path, name: str) -> None:
    measured, event = read_card(str(runs / name / "export"), "tokenizer").measured, looks(runs / name)[-1]
    assert measured is not None
    assert (measured.step, measured.images) == (STEPS, 11)
    assert (measured.mse, measured.psnr, measured.ssim) == tuple(event[each][-1] for each in ("mse", "psnr", "ssim"))
    assert measured.codes["semantic"].model_dump(mode="json") == event["codes"]["semantic"]
    assert read_card(str(runs / "blind" / "export"), "tokenizer").measured is None


def test_the_numbers_are_not_those_of_the_weights_as_trained(runs: Path) -> None:
    """Else the test above would say nothing of the average."""
    both = [load_file(runs / "watched" / "export" / f"{name}.safetensors") for name in ("model", "ema")]
    assert max(float((both[0][name] - both[1][name]).abs().max()) for name in both[0]) > 1e-3


def test_each_look_leaves_a_frame_of_the_film_strip(runs: Path) -> None:
    frames = sorted((runs / "watched" / "pictures").iterdir())
    assert [each.name for each in frames] == [f"reconstructions-{step:09d}.png" for step in (2, 4, 6)]
    with Image.open(frames[-1]) as image:
        sheet = np.asarray(image.convert("RGB"))
    side = 64 + 2
    assert sheet.shape[0] == 2 + 3 * side  # the original and two prefixes
    left = sheet.shape[1] - LOOKS["strip"] * side
    shards = ImageShards(str(runs / "images" / "train"))
    first = small_runs.pixels()[int(str(shards.key(0)).split("class")[1][:2])]
    assert (sheet[2 : 2 + 64, left : left + 64] == first.repeat(4, 0).repeat(4, 1)).all()


# ----------------------------------------------------------------------------------- any ZeRO stage and world size


class Odd(torch.nn.Module):
    """Trained, frozen, shared weights and a buffer, none a multiple of two."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = torch.nn.Linear(3, 5), torch.nn.Linear(5, 3, bias=False)
        self.frozen = torch.nn.Linear(3, 3)
        self.frozen.requires_grad_(False)
        self.again = self.first
        self.register_buffer("seen", torch.zeros(1))

    def terms(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"loss": self.frozen(self.second(torch.tanh(self.first(x)))).square().mean()}


def copies(stages: list[int]) -> list[dict[str, Any]]:
    return [copied_at(stage) for stage in stages]


def copied_at(stage: int) -> dict[str, Any]:
    """What a copy computes with the average; what the network is before and after; and the average by arithmetic."""
    prepare_deepspeed(torch.device("cpu"))
    torch.manual_seed(0)
    module = Odd()
    copied = NetworkCopy(module)
    extra = {"extra": EVERYTHING_PARTITIONED} if stage == 3 else {}
    config = TrainerConfig(steps=4, global_batch=4, learning_rate=0.05, ema_decay=0.5, zero_stage=stage, **extra)
    engine = DeepSpeedEngine(Trainable(module), config, torch.device("cpu"))
    names = [name for name, _ in module.named_parameters()]
    average = {name: engine.whole(name) for name in names}
    x = torch.randn(4, 3, generator=torch.Generator().manual_seed(1))
    mine = x.chunk(dist.get_world_size())[dist.get_rank()]
    for step in range(3):
        train(engine, [partial(module.terms, mine)], 0.05)
        module.get_buffer("seen").fill_(step + dist.get_rank())
        average = {name: torch.lerp(average[name], engine.whole(name), 0.5) for name in names}
    before = {name: engine.whole(name).numpy() for name in names}
    with copied.averaged(engine) as network, torch.no_grad():
        found = {name: each.numpy().copy() for name, each in network.named_parameters()}
        output = network.terms(x)["loss"].item()  # type: ignore[operator]
        seen = network.get_buffer("seen").item()
    return {
        "found": found,
        "expected": {name: each.numpy() for name, each in average.items()},
        "unchanged": all((engine.whole(name).numpy() == before[name]).all() for name in names),
        "freed": all(each.is_meta for each in copied._network.parameters()),
        "output": output,
        "seen": seen,
    }


@pytest.mark.parametrize("world", [1, 2])
def test_a_copy_has_the_average_at_any_stage_and_number_of_ranks(tmp_path: Path, world: int) -> None:
    found = run_gloo(world, tmp_path, copies, [0, 1, 2, 3], patience=400)
    for stage in zip(*found, strict=True):
        assert len({each["output"] for each in stage}) == 1
    for each in itertools.chain(*found):
        assert each["found"].keys() == each["expected"].keys()
        for name, value in each["expected"].items():
            np.testing.assert_allclose(each["found"][name], value, rtol=1e-6, atol=1e-7, err_msg=name)
        assert each["unchanged"]
        assert each["freed"]
        assert each["seen"] == 2.0  # of the first rank


def test_the_numbers_are_the_same_on_one_rank_and_on_two(runs: Path) -> None:
    one = looks(runs / "measured-0-1")[-1]
    for stage in (0, 3):
        two = looks(runs / f"measured-{stage}-2")[-1]
        for name in ("mse", "psnr", "ssim", "perceptual"):
            assert two[name] == pytest.approx(one[name], rel=1e-9, abs=1e-9), (stage, name)
        assert two["codes"] == one["codes"]
        assert two["distance"]["value"] == one["distance"]["value"]
        assert two["training"]["mse"] == pytest.approx(one["training"]["mse"], rel=1e-9)


def test_the_losss_own_distance_is_reported_before_that_of_the_teacher() -> None:
    config = TokenizerLossConfig()
    assert ImageLosses(config, [], None).distance is None
    first, second = ((lambda made, image: (made - image).abs().mean((1, 2, 3))) for _ in range(2))
    assert ImageLosses(config, [("perceptual", 0.5, first), ("other", 1.0, second)], None).distance is first


def test_of_many_prefixes_few_are_looked_at_the_last_among_them() -> None:
    assert spread((1, 5, 14)) == (1, 5, 14)
    assert spread(range(1, 129), 4) == (1, 43, 86, 128)
    assert spread((7,)) == (7,)
