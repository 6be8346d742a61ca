"""Image shards to token shards: a plan, and what is done for one planned shard. Its driver may be killed at any time.

    1. plan (plan.py): consecutive images, cut into shards of `tokens.shard_samples`; it states all that decides bytes
    2. missing (commits.py): the shards of the plan that have no commit record yet
    3. tokenize_shard: read, decode and cut views in threads, encode in batches cut from the shard's start; commit the
       tar, then its record
    4. finish: manifest.json, from the records

A shard's bytes are a function of the plan: it does not matter which process makes it, how often, or in what order.
Shape suffixes: N samples, W views, B batch, L positions, F folds, C channels, H height, W width (in WHWC, the first W).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from data_pipeline import storage
from data_pipeline.errors import CorruptShardError, FoldtrainError, UsageError
from data_pipeline.images.transforms import Pixels, to_model
from data_pipeline.loading.prefetching import prefetch
from data_pipeline.shards.image_shards import ImageShards
from data_pipeline.shards.manifest import ShardRecord, TokenCommit, TokenManifest
from data_pipeline.shards.token_archive import parse_token_shard
from data_pipeline.shards.token_shards import TokenBlock, encode_token_shard, first_outside
from data_pipeline.shards.tokenizers import load_tokenizer
from data_pipeline.tokens.commits import Commits, read_commits, record_name
from data_pipeline.tokens.plan import SOFTWARE, PlannedShard, TokenPlan, plan_tokens
from model.layout import TokenLayout

if TYPE_CHECKING:
    from model.protocols import Tokenizer

__all__ = [
    "SOFTWARE",
    "Commits",
    "PlannedShard",
    "TokenPlan",
    "encoder_of",
    "finish",
    "load_encoder",
    "missing",
    "plan_tokens",
    "read_commits",
    "record_name",
    "tokenize_shard",
]

Images = npt.NDArray[np.float32]
"""A batch of one view, [B, C, H, W] in [-1, 1]."""
Encode = Callable[[Images], npt.NDArray[np.int64]]
"""Images to tokens [B, L, F], not yet checked against the vocabularies."""

_BATCHES_AHEAD = 2
"""Batches that are decoded while one is encoded."""


def missing(plan: TokenPlan) -> list[PlannedShard]:
    """The shards that are still to be made.

    Raises:
        UsageError: if the output holds tokens that this plan would not make; it says what differs.
    """
    return [plan.shards[int(number)] for number in read_commits(plan).missing]


def tokenize_shard(
    plan: TokenPlan,
    shard: PlannedShard,
    images: ImageShards,
    encode: Encode,
    progress: Callable[[int], None] = lambda _images: None,
    threads: int = 1,
) -> TokenCommit:
    """Make and commit one shard: the tar first, then the record that says that it is complete.

    Args:
        plan: what the shard is part of.
        shard: which one.
        images: the data set at `plan.images`.
        encode: the tokenizer (`load_encoder`).
        progress: called with the number of images done, after every batch; what it raises ends the work.
        threads: that decode images while others are encoded. They decide nothing of the bytes.

    Raises:
        CorruptShardError: if an image is damaged or cannot be decoded; it names shard and key.
    """
    layout = plan.layout
    tokens_NWLF = np.empty((shard.stop - shard.start, len(plan.views), layout.positions, layout.folds), layout.dtype)
    done = 0
    for views in prefetch(_decoded_batches(plan, shard, images, threads), depth=1):
        count = len(views[0])
        for number, image_BCHW in enumerate(views):
            tokens_NWLF[done : done + count, number] = _checked(encode(image_BCHW), layout)
        done += count
        progress(count)
    here = slice(shard.start, shard.stop)
    return _commit(plan, shard, TokenBlock(tokens_NWLF, images.labels[here], images.keys[here]))


def _commit(plan: TokenPlan, shard: PlannedShard, block: TokenBlock) -> TokenCommit:
    """Put the tar, then the record.

    Another process may have put this shard's tar meanwhile. Its bytes are the same on like hardware; on another kind of
    processor a few tokens may differ, where two codes are almost equally near. So what is there stays, if it is whole
    and of this plan, and the record describes it: no order of two processes' writes can leave a record beside another
    tar.
    """
    archive = encode_token_shard(shard.name, block, plan.made_by() | {"software": plan.software})
    software = plan.software
    path = storage.join(plan.output, shard.name)
    if not storage.create_bytes(path, archive):
        there = storage.read_bytes(path)
        found = _software_of(plan, path, there)
        if found is None:
            storage.write_bytes(path, archive)
        else:
            archive, software = there, found
    record = ShardRecord(name=shard.name, samples=len(block.key), bytes=len(archive), sha256=storage.sha256(archive))
    commit = TokenCommit(shard=record, made_by=plan.made_by(), software=software)
    record_bytes = storage.canonical_json(commit.model_dump(mode="json"))
    storage.commit_bytes(storage.join(plan.output, record_name(shard.name)), record_bytes)
    return commit


def _software_of(plan: TokenPlan, path: str, archive: bytes) -> dict[str, str] | None:
    """What made a shard that is there already; None if it is damaged or of another plan."""
    try:
        shard = parse_token_shard(path, archive)
    except FoldtrainError:  # damaged, or of another version
        return None
    made_by = {name: value for name, value in shard.meta.items() if name != "software"}
    whole = np.array_equal(shard.block.crc32(), shard.crc)
    software: dict[str, str] = shard.meta.get("software", {})
    return software if whole and made_by == plan.made_by() else None


def _decoded_batches(plan: TokenPlan, shard: PlannedShard, images: ImageShards, threads: int) -> Iterator[list[Images]]:
    """The shard's images in batches, each view by itself.

    Batches are counted from the shard's start, so that their bounds follow from the plan alone. Files are read ahead of
    the threads that decode, and these work ahead of the batch that is asked for.
    """

    def see(index: int, data: bytes) -> Pixels:
        try:
            return plan.transform.views(data, plan.views, bytes(images.keys[index]))
        except ValueError as error:
            raise CorruptShardError(f"{images.where(index)} {error}") from error

    files = prefetch(images.scan(shard.start, shard.stop), depth=_BATCHES_AHEAD * plan.batch)
    pool = ThreadPoolExecutor(threads, thread_name_prefix="decode")
    ahead: deque[list[Future[Pixels]]] = deque()
    try:
        for start in range(shard.start, shard.stop, plan.batch):
            numbers = range(start, min(start + plan.batch, shard.stop))
            ahead.append([pool.submit(see, index, next(files)) for index in numbers])
            if len(ahead) > _BATCHES_AHEAD:
                yield _by_view(ahead.popleft())
        while ahead:
            yield _by_view(ahead.popleft())
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _by_view(seen: list[Future[Pixels]]) -> list[Images]:
    pixels_BWHWC = [future.result() for future in seen]
    return [to_model([view[number] for view in pixels_BWHWC]) for number in range(len(pixels_BWHWC[0]))]


def _checked(tokens_BLF: npt.NDArray[np.int64], layout: TokenLayout) -> npt.NDArray[np.int64]:
    """Tokens that fit: checked before they are put into fewer bits, in which a wrong one could pass for another."""
    if tokens_BLF.shape[1:] != (layout.positions, layout.folds):
        raise FoldtrainError(f"the tokenizer gave tokens of shape {list(tokens_BLF.shape)}, but its layout is {layout}")
    outside = first_outside(tokens_BLF, layout)
    if outside is not None:
        _, fold, token = outside
        raise FoldtrainError(
            f"the tokenizer gave token {token} in fold {fold}, but its codebook has {layout.vocabularies[fold]}"
        )
    return tokens_BLF


def finish(plan: TokenPlan, commits: Commits | None = None) -> TokenManifest:
    """Complete the data set, once no shard is missing.

    Args:
        plan: of the data set.
        commits: what is committed of it, as `Commits.refresh` has found it; None if nobody has looked yet.

    Raises:
        FoldtrainError: if a shard is missing.
    """
    commits = read_commits(plan) if commits is None else commits
    left = commits.missing
    if len(left):
        first = plan.shards[int(left[0])].name
        raise FoldtrainError(f"{plan.output} still misses {first} ({len(left)} of {len(plan.shards)} shards)")
    if commits.manifest is not None:
        return commits.manifest
    manifest = TokenManifest.build(**plan.manifest_fields(), software=commits.software(), shards=commits.records())
    manifest.write(plan.output)
    return manifest


def load_encoder(plan: TokenPlan, tokenizer: str, device: str = "cpu") -> Encode:
    """The tokenizer at a URI, in the plan's precision.

    In bf16 the whole network runs under autocast, but the quantizer, which looks for the nearest codes, is always
    float32. Near codes change places all the same, since the latents are rounded (benchmarks/precision.py).

    Raises:
        UsageError: if it is not the one that the plan was made for.
    """
    network, card = load_tokenizer(tokenizer, device)
    if card.encoder() != plan.tokenizer.encoder:
        raise UsageError(
            f"{tokenizer} holds tokenizer {card.encoder()[:16]}, but the plan was made for "
            f"{plan.tokenizer.encoder[:16]}: it was trained again meanwhile; run foldtrain tokenize again"
        )
    return encoder_of(network, plan.precision, device)


def encoder_of(network: Tokenizer, precision: str, device: str) -> Encode:
    """A network on a device as a function of batches."""
    import torch

    def encode(image_BCHW: Images) -> npt.NDArray[np.int64]:
        mixed = torch.autocast(torch.device(device).type, torch.bfloat16, enabled=precision == "bf16")
        with torch.inference_mode(), mixed:
            tokens_BLF = network.tokenize(torch.from_numpy(image_BCHW).to(device))
        return tokens_BLF.long().cpu().numpy()

    return encode
