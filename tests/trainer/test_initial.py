"""Training starts from given weights: `init_from`."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import yaml

from cluster.config.loading import load_config
from cluster.config.run import RunConfig
from cluster.stages.inputs import with_found
from cluster.stages.train_jobs import train_job
from data_pipeline import storage
from data_pipeline.errors import UsageError
from data_pipeline.shards.weights import Card, read_weights, write_weights
from model.generators.next_scale import FoldedGenerator
from tests.cluster.finished_run import GENERATOR, GENERATOR_TOKENS, TOKENIZER, dump
from tests.cluster.test_results import finished  # noqa: F401 - a fixture
from tests.trainer.gloo import run_gloo
from trainer.checkpoints.exporting import whole_network
from trainer.config import TokenizerStageConfig
from trainer.job import INITIAL, TrainJob
from trainer.networks import load_forcing
from trainer.records.jsonl import read_records
from trainer.registry import stage_named
from trainer.stages.initial import load_initial

pytestmark = pytest.mark.xdist_group("results")

Configure = Callable[..., RunConfig]
MODEL = {"num_classes": 5, "depth": 1, "width": 16, "heads": 2, "label_dropout": 0.0}
TRAINER = {
    "steps": 1,
    "global_batch": 8,
    "learning_rate": 1e-9,
    "ema_decay": 0.5,
    "checkpoint_every": 1,
    "log_every": 1,
}


@pytest.fixture
def configure(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Configure:  # noqa: F811
    """The config of a run whose generator starts from that of runs/small, with overrides."""
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    config = {
        "run": "runs/tuned",
        "inputs": {"tokens": "runs/small/tokens", "tokenizer": "runs/small/tokenizer/export"},
        "generator": {"model": MODEL, "trainer": TRAINER, "init_from": "runs/small"},
        "tracking": {"wandb": "off"},
        "data": {"reading": {"cache_dir": "cache"}},
    }
    Path("tuned.yaml").write_text(yaml.safe_dump(config))
    return lambda *overrides: load_config("tuned.yaml", overrides)


def job_of(config: RunConfig) -> TrainJob:
    return train_job(config, stage_named("train-generator"))


def write_generator(uri: str, lineage: dict[str, Any], classes: tuple[str, ...] = (), **changes: Any) -> Card:
    """An export of a generator with a moving average that differs from its weights."""
    config = GENERATOR.model_copy(update=changes)
    files = {}
    for name, seed in (("model", 1), ("ema", 2)):
        torch.manual_seed(seed)
        files[name] = FoldedGenerator(config, TOKENIZER.layout, TOKENIZER.forcing_width).state_dict()
    both = {"generator": dump(config), **GENERATOR_TOKENS}
    return write_weights(uri, "generator", both, files, lineage, classes=classes, steps=2)


def test_the_weights_are_found_in_the_run_and_are_part_of_the_lineage(configure: Configure, tmp_path: Path) -> None:
    job, export = job_of(configure()), str(tmp_path / "runs/small/generator/export")
    assert job.inputs[INITIAL] == export
    assert job.lineage[INITIAL] == read_weights(export, "generator")[0].fingerprint()
    assert job.settings()["section"]["init_from"] == str(tmp_path / "runs/small")
    assert INITIAL not in job_of(configure("generator.init_from=null")).lineage


def network_of(job: TrainJob) -> FoldedGenerator:
    model: Any = job.section.model
    return FoldedGenerator(model, TOKENIZER.layout, TOKENIZER.forcing_width)


def test_the_moving_average_is_what_training_starts_from(configure: Configure, tmp_path: Path) -> None:
    card = write_generator("other", {})
    job = job_of(configure("generator.init_from=other"))
    assert job.lineage[INITIAL] == card.fingerprint(ema=True)
    network = network_of(job)
    load_initial(job, network, {})
    average = read_weights(str(tmp_path / "other"), "generator")[1]
    assert all(torch.equal(tensor, average[name]) for name, tensor in network.state_dict().items())


def test_a_run_that_has_come_further_does_not_look_at_them_again(configure: Configure, tmp_path: Path) -> None:
    begun = job_of(configure())
    begun.begin()
    (tmp_path / "runs/tuned/generator/checkpoints/step_00000001").mkdir(parents=True)
    (tmp_path / "runs/tuned/generator/checkpoints/step_00000001/COMPLETE").write_text("")
    shutil.rmtree(tmp_path / "runs/small/generator")
    job = job_of(configure())
    assert job.settings() == begun.settings()
    network = network_of(job)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    load_initial(job, network, {})
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


def test_a_finished_run_is_finished_without_them_and_without_checkpoints(configure: Configure, tmp_path: Path) -> None:
    begun = job_of(configure())
    begun.begin()
    card = read_weights("runs/small/generator/export", "generator")[0]
    files = {"model": network_of(begun).state_dict()}
    write_weights(begun.export, "generator", card.config, files, begun.lineage, steps=1)
    shutil.rmtree(tmp_path / "runs/small/generator")
    assert job_of(configure()).is_finished()


def test_a_run_that_has_no_checkpoint_yet_needs_them(configure: Configure, tmp_path: Path) -> None:
    job_of(configure()).begin()
    shutil.rmtree(tmp_path / "runs/small/generator")
    with pytest.raises(UsageError, match=r"generator\.init_from is .*runs/small, and there is no finished generator"):
        job_of(configure())


def test_other_weights_than_it_was_begun_with_are_another_run(configure: Configure) -> None:
    begun = job_of(configure())
    begun.begin()
    write_generator("other", {})
    with pytest.raises(UsageError, match=r"section\.init_from: .*runs/small -> .*other"):
        job_of(configure("generator.init_from=other")).is_finished()


def test_weights_of_another_network_are_refused_by_name(configure: Configure, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"holds a 'tokenizer', but a 'generator'"):
        job_of(configure("generator.init_from=runs/small/tokenizer"))


def test_another_number_of_classes_is_refused_with_the_remedy(configure: Configure) -> None:
    words = (
        r"knows 5 classes, and this one is to know 2: set generator\.model\.num_classes to 5, of which the data have 2"
    )
    with pytest.raises(UsageError, match=words):
        job_of(configure("generator.model.num_classes=null"))
    write_generator("other", {}, num_classes=1)
    with pytest.raises(UsageError, match=r"knows 1 classes, and this one is to know 5: name what .*init_except"):
        job_of(configure("generator.init_from=other"))


def test_a_class_table_starts_anew_where_that_is_asked_for_and_all_else_is_given(
    configure: Configure, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_generator("other", {}, num_classes=9)
    job = job_of(configure("generator.init_from=other", "generator.init_except=[class_embed]"))
    assert "class_embed start anew, all else from" in " ".join(capsys.readouterr().out.split())
    network, given = network_of(job), read_weights("other", "generator")[1]
    made = network.class_embed.weight.detach().clone()
    load_initial(job, network, {})
    assert torch.equal(network.class_embed.weight, made)
    assert all(torch.equal(network.state_dict()[name], given[name]) for name in given if name != "class_embed.weight")
    (event,) = read_records(f"{job.folder}/events.jsonl", lambda _: True)
    assert (event["event"], event["anew"], event["kept"]) == ("initial", ["class_embed.weight"], len(given) - 1)


def test_a_head_starts_anew_by_each_of_its_parameters(configure: Configure) -> None:
    write_generator("other", {})
    job = job_of(configure("generator.init_from=other", "generator.init_except=[head]"))
    network, given = network_of(job), read_weights("other", "generator")[1]
    made = {name: each.clone() for name, each in network.state_dict().items()}
    load_initial(job, network, {})
    anew = {name for name, each in network.state_dict().items() if not torch.equal(each, given[name])}
    assert {"head.weight"} <= anew <= {"head.weight", "head.bias"}, "head_adaln is another module"
    assert all(torch.equal(network.state_dict()[name], made[name]) for name in anew)


def test_what_is_not_named_has_to_fit_all_the_same(configure: Configure) -> None:
    write_generator("other", {}, num_classes=9, width=32)
    job = job_of(configure("generator.init_from=other", "generator.init_except=[class_embed]"))
    with pytest.raises(UsageError, match=r"of another shape .*name what is to start anew as generator\.init_except"):
        load_initial(job, network_of(job), {})


def test_names_of_no_parameter_are_refused_with_those_that_there_are(configure: Configure) -> None:
    write_generator("other", {})
    job = job_of(configure("generator.init_from=other", "generator.init_except=[class_embed, clas]"))
    with pytest.raises(UsageError, match=r"generator\.init_except: \['clas'\] name no parameter .*class_embed.*head"):
        load_initial(job, network_of(job), {})


def test_exceptions_from_nothing_are_refused(configure: Configure) -> None:
    with pytest.raises(UsageError, match=r"generator\.init_except is of given weights, and init_from names none"):
        job_of(configure("generator.init_from=null", "generator.init_except=[head]"))


def test_what_goes_on_without_exceptions_is_the_run_of_before_there_were_any(configure: Configure) -> None:
    assert job_of(configure()).settings()["section"]["init_except"] is None, "as if it were not there"


def test_weights_of_another_shape_are_refused_with_tensors_and_settings(configure: Configure) -> None:
    write_generator("other", {}, width=32)
    job = job_of(configure("generator.init_from=other"))
    card = {"generator": dump(job.section.model), **GENERATOR_TOKENS}
    words = (
        r"generator\.init_from: .*other is of another shape .*\(there -> here\): \S+ \(.*32.*\) -> \(.*16.*\).* and "
    )
    with pytest.raises(UsageError, match=words + r"\d+ more\. Settings that differ: .*generator\.width: 32 -> 16"):
        load_initial(job, network_of(job), card)


def test_weights_that_were_replaced_during_the_start_are_refused(configure: Configure) -> None:
    write_generator("other", {})
    job = job_of(configure("generator.init_from=other"))
    write_generator("other", {}, adaln_gamma_init=0.5)
    with pytest.raises(UsageError, match="were replaced while this start was under way"):
        load_initial(job, network_of(job), {})


def test_what_may_be_a_mistake_is_said(configure: Configure, capsys: pytest.CaptureFixture[str]) -> None:
    write_generator("other", {"tokenizer": "f" * 64}, classes=("cat", "dog"))
    job_of(configure("generator.init_from=other"))
    said = " ".join(capsys.readouterr().out.split())
    assert "has learnt other classes than the data have" in said
    assert f"has learnt tokens of another tokenizer ({'f' * 16})" in said


def trained(job: TrainJob) -> dict[str, Any]:
    """One step of the job, and the batch that it sees, as a rank does it."""
    from trainer.loop.worker import run_worker
    from trainer.stages import build_stage

    batch = build_stage(job, torch.device("cpu")).batch(0)
    run_worker(job, torch.device("cpu"))
    return {"tokens": batch.tokens_BLF.numpy(), "label": batch.condition_B.numpy()}


@pytest.mark.slow
def test_the_first_loss_is_that_of_the_given_network_and_the_average_starts_from_it(
    configure: Configure, tmp_path: Path
) -> None:
    write_generator("other", {})
    job = job_of(configure("generator.init_from=other"))
    (seen,) = run_gloo(1, tmp_path, trained, job)
    state = read_weights("other", "generator")[1]
    given = FoldedGenerator(GENERATOR, TOKENIZER.layout, TOKENIZER.forcing_width)
    given.load_state_dict(state)
    tokens, label = torch.from_numpy(seen["tokens"]), torch.from_numpy(seen["label"])
    quantizer = load_forcing("runs/small/tokenizer/export", torch.device("cpu"))
    with torch.no_grad():
        logits = given.eval()(label, quantizer.generator_input(tokens))
        expected = F.cross_entropy(logits.flatten(0, 2), tokens.flatten())
    (record,) = read_records(storage.join(job.folder, "metrics.jsonl"), lambda _record: True)
    assert record["loss"] == pytest.approx(float(expected), abs=1e-5)
    for role in ("master", "ema"):
        weights = whole_network(job.checkpoints, 1, role)
        assert all(torch.allclose(weights[name], state[name], atol=1e-6) for name, _ in given.named_parameters())


def test_a_tokenizer_that_starts_from_given_weights_loads_no_published_ones(
    configure: Configure, tmp_path: Path
) -> None:
    vit = {"backbone": "vit_tiny_patch16_224", "pretrained": True}
    model = TOKENIZER.model_dump(mode="json") | {"encoder": vit, "decoder": vit}
    trainer = {"steps": 1, "global_batch": 8}
    section = {"model": model, "loss": {}, "trainer": trainer, "init_from": "runs/small"}
    config = {"run": "runs/other", "inputs": {"images": "runs/small"}, "tokenizer": section}
    Path("other.yaml").write_text(yaml.safe_dump(config))
    job = train_job(with_found(load_config("other.yaml"), ["images"]), stage_named("train-tokenizer"))
    assert job.inputs[INITIAL] == str(tmp_path / "runs/small/tokenizer/export")
    assert isinstance(job.section, TokenizerStageConfig)
    assert not job.section.model.encoder.pretrained
    assert configure()
