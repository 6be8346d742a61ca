"""Operations by arithmetic are those that torch counts, parameters those of the networks; peaks are never guessed."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from model import losses
from model.classifier import Classifier
from model.config import ClassifierConfig, ImageFolderConfig, NextScaleConfig, ViTConfig
from model.generators.next_scale import FoldedGenerator
from model.layers import attention
from model.quantizers.multi_scale import FoldedQuantizer
from model.tokenizers.imagefolder import ImageFolderTokenizer
from trainer.planning.devices import DEVICES, find_device, mfu, peak_flops
from trainer.planning.flops import classifier_forward, generator_flops, tokenizer_flops, visible_pairs
from trainer.planning.frozen import frozen_teacher
from trainer.planning.shapes import classifier_weights, count, generator_weights, tokenizer_weights

VIT = ViTConfig(width=96, depth=2, heads=3)
TOKENIZER = ImageFolderConfig(
    image_size=32, patch_size=8, encoder=VIT, decoder=VIT, scales=(1, 2, 3, 4), codebook_size=256, code_dim=16
)
GENERATORS = [
    NextScaleConfig(num_classes=10, depth=3, width=64, heads=4),
    NextScaleConfig(num_classes=10, depth=2, width=96, heads=3, shared_adaln=True, qk_norm=False, mlp_ratio=3),
]
BATCH = 3


@pytest.fixture
def plain_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    """Attention as matrix products of all pairs: torch has no count of its fused kernels on a CPU."""
    monkeypatch.setattr(attention, "attention_backend", lambda *_: "plain")


@pytest.mark.usefixtures("plain_attention")
@pytest.mark.parametrize("config", GENERATORS, ids=["adaln", "shared adaln"])
def test_a_generator_step_is_what_torch_counts(config: NextScaleConfig) -> None:
    network = FoldedGenerator(config, TOKENIZER.layout, TOKENIZER.forcing_width)
    quantizer = FoldedQuantizer(TOKENIZER).requires_grad_(requires_grad=False)
    tokens = torch.randint(0, 256, (BATCH, TOKENIZER.layout.positions, 2))
    with FlopCounterMode(display=False) as counter:
        logits = network(torch.zeros(BATCH, dtype=torch.long), quantizer.generator_input(tokens))
        losses.folded_cross_entropy(logits, tokens)[0].backward()
    assert BATCH * generator_flops(config, TOKENIZER).dense == pytest.approx(counter.get_total_flops(), rel=0.01)


@pytest.mark.usefixtures("plain_attention")
def test_a_tokenizer_step_is_what_torch_counts() -> None:
    network = ImageFolderTokenizer(TOKENIZER)
    for module in network.modules():  # timm's blocks decided at their making
        if hasattr(module, "fused_attn"):
            module.fused_attn = False
    image = torch.randn(BATCH, 3, 32, 32)
    with FlopCounterMode(display=False) as counter:
        output = network(image)
        teacher = network.project_teacher(torch.randn(BATCH, VIT.width))
        loss = output.reconstruction_BCHW.square().mean() + output.losses["codebook"] + output.losses["commitment"]
        (loss + losses.contrastive_loss(output.semantic_BC, teacher)).backward()
    assert BATCH * tokenizer_flops(TOKENIZER, BATCH).dense == pytest.approx(counter.get_total_flops(), rel=0.01)


def test_a_classifier_is_what_torch_counts() -> None:
    config = ClassifierConfig(image_size=28, num_classes=10, widths=(16, 32, 64))
    with FlopCounterMode(display=False) as counter:
        Classifier(config).features(torch.randn(1, 3, 28, 28))
    assert sum(classifier_forward(config)) == counter.get_total_flops()


def test_visible_pairs_are_those_of_own_and_earlier_scales() -> None:
    layout = ImageFolderConfig().layout
    by_hand = sum(1 for q in _scale_of(layout.groups) for k in _scale_of(layout.groups) if k <= q)
    assert visible_pairs(layout) == by_hand < layout.positions**2


def _scale_of(sizes: tuple[int, ...]) -> list[int]:
    return [scale for scale, size in enumerate(sizes) for _ in range(size)]


@pytest.mark.parametrize("config", GENERATORS, ids=["adaln", "shared adaln"])
def test_a_generator_has_as_many_parameters_as_are_counted(config: NextScaleConfig) -> None:
    network = FoldedGenerator(config, TOKENIZER.layout, TOKENIZER.forcing_width)
    assert _shapes(network) == sorted(weight.shape for weight in generator_weights(config, TOKENIZER))


@pytest.mark.parametrize("teacher_width", [None, 40])
def test_a_tokenizer_has_as_many_parameters_as_are_counted(teacher_width: int | None) -> None:
    config = TOKENIZER.model_copy(update={"teacher_width": teacher_width, "shared_residual_convs": 0})
    assert count(tokenizer_weights(config)) == sum(p.numel() for p in ImageFolderTokenizer(config).parameters())


def test_a_classifier_has_as_many_parameters_as_are_counted() -> None:
    config = ClassifierConfig(num_classes=10)
    assert _shapes(Classifier(config)) == sorted(weight.shape for weight in classifier_weights(config))


def _shapes(network: nn.Module) -> list[tuple[int, ...]]:
    return sorted(tuple(parameter.shape) for parameter in network.parameters())


def test_the_published_sizes_have_the_published_parameters() -> None:
    """314.1 M at depth 16 and 375.3 M at depth 17 (specs of ImageFolder, 3.1)."""
    millions = {
        depth: count(
            generator_weights(
                NextScaleConfig(num_classes=1000, depth=depth, width=64 * depth, heads=depth), ImageFolderConfig()
            )
        )
        for depth in (16, 17)
    }
    assert millions == {16: pytest.approx(314.1e6, rel=1e-3), 17: pytest.approx(375.3e6, rel=1e-3)}


def test_a_backbone_is_measured_by_its_name() -> None:
    named = ViTConfig(backbone="vit_base_patch14_dinov2.lvd142m")
    config = ImageFolderConfig(encoder=named, decoder=named)
    assert count(tokenizer_weights(config)) == pytest.approx(172.3e6, rel=1e-3)


def test_a_named_teacher_is_measured_without_its_weights() -> None:
    from trainer.config import TeacherConfig, TokenizerLossConfig, TrainerConfig

    teacher = TeacherConfig(timm="vit_tiny_patch16_224", trainer=TrainerConfig(steps=1, global_batch=1))
    once = frozen_teacher(teacher, TokenizerLossConfig(feature=0))
    assert once.flops == pytest.approx(2 * 1.26e9, rel=0.02)
    assert once.activations == 0
    assert frozen_teacher(teacher, TokenizerLossConfig(feature=0.1)).flops == 3 * once.flops


@pytest.mark.parametrize(
    ("sizes", "image", "patch"), [({}, 518, 14), ({"image_size": 256, "patch_size": 16}, 256, 16)], ids=["own", "paper"]
)
def test_dinov2_costs_what_its_sizes_say(sizes: dict[str, int], image: int, patch: int) -> None:
    """On paper: 12 blocks of width 768, each 12 C² per token in products and 2 C per pair of tokens in attention."""
    from trainer.config import TeacherConfig, TokenizerLossConfig, TrainerConfig

    trainer = TrainerConfig(steps=1, global_batch=1)
    teacher = TeacherConfig(timm="vit_base_patch14_dinov2.lvd142m", trainer=trainer, **sizes)
    patches, width = (image // patch) ** 2, 768
    tokens = patches + 1
    expected = 2 * (12 * (12 * width**2 * tokens + 2 * width * tokens**2) + patches * 3 * patch**2 * width)
    found = frozen_teacher(teacher, TokenizerLossConfig(feature=0)).flops
    assert found == pytest.approx(expected, rel=1e-3)
    assert found / 1e9 == pytest.approx({518: 303, 256: 46.3}[image], rel=0.01)


@pytest.mark.parametrize(
    ("name", "entry"),
    [
        ("NVIDIA A100-SXM4-80GB", "A100"),
        ("NVIDIA A100 80GB PCIe", "A100"),
        ("NVIDIA A100-PCIE-40GB", "A100 40GB"),
        ("NVIDIA A100-SXM4-40GB", "A100 40GB"),
        ("NVIDIA H100 80GB HBM3", "H100 SXM"),
        ("H100 SXM", "H100 SXM"),
        ("NVIDIA H100 PCIe", "H100 PCIe"),
        ("NVIDIA H200", "H200"),
        ("NVIDIA L40S", "L40S"),
        ("NVIDIA A10", "A10"),
        ("NVIDIA GeForce RTX 4090", "RTX 4090"),
        ("NVIDIA B200", "B200"),
        ("AMD Instinct MI300X", "MI300X"),
    ],
)
def test_devices_are_known_by_the_names_that_drivers_give(name: str, entry: str) -> None:
    device = find_device(name)
    assert device is not None
    assert device.name == entry


@pytest.mark.parametrize(
    "name",
    [
        "NVIDIA A10G",
        "NVIDIA H100 NVL",
        "NVIDIA A100-SXM4-40GB MIG 1g.5gb",
        "NVIDIA GeForce RTX 4090 Laptop GPU",
        "GB200",
        "",
    ],
)
def test_a_relative_of_a_known_device_has_no_peak(name: str) -> None:
    assert peak_flops(name, "bf16") is None


def test_a_number_format_that_is_not_in_the_table_has_no_peak() -> None:
    assert peak_flops("NVIDIA H200", "fp8") is None


def test_every_entry_names_its_source_and_finds_itself() -> None:
    assert all(device.source and find_device(device.name) == device for device in DEVICES)


def test_mfu_is_the_share_of_what_all_devices_could_do() -> None:
    assert mfu(flops=4e12, seconds=2.0, peak=1e12, devices=8) == pytest.approx(0.25)
