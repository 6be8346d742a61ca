"""import-weights, encode, decode and reconstruct: from files to files, as they are typed."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from typer.testing import CliRunner, Result

from cluster.cli import app
from data_pipeline.errors import FoldtrainError, UsageError
from model.config import VectorConfig
from model.config.titok import GaussianConfig, TiTokConfig, TiTokViTConfig
from model.published.titok import published_name as titok_name
from model.tokenizers.titok import TiTokTokenizer
from trainer.inference import load_tokenizer
from trainer.inference.fidelity import photograph_like, psnr

PARITY = Path(__file__).parents[1] / "parity"
TOKENIZER, GENERATOR = PARITY / "msvr4p3/state.safetensors", PARITY / "var_msvr4p3/state.safetensors"


def foldtrain(*arguments: object) -> Result:
    return CliRunner().invoke(app, list(map(str, arguments)), catch_exceptions=False)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The export of a published tokenizer: 3 branches of 64 codes at 1, 2, 4 and 7 to a side."""
    output = tmp_path_factory.mktemp("imported") / "export"
    assert foldtrain("import-weights", TOKENIZER, "--out", output).exit_code == 0
    return output


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """A folder with two pictures of other sizes than the tokenizer's, one of them below, and a text."""
    folder = tmp_path / "images"
    (folder / "below").mkdir(parents=True)
    photograph_like(300).crop((0, 0, 300, 280)).save(folder / "one.png")
    photograph_like(64).save(folder / "below/two.jpg", quality=95)
    (folder / "notes.txt").write_text("x")
    return folder


def test_an_import_says_what_the_file_is_and_warns_of_garbage(tmp_path: Path) -> None:
    done = foldtrain("import-weights", TOKENIZER, "--out", tmp_path / "out")
    first, second, third, fourth = done.stdout.splitlines()
    assert first.startswith(f"{TOKENIZER}: ImageFolder MSVR tokenizer, ")
    assert second.startswith(f"{tmp_path}/out: tokenizer, 256 px, 1 + 4 + 16 + 49 positions of 64 + 64 + 64 codes, ")
    assert third.startswith("a made-up picture: squared error ")
    assert "70 x 3 tokens, 1,260 bits an image (0.019 a pixel)" in third
    assert fourth.startswith("mean of 1: squared error ")
    assert "these reconstructions are garbage" in done.stderr  # its weights are random


def test_a_round_trip_of_given_images_shows_each_and_their_mean(tmp_path: Path, images: Path) -> None:
    done = foldtrain("import-weights", TOKENIZER, "--out", tmp_path / "out", "--images", images)
    shown = [line.partition(":")[0] for line in done.stdout.splitlines()[2:]]
    assert shown == ["below/two.jpg", "one.png", "mean of 2"]


def test_weights_that_draw_what_they_see_bring_no_warning(
    tmp_path: Path, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from model.tokenizers.imagefolder import ImageFolderTokenizer

    seen: list[torch.Tensor] = []
    monkeypatch.setattr(
        ImageFolderTokenizer, "encode", lambda _, image: seen.append(image) or torch.zeros(1, 3, 16, 7, 7)
    )
    monkeypatch.setattr(ImageFolderTokenizer, "detokenize", lambda *_: 0.5 * seen[-1])
    done = foldtrain("import-weights", TOKENIZER, "--out", tmp_path / "out", "--images", images / "one.png")
    assert "garbage" not in done.stderr
    image = seen[-1]
    error = float((0.5 * image).square().mean())
    assert f"one.png: squared error {error:.4f}, PSNR {10 * math.log10(4 / error):.2f} dB" in done.stdout


def test_a_generator_is_imported_by_the_same_command_with_its_tokenizer(tokenizer: Path, tmp_path: Path) -> None:
    done = foldtrain("import-weights", GENERATOR, "--out", tmp_path / "out", "--tokenizer", tokenizer)
    assert f"{GENERATOR}: VAR generator, " in done.stdout
    assert "/out: generator, 1 + 4 + 16 + 49 positions of 64 + 64 + 64 codes, " in done.stdout
    assert json.loads((tmp_path / "out/card.json").read_text())["kind"] == "generator"


def titok_file(folder: Path, **changes: object) -> Path:
    """Published weights of a tiny TiTok that has drawn nothing yet, with the options that no shape tells."""
    size = TiTokViTConfig(width=24, depth=1, heads=3, patch_size=8)
    config = TiTokConfig(image_size=32, latents=5, encoder=size, decoder=size, latent_layout="correct", **changes)  # type: ignore[arg-type]
    state = {titok_name(name): tensor for name, tensor in TiTokTokenizer(config).state_dict().items()}
    for name in (name for name in state if re.search(r"(encoder\.conv_out|ffn\.\d)\.weight$", name)):
        state[name] = state[name][..., None, None]  # published as convolutions of 1 x 1
    folder.mkdir()
    torch.save(state, folder / "pytorch_model.bin")
    model = {"vq_model": {"is_legacy": False, "use_l2_norm": False}}
    (folder / "config.json").write_text(json.dumps({"model": model, "vit": {"heads": 3}}))
    return folder


def test_a_gaussian_bottleneck_reconstructs_and_has_no_tokens(images: Path, tmp_path: Path) -> None:
    source, out = titok_file(tmp_path / "hub", quantizer=GaussianConfig(code_dim=6), target="rgb"), tmp_path / "export"
    done = foldtrain("import-weights", source, "--out", out)
    assert f"{out}: tokenizer, 32 px, no tokens, " in done.stdout
    assert "a made-up picture: squared error" in done.stdout
    command = ["reconstruct", images, "--tokenizer", out, "--out", tmp_path / "png"]
    record = json.loads(foldtrain(*command, "--json").stdout)
    assert record["bits"] is None
    network = load_tokenizer(str(out))
    expected = network.reconstruct(Image.open(images / "one.png"))
    assert np.array_equal(np.asarray(Image.open(tmp_path / "png/one.png")), expected[0])
    assert ", Gaussian latents, no tokens" in foldtrain(*command).stdout
    with pytest.raises(UsageError, match="--keep and --scales count tokens, and this tokenizer has none"):
        foldtrain(*command, "--keep", 3)
    with pytest.raises(UsageError, match=r"export: a tokenizer with a Gaussian bottleneck .* has no tokens"):
        foldtrain("encode", images, "--tokenizer", out, "--out", tmp_path / "t.npz")
    with pytest.raises(ValueError, match=r"keep 3: .* has no tokens"):
        network.reconstruct(Image.open(images / "one.png"), keep=3)


def test_a_stage_that_paints_nothing_yet_is_imported_with_a_word(images: Path, tmp_path: Path) -> None:
    source = titok_file(tmp_path / "hub", quantizer=VectorConfig(codebook_size=16, code_dim=6), target="codes")
    done = foldtrain("import-weights", source, "--out", tmp_path / "export")
    assert "no image is reconstructed: it predicts the codes of a proxy" in done.stdout
    options = ["--tokenizer", tmp_path / "export", "--out"]
    with pytest.raises(UsageError, match=r"export: this tokenizer predicts the codes of a proxy"):
        foldtrain("reconstruct", images, *options, tmp_path / "png")
    assert "2 images, 5 tokens, 20 bits an image" in foldtrain("encode", images, *options, tmp_path / "t.npz").stdout


def test_the_command_of_before_is_gone() -> None:
    assert foldtrain("import", "network", TOKENIZER).exit_code == 2


def test_a_device_that_is_not_there_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--device: device 'cuda:77' cannot be used"):
        foldtrain("import-weights", "nothing.pt", "--out", tmp_path / "out", "--device", "cuda:77")


def test_encoded_files_hold_the_tokens_of_the_api_and_say_what_made_them(
    tokenizer: Path, images: Path, tmp_path: Path
) -> None:
    done = foldtrain(
        "encode", images / "one.png", images, "--tokenizer", tokenizer, "--out", tmp_path / "t.npz", "--batch", 2
    )
    assert "left aside: 1 file that is not named as an image" in done.stderr
    assert "3 images, 70 x 3 tokens, 1,260 bits an image" in done.stdout
    network = load_tokenizer(str(tokenizer))
    pictures = [Image.open(images / name) for name in ("one.png", "below/two.jpg", "one.png")]
    with np.load(tmp_path / "t.npz") as held:
        assert np.array_equal(held["tokens"], network.encode(pictures))
        assert held["tokens"].dtype == np.uint16
        assert held["names"].tolist() == [b"one.png", b"below/two.jpg", b"one.png"]
        assert held["encoder"].tolist() == [network.fingerprint.encode()]
        assert held["groups"].tolist() == [1, 4, 16, 49]
        assert held["vocabularies"].tolist() == [64, 64, 64]
        assert held["image_size"].tolist() == [256]
        assert held["fit"].tolist() == [b"crop"]


def test_decoded_files_are_the_pictures_of_the_api(tokenizer: Path, images: Path, tmp_path: Path) -> None:
    foldtrain("encode", images, images / "one.png", "--tokenizer", tokenizer, "-o", tmp_path / "t.npz")
    foldtrain("decode", tmp_path / "t.npz", "--tokenizer", tokenizer, "--out", tmp_path / "out")
    network = load_tokenizer(str(tokenizer))
    expected = network.reconstruct([Image.open(images / "below/two.jpg"), Image.open(images / "one.png")])
    for name, pixels in zip(("below/two.png", "one.png", "one-2.png"), [*expected, expected[1]], strict=True):
        assert np.array_equal(np.asarray(Image.open(tmp_path / "out" / name)), pixels)
    assert sum(path.is_file() for path in (tmp_path / "out").rglob("*")) == 3


@pytest.mark.parametrize("option", [("--keep", "5"), ("--scales", "2")])
def test_fewer_scales_give_fewer_bits_and_the_pictures_of_the_api(
    option: tuple[str, str], tokenizer: Path, images: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    done = foldtrain("reconstruct", images / "one.png", "--tokenizer", tokenizer, "--out", out, *option, "--json")
    record = json.loads(done.stdout)
    assert record["bits"] == 5 * 3 * 6
    assert record["keep"] == 5
    network = load_tokenizer(str(tokenizer))
    picture = Image.open(images / "one.png")
    assert np.array_equal(np.asarray(Image.open(out / "one.png")), network.reconstruct(picture, keep=5)[0])
    foldtrain("encode", images / "one.png", "--tokenizer", tokenizer, "--out", tmp_path / "t.npz")
    foldtrain("decode", tmp_path / "t.npz", "--tokenizer", tokenizer, "--out", tmp_path / "decoded", *option)
    assert (tmp_path / "decoded/one.png").read_bytes() == (out / "one.png").read_bytes()


def test_reconstructions_stand_beside_the_squares_that_were_encoded_with_their_errors(
    tokenizer: Path, images: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    record = json.loads(foldtrain("reconstruct", images, "--tokenizer", tokenizer, "--out", out, "--json").stdout)
    assert [each["name"] for each in record["images"]] == ["below/two.jpg", "one.png"]
    for row, name in zip(record["images"], ("below/two", "one"), strict=True):
        here, there = (np.asarray(Image.open(out / f"{name}{end}.png"), float) for end in ("", ".original"))
        error = np.square((here - there) / 127.5).mean()
        assert row["squared_error"] == pytest.approx(error, rel=0.01)  # of bytes; the command's is of what they round
        assert row["psnr"] == pytest.approx(psnr(row["squared_error"]))
        flat = there / 127.5 - there.mean((0, 1)) / 127.5
        assert row["of_mean_colour"] == pytest.approx(np.square(flat).mean(), rel=1e-6)
    words = foldtrain("reconstruct", images, "--tokenizer", tokenizer, "--out", out).stdout
    assert f"one.png: squared error {record['images'][1]['squared_error']:.4f}, PSNR" in words
    assert "1,260 bits an image" in words
    assert f"{out}: 4 PNG files" in words


def test_a_fit_is_that_of_the_config(tokenizer: Path, images: Path, tmp_path: Path) -> None:
    for fit in ("crop", "pad"):
        arguments = ["--tokenizer", tokenizer, "--out", tmp_path / fit, "--fit", fit]
        foldtrain("reconstruct", images / "below/two.jpg", *arguments)
    padded, cut = (np.asarray(Image.open(tmp_path / fit / "two.original.png")) for fit in ("pad", "crop"))
    assert (padded[0] == padded[0, 0]).all()
    assert not (cut[0] == cut[0, 0]).all()


@pytest.mark.parametrize(
    ("option", "words"),
    [
        (("--keep", "6"), "--keep 6: images can be decoded from 1, 5, 21, 70 positions"),
        (("--scales", "5"), "--scales 5: this tokenizer has 4"),
        (("--scales", "1", "--keep", "1"), "give one of them"),
    ],
)
def test_a_bitrate_that_there_is_not_is_refused(
    option: tuple[str, ...], words: str, tokenizer: Path, images: Path, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=words):
        foldtrain("reconstruct", images / "one.png", "--tokenizer", tokenizer, "--out", tmp_path / "out", *option)
    assert not (tmp_path / "out").exists()


def test_tokens_of_another_tokenizer_are_refused_with_the_difference(
    tokenizer: Path, images: Path, tmp_path: Path
) -> None:
    path = tmp_path / "t.npz"
    foldtrain("encode", images / "one.png", "--tokenizer", tokenizer, "--out", path)
    with np.load(path) as held:
        arrays = dict(held)
    np.savez(path, **arrays | {"encoder": np.array([b"0" * 64])})  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=r"t\.npz has tokens of tokenizer 0{16}, but .* is [0-9a-f]{16}"):
        foldtrain("decode", path, "--tokenizer", tokenizer, "--out", tmp_path / "out")


@pytest.mark.parametrize("command", ["encode", "reconstruct"])
def test_an_image_that_cannot_be_read_is_named(command: str, tokenizer: Path, images: Path, tmp_path: Path) -> None:
    (images / "broken.png").write_bytes(b"\x89PNG")
    with pytest.raises(FoldtrainError, match=r"broken\.png cannot be decoded as an image"):
        foldtrain(command, images, "--tokenizer", tokenizer, "--out", tmp_path / "out.npz")
    with pytest.raises(UsageError, match=r"none\.png: there is no such image"):
        foldtrain(command, images / "none.png", "--tokenizer", tokenizer, "--out", tmp_path / "out.npz")
    assert not (tmp_path / "out.npz").is_file()


def test_the_tokens_are_those_of_the_published_model(tokenizer: Path, tmp_path: Path) -> None:
    io = load_file(TOKENIZER.with_name("io.safetensors"))
    for number, pixels in enumerate(io["image_uint8"]):
        Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(tmp_path / f"{number}.png")
    foldtrain("encode", tmp_path, "--tokenizer", tokenizer, "--out", tmp_path / "t.npz")
    with np.load(tmp_path / "t.npz") as held:
        tokens = held["tokens"]
    for branch in range(3):
        expected = torch.cat([io[f"tokens.branch{branch}.scale{scale}"] for scale in range(4)], dim=1)
        assert np.array_equal(tokens[..., branch], expected.numpy())
