"""How well one linear layer finds the class in what a tokenizer keeps of an image: top-1 accuracy on held-out images.

ImageFolder's protocol as far as it is known: the quantized latent of a branch, averaged over positions; one linear
layer; top-1. Its optimizer was not published. Here all sets have the same objective, that of probing.py (mean
cross-entropy and a small quadratic penalty of the weights, on standardized features), which has one optimum:

    small sets     L-BFGS from zero, on all images at once (probing.py)
    larger ones    Adam on minibatches, in memory that does not grow with the images (`Schedule`)

1. `ProbeMeasure` gives rows of the training images and of the held-out ones: features and labels
2. `linear_probes` trains on the ones and judges on the others, feature by feature

Shapes: B images of a batch, N of a set, D features, C classes, P branches.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from data_pipeline.errors import UsageError
from data_pipeline.images.transforms import Pixels, to_model
from model.protocols import Pooled, Tokenizer
from trainer.evaluation.measures import MeasuredRows, Rows
from trainer.evaluation.naming.numbers import Number
from trainer.evaluation.tokenizers.probing import PENALTY, fit, square_means
from trainer.evaluation.tokenizers.tokenizer_numbers import with_protocol
from trainer.metrics.means import RowMeans

LABEL, PIXELS = "label", "pixels"
MOST_BYTES = 512 * 2**20
"""Of float64 features, weights' gradients and logits up to which L-BFGS has all images in memory."""

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class ProbeMeasure:
    """An `ImageMeasure` (measures.py): the rows that probes are trained on.

    Rows: `label`; `branch_0`, … [B, C]; `pixels` [B, D], the mean of each of at most 32 x 32 squares, float32.

    Raises:
        UsageError: if the tokenizer has no tokens, or no mean of their latents.
    """

    tokenizer: Tokenizer
    device: torch.device
    pixels: bool = True
    """Whether pixels are rows, too, which take 12 kB of an image."""

    def __post_init__(self) -> None:
        kind, has_tokens = self.tokenizer.config.kind, self.tokenizer.config.has_tokens
        if not has_tokens or not isinstance(self.tokenizer, Pooled):
            why = "does not say what the mean of its quantized latents is" if has_tokens else "has no tokens"
            raise UsageError(f"linear probe: this tokenizer of kind {kind} {why}")

    def __call__(self, pixels_BHWC: Pixels, label_B: npt.NDArray[np.int64], first: int) -> Rows:
        """Rows of a batch.

        Raises:
            UsageError: if an image has no class.
        """
        if (label_B < 0).any():
            number = first + int(np.flatnonzero(label_B < 0)[0])
            raise UsageError(f"linear probe: image {number} has no class: probe on images with classes")
        assert isinstance(self.tokenizer, Pooled)
        image_BCHW = torch.from_numpy(to_model(pixels_BHWC)).to(self.device)
        with torch.inference_mode():
            pooled_BPC = self.tokenizer.pooled(self.tokenizer.tokenize(image_BCHW)).float().cpu()
        rows: Rows = {f"branch_{branch}": each.numpy() for branch, each in enumerate(pooled_BPC.unbind(1))}
        rows |= {PIXELS: square_means(pixels_BHWC)} if self.pixels else {}
        return rows | {LABEL: label_B.astype(np.int32)}


@dataclass(frozen=True)
class Schedule:
    """How a probe is trained on minibatches: Adam (betas .9, .999), its rate half a cosine from the first to 0."""

    learning_rate: float = 0.01
    batch: int = 1024
    epochs: int = 20
    least_steps: int = 3000
    """Of small sets more epochs."""
    seed: int = 0
    """Of the order of the images, which is drawn anew in each epoch."""

    def steps(self, images: int) -> int:
        """Minibatches of the training."""
        return max(self.epochs * math.ceil(images / self.batch), self.least_steps)


def linear_probes(
    training: MeasuredRows,
    held_out: MeasuredRows,
    features: Mapping[str, str],
    measured_by: dict[str, Any],
    measured_of: dict[str, Any],
    *,
    device: torch.device,
    schedule: Schedule | None = None,
) -> list[Number]:
    """Top-1 accuracy of a linear layer on each feature, on the held-out images.

    Args:
        training: rows of a `ProbeMeasure` of the images that layers are trained on.
        held_out: of the images that they are judged on.
        features: what each row is called: {"branch_0": "detail", "pixels": "pixels"}.
        measured_by: both sets of images and their crop, as numbers.py; the protocol is added.
        measured_of: the tokenizer, as numbers.py.
        device: where minibatches are computed.
        schedule: of minibatches; None for the default.

    Raises:
        UsageError: if there are fewer than two classes among the training images.
    """
    schedule = schedule or Schedule()
    label_N = training.column(LABEL).astype(np.int64)
    asked_N = held_out.column(LABEL).astype(np.int64)
    if len(np.unique(label_N)) < 2:
        raise UsageError("linear probe: the training images are all of one class")
    classes = int(max(label_N.max(), asked_N.max())) + 1
    numbers = []
    for row, name in features.items():
        probe = _Probe(training, row, label_N, classes)
        probe.train(schedule, device)
        share = sum(probe.right(part[row], part[LABEL]) for part in held_out.parts(row, LABEL)) / held_out.count
        protocol = {"feature": name, "training_images": training.count, "penalty": PENALTY} | probe.how(schedule)
        error = math.sqrt(share * (1 - share) / held_out.count)
        by = with_protocol(measured_by, protocol)
        numbers.append(Number("linear_probe_accuracy", share, held_out.count, by, dict(measured_of), error))
    return numbers


class _Probe:
    """A feature of the training images, and the layers that are trained on it."""

    def __init__(self, training: MeasuredRows, row: str, label_N: npt.NDArray[np.int64], classes: int) -> None:
        self._rows, self._row, self._label_N, self._classes = training, row, label_N, classes
        means = RowMeans()
        for part in training.parts(row):
            means.update(part[row])
        self._centre_D = means.means
        self._scale_D = np.where(means.deviations > 0, means.deviations, 1)
        self.weight_DC: Array = np.zeros((len(self._centre_D), classes))
        self.bias_C: Array = np.zeros(classes)

    @property
    def is_small(self) -> bool:
        """Whether all of it fits into memory."""
        return 8 * len(self._label_N) * (len(self._centre_D) + 4 * self._classes) <= MOST_BYTES

    def how(self, schedule: Schedule) -> dict[str, Any]:
        """The protocol's part that depends on the size."""
        if self.is_small:
            return {"optimizer": "l-bfgs"}
        return {"optimizer": "adam", "steps": schedule.steps(len(self._label_N))} | asdict(schedule)

    def train(self, schedule: Schedule, device: torch.device) -> None:
        """Find the optimum, or come near it by minibatches."""
        column_ND = self._rows.column(self._row)
        if self.is_small:
            self.weight_DC, self.bias_C = fit(self._standardized(column_ND), self._label_N, self._classes)
            return
        layer = nn.Linear(len(self._centre_D), self._classes, device=device)
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)
        batches = (
            tuple(
                torch.from_numpy(each).to(device) for each in (self._narrow(column_ND[index_B]), self._label_N[index_B])
            )
            for index_B in _batches(len(column_ND), schedule)
        )
        _train(layer, batches, schedule, schedule.steps(len(column_ND)))
        weight_CD, bias_C = (each.detach().cpu().double().numpy() for each in (layer.weight, layer.bias))
        self.weight_DC, self.bias_C = weight_CD.T, bias_C

    def right(self, rows_BD: npt.NDArray[np.floating], label_B: npt.NDArray[np.integer]) -> int:
        """How many classes it finds."""
        found_B = (self._standardized(rows_BD) @ self.weight_DC + self.bias_C).argmax(axis=1)
        return int((found_B == label_B).sum())

    def _standardized(self, rows_BD: npt.NDArray[np.floating]) -> Array:
        found: Array = (rows_BD - self._centre_D) / self._scale_D
        return found

    def _narrow(self, rows_BD: npt.NDArray[np.floating]) -> npt.NDArray[np.float32]:
        return self._standardized(rows_BD).astype(np.float32)


def _batches(images: int, schedule: Schedule) -> Iterator[npt.NDArray[np.int64]]:
    """Numbers of the images of each minibatch, ascending, as they lie on disk; each image once in an epoch."""
    left, epoch = schedule.steps(images), 0
    while left > 0:
        order_N = np.random.default_rng([schedule.seed, epoch]).permutation(images)
        for start in range(0, min(images, left * schedule.batch), schedule.batch):
            yield np.sort(order_N[start : start + schedule.batch])
            left -= 1
        epoch += 1


def _train(layer: nn.Linear, batches: Iterator[tuple[Tensor, ...]], schedule: Schedule, steps: int) -> None:
    """Minimize the mean cross-entropy and the penalty.

    What is added to the weights of all classes alike changes no prediction, and is 0 at the optimum. Adam drifts there,
    where plain gradient descent from 0 would not: so it is taken off after each step.
    """
    adam = torch.optim.Adam(layer.parameters(), lr=schedule.learning_rate)
    for step, (features_BD, label_B) in enumerate(batches):
        adam.param_groups[0]["lr"] = schedule.learning_rate * (1 + math.cos(math.pi * step / steps)) / 2
        loss = F.cross_entropy(layer(features_BD), label_B) + PENALTY / 2 * layer.weight.square().sum()
        adam.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        adam.step()
        with torch.no_grad():
            layer.weight -= layer.weight.mean(0)
