"""How much of the classes a linear layer sees in features: a probe is trained on some images, and judged on others.

Multinomial logistic regression on standardized features, with a small quadratic penalty, so that there is one optimum;
L-BFGS from zero finds it. Nothing is drawn at random.

Shapes: N images, D features, C classes, H height, W width.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from data_pipeline.images.transforms import Pixels

PENALTY = 1e-3
"""Of the squared weights, half of it, beside the mean loss of an image."""
_STEPS = 200
_MOST_SIDE = 32

Array = npt.NDArray[np.float64]
Labels = npt.NDArray[np.int64]


def probe_accuracy(
    training_ND: npt.NDArray[np.floating], label_N: Labels, held_out_ND: npt.NDArray[np.floating], asked_N: Labels
) -> float:
    """Share of the held-out images whose class a linear probe of the training images finds."""
    centre_D, scale_D = training_ND.mean(axis=0), training_ND.std(axis=0)
    scale_D = np.where(scale_D > 0, scale_D, 1)
    training, held_out = ((each - centre_D) / scale_D for each in (training_ND, held_out_ND))
    weight_DC, bias_C = fit(training.astype(np.float64), label_N, int(max(label_N.max(), asked_N.max())) + 1)
    return float(((held_out @ weight_DC + bias_C).argmax(axis=1) == asked_N).mean())


def fit(features_ND: Array, label_N: Labels, classes: int) -> tuple[Array, Array]:
    """Weights [D, C] and biases [C] that minimize the mean cross-entropy and the penalty of the weights."""
    from scipy.optimize import minimize

    count, width = features_ND.shape
    asked_NC = np.eye(classes)[label_N]

    def loss(flat: Array) -> tuple[float, Array]:
        weight_DC, bias_C = flat[: width * classes].reshape(width, classes), flat[width * classes :]
        logits_NC = features_ND @ weight_DC + bias_C
        logits_NC = logits_NC - logits_NC.max(axis=1, keepdims=True)
        log_sum_N = np.log(np.exp(logits_NC).sum(axis=1))
        value = (log_sum_N - (asked_NC * logits_NC).sum(axis=1)).mean() + PENALTY / 2 * (weight_DC**2).sum()
        wrong_NC = (np.exp(logits_NC - log_sum_N[:, None]) - asked_NC) / count
        slope = features_ND.T @ wrong_NC + PENALTY * weight_DC
        return float(value), np.concatenate([slope.ravel(), wrong_NC.sum(axis=0)])

    start = np.zeros((width + 1) * classes)
    found = minimize(loss, start, jac=True, method="L-BFGS-B", options={"maxiter": _STEPS, "gtol": 1e-6}).x
    return found[: width * classes].reshape(width, classes), found[width * classes :]


def pixel_features(pixels_NHWC: Pixels) -> npt.NDArray[np.float32]:
    """Raw pixels as features [N, D] (`square_means`); where all images are grey, of one channel."""
    is_grey = bool((pixels_NHWC == pixels_NHWC[..., :1]).all())
    return square_means(pixels_NHWC[..., :1] if is_grey else pixels_NHWC)


def square_means(pixels_NHWC: Pixels) -> npt.NDArray[np.float32]:
    """Pixels of each image [N, D]; means of squares where an image has more than 32 pixels a side."""
    count, size, _, channels = pixels_NHWC.shape
    side = max(each for each in range(1, min(size, _MOST_SIDE) + 1) if size % each == 0)
    across = size // side
    blocks = pixels_NHWC.reshape(count, side, across, side, across, channels).mean(axis=(2, 4), dtype=np.float32)
    found: npt.NDArray[np.float32] = blocks.reshape(count, -1)
    return found
