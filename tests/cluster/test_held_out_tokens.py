"""`tokenize` makes tokens of held-out images, too, and `train-generator` finds them."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch

from cluster.config.run import RunConfig
from cluster.pool import tokenizing
from cluster.stages.inputs import held_out_to_tokenize, held_out_tokens
from cluster.stages.train_jobs import train_job
from data_pipeline.config import DataConfig, FolderSource
from data_pipeline.errors import UsageError
from data_pipeline.ingest.ingesting import ingest
from data_pipeline.leases.owned_folders import Owned, lease_folder
from data_pipeline.shards.image_shards import ImageShards
from data_pipeline.shards.manifest import TokenManifest
from data_pipeline.shards.token_reader import TokenReader
from data_pipeline.shards.weights import read_card, write_weights
from data_pipeline.tokens.commits import Commits
from data_pipeline.tokens.plan import PlannedSets, TokenPlan, plan_tokens
from data_pipeline.tools.verifying import verify
from model.classifier import Classifier
from model.config import ClassifierConfig
from model.tokenizers.imagefolder import ImageFolderTokenizer
from tests.data_pipeline.small_data import TOKENIZER, contents, jpeg, write_tokens
from trainer.config import GeneratorStageConfig, TokenizerStageConfig
from trainer.config.feature_networks import InceptionNetwork
from trainer.job import HELD_OUT, HELD_OUT_IMAGES
from trainer.registry import stage_named

GENERATOR: dict[str, Any] = {"model": {"depth": 1, "width": 16, "heads": 2}, "trainer": {"steps": 4, "global_batch": 4}}
Configure = Callable[..., RunConfig]


@pytest.fixture(scope="module")
def ingested(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An export, ten images for training and five that were held out, at most four to a shard."""
    folder = tmp_path_factory.mktemp("ingested")
    torch.manual_seed(0)
    weights = {"model": ImageFolderTokenizer(TOKENIZER).state_dict()}
    write_weights(str(folder / "export"), "tokenizer", TOKENIZER.model_dump(mode="json"), weights, {})
    for label in ("cat", "dog", "emu"):
        for number in range(5):
            path = folder / "raw" / label / f"{number}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(jpeg(7 * number + len(label) + ord(label[0])))
    source = FolderSource(path=str(folder / "raw"))
    for name, count in (("images", 5), ("all", 0)):
        ingest(DataConfig(source=source, shard_samples=4, validation_samples=count), str(folder / name), seed=0)
    return folder


@pytest.fixture
def configure(ingested: Path, tmp_path: Path) -> Configure:
    def make(images: str = "images", generator: dict[str, Any] | None = None, **inputs: str) -> RunConfig:
        given = {"images": str(ingested / images / "train"), "tokenizer": str(ingested / "export"), **inputs}
        record = {"run": str(tmp_path / "run"), "inputs": given, "tokens": {"shard_samples": 4, "views": ["ten_crop"]}}
        return RunConfig.model_validate(record | {"generator": generator})

    return make


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Shards that this process makes in place of a pool, as they are made; `killed` stands for the end of one."""
    made: list[str] = []

    def make(work: tokenizing.TokenizeWork, there: Any, *_: object) -> None:
        do = work.open(1)
        for number in there.missing.tolist():
            if work.sets.name(number) in made:
                raise KeyboardInterrupt
            there.add(number, **do(number, lambda _images: None))
            made.append(work.sets.name(number))

    monkeypatch.setattr(tokenizing, "ray_session", lambda _: nullcontext())
    monkeypatch.setattr(tokenizing, "require_gpus", lambda *_: None)
    monkeypatch.setattr(tokenizing, "_make", make)
    return made


def tokenize(config: RunConfig) -> int:
    return tokenizing.tokenize(config, held_out_to_tokenize(config))


ALL = ["tokens-00000.tar", "tokens-00001.tar", "tokens-00002.tar"]
BESIDE = ["held_out/tokens-00000.tar", "held_out/tokens-00001.tar"]


def test_held_out_images_become_tokens_of_their_own_made_like_the_others(
    configure: Configure, made: list[str], ingested: Path
) -> None:
    config = configure()
    assert tokenize(config) == 15
    assert made == ALL + BESIDE
    uri = held_out_tokens(config)
    assert uri == f"{config.folder('tokens')}/held_out"
    tokens, held_out = TokenManifest.read(config.folder("tokens")), TokenManifest.read(uri)
    alike = ("tokenizer", "layout", "views", "classes", "fit", "decode", "precision", "image_size")
    assert all(getattr(tokens, name) == getattr(held_out, name) for name in alike)
    assert (tokens.samples, held_out.samples) == (10, 5)
    images = ImageShards(str(ingested / "images" / "validation"))
    assert held_out.source == images.manifest.fingerprint
    assert TokenReader(uri, held_out).samples(0, 5).key.tolist() == images.keys.tolist()


def test_held_out_tokens_pass_verification_against_the_images_that_it_finds(
    configure: Configure, made: list[str]
) -> None:
    config = configure()
    tokenize(config)
    for uri in (config.folder("tokens"), f"{config.folder('tokens')}/held_out"):
        report = verify(uri)
        texts = {check.name: check.summary for check in report.checks}
        assert report.passed, texts
        assert "images" in texts["against images"], texts
        assert texts["other files"] == "none", texts


def test_nothing_is_made_where_no_image_was_held_out(configure: Configure, made: list[str]) -> None:
    config = configure("all")
    assert tokenize(config) == 15
    assert not any(name.startswith("held_out") for name in made)
    assert held_out_tokens(config) is None


def test_what_is_committed_of_either_set_is_not_made_again(configure: Configure, made: list[str]) -> None:
    config, folder = configure(), Path(configure().folder("tokens"))
    made.append(BESIDE[1])  # the pool dies before the last shard
    with pytest.raises(KeyboardInterrupt):
        tokenize(config)
    assert not list(folder.rglob("manifest.json"))
    made.clear()
    assert tokenize(config) == 1
    assert made == BESIDE[1:]
    before = contents(folder)
    assert tokenize(config) == 0
    assert contents(folder) == before


def test_where_the_tokens_are_finished_their_held_out_tokens_are(
    configure: Configure, made: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    config, finish = configure(), tokenizing.finish

    def killed(plan: TokenPlan, commits: Commits) -> None:
        finish(plan, commits)
        raise KeyboardInterrupt

    monkeypatch.setattr(tokenizing, "finish", killed)
    with pytest.raises(KeyboardInterrupt):
        tokenize(config)
    tokens = Path(config.folder("tokens"))
    assert [(tokens / name / "manifest.json").exists() for name in ("held_out", ".")] == [True, False]


def test_a_finished_set_of_an_earlier_version_gets_its_held_out_tokens(configure: Configure, made: list[str]) -> None:
    config = configure()
    tokenizing.tokenize(config)
    assert (made, held_out_tokens(config)) == (ALL, None)
    assert tokenize(config) == 5
    assert held_out_tokens(config) is not None


def test_held_out_tokens_that_the_run_is_given_are_not_made(
    configure: Configure, made: list[str], tmp_path: Path
) -> None:
    given = write_tokens(tmp_path / "given", (4,))
    config = configure(held_out_tokens=given)
    tokenize(config)
    assert made == ALL
    assert held_out_tokens(config) == given


def test_a_run_that_is_named_stands_for_its_held_out_tokens(
    configure: Configure, made: list[str], tmp_path: Path
) -> None:
    tokenize(configure())
    other = configure(held_out_tokens=str(tmp_path / "run"))
    assert held_out_tokens(other) == f"{tmp_path / 'run'}/tokens/held_out"


# ------------------------------------------------------------------------------------------- what a generator looks at


LOOKS = {"validation": {"every": 2, "samples": 5, "batch": 2}}


def test_a_generator_that_is_to_look_is_handed_the_held_out_tokens(configure: Configure, made: list[str]) -> None:
    tokenize(configure())
    job = train_job(configure(generator=GENERATOR | LOOKS), stage_named("train-generator"))
    assert job.inputs[HELD_OUT] == f"{configure().folder('tokens')}/held_out"
    assert job.manifests[HELD_OUT].samples == 5
    assert HELD_OUT not in job.lineage, "that one looks on changes nothing"
    assert HELD_OUT not in train_job(configure(generator=GENERATOR), stage_named("train-generator")).inputs


def test_without_held_out_tokens_the_key_and_the_ways_out_are_named(configure: Configure, made: list[str]) -> None:
    config = configure("all", generator=GENERATOR | LOOKS)
    tokenize(config)
    with pytest.raises(UsageError, match=r"generator\.validation .*validation_samples.*inputs\.held_out_tokens.*null"):
        train_job(config, stage_named("train-generator"))


def test_the_training_tokens_themselves_are_no_held_out_tokens(
    configure: Configure, made: list[str], tmp_path: Path
) -> None:
    config = configure("all", generator=GENERATOR | LOOKS)
    tokenize(config)
    copied = shutil.copytree(config.folder("tokens"), tmp_path / "copied")
    again = configure("all", generator=GENERATOR | LOOKS, held_out_tokens=str(copied))
    with pytest.raises(UsageError, match=r"inputs\.held_out_tokens.*the same images as the tokens"):
        train_job(again, stage_named("train-generator"))


def test_held_out_tokens_of_another_tokenizer_are_refused(
    configure: Configure, made: list[str], tmp_path: Path
) -> None:
    tokenize(configure())
    config = configure(generator=GENERATOR | LOOKS, held_out_tokens=write_tokens(tmp_path / "given", (4,)))
    with pytest.raises(UsageError, match=r"inputs\.held_out_tokens.*another tokenizer"):
        train_job(config, stage_named("train-generator"))


@pytest.mark.parametrize(
    ("pictures", "words"),
    [
        ({"classes": [3]}, r"generator\.validation\.pictures\.classes: \[3\] are not among the data's classes 0 to 2"),
        (
            {"order": {"steps": 8}},
            r"validation\.pictures: sampling\.order\.steps is no option of a next-scale",
        ),
    ],
)
def test_pictures_that_cannot_be_drawn_are_refused_before_any_step(
    configure: Configure, made: list[str], pictures: dict[str, Any], words: str
) -> None:
    tokenize(configure())
    asked = GENERATOR | {"validation": {"samples": 0, "pictures": pictures}}
    with pytest.raises(UsageError, match=words):
        train_job(configure(generator=asked), stage_named("train-generator"))


def test_no_class_is_drawn_of_a_generator_that_learns_none(configure: Configure, made: list[str]) -> None:
    tokenize(configure())
    free: dict[str, Any] = {**GENERATOR, "model": {**GENERATOR["model"], "num_classes": 0}}
    asked = free | {"validation": {"samples": 0, "pictures": {"classes": [0]}}}
    with pytest.raises(UsageError, match="are not among what a generator knows that learns no classes"):
        train_job(configure(generator=asked), stage_named("train-generator"))
    asked = free | {"validation": {"samples": 5, "pictures": {}}}
    assert train_job(configure(generator=asked), stage_named("train-generator")).classes == ()


# --------------------------------------------------------------------------------------- what samples are compared with


TIMM = {"kind": "timm", "network": "resnet18"}


def compared(**distance: Any) -> dict[str, Any]:
    return GENERATOR | {"validation": {"samples": 0, "distance": {"samples": 5, "network": TIMM} | distance}}


def test_a_generator_with_a_distance_is_handed_the_held_out_images(
    configure: Configure, made: list[str], ingested: Path
) -> None:
    tokenize(configure())
    job = train_job(configure(generator=compared()), stage_named("train-generator"))
    assert job.inputs[HELD_OUT_IMAGES] == str(ingested / "images" / "validation")
    assert job.manifests[HELD_OUT_IMAGES].samples == 5
    assert (HELD_OUT in job.inputs, "teacher" in job.inputs) == (False, False)
    assert not {HELD_OUT_IMAGES, "teacher"} & job.lineage.keys(), "that one looks on changes nothing"


def test_without_a_network_it_is_handed_the_teacher_of_the_run(
    configure: Configure, made: list[str], tmp_path: Path
) -> None:
    tokenize(configure())
    teacher, config = str(tmp_path / "other" / "teacher" / "export"), ClassifierConfig(image_size=16, num_classes=3)
    write_weights(teacher, "teacher", config.model_dump(mode="json"), {"model": Classifier(config).state_dict()}, {})
    asked = configure(generator=compared(network=None), teacher=str(tmp_path / "other"))
    job = train_job(asked, stage_named("train-generator"))
    assert job.inputs["teacher"] == teacher
    assert "teacher" not in job.lineage
    with pytest.raises(ValueError, match=r"features of the run's own teacher, and there is none: name .*\.network"):
        configure(generator=compared(network=None))


@pytest.mark.parametrize(
    ("images", "distance", "words"),
    [
        ("images", {"samples": 6}, r"distance\.samples is 6, and .* has 5 held-out images.*set it to 5 at most"),
        ("all", {}, r"validation\.distance compares samples with images that nothing is trained on.*inputs\.images"),
        (
            "images",
            {"network": {"kind": "inception", "file": "/nowhere/inception.pth"}},
            r"validation\.distance\.network\.file: there is no /nowhere/inception\.pth",
        ),
    ],
)
def test_a_distance_that_cannot_be_measured_is_refused_before_any_step(
    configure: Configure, made: list[str], images: str, distance: dict[str, Any], words: str
) -> None:
    tokenize(configure(images))
    with pytest.raises(UsageError, match=words):
        train_job(configure(images, generator=compared(**distance)), stage_named("train-generator"))


def test_the_network_of_a_distance_is_the_same_file_on_every_node(
    configure: Configure, made: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenize(configure())
    monkeypatch.chdir(tmp_path)
    (tmp_path / "weights.pth").write_bytes(b"")
    asked = compared(network={"kind": "inception", "file": "weights.pth"})
    job = train_job(configure(generator=asked), stage_named("train-generator"))
    assert isinstance(job.section, GeneratorStageConfig)
    assert job.section.validation is not None
    assert job.section.validation.distance is not None
    network = job.section.validation.distance.network
    assert isinstance(network, InceptionNetwork)
    assert network.file == str(tmp_path / "weights.pth")


def test_reconstructions_are_compared_with_as_many_images_as_were_held_out(
    configure: Configure, made: list[str]
) -> None:
    def asked(images: int) -> RunConfig:
        section = {"model": TOKENIZER.model_dump(mode="json"), "trainer": {"steps": 4, "global_batch": 4}}
        looks = {"images": 5, "strip": 0, "distance": {"images": images, "network": TIMM}}
        return configure().model_copy(
            update={
                "inputs": configure().inputs.model_copy(update={"tokenizer": None}),
                "tokenizer": TokenizerStageConfig.model_validate(section | {"validation": looks}),
            }
        )

    assert train_job(asked(5), stage_named("train-tokenizer")).manifests[HELD_OUT].samples == 5
    with pytest.raises(UsageError, match=r"tokenizer\.validation\.distance\.images is 6"):
        train_job(asked(6), stage_named("train-tokenizer"))


# ---------------------------------------------------------------------------------------------------------- arithmetic


def test_shards_of_several_sets_are_numbered_one_set_after_the_other(configure: Configure, ingested: Path) -> None:
    card, tokens = read_card(str(ingested / "export"), "tokenizer"), configure().tokens
    plans = [
        plan_tokens(str(ingested / "images" / split), card, tokens, output, "crop")
        for split, output in (("train", "s3://a/tokens"), ("validation", "s3://a/tokens/held_out"))
    ]
    sets = PlannedSets(tuple(plans))
    assert sets.firsts == (0, 3, 5)
    assert [sets.place(number) for number in range(5)] == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1)]
    assert [sets.name(number) for number in range(5)] == ALL + BESIDE
    assert [sets.shard(number).samples for number in range(5)] == [4, 4, 2, 4, 1]


def test_who_cleans_up_held_out_tokens_asks_for_the_lease_of_the_tokens() -> None:
    assert lease_folder(Owned("tokens/held_out", {"kind": "tokens"})) == "tokens"
    assert lease_folder(Owned("x/held_out", {"kind": "images"})) == "x/held_out"
