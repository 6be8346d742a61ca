"""The chain from image to number: each link with its hash and its file, and a warning where another thing lies now."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from cluster.stages.explaining import chains_of, explain
from data_pipeline.errors import UsageError
from data_pipeline.shards.manifest import ImageManifest, TokenizerRecord, TokenManifest
from data_pipeline.shards.weights import Card, read_card
from model.layout import TokenLayout
from trainer.evaluation.naming.numbers import Number


def digest(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()


def write_card(folder: Path, kind: str, **lineage: str) -> Card:
    folder.mkdir(parents=True)
    record = {"version": 2, "kind": kind, "config": {}, "files": {"model": digest(kind)}, "lineage": lineage}
    (folder / "card.json").write_text(json.dumps(record | {"classes": [], "steps": 1000}))
    return read_card(str(folder), kind)


def write_images(folder: Path, split: str) -> str:
    fields: dict[str, Any] = {"samples": 0, "classes": ("cat",), "split": split, "shards": ()}
    manifest = ImageManifest.build(**fields)
    manifest.write(str(folder))
    return manifest.fingerprint


def write_tokens(folder: Path, encoder: str, source: str) -> str:
    fields: dict[str, Any] = {
        "samples": 0,
        "classes": ("cat",),
        "layout": TokenLayout((1, 4), (8,)),
        "views": ("center",),
        "image_size": 8,
        "fit": "crop",
        "tokenizer": TokenizerRecord(encoder=encoder, config={}),
        "source": source,
        "software": {},
        "shards": (),
    }
    manifest = TokenManifest.build(**fields)
    manifest.write(str(folder))
    return manifest.fingerprint


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run with everything that its numbers follow from."""
    training, held_out = (write_images(tmp_path / "images" / split, split) for split in ("train", "validation"))
    tokenizer = write_card(tmp_path / "tokenizer/export", "tokenizer", images=training)
    tokens = write_tokens(tmp_path / "tokens", tokenizer.encoder(), training)
    generator = write_card(tmp_path / "generator/export", "generator", tokens=tokens, tokenizer=tokenizer.encoder())
    teacher = write_card(tmp_path / "teacher/export", "teacher", images=training)
    by = {
        "reference": {"images": held_out, "count": 100},
        "crop": {"fit": "crop", "size": 8},
        "rounding": "nearest",
        "network": {"kind": "classifier", "name": "teacher", "sha256": teacher.fingerprint()},
    }
    halves = {"encoder": tokenizer.encoder(), "decoder": tokenizer.decoder()}
    of = {"generator": generator.fingerprint(), "weights": "ema", "sampling": {"guidance": 2.5}, "seed": 7}
    numbers = [
        Number("frechet_distance", 12.5, 100, by, of | {"tokenizer": halves}, 0.5),
        Number("precision", 0.75, 100, by, of | {"tokenizer": halves}),
        Number("frechet_distance", 4.0, 100, by, {"tokenizer": halves, "images": held_out}),
        *(Number("mse", 0.1 / keep, 100, {}, {"tokenizer": halves, "keep": keep}) for keep in (1, 5)),
    ]
    write_numbers(tmp_path, *numbers)
    return tmp_path


def write_numbers(run: Path, *numbers: Number, **more: Any) -> None:
    record = {"numbers": [number.to_json() for number in numbers]}
    (run / "evaluation.json").write_text(json.dumps(record | more))


def warnings(run: Path) -> set[tuple[str, str]]:
    return {(link.name, link.warning) for chain in chains_of(str(run)) for link in chain.links if link.warning}


def test_each_link_from_image_to_number_is_there_with_the_file_that_says_so(run: Path) -> None:
    first = chains_of(str(run))[0]
    assert [(link.name, link.recorded) for link in first.links] == [
        ("images", "tokenizer/export/card.json"),
        ("tokenizer", "evaluation.json, tokenizer/export/card.json"),
        ("tokens", "generator/export/card.json, tokens/manifest.json"),
        ("generator", "evaluation.json, generator/export/card.json"),
        ("sampling", "evaluation.json"),
        ("samples", "evaluation.json"),
        ("as bytes", "evaluation.json"),
        ("network", "evaluation.json, teacher/export/card.json"),
        ("reference", "evaluation.json"),
    ]
    assert warnings(run) == set()


def test_links_have_hashes_and_what_they_were_made_from(run: Path) -> None:
    tokenizer, generator = (read_card(str(run / name / "export"), name) for name in ("tokenizer", "generator"))
    training = tokenizer.lineage["images"][:8]
    words = {link.name: link.what for link in chains_of(str(run))[0].links}
    assert words["images"] == f"training images {training}"
    assert words["tokenizer"] == f"tokenizer {tokenizer.encoder()[:8]}, 1,000 steps, made from images {training}"
    assert words["tokens"].endswith(f"of encoder {tokenizer.encoder()[:8]}, images {training}")
    assert words["generator"].startswith(
        f"generator {generator.fingerprint()[:8]}, EMA weights, 1,000 steps, made from "
    )
    assert words["sampling"] == "guidance 2.5, seed 7"
    assert words["samples"] == "100 samples"
    assert words["network"].startswith("teacher ")
    assert words["network"].endswith(", the run's teacher")
    assert words["reference"].endswith("of 100 images, crop 8 px")


def test_numbers_that_follow_from_the_same_share_a_chain(run: Path) -> None:
    lines = list(explain(str(run)))
    assert "Fréchet distance (teacher) 12.5 ± 0.5, precision (teacher) 0.7500" in lines
    assert "Fréchet distance (teacher) of reconstructions 4.000" in lines
    assert "squared error of the first 1 positions 0.1000, squared error of the first 5 positions 0.02000" in lines
    assert any(line.startswith("  tokenizer        tokenizer ") and line.endswith("card.json]") for line in lines)


def test_numbers_of_other_branches_and_scales_share_a_chain(run: Path) -> None:
    protocols = [{"branch": branch, "scale": scale, "least": 0.08} for branch in "ab" for scale in (1, 2)]
    write_numbers(run, *(Number("code_use", 0.5, 10, {"protocol": each}, {"tokenizer": "cc"}) for each in protocols))
    (chain,) = chains_of(str(run))
    assert len(chain.numbers) == 4
    assert chain.links[-1].what == "least 0.08"


def test_reconstructions_follow_from_no_generator(run: Path) -> None:
    names = [link.name for link in chains_of(str(run))[1].links]
    assert names == ["images", "images", "tokenizer", "reconstructions", "as bytes", "network", "reference"]


@pytest.mark.parametrize("stage", ["tokenizer", "generator", "teacher"])
def test_a_network_that_was_trained_again_since_is_named(run: Path, stage: str) -> None:
    card = run / stage / "export/card.json"
    record = json.loads(card.read_text())
    card.write_text(json.dumps(record | {"files": {"model": digest("another")}}))
    ((name, said),) = warnings(run)
    assert name == {"teacher": "network"}.get(stage, stage)
    assert "lies there now" in said
    assert ("evaluate again" in said) == (stage != "teacher")  # a classifier may be of another run


def test_a_warning_stands_below_its_link(run: Path) -> None:
    made = write_tokens(run / "tokens", digest("other encoder"), digest("images"))
    lines = list(explain(str(run)))
    link = next(number for number, line in enumerate(lines) if line.startswith("  tokens"))
    assert lines[link + 1] == f"                   warning: other tokens lie there now ({made[:8]})"
    assert sum("warning" in line for line in lines) == 1


def test_steps_that_the_number_has_are_not_said_twice(run: Path) -> None:
    card = read_card(str(run / "generator/export"), "generator")
    write_numbers(run, Number("fid", 1.0, 10, {}, {"generator": {"sha256": card.fingerprint(), "step": 1000}}))
    (found,) = (link for link in chains_of(str(run))[0].links if link.name == "generator")
    assert found.what.startswith(f"generator {card.fingerprint()[:8]} at step 1,000, made from ")


def test_tokens_that_were_made_again_since_are_named(run: Path) -> None:
    made = write_tokens(run / "tokens", digest("other encoder"), digest("images"))
    assert warnings(run) == {("tokens", f"other tokens lie there now ({made[:8]})")}


def test_images_that_are_others_by_now_are_named(run: Path) -> None:
    made = write_images(run / "images/validation", "other")
    assert {name for name, _ in warnings(run)} == {"images", "reference"}
    assert all(f"images/validation: {made[:8]})" in said for _, said in warnings(run))


def test_what_is_gone_is_no_warning(run: Path) -> None:
    for name in ("generator/export/card.json", "tokens/manifest.json", "teacher/export/card.json"):
        (run / name).unlink()
    assert warnings(run) == set()
    assert "tokens" not in {link.name for chain in chains_of(str(run)) for link in chain.links}


def test_what_the_run_was_given_is_found_where_it_is(run: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    place = tmp_path_factory.mktemp("given") / "export"
    card = write_card(place, "tokenizer", images=digest("elsewhere"))
    number = Number("mse", 0.1, 10, {}, {"tokenizer": card.encoder()})
    write_numbers(run, number, inputs={"tokenizer": str(place)})
    recorded = {link.name: link.recorded for link in chains_of(str(run))[0].links}
    assert recorded["tokenizer"] == f"evaluation.json, {place}/card.json"


def test_a_number_with_nothing_on_record_has_a_chain_of_what_is_known(tmp_path: Path) -> None:
    write_numbers(tmp_path, Number("fid", 2.6, 50_000, {"lens": "wide"}, {"samples": digest("s"), "lucky": True}))
    (chain,) = chains_of(str(tmp_path / "evaluation.json"))
    assert [(link.name, link.what) for link in chain.links] == [
        ("images", f"50,000 images, samples {digest('s')[:8]}"),
        ("method", "lens wide"),
        ("else", "lucky true"),
    ]


def test_a_run_that_was_not_evaluated_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"evaluation.json is missing: run `foldtrain evaluate` first"):
        list(explain(str(tmp_path)))
