"""Images that are drawn while they are measured become bytes as their name says."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, get_args

import numpy as np
import pytest
import torch

from cluster.pool.drawn_set import DrawnSet
from cluster.pool.sampling import SampleWork
from tests.cluster.random_run import write_run
from trainer.config import SamplingConfig
from trainer.config.evaluation import Rounding
from trainer.evaluation.samples.label_plan import plan_of
from trainer.evaluation.samples.sample_files import SamplePlan
from trainer.stages.trained_generator import GeneratorSource


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> DrawnSet:
    run = write_run(tmp_path_factory.mktemp("drawn"))
    plan = SamplePlan(str(run), "npz", plan_of([0, 1], 4), 4, {})
    source, tokenizer = GeneratorSource(str(run / "generator/export")), str(run / "tokenizer/export")
    return DrawnSet(SampleWork(plan, source, tokenizer, SamplingConfig(cpu_batch=4), 5, {}), "nearest")


@pytest.mark.parametrize("rounding", get_args(Rounding))
def test_images_are_rounded_by_the_mode_that_is_asked_for(drawn: DrawnSet, rounding: Any) -> None:
    cpu = torch.device("cpu")
    values = next(iter(drawn.work.load(cpu).draw(torch.tensor([0, 1, 0, 1]), 0, None))).double().numpy()
    scaled = 255 * np.clip((values + 1) / 2, 0, 1)
    expected = {
        "nearest": np.floor(scaled + 0.5),
        "floor": np.floor(scaled),
        "adm": np.clip(np.trunc(127.5 * (values.astype(np.float32) + np.float32(1))), 0, 255),
    }[rounding]

    pixels_BHWC, label_B = replace(drawn, rounding=rounding).open(cpu).read(0, 4)

    assert np.array_equal(pixels_BHWC, expected.transpose(0, 2, 3, 1))
    assert label_B.tolist() == [0, 1, 0, 1]
