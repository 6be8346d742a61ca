"""`tokenize` refuses a tokenizer that is not as good as `tokens.require` asks: by its card, or by a look of its own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from cluster.cli import app
from cluster.commands import stages
from cluster.stages import gate
from cluster.stages.gate import check_tokenizer_gate
from data_pipeline.errors import UsageError
from data_pipeline.shards.measured import Measured, measured_of
from data_pipeline.shards.weights import read_card, write_weights
from model.tokenizers.imagefolder import ImageFolderTokenizer
from tests.cluster.finished_run import TOKENIZER, dump
from tests.cluster.test_results import (  # noqa: F401 - fixtures
    Configure,
    configure,
    finished,
    run,
)
from tests.trainer.test_gate import LOOK
from trainer.evaluation.tokenizers.tokenizer_record import LabelledPixels

pytestmark = pytest.mark.xdist_group("results")


def write_measured(run: Path) -> None:  # noqa: F811
    torch.manual_seed(0)
    files = {"model": ImageFolderTokenizer(TOKENIZER).state_dict()}
    uri = str(run / "tokenizer/export")
    write_weights(uri, "tokenizer", dump(TOKENIZER), files, {}, measured=measured_of(LOOK))


def test_a_tokenizer_is_held_against_what_its_card_says(
    configure: Configure,  # noqa: F811
    run: Path,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = read_card(str(run / "tokenizer/export"), "tokenizer")
    write_measured(run)
    after = read_card(str(run / "tokenizer/export"), "tokenizer")
    assert after.measured == measured_of(LOOK)
    assert (after.fingerprint(), before.measured) == (before.fingerprint(), None)
    monkeypatch.setattr(gate, "_measure", lambda *_: pytest.fail("it was measured"))
    check_tokenizer_gate(configure("tokens.require={use: 0.5}"))
    with pytest.raises(UsageError) as refused:
        check_tokenizer_gate(configure("tokens.require={use: 0.6, mse: 0.01}"))
    message = str(refused.value)
    assert "tokens.require" in message
    assert "on 50 images, after step 9" in message
    assert "use 0.5 of branch detail at scale 2 of 2" in message
    assert "mse 0.05" in message
    assert "--anyway" in message


@pytest.mark.slow
def test_a_card_that_says_nothing_is_made_up_for_by_a_look_at_images(
    configure: Configure,  # noqa: F811
    run: Path,  # noqa: F811
    capsys: pytest.CaptureFixture[str],
) -> None:
    measured = gate._measure(configure(), str(run / "tokenizer/export"))
    training = LabelledPixels.load(str(run / "images/train"), 16, "crop", 256)
    network = ImageFolderTokenizer(TOKENIZER).eval()
    torch.manual_seed(0)
    network = ImageFolderTokenizer(TOKENIZER).eval()
    image = torch.from_numpy(training.pixels_NHWC).permute(0, 3, 1, 2) / 127.5 - 1
    with torch.inference_mode():
        tokens = network.tokenize(image)
        error = float((network.detokenize(tokens) - image).square().mean())
    assert measured.mse == pytest.approx(error, rel=1e-5)
    assert measured.images == len(image)
    assert measured.codes["semantic"].use[0] == len(np.unique(tokens[:, 0, 1])) / 16
    with pytest.raises(UsageError, match=r"psnr .* and not 99"):
        check_tokenizer_gate(configure("tokens.require={psnr: 99}"))
    assert "says nothing of its quality" in capsys.readouterr().out.replace("\n", " ")
    check_tokenizer_gate(configure("tokens.require={psnr: 0.001}"))
    check_tokenizer_gate(configure())


def test_tokenize_goes_on_anyway_where_it_is_told_to(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, str, list[str] | None]] = []
    monkeypatch.setattr(stages, "run", lambda *given: asked.append(given))
    runner = CliRunner()
    for arguments in (["a.yaml", "seed=1"], ["a.yaml", "seed=1", "--anyway"], ["--anyway", "a.yaml"]):
        assert runner.invoke(app, ["tokenize", *arguments]).exit_code == 0
    assert [overrides for _, _, overrides in asked] == [
        ["seed=1"],
        ["seed=1", "tokens.require=null"],
        ["tokens.require=null"],
    ]


def test_an_edited_card_with_measurements_that_cannot_be_is_refused(run: Path) -> None:  # noqa: F811
    write_measured(run)
    path = run / "tokenizer/export/card.json"
    path.write_text(path.read_text().replace('"dead": 0.25', '"dead": 7'))
    with pytest.raises(UsageError, match=r"is no card .*dead"):
        read_card(str(run / "tokenizer/export"), "tokenizer")
    assert isinstance(measured_of(LOOK), Measured)
