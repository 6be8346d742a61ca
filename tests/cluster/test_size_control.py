"""The workers of a running training: as the config says, or as `foldtrain scale` asks."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cluster.config.run import ClusterConfig
from cluster.pool.scale import clear_scale, write_checkpoint, write_scale
from cluster.training.size_control import SizeControl
from trainer.config import TrainerConfig


def control(folder: Path, workers: Any, batch: int = 12, micro_batch: int | None = None) -> SizeControl:
    trainer = TrainerConfig(steps=1, global_batch=batch, micro_batch=micro_batch)
    return SizeControl(str(folder), trainer, ClusterConfig.model_validate({"workers": workers}))


@dataclass(frozen=True)
class Job:
    """A job, as far as its trainer is concerned."""

    section: Any

    @classmethod
    def of(cls, **settings: Any) -> Any:
        return cls(Section(TrainerConfig(steps=1, global_batch=12, **settings)))


@dataclass(frozen=True)
class Section:
    trainer: TrainerConfig

    def model_copy(self, update: dict[str, Any]) -> Section:
        return replace(self, **update)


def test_without_a_word_the_config_holds(tmp_path: Path) -> None:
    fixed, elastic = control(tmp_path, 3), control(tmp_path, "1:4")
    assert (fixed.sizes, fixed.is_elastic, fixed.look()) == ((3,), False, ("", False))
    assert (elastic.sizes, elastic.is_elastic) == ((1, 2, 3, 4), True)


def test_what_is_asked_for_is_taken_once_and_said(tmp_path: Path) -> None:
    sizes = control(tmp_path, 3)
    write_scale(str(tmp_path), 2, 5)
    assert sizes.look() == ("2 to 5 workers, as `foldtrain scale` asked; the config says 3", True)
    assert (sizes.sizes, sizes.is_elastic) == ((2, 3, 4), True)
    assert sizes.look() == ("", False)
    clear_scale(str(tmp_path))
    assert sizes.look() == ("3 workers, as the config says", True)
    assert (sizes.sizes, sizes.is_elastic) == ((3,), False)


def test_a_fixed_number_other_than_that_of_the_config_is_a_change_while_it_runs(tmp_path: Path) -> None:
    sizes = control(tmp_path, 3)
    write_scale(str(tmp_path), 2, 2)
    sizes.look()
    assert (sizes.sizes, sizes.is_elastic) == ((2,), True)


def test_a_number_over_which_the_batch_cannot_be_cut_changes_nothing_and_is_said(tmp_path: Path) -> None:
    sizes = control(tmp_path, 3)
    write_scale(str(tmp_path), 5, 5)
    said, is_new = sizes.look()
    assert (is_new, sizes.sizes) == (False, (3,))
    assert said == (
        "`foldtrain scale` asks for 5 workers, over which a global batch of 12 cannot be cut: goes on with 3"
    )
    assert sizes.look() == ("", False)


def test_a_file_that_was_edited_stops_nothing_and_is_named_once(tmp_path: Path) -> None:
    sizes = control(tmp_path, 3)
    (tmp_path / "control.json").write_text("{")
    said, is_new = sizes.look()
    assert (is_new, "control.json" in said) == (False, True)
    assert sizes.look() == ("", False)


def test_the_micro_batch_suits_all_sizes_that_the_config_or_the_command_allow(tmp_path: Path) -> None:
    sizes = control(tmp_path, 3)
    assert sizes.applied(Job.of()).section.trainer.micro_batch is None  # a share of 4 at once
    write_scale(str(tmp_path), 2, 2)
    sizes.look()
    assert sizes.applied(Job.of()).section.trainer.micro_batch == 2  # shares of 6 and of 4
    given = control(tmp_path, 3, micro_batch=1)
    given.look()
    assert given.applied(Job.of(micro_batch=1)).section.trainer.micro_batch == 1


def test_a_checkpoint_is_asked_for_once_beside_the_workers_and_one_of_before_is_past(tmp_path: Path) -> None:
    write_checkpoint(str(tmp_path))
    sizes = control(tmp_path, 3)
    assert (sizes.look(), sizes.take_checkpoint()) == (("", False), False)
    write_scale(str(tmp_path), 2, 2)
    write_checkpoint(str(tmp_path))
    assert sizes.look()[1]
    assert (sizes.sizes, sizes.take_checkpoint(), sizes.take_checkpoint()) == ((2,), True, False)
    assert (sizes.look(), sizes.take_checkpoint()) == (("", False), False)
