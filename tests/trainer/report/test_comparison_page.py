"""The page of a comparison: numbers, samples of the same seed, settings; and nothing of a run is markup."""

from __future__ import annotations

from pathlib import Path

from tests.trainer.report.evaluated import FID, RFID, by, of, write_run
from tests.trainer.report.pages import COMPUTED, HOSTILE, Page
from trainer.report.comparison_page import comparison_page
from trainer.report.evaluated_runs import read_run, read_same_samples
from trainer.report.run_table import table_of


def page_of(*places: str, **more: int) -> Page:
    runs = [read_run(place) for place in places]
    return Page(comparison_page(runs, table_of(runs), **more))


def test_the_page_has_numbers_with_their_methods_and_the_settings_that_differ(tmp_path: Path) -> None:
    first, second = write_run(tmp_path / "a", FID, RFID), write_run(tmp_path / "b", of(FID, seed=8), steps=200)
    words = page_of(first, second).words
    assert f"{first} 12.34 ± 0.07 4.500 1.50 {second} 12.34 ± 0.07 – 1.50" in words
    assert "FID 10,000 samples, reference aaaaaaaa, rounding nearest, inception-2015" in words
    assert "generator.trainer.steps 100 200" in words
    assert "generator.trainer.steps" not in page_of(first, first).words


def test_samples_of_the_same_seed_classes_and_guidance_stand_side_by_side(tmp_path: Path) -> None:
    places = [write_run(tmp_path / name, FID) for name in ("a", "b")]
    page = page_of(*places)
    pictures = [attributes["src"] for tag, attributes in page.tags if tag == "img"]
    assert len(set(pictures)) == 2
    assert all(each and each.startswith("data:image/png;base64,") for each in pictures)


def test_samples_that_were_drawn_otherwise_are_not_shown_and_it_is_said_why(tmp_path: Path) -> None:
    first = write_run(tmp_path / "a", FID)
    for name, changes, said in (
        ("seed", {"seed": 1}, "seed 1 and not 0"),
        ("classes", {"classes": [3]}, "classes [3] and not all"),
        ("guidance", {"guidance": 4.0}, "guidance 4.0 and not 2.0"),
    ):
        page = page_of(first, write_run(tmp_path / name, FID, **changes))
        assert not [tag for tag, _ in page.tags if tag == "img"]
        assert f"were drawn otherwise than those of {first}: {said}." in page.words


def test_samples_of_too_many_bytes_for_a_page_are_not_shown(tmp_path: Path) -> None:
    first, second = (write_run(tmp_path / name, FID) for name in ("a", "b"))
    size = sum((tmp_path / name / "samples/grid.png").stat().st_size for name in ("a", "b"))
    assert [tag for tag, _ in page_of(first, second, most_picture_bytes=size).tags if tag == "img"]
    page = page_of(first, second, most_picture_bytes=size - 1)
    assert "img" not in {tag for tag, _ in page.tags}
    assert f"they have more than {size - 1} bytes: compare fewer runs." in page.words


def test_settings_stand_below_their_stage(tmp_path: Path) -> None:
    places = [write_run(tmp_path / name, FID, steps=steps) for name, steps in (("a", 1), ("b", 2))]
    for place, depth in zip(places, (3, 4), strict=True):
        (Path(place) / "tokenizer").mkdir()
        (Path(place) / "tokenizer/config.yaml").write_text(f"seed: {depth}\ntokenizer: {{depth: {depth}}}\n")
    words = page_of(*places).words
    head = f"setting {places[0]} {places[1]}"
    assert f"tokenizer {head} seed 3 4 tokenizer.depth 3 4 generator {head} generator.trainer.steps 1 2" in words


def test_samples_of_other_classes_are_not_shown(tmp_path: Path) -> None:
    places = [write_run(tmp_path / name, FID) for name in ("a", "b")]
    record = tmp_path / "b/samples/samples.json"
    record.write_text(record.read_text().replace("cat", "cow"))
    _, why = read_same_samples([read_run(place) for place in places])
    assert why.endswith("the names of the classes differ")


def test_a_grid_that_its_record_does_not_name_is_not_shown(tmp_path: Path) -> None:
    places = [write_run(tmp_path / name, FID) for name in ("a", "b")]
    (tmp_path / "b/samples/grid.png").write_bytes(b"\x89PNG\r\n\x1a\n another")
    assert "has no samples/grid.png with its samples.json" in page_of(*places).words


def test_a_file_of_numbers_has_no_samples_and_no_settings(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a", FID)
    paper = tmp_path / "paper.json"
    paper.write_text('{"numbers": [{"metric": "fid", "value": 2.6, "images": 50000}]}')
    page = page_of(run, str(paper))
    assert "paper.json is a file of numbers, and has no samples" in page.words


def test_a_run_is_the_same_by_its_folder_or_its_file(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a", FID)
    by_file, by_folder = read_run(f"{run}/evaluation.json"), read_run(f"{run}/")
    assert (by_file.name, by_file.hours, by_file.settings) == (by_folder.name, by_folder.hours, by_folder.settings)
    assert by_file.hours == {"train-tokenizer": 0.5, "train-generator": 1.0}


def test_records_that_were_cut_are_named_and_the_rest_is_shown(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a", FID)
    (tmp_path / "a/generator/config.yaml").write_text("seed: [")
    (tmp_path / "a/stages.json").write_text("[{}]")
    words = page_of(run, run).words
    assert "generator/config.yaml is not valid YAML" in words
    assert "stages.json is no list of stages" in words
    assert "12.34 ± 0.07" in words


def test_whatever_a_run_holds_stays_text(tmp_path: Path) -> None:
    hostile = by(of(FID, **{HOSTILE: HOSTILE}), network={"name": HOSTILE})
    places = [write_run(tmp_path / name, hostile, seed=HOSTILE if name == "b" else 0) for name in ("a", "b")]
    (tmp_path / "a/generator/config.yaml").write_text(f"seed: 0\ngenerator: {{'{HOSTILE[2:]}': 1}}\n")
    page = page_of(*places)
    tags = {tag for tag, _ in page.tags}
    assert not tags & {"script", "img"}
    assert COMPUTED not in page.words
    assert (
        "meta",
        {
            "http-equiv": "Content-Security-Policy",
            "content": "default-src 'none'; style-src 'unsafe-inline'; img-src data:",
        },
    ) in page.tags
