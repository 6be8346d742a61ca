"""Restarts of codes: which, with what, and the same on all workers and at any number of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from data_pipeline.order.permutations import keyed_bits
from model.config import ImageFolderConfig
from model.protocols import TokenizerOutput
from tests.trainer.gloo import run_gloo
from trainer.config import TokenizerLossConfig, TokenizerStageConfig, TrainerConfig
from trainer.stages import dead_codes
from trainer.stages.dead_codes import CodeRestarts, replacements

CODES, CHANNELS, SAMPLES, PLACES = 12, 3, 8, 5
SEED, STEP = 3, 4
BOOKS = {"first": (2, CODES), "second": (2, CODES)}


def test_only_codes_without_a_hit_at_any_scale_are_replaced_by_codes_in_use() -> None:
    codebook = torch.eye(6)
    hits = torch.tensor([[0, 3, 0, 0, 0, 0], [0, 0, 5, 9, 0, 0]])
    rows, values = replacements(codebook, hits, seed=0, step=50, branch=0)
    assert rows.tolist() == [0, 4, 5]
    donors = values.argmax(1)
    assert set(donors.tolist()) <= {2, 3}  # drawn by use at the finest scale, where code 1 has none
    assert (values.norm(dim=1) - 1).abs().max() < 0.5


def test_replacements_are_the_same_on_every_worker() -> None:
    codebook, hits = (
        torch.randn(8, 4, generator=torch.Generator().manual_seed(0)),
        torch.tensor([[0, 0, 1, 2, 0, 1, 0, 0]]),
    )
    first, second = (replacements(codebook, hits, 1, 100, 1) for _ in range(2))
    torch.manual_seed(9)
    third = replacements(codebook, hits, 1, 100, 1)
    assert torch.equal(first[1], second[1])
    assert torch.equal(first[1], third[1])


def test_nothing_is_replaced_while_nothing_was_counted() -> None:
    rows, values = replacements(torch.randn(4, 2), torch.zeros(3, 4, dtype=torch.int64), 0, 0, 0)
    assert len(rows) == len(values) == 0


# With latents of the batch


class Table:
    """An engine of which there is nothing but codebooks."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(11)
        self.books = {name: torch.randn(CODES, CHANNELS, generator=generator) for name in BOOKS}

    def whole(self, name: str) -> Tensor:
        return self.books[name].clone()

    def overwrite_rows(self, name: str, rows: Tensor, values: Tensor) -> None:
        self.books[name][rows] = values


def section(**changes: Any) -> TokenizerStageConfig:
    settings = {"dead_code_steps": STEP, "trainer": TrainerConfig(steps=100, global_batch=SAMPLES), **changes}
    return TokenizerStageConfig(model=ImageFolderConfig(), loss=TokenizerLossConfig(**NO_SEMANTIC), **settings)


NO_SEMANTIC: dict[str, Any] = {"semantic": None}


def seen_by_all(step: int) -> dict[str, Tensor]:
    """What codes were looked up for, [samples, places, channels], by codebook."""
    generator = torch.Generator().manual_seed(step)
    return {name: torch.randn(SAMPLES, PLACES, CHANNELS, generator=generator) for name in BOOKS}


def chosen_by_all(step: int) -> Tensor:
    """Ids [samples, places] of even codes, the same of all codebooks."""
    generator = torch.Generator().manual_seed(100 + step)
    return torch.randint(0, 3, (SAMPLES, PLACES), generator=generator) * 2


def note_step(codes: CodeRestarts, step: int, micro_batches: int) -> None:
    """Give a rank its samples of a step, a micro-batch at a time."""
    share = SAMPLES // dist.get_world_size()
    own = slice(dist.get_rank() * share, (dist.get_rank() + 1) * share)
    for part in torch.arange(SAMPLES)[own].chunk(micro_batches):
        seen = {name: rows[part].flatten(0, 1) for name, rows in seen_by_all(step).items()}
        counts = torch.bincount(chosen_by_all(step)[part].flatten(), minlength=CODES)
        hits = {name: torch.stack([counts, torch.zeros_like(counts)]) for name in BOOKS}
        empty = torch.zeros(0)
        codes.note(TokenizerOutput(empty, empty, {}, None, hits, seen, {}))


def course(how: str, every: int, micro_batches: int) -> list[Any]:
    """What codebooks look like after each of six steps; another object takes over after the third."""
    config = section(dead_code_restart=how, dead_code_steps=every)
    table, found = Table(), []
    codes = CodeRestarts(BOOKS, config, SEED, torch.device("cpu"))
    for step in range(1, 7):
        note_step(codes, step, micro_batches)
        codes.after_step(step, table)
        found.append({name: book.numpy().copy() for name, book in table.books.items()})
        if step == 3:
            state = codes.state()
            codes = CodeRestarts(BOOKS, config, SEED, torch.device("cpu"))
            codes.load_state(state if dist.get_rank() == 0 else {})
    return found


CASES = [("latent", 2, 1), ("latent", 2, 2), ("cluster", 1, 1), ("cluster", 1, 2)]


def all_courses() -> list[list[Any]]:
    return [course(*case) for case in CASES]


@pytest.fixture(scope="module")
def courses(tmp_path_factory: pytest.TempPathFactory) -> dict[int, list[list[list[Any]]]]:
    """By number of workers: of each, all courses."""
    return {world: run_gloo(world, tmp_path_factory.mktemp("gloo"), all_courses) for world in (1, 2)}


@pytest.mark.parametrize("case", range(len(CASES)), ids=[f"{how}-{parts}" for how, _, parts in CASES])
def test_workers_and_micro_batches_change_nothing(courses: dict[int, list[list[list[Any]]]], case: int) -> None:
    expected = courses[1][0][case - case % 2]
    for world in (1, 2):
        for rank in courses[world]:
            for one, other in zip(rank[case], expected, strict=True):
                for name in BOOKS:
                    np.testing.assert_allclose(one[name], other[name], rtol=0, atol=1e-6)


def test_dead_codes_become_latents_of_the_global_batch_each_another_one(
    courses: dict[int, list[list[list[Any]]]],
) -> None:
    after = courses[2][1][0]
    for name in BOOKS:
        np.testing.assert_array_equal(after[0][name], Table().books[name].numpy())  # it is not time yet
    for index, name in enumerate(BOOKS):
        rows = seen_by_all(2)[name].flatten(0, 1).numpy()
        used = np.union1d(chosen_by_all(1), chosen_by_all(2))
        dead = np.setdiff1d(np.arange(CODES), used)
        assert len(dead) >= CODES - 3
        order = np.argsort(keyed_bits(SEED, f"dead_code_latents/{index}/2", np.arange(len(rows))), kind="stable")
        np.testing.assert_array_equal(after[1][name][dead], rows[order[: len(dead)]])
        np.testing.assert_array_equal(after[1][name][used], Table().books[name][used].numpy())
        assert len(np.unique(after[1][name][dead], axis=0)) == len(dead)


def test_clustering_moves_codes_to_their_nearest_latents_by_how_little_they_are_used(
    courses: dict[int, list[list[list[Any]]]],
) -> None:
    after = courses[2][0][2]
    for name in BOOKS:
        book, usage = Table().books[name].double().numpy(), np.zeros(CODES)
        for step in range(1, 7):
            rows = seen_by_all(step)[name].flatten(0, 1).double().numpy()
            shares = np.bincount(chosen_by_all(step).flatten(), minlength=CODES) / (SAMPLES * PLACES)
            usage = 0.99 * usage + 0.01 * shares
            weight = np.exp(-usage * CODES * 10 / (1 - 0.99) - 1e-3)
            distances = ((book[:, None] - rows[None]) ** 2).sum(-1)
            book = (1 - weight)[:, None] * book + weight[:, None] * rows[distances.argmin(1)]
            np.testing.assert_allclose(after[step - 1][name], book, rtol=0, atol=1e-5)
        assert weight.min() < 1e-6  # some are used
        assert weight.max() > 0.99  # and some are not


def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """This process is the only worker."""
    monkeypatch.setattr(dead_codes.dist, "all_reduce", lambda *_: None)
    monkeypatch.setattr(dead_codes.dist, "get_rank", lambda: 0)
    monkeypatch.setattr(dead_codes.dist, "get_world_size", lambda: 1)


@pytest.mark.parametrize(("step", "until", "due"), [(4, 0.9, True), (8, 0.08, False), (4, 0.08, True), (5, 0.9, False)])
def test_codes_are_restarted_when_it_is_time(
    monkeypatch: pytest.MonkeyPatch, step: int, until: float, due: bool
) -> None:
    alone(monkeypatch)
    config = section(dead_code_restart="latent", dead_code_until=until)
    codes, table = CodeRestarts(BOOKS, config, SEED, torch.device("cpu")), Table()
    note_step(codes, 1, 1)
    restarted = codes.after_step(step, table)
    assert (len(restarted) == len(BOOKS) and min(restarted) >= CODES - 3) == due
    assert any(not torch.equal(table.books[name], Table().books[name]) for name in BOOKS) == due


def test_counts_begin_anew_after_a_restart(monkeypatch: pytest.MonkeyPatch) -> None:
    alone(monkeypatch)
    codes = CodeRestarts(BOOKS, section(), SEED, torch.device("cpu"))
    note_step(codes, 1, 1)
    assert codes.state()["hits.first"].sum() == SAMPLES * PLACES
    codes.after_step(STEP, Table())
    assert codes.state()["hits.first"].sum() == 0


def test_more_dead_codes_than_latents_leave_the_last_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    alone(monkeypatch)
    seen, book = torch.ones(2, CHANNELS), torch.zeros(CODES, CHANNELS)
    hits = torch.zeros(1, CODES, dtype=torch.int64)
    hits[0, 0] = 1
    rows, values = dead_codes.latents(book, hits, seen, 0, 0, 0)
    assert rows.tolist() == [1, 2]
    assert torch.equal(values, seen)


@pytest.mark.parametrize("how", ["split", "latent", "cluster"])
def test_no_restarts_keep_nothing(how: str) -> None:
    codes = CodeRestarts(BOOKS, section(dead_code_steps=0, dead_code_restart=how), SEED, torch.device("cpu"))
    seen = {name: torch.ones(2, CHANNELS) for name in BOOKS}
    hits = {name: torch.ones(2, CODES, dtype=torch.int64) for name in BOOKS}
    codes.note(TokenizerOutput(torch.zeros(0), torch.zeros(0), {}, None, hits, seen, {}))
    assert codes.after_step(STEP, Table()) == []
    assert codes.state() == {}


def test_the_nearest_latent_is_found_a_few_codes_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    alone(monkeypatch)
    codes, seen = torch.randn(CODES, CHANNELS), torch.randn(40, CHANNELS)
    whole = dead_codes._nearest_of_all(codes, seen)
    monkeypatch.setattr(dead_codes, "_MOST_PRODUCTS", 100)
    assert torch.equal(dead_codes._nearest_of_all(codes, seen), whole)
    assert torch.equal(whole, torch.cdist(codes, seen).argmin(1))
    assert dead_codes._nearest_of_all(codes[:0], seen).shape == (0,)
