"""A tokenizer in place of one that a generator's folder does not name: of the same number of positions and codes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from data_pipeline.shards import weights
from data_pipeline.shards.halves import halves_of
from model.config.titok import TiTokConfig
from model.published.options import Options, whole_number
from model.tokenizers.titok import TiTokTokenizer

Wanted = Callable[[Options, Mapping[str, Tensor]], tuple[int, int]]

POSITIONS_AND_CODES: dict[str, Wanted] = {
    "llamagen": lambda options, state: (whole_number(options, "block_size"), len(state["output.weight"])),
    "rar": lambda options, state: (
        whole_number(options, "model.generator.image_seq_len"),
        len(state["lm_head.weight"]),
    ),
    "maskgit_bert": lambda options, state: (
        whole_number(options, "model.generator.image_seq_len"),
        len(state["model.lm_head.weight"]),
    ),
    "maskgit_uvit": lambda options, state: (
        whole_number(options, "model.generator.image_seq_len"),
        len(state["lm_head.weight"]),
    ),
}
"""By what the names of folders begin with: the layout of the tokens, from published options and parameters."""


def stand_in(folder: Path, options: Options, state: Mapping[str, Tensor], place: Path) -> str | None:
    """The URI of such a tokenizer's export; None if the folder's model needs none."""
    wanted = next((wanted for name, wanted in POSITIONS_AND_CODES.items() if folder.name.startswith(name)), None)
    if wanted is None:
        return None
    positions, codes = wanted(options, state)
    vit = {"width": 32, "depth": 1, "heads": 1, "patch_size": 8}
    quantizer = {"kind": "vq", "codebook_size": codes, "code_dim": 4}
    config = {"image_size": 16, "latents": positions, "encoder": vit, "decoder": vit, "quantizer": quantizer}
    torch.manual_seed(0)
    tokenizer = TiTokTokenizer(TiTokConfig.model_validate(config | {"target": "rgb"}))
    uri, described = str(place / "stand-in"), tokenizer.config.model_dump(mode="json")
    files = {"model": tokenizer.state_dict()}
    weights.write_weights(uri, "tokenizer", described, files, {}, halves=halves_of(tokenizer))
    return uri
