"""Small data sets, written by the package itself."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from data_pipeline.config import DataConfig, FolderSource, TokensConfig
from data_pipeline.ingest.ingesting import ingest
from data_pipeline.shards.weights import Card
from data_pipeline.tokens.tokenizing import TokenPlan, plan_tokens
from data_pipeline.tools import examining_tokens, one_pass
from tests.data_pipeline.small_data import Images, tokenize_all, tokenizer_card, write_photos


@pytest.fixture
def images(tmp_path: Path) -> Images:
    source = FolderSource(path=str(write_photos(tmp_path / "photos")))
    config = DataConfig(source=source, shard_samples=7)
    ingest(config, str(tmp_path / "images"), seed=0)
    return Images(str(tmp_path / "images" / "train"), config)


@pytest.fixture
def make_plan(images: Images, tmp_path: Path) -> Callable[..., TokenPlan]:
    def make(output: str = "tokens", card: Card | None = None, flip: bool = True, **changes: object) -> TokenPlan:
        views = ("center", "center_flip") if flip else ("center",)
        config = TokensConfig.model_validate({"views": views, "shard_samples": 8, "batch": 3} | changes)
        return plan_tokens(images.uri, card or tokenizer_card(), config, str(tmp_path / output), "crop")

    return make


@pytest.fixture
def tokens(make_plan: Callable[..., TokenPlan]) -> Path:
    """Folder of a complete token data set: three shards, two views."""
    plan = make_plan()
    tokenize_all(plan)
    return Path(plan.output)


@pytest.fixture(params=["whole", "in pieces"])
def pieces(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Shards are read by one request and looked at as one, or by many and a sample at a time."""
    if request.param == "in pieces":
        monkeypatch.setattr(one_pass, "PIECE_BYTES", 97)
        monkeypatch.setattr(examining_tokens, "ROW_BYTES", 1)
