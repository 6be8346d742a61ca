"""Image shards to token shards: a plan, and what is done for one planned shard. Its driver may be killed at any time.

    1. plan: consecutive images are cut into shards of `tokens.shard_samples`; the plan states all that decides bytes
    2. missing: the shards of the plan that have no commit record yet
    3. tokenize_shard: read, decode, see, encode in batches cut from the shard's start; commit the tar, then its record
    4. finish: manifest.json, from the records

A shard's bytes are a function of the plan: it does not matter which process makes it, how often, or in what order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import ValidationError

from data_pipeline import storage
from data_pipeline.config import TokensConfig
from data_pipeline.errors import FoldtrainError, UsageError
from data_pipeline.image_shards import ImageShards
from data_pipeline.manifest import (
    ImageManifest,
    ShardRecord,
    TokenCommit,
    TokenizerRecord,
    TokenManifest,
    differences,
)
from data_pipeline.prefetching import prefetch
from data_pipeline.token_shards import TokenBlock, Tokens, write_token_shard
from data_pipeline.transforms import VIEWS, Pixels, Transform, to_model
from data_pipeline.weights import Card, read_weights
from model.config import TokenizerConfig
from model.layout import TokenLayout

Encode = Callable[[npt.NDArray[np.float32]], Tokens]
"""Images float32 [B, C, H, W] in [-1, 1] to tokens uint16 [B, L, F]."""

SOFTWARE = ("foldtrain", "numpy", "pillow", "torch")
"""Packages whose versions are recorded with the tokens."""


@dataclass(frozen=True)
class PlannedShard:
    """One token shard before it is written: images `start` to `stop` of the image data set."""

    name: str
    start: int
    stop: int


@dataclass(frozen=True)
class TokenPlan:
    """All that is to be done. It is plain data: it can be sent to any process."""

    images: str
    """URI of the image shards."""
    output: str
    """URI of the token shards."""
    classes: tuple[str, ...]
    source: str
    """Fingerprint of the image data set."""
    tokenizer: TokenizerRecord
    layout: TokenLayout
    views: tuple[str, ...]
    transform: Transform
    batch: int
    """Images per forward pass."""
    software: dict[str, str]
    shards: tuple[PlannedShard, ...]

    @property
    def samples(self) -> int:
        """Images in all."""
        return self.shards[-1].stop

    def made_by(self) -> dict[str, Any]:
        """What every token follows from. It stands in each shard and each commit record, beside the software."""
        return {
            "tokenizer": self.tokenizer.model_dump(mode="json"),
            "layout": self.layout.to_json(),
            "views": list(self.views),
            "image_size": self.transform.size,
            "fit": self.transform.fit,
            "source": self.source,
            "shard_samples": self.shards[0].stop,
        }


def plan_tokens(images: str, tokenizer: Card, config: TokensConfig, output: str, fit: str) -> TokenPlan:
    """Cut an image data set into token shards.

    Args:
        images: URI of the image shards.
        tokenizer: the tokenizer's card; its moving average is used if it has one.
        config: how tokens are cut and computed.
        output: URI of the token shards.
        fit: how images become squares (`data.fit`).

    Raises:
        UsageError: if the images are not complete.
    """
    manifest = ImageManifest.read(images)
    model = TokenizerConfig.model_validate(tokenizer.config)
    starts = range(0, manifest.samples, config.shard_samples)
    return TokenPlan(
        images=images,
        output=output,
        classes=manifest.classes,
        source=manifest.fingerprint,
        tokenizer=TokenizerRecord(fingerprint=tokenizer.fingerprint(), config=tokenizer.config),
        layout=model.layout,
        views=config.views,
        transform=Transform(model.image_size, fit),
        batch=config.batch,
        software={name: _version(name) for name in SOFTWARE},
        shards=tuple(
            PlannedShard(f"tokens-{number:05d}.tar", start, min(start + config.shard_samples, manifest.samples))
            for number, start in enumerate(starts)
        ),
    )


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def record_name(shard: str) -> str:
    """The commit record of a shard."""
    return shard.removesuffix(".tar") + ".json"


def missing(plan: TokenPlan) -> list[PlannedShard]:
    """The shards that are still to be made.

    Raises:
        UsageError: if the output holds tokens that this plan would not make; it says what differs.
    """
    sizes = storage.walk(plan.output)
    committed = {}
    for name in sizes:
        if name.startswith("tokens-") and name.endswith(".json"):
            commit = _read_commit(plan, name)
            committed[commit.shard.name] = commit.shard.bytes
    return [shard for shard in plan.shards if committed.get(shard.name, -1) != sizes.get(shard.name)]


def _read_commit(plan: TokenPlan, name: str) -> TokenCommit:
    path = storage.join(plan.output, name)
    try:
        commit = TokenCommit.model_validate(storage.read_json(path))
    except ValidationError as error:
        raise UsageError(f"{path} is no commit record of a token shard: delete it and run again") from error
    found = differences(commit.made_by, plan.made_by())
    if found:
        raise UsageError(
            f"{path} belongs to tokens that were made otherwise (there -> now):\n  "
            + "\n  ".join(found)
            + "\nChoose another tokens.output, or delete that folder."
        )
    return commit


def tokenize_shard(
    plan: TokenPlan,
    shard: PlannedShard,
    images: ImageShards,
    encode: Encode,
    progress: Callable[[int], None] = lambda _images: None,
) -> ShardRecord:
    """Make and commit one shard: the tar first, then the record that says that it is complete.

    Args:
        plan: what the shard is part of.
        shard: which one.
        images: the data set at `plan.images`.
        encode: the tokenizer (`load_encoder`).
        progress: called with the number of images done, after every batch.

    Raises:
        CorruptShardError: if an image is damaged or cannot be decoded; it names shard and key.
    """
    layout = plan.layout
    tokens_NWLF = np.empty((shard.stop - shard.start, len(plan.views), layout.positions, layout.folds), np.uint16)
    done = 0
    for pixels in prefetch(_decoded_batches(plan, shard, images)):
        for number, view in enumerate(plan.views):
            tokens_BLF = encode(to_model([VIEWS[view](image) for image in pixels]))
            tokens_NWLF[done : done + len(pixels), number] = _checked(tokens_BLF, layout)
        done += len(pixels)
        progress(len(pixels))
    here = slice(shard.start, shard.stop)
    block = TokenBlock(tokens_NWLF, images.labels[here], images.keys[here])
    record = write_token_shard(plan.output, shard.name, block, plan.made_by() | {"software": plan.software})
    commit = TokenCommit(shard=record, made_by=plan.made_by(), software=plan.software)
    storage.write_json(storage.join(plan.output, record_name(shard.name)), commit.model_dump(mode="json"))
    return record


def _decoded_batches(plan: TokenPlan, shard: PlannedShard, images: ImageShards) -> Iterator[list[Pixels]]:
    """The shard's images in batches, counted from its start, so that their bounds follow from the plan alone."""
    pixels: list[Pixels] = []
    for index, data in enumerate(images.scan(shard.start, shard.stop), start=shard.start):
        pixels.append(images.decode(index, plan.transform, data))
        if len(pixels) == plan.batch:
            yield pixels
            pixels = []
    if pixels:
        yield pixels


def _checked(tokens_BLF: Tokens, layout: TokenLayout) -> Tokens:
    assert tokens_BLF.dtype == np.uint16, tokens_BLF.dtype
    if tokens_BLF.max() >= layout.codebook_size:
        raise FoldtrainError(
            f"the tokenizer gave token {tokens_BLF.max()}, but its codebook has {layout.codebook_size}"
        )
    return tokens_BLF


def finish(plan: TokenPlan) -> TokenManifest:
    """Complete the data set, once no shard is missing.

    Raises:
        FoldtrainError: if a shard is missing.
    """
    left = missing(plan)
    if left:
        raise FoldtrainError(f"{plan.output} still misses {left[0].name} ({len(left)} of {len(plan.shards)} shards)")
    commits = [_read_commit(plan, record_name(shard.name)) for shard in plan.shards]
    manifest = TokenManifest.build(
        samples=plan.samples,
        classes=plan.classes,
        layout=plan.layout,
        views=plan.views,
        image_size=plan.transform.size,
        fit=plan.transform.fit,
        tokenizer=plan.tokenizer,
        source=plan.source,
        software={name: sorted({commit.software[name] for commit in commits}) for name in SOFTWARE},
        shards=tuple(commit.shard for commit in commits),
    )
    assert sum(shard.samples for shard in manifest.shards) == plan.samples, plan.output
    manifest.write(plan.output)
    return manifest


def load_encoder(plan: TokenPlan, tokenizer: str, device: str = "cpu") -> Encode:
    """The tokenizer at a URI, in fp32 (in bf16 near codes change places).

    Raises:
        UsageError: if it is not the one that the plan was made for.
    """
    import torch

    from model.tokenizer import ImageFolderTokenizer

    card, state = read_weights(tokenizer, "tokenizer")
    if card.fingerprint() != plan.tokenizer.fingerprint:
        raise UsageError(
            f"{tokenizer} holds tokenizer {card.fingerprint()[:16]}, but the plan was made for "
            f"{plan.tokenizer.fingerprint[:16]}: it was trained again meanwhile; run foldtrain tokenize again"
        )
    network = ImageFolderTokenizer(TokenizerConfig.model_validate(card.config))
    network.load_state_dict(state)
    network = network.to(device, torch.float32).eval()

    def encode(image_BCHW: npt.NDArray[np.float32]) -> Tokens:
        with torch.inference_mode():
            tokens_BLF = network.tokenize(torch.from_numpy(image_BCHW).to(device))
        return tokens_BLF.cpu().numpy().astype(np.uint16)

    return encode
