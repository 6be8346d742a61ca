"""Networks of features: Inception against torch-fidelity's, others against the models themselves."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
import torch_fidelity
import torchvision
from torch import Tensor, nn
from torch.utils.data import Dataset
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

from data_pipeline.errors import UsageError
from data_pipeline.images.transforms import to_model
from data_pipeline.shards.weights import write_weights
from model.classifier import Classifier
from model.config import ClassifierConfig
from tests.trainer.random_inception import draw_weights, write_random_inception
from trainer.config.feature_networks import ClassifierNetwork, InceptionNetwork, TimmNetwork, TorchvisionNetwork
from trainer.evaluation.networks.feature_networks import TeacherFeatures, open_network
from trainer.evaluation.networks.inception import Inception
from trainer.evaluation.networks.weight_bytes import state_sha256
from trainer.metrics.frechet import FeatureStatistics, frechet_distance
from trainer.metrics.inception_score import InceptionScore
from trainer.metrics.manifold import precision_recall

CPU = torch.device("cpu")


def images(count: int, size: int = 32, seed: int = 0) -> Tensor:
    """Noise of different brightness and coarseness, uint8 [N, 3, size, size]."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (count, 3, 4, 4)) * rng.uniform(0.2, 1, (count, 1, 1, 1))
    fine = rng.normal(0, 20, (count, 3, size, size))
    seen = coarse.repeat(size, 2).repeat(size, 3)[:, :, ::4, ::4] + fine
    return torch.from_numpy(np.clip(seen, 0, 255).astype(np.uint8))


class InceptionFile(NamedTuple):
    path: str
    sha256: str

    def open(self) -> Inception:
        network = open_network(InceptionNetwork(file=self.path, sha256=self.sha256[:8]), CPU)
        assert isinstance(network, Inception)
        return network


@pytest.fixture(scope="module")
def inception_file(tmp_path_factory: pytest.TempPathFactory) -> InceptionFile:
    path = tmp_path_factory.mktemp("inception") / "random.pth"
    return InceptionFile(str(path), write_random_inception(path))


@pytest.mark.slow
@pytest.mark.xdist_group("random_inception")
class TestInception:
    def test_features_and_logits_are_those_of_torch_fidelity_to_the_bit(self, inception_file: InceptionFile) -> None:
        pixels = images(2)
        found = inception_file.open()(pixels)
        peer = FeatureExtractorInceptionV3("peer", ["2048", "logits_unbiased"], inception_file.path)
        for name, expected in zip(("features", "logits"), peer(pixels), strict=True):
            assert (found[name] == expected).all()
            assert float(expected.std()) > 0.01

    def test_spatial_features_are_the_1x1_branch_of_the_block_6d_by_rows_columns_and_channels(
        self, inception_file: InceptionFile
    ) -> None:
        pixels, inception = images(2, 299), inception_file.open()
        spatial = inception(pixels)["spatial"]
        network, x = inception.network, (pixels.float() - 128) / 128
        blocks = ["Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3", "MaxPool_1", "Conv2d_3b_1x1", "Conv2d_4a_3x3"]
        blocks += ["MaxPool_2", *(f"Mixed_{name}" for name in ("5b", "5c", "5d", "6a", "6b", "6c"))]
        branch: Any = network.get_submodule("Mixed_6d.branch1x1")
        with torch.inference_mode():
            for name in blocks:
                x = network.get_submodule(name)(x)
            x = F.conv2d(x, branch.conv.weight) / 1.001**0.5  # a batch norm of mean 0 and variance 1
            expected = (x * branch.bn.weight.view(-1, 1, 1) + branch.bn.bias.view(-1, 1, 1)).relu()
        assert spatial.shape == (2, 17 * 17 * 7)
        for row, column, channel in ((0, 0, 0), (0, 0, 6), (3, 11, 2), (16, 16, 6)):
            values = spatial[:, (row * 17 + column) * 7 + channel]
            torch.testing.assert_close(values, expected[:, channel, row, column], rtol=1e-4, atol=1e-5)
        assert float(spatial.std()) > 0.01

    def test_numbers_of_images_are_those_of_torch_fidelity(self, inception_file: InceptionFile) -> None:
        real, made = images(8, seed=1), (images(8, seed=2).float() * 0.7).byte()
        settings: dict[str, Any] = {"cuda": False, "cache": False, "save_cpu_ram": True, "verbose": False}
        settings |= {"feature_extractor_weights_path": inception_file.path, "batch_size": len(made)}
        settings |= {"feature_extractor": "inception-v3-compat", "fid": True, "isc": True, "isc_splits": 2, "prc": True}
        expected = torch_fidelity.calculate_metrics(input1=_Images(made), input2=_Images(real), **settings)
        inception = inception_file.open()
        ours, theirs = inception(made), inception(real)
        distance = frechet_distance(*(FeatureStatistics.from_features(each["features"]) for each in (ours, theirs)))
        score = InceptionScore(len(made), splits=2)
        score.update(ours["logits"].numpy())
        shares = precision_recall(theirs["features"].numpy(), ours["features"].numpy())
        found = {
            "frechet_inception_distance": distance,
            "inception_score_mean": score.compute(),
            "inception_score_std": score.deviation(),
            "precision": shares.precision,
            "recall": shares.recall,
        }
        assert found == pytest.approx({name: expected[name] for name in found}, rel=1e-4)
        assert expected["inception_score_mean"] > 1.001
        assert expected["recall"] < 1

    def test_another_file_than_the_published_one_gives_no_fid(self, inception_file: InceptionFile) -> None:
        network = inception_file.open()
        name = f"inception-{inception_file.sha256[:8]}"
        assert not network.is_fid
        assert network.identity() == {"kind": "inception", "name": name, "sha256": inception_file.sha256}

    def test_the_published_file_gives_fid(self, inception_file: InceptionFile, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("trainer.evaluation.networks.inception.INCEPTION_SHA256", inception_file.sha256)
        network = inception_file.open()
        assert network.is_fid
        assert network.name == "inception-2015"

    def test_a_file_of_another_hash_is_refused_with_both_and_the_way_to_take_it(
        self, inception_file: InceptionFile
    ) -> None:
        with pytest.raises(UsageError) as refused:
            open_network(InceptionNetwork(file=inception_file.path), CPU)
        for said in (inception_file.path, inception_file.sha256, "6726825d", f"sha256: {inception_file.sha256[:8]}"):
            assert said in str(refused.value)


class _Images(Dataset[Tensor]):
    def __init__(self, pixels: Tensor) -> None:
        self.pixels = pixels

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, index: int) -> Tensor:
        return self.pixels[index]


def test_a_missing_inception_is_refused_with_where_it_is_published(tmp_path: Path) -> None:
    file = str(tmp_path / "none.pth")
    with pytest.raises(
        UsageError, match=r"none\.pth is not there: .*torch-fidelity.*weights-inception-2015-12-05"
    ) as no:
        open_network(InceptionNetwork(file=file), CPU)
    assert "Nothing is fetched" in str(no.value)


def write_mobilenet(file: Path) -> nn.Module:
    torch.manual_seed(0)
    model: nn.Module = torchvision.models.mobilenet_v3_small(weights=None).eval()
    draw_weights(model)
    torch.save(model.state_dict(), file)
    return model


def mobilenet(file: Path) -> TorchvisionNetwork:
    return TorchvisionNetwork(kind="torchvision", network="mobilenet_v3_small", file=str(file))


class Planted:
    """What runs code when it is read as a pickle: it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[Path]]:
        return Path.touch, (self.path,)


def test_code_in_a_file_of_weights_is_not_run(tmp_path: Path) -> None:
    torch.save({"conv": Planted(tmp_path / "ran")}, tmp_path / "odd.pth")
    with pytest.raises(UsageError, match=r"odd\.pth is no file of weights"):
        open_network(mobilenet(tmp_path / "odd.pth"), CPU)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("content", [[torch.zeros(1)], {"conv": 1}, {"conv": torch.zeros(1)}])
def test_a_file_of_anything_else_than_its_tensors_is_refused(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "odd.pth")
    with pytest.raises(UsageError, match=r"odd\.pth"):
        open_network(mobilenet(tmp_path / "odd.pth"), CPU)


def test_a_torchvision_classifier_gives_what_its_last_layer_is_fed_and_says(tmp_path: Path) -> None:
    model = write_mobilenet(tmp_path / "mobile.pth")
    network, pixels = open_network(mobilenet(tmp_path / "mobile.pth"), CPU), images(2, 224)
    found = network(pixels)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    with torch.inference_mode():
        expected = model((pixels / 255 - mean.view(3, 1, 1)) / std.view(3, 1, 1))
        from_features = model.get_submodule("classifier.3")(found["features"])
    torch.testing.assert_close(found["logits"], expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(from_features, expected, rtol=1e-4, atol=1e-5)
    assert float(found["features"].std()) > 0.1
    assert network.name == "torchvision:mobilenet_v3_small"
    assert not network.is_fid


def test_a_timm_model_gives_what_its_head_is_fed_and_says(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = timm.create_model("test_vit").eval()
    torch.save(model.state_dict(), tmp_path / "vit.pth")
    network = open_network(TimmNetwork(kind="timm", network="test_vit", file=str(tmp_path / "vit.pth")), CPU)
    settings = model.pretrained_cfg
    pixels = images(2, settings["input_size"][-1])
    found = network(pixels)
    with torch.inference_mode():
        mean, std = (torch.tensor(settings[name]).view(3, 1, 1) for name in ("mean", "std"))
        expected = model((pixels / 255 - mean) / std)
        from_features = model.head(found["features"])
    torch.testing.assert_close(found["logits"], expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(from_features, expected, rtol=1e-4, atol=1e-5)
    assert float(found["features"].std()) > 0.1


def test_images_of_another_size_are_resized_to_the_networks_own(tmp_path: Path) -> None:
    write_mobilenet(tmp_path / "mobile.pth")
    torch.save(timm.create_model("test_vit").state_dict(), tmp_path / "vit.pth")
    for config in (
        mobilenet(tmp_path / "mobile.pth"),
        TimmNetwork(kind="timm", network="test_vit", file=str(tmp_path / "vit.pth")),
    ):
        network = open_network(config, CPU)
        grey, black = (torch.full((1, 3, 32, 32), value, dtype=torch.uint8) for value in (128, 0))
        for pixels in (grey, black):  # of one colour, so that no filter matters
            larger = pixels[:, :, :1, :1].expand(1, 3, 300, 300)
            torch.testing.assert_close(network(pixels)["features"], network(larger)["features"], rtol=1e-3, atol=1e-4)
        assert not torch.allclose(network(grey)["features"], network(black)["features"], rtol=1e-3, atol=1e-4)


def test_weights_that_came_from_no_file_have_a_hash_of_their_own() -> None:
    first, same, other = nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2)
    same.load_state_dict(first.state_dict())
    assert state_sha256(first) == state_sha256(same) != state_sha256(other)


class Corner:
    """A teacher whose features are the first pixel."""

    size = 2

    def features(self, image_BCHW: Tensor) -> Tensor:
        return image_BCHW[:, :, 0, 0]


def test_a_teacher_in_memory_sees_images_from_minus_one_to_one_and_has_no_logits() -> None:
    network = TeacherFeatures(Corner(), "teacher", {"kind": "classifier", "name": "teacher", "sha256": "0"})  # type: ignore[arg-type]
    found = network(torch.tensor([0, 51, 255], dtype=torch.uint8).view(1, 3, 1, 1))
    assert found.keys() == {"features"}
    torch.testing.assert_close(found["features"], torch.tensor([[-1.0, -0.6, 1.0]]))
    assert network.identity()["name"] == "teacher"


def test_a_file_without_a_tensor_of_the_model_is_refused(tmp_path: Path) -> None:
    state = timm.create_model("test_vit").state_dict()
    del state["head.bias"]
    torch.save(state, tmp_path / "vit.pth")
    with pytest.raises(UsageError, match=r"vit\.pth has the weights of another network .*head\.bias"):
        open_network(TimmNetwork(kind="timm", network="test_vit", file=str(tmp_path / "vit.pth")), CPU)


def write_classifier(folder: Path, kind: str) -> Classifier:
    torch.manual_seed(0)
    config = ClassifierConfig(image_size=8, num_classes=3, widths=(8, 16))
    network = Classifier(config).eval()
    write_weights(str(folder), kind, config.model_dump(mode="json"), {"model": network.state_dict()}, {})
    return network


def classifier_of(uri: Path) -> ClassifierNetwork:
    return ClassifierNetwork(kind="classifier", uri=str(uri))


@pytest.mark.parametrize("kind", ["teacher", "judge"])
@pytest.mark.parametrize("named", ["run", "run/STAGE", "run/STAGE/export"])
def test_a_classifier_is_found_by_its_export_its_stage_and_its_run(tmp_path: Path, kind: str, named: str) -> None:
    model = write_classifier(tmp_path / "run" / kind / "export", kind)
    network = open_network(classifier_of(tmp_path / named.replace("STAGE", kind)), CPU)
    pixels = images(3, 8)
    found = network(pixels)
    with torch.inference_mode():
        image = torch.from_numpy(to_model(pixels.permute(0, 2, 3, 1).numpy()))
        assert (found["features"] == model.features(image)).all()
        assert (found["logits"] == model(image)).all()


def test_the_identity_of_a_classifier_changes_with_its_weights(tmp_path: Path) -> None:
    model = write_classifier(tmp_path, "judge")
    before = open_network(classifier_of(tmp_path), CPU).identity()
    nn.init.zeros_(model.head.bias)
    write_weights(str(tmp_path), "judge", model.config.model_dump(mode="json"), {"model": model.state_dict()}, {})
    after = open_network(classifier_of(tmp_path), CPU).identity()
    assert before["sha256"] != after["sha256"]
    assert before["kind"] == after["kind"] == "classifier"
    assert before["name"] == "judge"


def test_a_run_with_two_classifiers_has_to_be_told_which(tmp_path: Path) -> None:
    for kind in ("teacher", "judge"):
        write_classifier(tmp_path / kind / "export", kind)
    with pytest.raises(UsageError, match=r"several classifiers: name one of them, .*teacher/export or .*judge/export"):
        open_network(classifier_of(tmp_path), CPU)


def test_what_has_no_classifier_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no finished classifier"):
        open_network(classifier_of(tmp_path), CPU)
    write_weights(str(tmp_path), "tokenizer", {}, {"model": {"a": torch.zeros(1)}}, {})
    with pytest.raises(UsageError, match="something else than a classifier"):
        open_network(classifier_of(tmp_path), CPU)
