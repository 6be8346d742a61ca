"""What `evaluate` records of a tokenizer beside its errors.

What its bits are worth without it (baselines), how its codes are used and how much they tell of each other, and whether
a linear layer finds the classes in its branches.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from data_pipeline import storage
from data_pipeline.images.transforms import Pixels, Transform, to_model
from data_pipeline.loading.loader import decode_all
from data_pipeline.node.node_cache import NodeCache
from data_pipeline.shards.image_shards import ImageShards
from data_pipeline.shards.measured import Measured
from data_pipeline.shards.token_dataset import TokenShards
from data_pipeline.shards.token_windows import TokenWindows
from model.layout import TokenLayout
from model.protocols import Tokenizer
from trainer.evaluation.naming.numbers import Number
from trainer.evaluation.quality import psnr, squared_error, ssim
from trainer.evaluation.tokenizers.baselines import bits_of, component_errors, mean_image_error, square_side
from trainer.evaluation.tokenizers.codes import code_use, count_codes
from trainer.evaluation.tokenizers.dependence import MOST_IMAGES, mutual_information, perplexity_by_position
from trainer.evaluation.tokenizers.probing import PENALTY, pixel_features, probe_accuracy

Record = dict[str, Any]
_BATCH = 100
MOST_BYTES = 512 * 2**20
"""Of the pixels of a set of images."""
_BASELINES = 1
"""Version of how baselines are computed."""


@dataclass(frozen=True)
class LabelledPixels:
    """Images as bytes, with their classes."""

    pixels_NHWC: Pixels
    label_N: npt.NDArray[np.int64]

    @classmethod
    def load(cls, uri: str, size: int, fit: str, most: int, cache: NodeCache | None = None) -> LabelledPixels:
        """The first `most` images of a data set, whose shards are in shuffled order."""
        shards = ImageShards(uri, index_cache=cache)
        pixels_NHWC = decode_all(shards, Transform(size, fit), most)
        return cls(pixels_NHWC, np.asarray(shards.labels[: len(pixels_NHWC)], dtype=np.int64))

    def first(self, count: int) -> LabelledPixels:
        """The first of them."""
        return LabelledPixels(self.pixels_NHWC[:count], self.label_N[:count])


def most_images(size: int) -> int:
    """Images of a side in pixels that are looked at here at most: as many as 512 MiB hold as bytes."""
    return max(1, MOST_BYTES // (3 * size * size))


def baseline_key(images: Sequence[str], size: int, fit: str, counts: Sequence[int], bits: Sequence[int]) -> str:
    """What baselines follow from: they are computed again where it differs.

    Args:
        images: fingerprints of the training images and of the others.
        size: of the squares, in pixels.
        fit: as `data.fit`.
        counts: how many images of both.
        bits: of each prefix.
    """
    return storage.fingerprint([_BASELINES, list(images), size, fit, list(counts), list(bits)])


def bits_of_prefixes(layout: TokenLayout, prefixes: Sequence[int]) -> list[int]:
    """Bits of each prefix of the tokens."""
    return [bits_of(layout, keep) for keep in prefixes]


def baseline_record(training: Pixels, held_out: Pixels, bits: Sequence[int]) -> Record:
    """Squared errors of the mean image, and of principal components at each number of bits."""
    size = training.shape[1]
    return {
        "square": square_side(size),
        "mean_image": mean_image_error(training, held_out),
        "components": [asdict(each) for each in component_errors(training, held_out, bits)],
    }


def token_record(tokens: TokenShards | TokenWindows) -> Record:
    """Codes used at each position, and the mutual information of folds, of the first images' first views."""
    images = min(tokens.count, MOST_IMAGES)
    tokens_NLF = tokens.tokens(np.arange(images, dtype=np.int64))[:, 0]
    return {
        "images": images,
        "perplexity_of_positions": perplexity_by_position(tokens_NLF),
        "mutual_information": [asdict(each) for each in mutual_information(tokens_NLF, tokens.layout)],
    }


def codebook_use(tokens: TokenShards | TokenWindows) -> list[list[float]]:
    """Share of each fold's codebook that occurs in each group of a token data set, [folds][groups]."""
    layout = tokens.layout
    seen = [[np.array([], layout.dtype) for _ in layout.groups] for _ in layout.vocabularies]
    for first in range(0, tokens.count, 4096):
        part = tokens.tokens(np.arange(first, min(first + 4096, tokens.count), dtype=np.int64))
        for fold in range(layout.folds):
            for group in range(len(layout.groups)):
                seen[fold][group] = np.union1d(seen[fold][group], part[:, :, layout.span(group), fold])
    return [[len(used) / codes for used in row] for row, codes in zip(seen, layout.vocabularies, strict=True)]


def probe_record(
    network: Tokenizer, training: LabelledPixels, held_out: LabelledPixels, device: torch.device
) -> Record | None:
    """Accuracy of linear probes of each branch's mean latent and of raw pixels; None where there is nothing to see."""
    if not network.config.compares or len(np.unique(training.label_N)) < 2:
        return None
    seen, asked = (_branches(network, each.pixels_NHWC, device) for each in (training, held_out))
    names = network.config.fold_names
    found = {
        name: probe_accuracy(seen[:, branch], training.label_N, asked[:, branch], held_out.label_N)
        for branch, name in enumerate(names)
    }
    both = pixel_features(np.concatenate([training.pixels_NHWC, held_out.pixels_NHWC]))
    pixels = np.split(both, [len(training.pixels_NHWC)])
    return {
        "training_images": len(training.label_N),
        "images": len(held_out.label_N),
        "branches": found,
        "pixels": probe_accuracy(pixels[0], training.label_N, pixels[1], held_out.label_N),
    }


def probe_numbers(probe: Record, training: Record, images: Record, crop: Record, tokenizer: Record) -> Iterator[Number]:
    """What `probe_record` has found, as numbers with the names that `evaluate tokenizer --probe` gives them.

    Where all images are grey, pixels are of one channel here, which the name says.

    Args:
        probe: that record.
        training: fingerprint of the data set that probes were trained on (`images`); the count is added.
        images: of that which they were judged on, alike.
        crop: how images became squares.
        tokenizer: fingerprints of its halves.
    """
    count, trained = probe["images"], probe["training_images"]
    of = {"tokenizer": tokenizer, "images": images | {"count": count}}
    by = {"training": training | {"count": trained}, "crop": crop}
    how = {"training_images": trained, "penalty": PENALTY, "optimizer": "l-bfgs"}
    for feature, share in (probe["branches"] | {"pixels, one channel if grey": probe["pixels"]}).items():
        error = math.sqrt(share * (1 - share) / count)
        protocol = {"protocol": {"feature": feature} | how}
        yield Number("linear_probe_accuracy", share, count, by | protocol, of, error)


def _branches(network: Tokenizer, pixels_NHWC: Pixels, device: torch.device) -> npt.NDArray[np.float32]:
    """Means over positions of each branch's quantized latent [N, P, C]."""

    def parts() -> Iterator[torch.Tensor]:
        for first in range(0, len(pixels_NHWC), _BATCH):
            image_BCHW = torch.from_numpy(to_model(pixels_NHWC[first : first + _BATCH])).to(device)
            branch_BPC = network(image_BCHW, {}, decode=False).branch_BPC
            assert branch_BPC is not None, "its config says that it compares"
            yield branch_BPC.float().cpu()

    with torch.inference_mode():
        return torch.cat(list(parts())).numpy()


def measure(network: Tokenizer, pixels_NHWC: Pixels, device: torch.device) -> Measured:
    """What its card has, of some images, uint8."""
    layout = network.layout
    hits = [torch.zeros(len(layout.groups), codes, dtype=torch.int64) for codes in layout.vocabularies]
    sums = np.zeros(3)
    with torch.inference_mode():
        for first in range(0, len(pixels_NHWC), _BATCH):
            image_BCHW = torch.from_numpy(to_model(pixels_NHWC[first : first + _BATCH])).to(device)
            tokens_BLF = network.tokenize(image_BCHW)
            made_BCHW = network.detokenize(tokens_BLF)
            error_B = squared_error(made_BCHW, image_BCHW)
            sums += [float(each.sum()) for each in (error_B, psnr(error_B), ssim(made_BCHW, image_BCHW))]
            for counted, found in zip(hits, count_codes(tokens_BLF, layout), strict=True):
                counted += found.cpu()
    means = dict(zip(("mse", "psnr", "ssim"), (sums / len(pixels_NHWC)).tolist(), strict=True))
    codes = {
        name: asdict(code_use(hits_GV.numpy())) for name, hits_GV in zip(network.config.fold_names, hits, strict=True)
    }
    return Measured.model_validate({"step": None, "images": len(pixels_NHWC), "codes": codes} | means)
