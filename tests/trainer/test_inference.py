"""What Python code does with a trained run: encode, decode, reconstruct, sample; with images as people have them."""

from __future__ import annotations

import re
import runpy
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from data_pipeline import storage
from data_pipeline.config import TokensConfig
from data_pipeline.errors import UsageError
from data_pipeline.images.transforms import center_crop, pad
from data_pipeline.node.node_cache import NodeCache
from data_pipeline.shards import weights
from data_pipeline.shards.image_shards import ImageShards
from data_pipeline.shards.token_dataset import TokenShards
from data_pipeline.shards.tokenizers import load_tokenizer as load_network
from data_pipeline.tokens.tokenizing import finish, missing, plan_tokens, tokenize_shard
from foldtrain import Generator, Tokenizer, load_generator, load_tokenizer
from model.config import ImageFolderConfig, NextScaleConfig, VectorConfig, ViTConfig
from tests.data_pipeline.small_data import contents
from tests.trainer import small_runs
from tests.trainer.gloo import run_gloo
from trainer.config import GeneratorStageConfig, SamplingConfig, TokenizerLossConfig, TokenizerStageConfig
from trainer.evaluation.samples.sampler import Sampler

SIZE, COUNT = small_runs.SIZE, small_runs.COUNT
VIT = ViTConfig(width=16, depth=1, heads=2, layer_scale=None)
TOKENIZER = ImageFolderConfig(
    image_size=SIZE,
    patch_size=4,
    scales=(1, 2, 4),
    dropout_min_scales=1,
    quantizer=VectorConfig(codebook_size=64, code_dim=4),
    encoder=VIT,
    decoder=VIT,
)
GENERATOR = NextScaleConfig(num_classes=COUNT + 1, depth=1, width=16, heads=2)


def train_run(folder: Path) -> None:
    images, run = small_runs.write_images(folder), folder / "run"
    long, short = (
        small_runs.trainer(steps=steps, learning_rate=0.01, ema_decay=0.5, log_every=99) for steps in (99, 3)
    )
    section = TokenizerStageConfig(model=TOKENIZER, loss=TokenizerLossConfig(), trainer=long)
    small_runs.train("tokenizer", run / "tokenizer", section, images=images)
    tokenizer, card = load_network(str(run / "tokenizer" / "export"), torch.device("cpu"))

    def encode(image_BCHW: np.ndarray) -> np.ndarray:
        return tokenizer.tokenize(torch.from_numpy(image_BCHW)).numpy().astype(np.uint16)

    plan = plan_tokens(images, card, TokensConfig(views=("center",)), str(run / "tokens"), "crop")
    for shard in missing(plan):
        tokenize_shard(plan, shard, ImageShards(images), encode)
    finish(plan)
    inputs = {"tokens": plan.output, "tokenizer": str(run / "tokenizer" / "export")}
    generator = GeneratorStageConfig(model=GENERATOR, trainer=short)
    small_runs.train("generator", run / "generator", generator, {"tokenizer": card.encoder()}, **inputs)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    run_gloo(1, folder, train_run, folder)
    return folder


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> Tokenizer:
    """Trained until images differ in their tokens: else no test would see whether it is given the right ones."""
    tokenizer = load_tokenizer(str(folder / "run"))
    tokens = tokenizer.network.tokenize(small_runs.images()).flatten(1)
    assert len(tokens.unique(dim=0)) > COUNT / 2
    return tokenizer


@pytest.fixture(scope="module")
def generator(folder: Path) -> Generator:
    return load_generator(str(folder / "run"))


PIXELS = small_runs.pixels()


@pytest.mark.slow
def test_tokens_of_image_files_are_those_of_the_token_data_set(folder: Path, tokenizer: Tokenizer) -> None:
    stored = TokenShards(str(folder / "run" / "tokens"), NodeCache(str(folder / "cache")))
    files = [folder / "raw" / f"class{label:02d}" / "image.png" for label in stored.conditions]
    found = tokenizer.encode([Image.open(file) for file in files])
    assert found.shape == (COUNT, 21, 2)
    assert found.dtype == np.int64
    np.testing.assert_array_equal(found, stored.tokens(np.arange(COUNT))[:, 0])


FORMS: dict[str, Callable[[np.ndarray], Any]] = {
    "a list of PIL": lambda pixels: [Image.fromarray(each) for each in pixels],
    "numpy": lambda pixels: pixels,
    "a list of numpy": list,
    "a torch tensor of bytes": lambda pixels: torch.from_numpy(pixels).permute(0, 3, 1, 2),
    "a torch tensor of floats": lambda pixels: torch.from_numpy(pixels).permute(0, 3, 1, 2) / 127.5 - 1,
    "doubles of numpy": lambda pixels: pixels.transpose(0, 3, 1, 2) / 127.5 - 1,
    "a mixed list": lambda pixels: [Image.fromarray(pixels[0]), pixels[1], torch.from_numpy(pixels[2:]).movedim(-1, 1)],
}


@pytest.mark.parametrize("form", FORMS)
def test_an_image_has_the_same_tokens_in_every_form(tokenizer: Tokenizer, form: str) -> None:
    expected = tokenizer.network.tokenize(small_runs.images()[:5]).numpy()
    np.testing.assert_array_equal(tokenizer.encode(FORMS[form](PIXELS[:5]), batch=2), expected)


@pytest.mark.parametrize("form", ["numpy", "a torch tensor of bytes", "a torch tensor of floats"])
def test_a_single_image_is_a_batch_of_one(tokenizer: Tokenizer, form: str) -> None:
    (one,) = FORMS[form](PIXELS[:1])
    np.testing.assert_array_equal(tokenizer.encode(one), tokenizer.encode(PIXELS)[:1])
    np.testing.assert_array_equal(tokenizer.encode(Image.fromarray(PIXELS[0])), tokenizer.encode(PIXELS)[:1])


def test_bytes_of_another_size_are_cut_as_training_images_are(folder: Path, tokenizer: Tokenizer) -> None:
    large = Image.fromarray(PIXELS[0]).resize((50, 40))
    np.testing.assert_array_equal(tokenizer.encode(large), tokenizer.encode(center_crop(large, SIZE)))
    small, padding = large.resize((9, 12)), load_tokenizer(str(folder / "run"), fit="pad")
    np.testing.assert_array_equal(padding.encode(np.asarray(small)), tokenizer.encode(pad(small, SIZE)))


def test_transparent_grey_and_turned_pictures_are_seen_as_ingest_sees_them(tokenizer: Tokenizer) -> None:
    picture = Image.fromarray(PIXELS[0])
    turned = picture.transpose(Image.Transpose.ROTATE_90)
    turned.getexif()[0x0112] = 6  # to be shown turned to the right
    np.testing.assert_array_equal(tokenizer.encode(turned), tokenizer.encode(picture))
    clear = Image.new("RGBA", (SIZE, SIZE), (0, 0, 0, 0))
    np.testing.assert_array_equal(tokenizer.encode(clear), tokenizer.encode(np.full((SIZE, SIZE, 3), 255, np.uint8)))
    np.testing.assert_array_equal(
        tokenizer.encode(picture.convert("L")), tokenizer.encode(picture.convert("L").convert("RGB"))
    )


def test_decoded_images_are_the_same_in_every_form(tokenizer: Tokenizer) -> None:
    tokens = tokenizer.encode(PIXELS[:3])
    floats, pixels, pictures = (tokenizer.decode(tokens, output=form) for form in ("torch", "numpy", "pil"))
    torch.testing.assert_close(floats, tokenizer.network.detokenize(torch.from_numpy(tokens)))
    assert floats.shape == (3, 3, SIZE, SIZE)
    np.testing.assert_array_equal(pixels, np.floor((floats.numpy() + 1) * 127.5 + 0.5).transpose(0, 2, 3, 1))
    assert pixels.dtype == np.uint8
    np.testing.assert_array_equal(np.stack([np.asarray(picture) for picture in pictures]), pixels)


def test_a_reconstruction_is_decoded_from_the_tokens(tokenizer: Tokenizer) -> None:
    tokens = tokenizer.encode(PIXELS[:5])
    np.testing.assert_array_equal(tokenizer.reconstruct(PIXELS[:5], batch=2), tokenizer.decode(tokens))
    np.testing.assert_array_equal(tokenizer.decode(tokens[0]), tokenizer.decode(tokens[:1]))
    np.testing.assert_array_equal(
        tokenizer.decode(torch.from_numpy(tokens)), tokenizer.decode(tokens.astype(np.uint16))
    )


def test_the_first_groups_of_tokens_alone_can_be_decoded(tokenizer: Tokenizer) -> None:
    tokens = tokenizer.encode(PIXELS[:2])
    other = tokens.copy()
    other[:, tokenizer.layout.offsets[1] :] = 0
    coarse = [tokenizer.decode(each, keep=1, output="torch") for each in (tokens, other)]
    assert torch.equal(*coarse)
    assert not torch.equal(coarse[0], tokenizer.decode(tokens, output="torch"))


def test_samples_are_those_of_the_command(folder: Path, generator: Generator) -> None:
    run, config = folder / "run", SamplingConfig(guidance=1.5, top_k=9, top_p=0.8)
    sampler = Sampler.load(
        *(str(run / stage / "export") for stage in ("generator", "tokenizer")), config, 7, torch.device("cpu")
    )
    expected = torch.cat(list(sampler.draw(torch.tensor([3, 0, 3]))))
    found = generator.sample([3, 0, 3], seed=7, guidance=1.5, top_k=9, top_p=0.8, output="torch")
    assert torch.equal(found, expected)


def test_classes_have_names_and_numbers(generator: Generator) -> None:
    assert generator.class_names == tuple(f"class{label:02d}" for label in range(COUNT))
    by_name = generator.sample(["class02", "class01"])
    np.testing.assert_array_equal(generator.sample(torch.tensor([2, 1])), by_name)
    np.testing.assert_array_equal(generator.sample(np.int64(2)), by_name[:1])
    assert by_name.shape == (2, SIZE, SIZE, 3)
    assert [picture.size for picture in generator.sample("class02", output="pil")] == [(SIZE, SIZE)]


def test_another_seed_gives_other_images_and_a_batch_changes_nothing(generator: Generator) -> None:
    first = generator.sample([1] * 5, output="torch")
    assert not torch.equal(first, generator.sample([1] * 5, seed=1, output="torch"))
    assert torch.equal(generator.sample([1] * 5, batch=2, output="torch"), first)
    assert torch.equal(generator.sample([1] * 2, first=3, output="torch"), first[3:])


def test_samples_are_the_images_of_their_tokens(generator: Generator) -> None:
    asked: dict[str, Any] = {"seed": 3, "guidance": 1.0, "temperature": 0.8, "guidance_schedule": {"kind": "constant"}}
    tokens = generator.tokens(["class01", 2, 5], **asked)
    assert tokens.shape == (3, generator.layout.positions, generator.layout.folds)
    assert tokens.dtype == np.int64
    np.testing.assert_array_equal(generator.images(tokens), generator.sample([1, 2, 5], **asked))
    assert not np.array_equal(tokens, generator.tokens([1, 2, 5], **(asked | {"temperature": 3.0})))


def test_none_is_an_image_of_no_class(generator: Generator) -> None:
    guided, plain = (generator.tokens([None, None], guidance=guidance) for guidance in (5.0, 0.0))
    np.testing.assert_array_equal(guided, plain)  # c and u are the same
    # Of a network that has hardly trained, a class changes little: so much guidance shows it.
    assert not np.array_equal(plain, generator.tokens([1, 2], guidance=1000.0))


def test_a_class_of_the_package_loads_it_as_the_function_does(folder: Path, generator: Generator) -> None:
    np.testing.assert_array_equal(Generator.load(str(folder / "run")).sample(4), generator.sample(4))


class Wrong(NamedTuple):
    call: Callable[[Tokenizer, Generator], object]
    error: type[Exception]
    said: str


FLOATS = np.zeros((3, SIZE, SIZE), np.float32)
WRONG = {
    "a path": Wrong(lambda t, _: t.encode("a.png"), TypeError, r"str is no image: .*PIL\.Image\.open"),
    "no images": Wrong(lambda t, _: t.encode([]), ValueError, "no images in an empty list"),
    "grey bytes": Wrong(
        lambda t, _: t.encode(PIXELS[0, :, :, 0]), ValueError, r"uint8 of shape \[16, 16\] is no image"
    ),
    "channels first": Wrong(
        lambda t, _: t.encode(PIXELS.transpose(0, 3, 1, 2)), ValueError, r"\[16, 3, 16, 16\] is no image"
    ),
    "small floats": Wrong(
        lambda t, _: t.encode(FLOATS[:, :8, :8]), ValueError, r"takes \[3, 16, 16\] or \[B, 3, 16, 16\]"
    ),
    "floats of bytes": Wrong(lambda t, _: t.encode(FLOATS + 255), ValueError, "from 255 to 255: -1 is black"),
    "not a number": Wrong(lambda t, _: t.encode(FLOATS * np.nan), ValueError, "from nan to nan"),
    "integers": Wrong(lambda t, _: t.encode(FLOATS.astype(np.int32)), ValueError, "torch.int32: give uint8"),
    "no batch": Wrong(lambda t, _: t.encode(PIXELS, batch=0), ValueError, "batch 0: give 1 or more"),
    "other tokens": Wrong(lambda t, _: t.decode(np.zeros((1, 9, 2), int)), ValueError, r"\[1, 9, 2\]: .* \[B, 21, 2\]"),
    "no tokens": Wrong(lambda t, _: t.decode(np.zeros((0, 21, 2), int)), ValueError, r"shape \[0, 21, 2\]"),
    "float tokens": Wrong(lambda t, _: t.decode(np.zeros((1, 21, 2))), ValueError, "float64: give whole numbers"),
    "large tokens": Wrong(lambda t, _: t.decode(np.full((21, 2), 64)), ValueError, "64 to 64: the codes are 0 to 63"),
    "negative tokens": Wrong(lambda t, _: t.decode(np.full((21, 2), -1)), ValueError, "from -1 to -1"),
    "no group": Wrong(
        lambda t, _: t.decode(np.zeros((21, 2), int), keep=0), ValueError, "keep 0: .* from 1, 5, 21 positions"
    ),
    "a format": Wrong(
        lambda t, _: t.decode(np.zeros((21, 2), int), output="jpg"), ValueError, "give numpy, pil or torch"
    ),  # type: ignore[arg-type]
    "no class": Wrong(lambda _, g: g.sample([]), ValueError, "no classes to draw"),
    "a class beyond": Wrong(lambda _, g: g.sample([0, COUNT]), ValueError, "no class 16: they are 0 to 15"),
    "a class below": Wrong(lambda _, g: g.sample(-1), ValueError, "no class -1"),
    "an odd name": Wrong(lambda _, g: g.sample("clas02"), ValueError, "no class 'clas02': did you mean class02?"),
    "another name": Wrong(lambda _, g: g.sample("?"), ValueError, "the first of its 16 are class00, class01"),
    "guidance": Wrong(lambda _, g: g.sample(0, guidance=-1), ValueError, "sample: guidance: "),
    "a setting": Wrong(lambda _, g: g.sample(0, temperatur=2), ValueError, "sample: temperatur: "),  # type: ignore[call-arg]
    "an option": Wrong(lambda _, g: g.sample(0, order={"steps": 4}), UsageError, "sampling.order.steps is no option"),
    "a first": Wrong(lambda _, g: g.sample(0, first=-1), ValueError, "first -1: images are numbered from 0"),
    "codes": Wrong(lambda _, g: g.images(np.full((21, 2), 64)), ValueError, "64 to 64: the codes are 0 to 63"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_what_cannot_be_is_refused_in_words(tokenizer: Tokenizer, generator: Generator, wrong: str) -> None:
    call, error, said = WRONG[wrong]
    with pytest.raises(error, match=said):
        call(tokenizer, generator)


@pytest.mark.parametrize("part", ["", "/", "/tokenizer", "/tokenizer/export"])
def test_a_tokenizer_is_found_by_its_run_its_folder_and_its_export(
    folder: Path, tokenizer: Tokenizer, part: str
) -> None:
    found = load_tokenizer(f"{folder / 'run'}{part}")
    assert (found.fingerprint, found.card) == (tokenizer.fingerprint, tokenizer.card)
    assert (found.image_size, found.layout) == (SIZE, TOKENIZER.layout)


def test_a_generator_away_from_its_run_is_told_its_tokenizer(
    folder: Path, tmp_path: Path, generator: Generator
) -> None:
    shutil.copytree(folder / "run" / "generator" / "export", tmp_path / "taken")
    with pytest.raises(UsageError, match=r"no tokenizer beside .*/taken: give tokenizer="):
        load_generator(str(tmp_path / "taken"))
    expected = generator.sample(4)
    for tokenizer in (str(folder / "run"), load_tokenizer(str(folder / "run"))):
        found = load_generator(str(tmp_path / "taken"), tokenizer=tokenizer)
        assert found.image_size == SIZE
        np.testing.assert_array_equal(found.sample(4), expected)


def test_a_run_that_was_given_its_tokenizer_is_used_with_it(folder: Path, tmp_path: Path, generator: Generator) -> None:
    shutil.copytree(folder / "run" / "generator" / "export", tmp_path / "generator" / "export")
    given = {"inputs": {"tokenizer": str(folder / "run" / "tokenizer" / "export")}}
    (tmp_path / "generator" / "config.yaml").write_text(yaml.safe_dump(given))
    np.testing.assert_array_equal(load_generator(str(tmp_path)).sample(4), generator.sample(4))


@pytest.mark.parametrize("text", ["", "inputs: 3", "inputs: {tokenizer: /nowhere}", "a: &a [*a", "\x00"])
def test_a_config_that_names_no_tokenizer_is_no_help_and_no_crash(folder: Path, tmp_path: Path, text: str) -> None:
    shutil.copytree(folder / "run" / "generator" / "export", tmp_path / "generator" / "export")
    (tmp_path / "generator" / "config.yaml").write_text(text)
    with pytest.raises(UsageError, match="there is no tokenizer beside"):
        load_generator(str(tmp_path))


def test_a_generator_with_another_tokenizer_is_refused(folder: Path, tmp_path: Path) -> None:
    card, state = weights.read_weights(str(folder / "run" / "tokenizer" / "export"), "tokenizer", ema=False)
    weights.write_weights(str(tmp_path), "tokenizer", card.config, {"model": state}, {})
    with pytest.raises(UsageError, match="was trained on tokens of tokenizer"):
        load_generator(str(folder / "run"), tokenizer=str(tmp_path))


def test_the_weights_as_trained_give_other_images_than_their_average(folder: Path, generator: Generator) -> None:
    trained = load_generator(str(folder / "run"), ema=False)
    every = range(COUNT)
    assert not torch.equal(trained.sample(every, output="torch"), generator.sample(every, output="torch"))


def test_where_nothing_is_the_places_that_were_looked_in_are_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no finished generator at .* in export or in generator/export\. Give a run"):
        load_generator(str(tmp_path))


@pytest.mark.parametrize(
    ("settings", "said"),
    [({"device": "abacus"}, "device 'abacus' cannot be used"), ({"fit": "squash"}, "give crop or pad")],
)
def test_a_device_and_a_fit_that_there_are_not_are_refused(folder: Path, settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        load_tokenizer(str(folder / "run"), **settings)


EXAMPLES = re.findall(
    r"```python\n(.*?)```", (Path(__file__).resolve().parents[2] / "docs" / "python-api.md").read_text(), re.DOTALL
)


@pytest.mark.parametrize("block", EXAMPLES, ids=range(len(EXAMPLES)))
def test_the_examples_of_the_docs_run(folder: Path, tokenizer: Tokenizer, block: str) -> None:
    """In three lines each, and with the shapes that they name."""
    pictures = [Image.fromarray(each) for each in PIXELS[:2]]
    given: dict[str, Any] = {"pictures": pictures, "tokens": tokenizer.encode(pictures)}
    assert len([line for line in block.splitlines() if line]) == 3
    code = block.replace("runs/quickstart", str(folder / "run")).replace('"Sneaker", "Bag"', '"class01", "class02"')
    exec(code, given)
    assert given["tokens"].shape == (2, 21, 2)
    assert given.get("images", PIXELS[:2]).shape == (2, SIZE, SIZE, 3)


def test_the_notebook_of_the_docs_runs(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    notebook = (Path(__file__).resolve().parents[2] / "docs/examples/sampling.py").read_text()
    assert "runs/quickstart" in notebook
    exec(compile(notebook.replace("runs/quickstart", str(folder / "run")), "sampling.py", "exec"), {})
    assert Image.open(tmp_path / "first.png").size == (SIZE, SIZE)
    assert (tmp_path / "mixed.png").read_bytes() != (tmp_path / "first.png").read_bytes()


def test_the_example_of_a_reference_draws_its_picture(folder: Path, tmp_path: Path) -> None:
    example = Path(__file__).resolve().parents[2] / "docs/examples/conditioned.py"
    found = runpy.run_path(str(example))
    Image.fromarray(PIXELS[0]).save(tmp_path / "reference.png")
    found["draw"](str(folder / "run"), str(tmp_path / "reference.png"), str(tmp_path / "grid.png"), ["class02"])
    with Image.open(tmp_path / "grid.png") as grid:
        assert grid.height > 4 * 96
        assert grid.width > (2 + found["EACH"]) * 96


@pytest.mark.xdist_group("s3")
def test_a_run_in_object_storage_is_used_where_it_is(folder: Path, generator: Generator, s3_uri: str) -> None:
    for stage in ("tokenizer", "generator"):
        for name, data in contents(folder / "run" / stage / "export").items():
            storage.write_bytes(storage.join(s3_uri, stage, "export", name), data)
    np.testing.assert_array_equal(load_generator(s3_uri).sample([2, 5]), generator.sample([2, 5]))
    assert load_tokenizer(f"{s3_uri}/tokenizer").encode(PIXELS).shape == (COUNT, 21, 2)
