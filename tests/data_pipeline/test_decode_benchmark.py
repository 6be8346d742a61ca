"""The benchmark of decoding measures both ways and writes what it found."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks.decode import main, psnr
from data_pipeline.images.transforms import decode
from tests.data_pipeline.small_data import jpeg


def test_it_writes_ratio_and_psnr_of_own_pictures(tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    (folder / "a.jpg").write_bytes(jpeg(1, 1100, 800))
    (folder / "small.jpg").write_bytes(jpeg(1))
    (folder / "notes.txt").write_text("no picture")
    main(["--images", str(folder), "--rounds", "1", "--json", str(tmp_path / "out.json")])
    figures = json.loads((tmp_path / "out.json").read_text())
    assert figures["ratio"]["fast_exact"] > 0
    assert figures["psnr"]["500x375"]["min"] > figures["psnr"]["1024x768"]["min"] > 30


def test_a_folder_without_large_pictures_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="holds no picture of 1024 x 768 or more"):
        main(["--images", str(tmp_path)])


def test_psnr_of_a_difference_of_one_level_is_48_db() -> None:
    pixels = decode(jpeg(1))
    brighter = Image.eval(pixels, lambda level: level ^ 1)
    assert psnr(np.asarray(pixels), np.asarray(brighter)) == pytest.approx(48.13, abs=0.01)
