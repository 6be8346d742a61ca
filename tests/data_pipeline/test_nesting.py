"""What a stage writes never lies in a source, nor one data set in another."""

from __future__ import annotations

from pathlib import Path

import pytest

from data_pipeline.config import (
    DataConfig,
    FolderSource,
    IdxSource,
    ILSVRCSource,
    ParquetSource,
    Source,
    WebDatasetSource,
)
from data_pipeline.errors import UsageError
from data_pipeline.ingest.ingesting import plan_ingest
from data_pipeline.sources.nesting import refuse_nesting, refuse_overlap
from tests.data_pipeline.small_data import write_photos


@pytest.mark.parametrize("source", [FolderSource, WebDatasetSource, ParquetSource])
@pytest.mark.parametrize(
    ("path", "written"),
    [
        *[("pics", "pics/run"), ("pics", "./pics"), (".", "run"), ("pics", "other/../pics/run"), ("/", "run")],
        *[("s3://bucket", "s3://bucket/run"), ("s3://bucket/a", "s3a://bucket/a/b/c")],
    ],
)
def test_a_folder_within_a_source_is_refused_by_both_names(
    source: type[FolderSource | WebDatasetSource | ParquetSource], path: str, written: str
) -> None:
    data = DataConfig(source=source(path=path))
    with pytest.raises(ValueError, match=r"run is .*, in the folder .* of data\.source\.path"):
        refuse_nesting(data, {}, {"run": written})


def test_the_source_of_validation_is_looked_at_too() -> None:
    source = IdxSource(images="a", labels="b")
    data = DataConfig(source=source, validation_source=FolderSource(path="held"))
    with pytest.raises(ValueError, match=r"of data\.validation_source\.path"):
        refuse_nesting(data, {"images": "held/images"})


def test_a_link_into_a_source_is_seen_through(tmp_path: Path) -> None:
    (tmp_path / "pics").mkdir()
    (tmp_path / "link").symlink_to("pics")
    with pytest.raises(ValueError, match="run is"):
        refuse_nesting(DataConfig(source=FolderSource(path=str(tmp_path / "pics"))), {"run": f"{tmp_path}/link/run"})


def test_a_source_within_what_is_written_is_refused_but_one_in_the_run_is_not() -> None:
    data = DataConfig(source=FolderSource(path="run/images/raw"))
    with pytest.raises(ValueError, match=r"data\.source\.path is run/images/raw, in the folder run/images of images"):
        refuse_nesting(data, {"images": "run/images"})
    refuse_nesting(DataConfig(source=FolderSource(path="run/raw")), {"images": "run/images"}, {"run": "run"})


@pytest.mark.parametrize(
    "source",
    [
        ILSVRCSource(path="data/train.tar"),
        WebDatasetSource(path="data/a.tar"),
        WebDatasetSource(path="data/{a,b}.tar"),
        ParquetSource(path="data/*.parquet"),
        FolderSource(path="data/pictures"),
        FolderSource(path="dat"),
        FolderSource(path="s3://data"),
    ],
)
def test_folders_beside_a_source_are_taken(source: Source) -> None:
    refuse_nesting(DataConfig(source=source), {"images": "data/run/images"}, {"run": "data/run"})


def test_data_sets_within_each_other_are_refused() -> None:
    for one, other in (("a", "a"), ("a", "a/b"), ("s3://x/a/b", "s3://x/a")):
        with pytest.raises(ValueError, match="neither may lie in the other"):
            refuse_overlap({"data.images": one, "tokens.output": other})
    refuse_overlap({"data.images": "run/images", "tokens.output": "run/images2"})


def test_an_ingest_into_its_own_source_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    photos = write_photos(tmp_path / "photos", per_class=1)
    with pytest.raises(UsageError, match="would be taken for images or classes"):
        plan_ingest(DataConfig(source=FolderSource(path=str(photos))), str(photos / "images"), seed=0)
