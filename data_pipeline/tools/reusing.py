"""Tokens of images that were appended (`foldtrain data append`): those that there are stay, the rest is tokenized.

    1. the sets that the images were appended of, in their order; to each the tokens that are there, by the fingerprint
       of their images. A set of tokens that was appended itself counts as the sets that it is of
    2. the others are tokenized, each as a set by itself: <output>/of-<fingerprint of its images>
    3. the output is all of these tokens, appended in the same order

So the cut of the shards follows the sets: no shard of the tokens that there are is made again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from data_pipeline import storage
from data_pipeline.config import TokensConfig
from data_pipeline.errors import UsageError
from data_pipeline.shards.edits import Parent, parent_uri
from data_pipeline.shards.manifest import ImageManifest, TokenManifest, differences
from data_pipeline.shards.token_reader import TokenReader, read_parent
from data_pipeline.shards.weights import Card
from data_pipeline.tokens.plan import TokenPlan, plan_tokens
from data_pipeline.tools import editing

_ALIKE = ("tokenizer", "views", "image_size", "fit", "decode", "precision")
"""Fields in which tokens that are there agree with those that are made."""


@dataclass(frozen=True)
class ReusePlan:
    """What is to be tokenized, and the sets that the output then consists of."""

    images: str
    output: str
    plans: tuple[TokenPlan, ...]
    sets: tuple[str, ...]
    """URIs of sets of tokens, in the order of the images."""

    def finish(self, say: Callable[[str], object] = print) -> TokenManifest:
        """Complete the output, once all plans are.

        Raises:
            UsageError: if another data set is there.
        """
        planned = editing.append(self.sets, self.output, self.images)
        planned.write(say)
        assert isinstance(planned.manifest, TokenManifest)
        return planned.manifest


def plan_reuse(images: str, tokenizer: Card, config: TokensConfig, output: str, fit: str) -> ReusePlan:
    """Which images of an appended set have tokens, and what is to be tokenized.

    Args:
        images: URI of the appended images.
        tokenizer: as of `plan_tokens`, as the others.
        config: with the sets of tokens that there are (`tokens.reuse`).
        output: URI of the tokens.
        fit: how images become squares (`data.fit`).

    Raises:
        UsageError: if the images were not appended, or tokens are of none of their sets, or were made otherwise.
    """
    manifest = ImageManifest.read(images)
    if manifest.edit is None or manifest.edit.operation != "append":
        raise UsageError(
            f"tokens.reuse is for images that were appended (foldtrain data append), and {images} is no such set: "
            "leave it out"
        )
    parents = manifest.edit.parents
    plans = {each.fingerprint: _plan_of(images, each, tokenizer, config, output, fit) for each in parents}
    there = _tokens_there(config.reuse, plans)
    sets = tuple(there.get(each.fingerprint, plans[each.fingerprint].output) for each in parents)
    left = tuple(plans[each.fingerprint] for each in parents if each.fingerprint not in there)
    return ReusePlan(images, output, left, sets)


def _plan_of(images: str, parent: Parent, tokenizer: Card, config: TokensConfig, output: str, fit: str) -> TokenPlan:
    read_parent(images, parent, ImageManifest)
    own = storage.join(output, f"of-{parent.fingerprint[:16]}")
    return plan_tokens(parent_uri(images, parent), tokenizer, config, own, fit)


def _tokens_there(uris: Sequence[str], plans: dict[str, TokenPlan]) -> dict[str, str]:
    """The set of tokens of each set of images that has one, by the fingerprint of the images."""
    found: dict[str, str] = {}
    for uri in uris:
        tokens = TokenReader(storage.absolute(uri), TokenManifest.read(uri))
        for each in editing.appended_of(tokens):
            assert isinstance(each, TokenReader)
            plan = plans.get(each.manifest.source)
            if plan is None:
                raise UsageError(
                    f"tokens.reuse: {each.uri} are tokens of the images {each.manifest.source[:16]}, which are none of "
                    f"those that were appended ({', '.join(name[:16] for name in plans)})"
                )
            _check_alike(each, plan)
            found[each.manifest.source] = each.uri
    return found


def _check_alike(tokens: TokenReader, plan: TokenPlan) -> None:
    made, fields = tokens.manifest.model_dump(include=set(_ALIKE)), plan.manifest_fields()
    wanted = {name: fields[name] for name in _ALIKE} | {"tokenizer": plan.tokenizer.model_dump()}
    found = differences(made, wanted)
    if found:
        raise UsageError(
            f"tokens.reuse: {tokens.uri} was made otherwise (there -> now):\n  "
            + "\n  ".join(text[:500] for text in found)
            + "\nSet these as they were there, or leave it out"
        )
