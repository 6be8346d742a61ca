"""A trained tokenizer has the weights and losses that plain torch gives it: every term, its weight, its gradient."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from data_pipeline.shards.halves import half_fingerprint, halves_of
from data_pipeline.shards.weights import read_card
from model.config import ImageFolderConfig, VectorConfig, ViTConfig
from model.tokenizers.imagefolder import ImageFolderTokenizer
from tests.trainer import small_runs
from tests.trainer.gloo import run_gloo
from trainer.config import TokenizerLossConfig, TokenizerStageConfig

VIT = ViTConfig(width=8, depth=1, heads=2, layer_scale=None)
COMMITMENT = 0.7
MODEL = ImageFolderConfig(
    image_size=small_runs.SIZE,
    patch_size=4,
    scales=(1, 2),
    shared_residual_convs=1,
    residual_ratio=0.3,
    quantizer_dropout=0,
    dropout_min_scales=1,
    quantizer=VectorConfig(codebook_size=12, code_dim=4, commitment=COMMITMENT),
    encoder=VIT,
    decoder=VIT,
    teacher_width=small_runs.CLASSIFIER.widths[-1],
)
TEMPERATURE = 3.0
LOSS: dict[str, Any] = {
    "reconstruction": 2.0,
    "perceptual": [{"kind": "teacher", "weight": 5.0}],
    "semantic": {"weight": 0.4, "temperature": TEMPERATURE},
}
STEPS, RATE, DECAY = 3, 2e-3, 0.5
NOT_DECAYED = {
    "encoder.queries_QD",
    "encoder.level",
    "encoder.trunk.cls_token",
    "encoder.trunk.pos_embed",
    "decoder.level",
    "decoder.trunk.cls_token",
    "decoder.trunk.pos_embed",
    "quantizer.branches.0.quantizer.codebook",
    "quantizer.branches.1.quantizer.codebook",
}
"""Tensors of two and more axes that weight decay leaves alone: all that is no weight of a layer."""


def section(loss: dict[str, Any] = LOSS, **changes: Any) -> TokenizerStageConfig:
    trainer = small_runs.trainer(final_learning_rate=1, **changes)
    return TokenizerStageConfig(model=MODEL, loss=TokenizerLossConfig.model_validate(loss), trainer=trainer)


def train_all(folder: Path) -> None:
    images = small_runs.write_images(folder)
    small_runs.train("teacher", folder / "teacher", small_runs.classifier(learning_rate=0.05, steps=5), images=images)
    inputs = {"images": images, "teacher": str(folder / "teacher" / "export")}
    small_runs.train("tokenizer", folder / "start", section(learning_rate=small_runs.NO_STEP), **inputs)
    small_runs.train("tokenizer", folder / "plain", section(steps=STEPS, learning_rate=RATE), **inputs)
    small_runs.train("tokenizer", folder / "one", section(learning_rate=RATE), **inputs)
    small_runs.train("tokenizer", folder / "decayed", section(learning_rate=RATE, weight_decay=DECAY), **inputs)
    normalized = section(LOSS | {"semantic": LOSS["semantic"] | {"normalize": True}}, learning_rate=small_runs.NO_STEP)
    small_runs.train("tokenizer", folder / "normalized", normalized, **inputs)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    run_gloo(1, folder, train_all, folder)
    return folder


def plain_quantizer(weights: dict[str, Tensor], latent_BPCHW: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Two residual steps per branch: the image's mean, then each cell. Returns latent, codebook and commitment loss."""
    quantized, codebook_terms, commitment_terms = [], [], []
    for branch, latent_BCHW in enumerate(latent_BPCHW.unbind(1)):
        name = f"quantizer.branches.{branch}"
        codebook, conv = weights[f"{name}.quantizer.codebook"], f"{name}.residual_convs.0"
        total = torch.zeros_like(latent_BCHW)
        for side in (1, 2):
            residual = (latent_BCHW - total).detach()
            cells = residual.mean((2, 3), keepdim=True) if side == 1 else residual
            similarity = torch.einsum("bchw,vc->bhwv", cells, F.normalize(codebook, dim=1)).detach()
            step = codebook[similarity.argmax(-1)].permute(0, 3, 1, 2).expand_as(latent_BCHW)
            mixed = F.conv2d(step, weights[f"{conv}.weight"], weights[f"{conv}.bias"], padding=1)
            total = total + 0.7 * step + 0.3 * mixed
            codebook_terms.append((total - latent_BCHW.detach()).square().mean())
            commitment_terms.append((total.detach() - latent_BCHW).square().mean())
        quantized.append(latent_BCHW + (total - latent_BCHW).detach())
    codebook_loss, commitment_loss = torch.stack(codebook_terms).mean(), torch.stack(commitment_terms).mean()
    return torch.stack(quantized, 1), codebook_loss, COMMITMENT * commitment_loss


def plain_contrast(student_NC: Tensor, teacher_NC: Tensor) -> Tensor:
    """Minus the log of each image's own share among all pairs, from both sides."""
    pairs_NN = torch.exp(TEMPERATURE * student_NC @ teacher_NC.T)
    own_N = pairs_NN.diagonal()
    return -(torch.log(own_N / pairs_NN.sum(0)).mean() + torch.log(own_N / pairs_NN.sum(1)).mean()) / 2


def plain_terms(
    network: ImageFolderTokenizer, teacher: dict[str, Tensor], *, normalize: bool = False
) -> dict[str, Tensor]:
    """All terms of the loss and the loss; of the network only the two transformers are used."""
    image, weights = small_runs.images(), dict(network.named_parameters())
    latent, codebook_loss, commitment_loss = plain_quantizer(weights, network.encode(image))
    reconstruction = network.decode(latent)
    student = latent[:, -1].mean((2, 3))
    features = small_runs.plain_features(teacher, image)
    projected = features @ weights["teacher_projection.weight"].T + weights["teacher_projection.bias"]
    if normalize:
        student, projected = (side / side.norm(dim=1, keepdim=True) for side in (student, projected))
    terms = {
        "reconstruction": (reconstruction - image).square().mean(),
        "perceptual": (small_runs.plain_features(teacher, reconstruction) - features).square().mean(),
        "semantic": plain_contrast(student, projected),
        "codebook": codebook_loss,
        "commitment": commitment_loss,
    }
    factors = {"reconstruction": 2.0, "perceptual": 5.0, "semantic": 0.4, "codebook": 1.0, "commitment": 1.0}
    return terms | {"loss": sum(factors[name] * term for name, term in terms.items())}


def network_of(folder: Path) -> ImageFolderTokenizer:
    network = ImageFolderTokenizer(MODEL)
    network.load_state_dict(small_runs.exported(folder))
    return network


TERMS = ("reconstruction", "perceptual", "semantic", "codebook", "commitment", "loss")


@pytest.mark.parametrize("term", TERMS)
def test_each_term_of_the_loss_is_what_plain_torch_computes(runs: Path, term: str) -> None:
    expected = plain_terms(network_of(runs / "start"), small_runs.exported(runs / "teacher"))
    assert float(expected[term].detach()) > 1e-4
    assert small_runs.records(runs / "start", term) == [pytest.approx(float(expected[term].detach()), rel=1e-5)]


def test_the_semantic_loss_may_be_of_directions_alone(runs: Path) -> None:
    expected = plain_terms(network_of(runs / "start"), small_runs.exported(runs / "teacher"), normalize=True)
    assert small_runs.records(runs / "normalized", "semantic") == [pytest.approx(float(expected["semantic"].detach()))]


def test_the_trained_weights_are_those_of_plain_torch(runs: Path) -> None:
    """Gradients that are zero but for rounding say nothing of where their weights go, so those are left out."""
    network, teacher = network_of(runs / "start"), small_runs.exported(runs / "teacher")
    optimizer = torch.optim.AdamW(network.parameters(), lr=RATE, betas=(0.9, 0.95), weight_decay=0)
    clear = {name: torch.ones_like(tensor, dtype=torch.bool) for name, tensor in network.named_parameters()}
    losses = []
    for _ in range(STEPS):
        loss = plain_terms(network, teacher)["loss"]
        optimizer.zero_grad()
        loss.backward()
        losses.append(float(loss.detach()))
        for name, tensor in network.named_parameters():
            if tensor.grad is not None:
                clear[name] &= (tensor.grad.abs() > 1e-5) | (tensor.grad == 0)
        optimizer.step()
    assert small_runs.records(runs / "plain", "loss") == pytest.approx(losses, rel=1e-5)
    found = small_runs.exported(runs / "plain")
    for name, tensor in network.named_parameters():
        difference = ((found[name] - tensor.detach()).abs() * clear[name]).max()
        assert float(difference) < 1e-6, f"{name} differs by {float(difference)}"
    share = sum(int(each.sum()) for each in clear.values()) / sum(each.numel() for each in clear.values())
    assert share > 0.8


def test_decay_takes_its_share_of_layers_weights_and_of_nothing_else(runs: Path) -> None:
    """The first step moves every weight by the same with decay and without; what is left is the decay's."""
    start, one, decayed = (small_runs.exported(runs / name) for name in ("start", "one", "decayed"))
    spared = {name for name in start if torch.equal(one[name], decayed[name])}
    assert {name for name in spared if start[name].ndim > 1} == NOT_DECAYED
    assert {name for name in start if start[name].ndim < 2} <= spared
    for name in start.keys() - spared:
        torch.testing.assert_close(one[name] - decayed[name], RATE * DECAY * start[name], rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize("stage", ["teacher", "plain"])
def test_the_card_of_a_trained_network_names_the_classes_of_its_data(runs: Path, stage: str) -> None:
    kind = "teacher" if stage == "teacher" else "tokenizer"
    assert read_card(str(runs / stage / "export"), kind).classes == small_runs.CLASSES


def test_the_card_of_a_trained_tokenizer_tells_what_encodes_from_what_decodes(runs: Path) -> None:
    start, plain = (read_card(str(runs / name / "export"), "tokenizer") for name in ("start", "plain"))
    assert start.encoder() != plain.encoder()
    assert start.decoder() != plain.decoder()
    names = halves_of(ImageFolderTokenizer)
    assert names is not None
    for half, stated in (("encode", plain.encoder()), ("decode", plain.decoder())):
        assert half_fingerprint(plain.config, small_runs.exported(runs / "plain"), names, half) == stated
