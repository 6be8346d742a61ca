"""Whether a tokenizer reaches what a config asks of it (`tokens.require`)."""

from __future__ import annotations

from collections.abc import Iterator

from data_pipeline.config import TokenizerGate
from data_pipeline.shards.measured import Measured


def failures(require: TokenizerGate, measured: Measured) -> Iterator[str]:
    """A sentence for each number that is outside of what is asked, with its branch and scale."""
    for name, codes in measured.codes.items():
        use, most = codes.use[-1], codes.attainable[-1]
        share = use / most if most else 0.0
        if require.use is not None and share < require.use:
            scale = f"scale {len(codes.use)} of {len(codes.use)}"
            yield (
                f"use {share:.3g} of branch {name} at {scale}, and not {require.use} ({use:.1%} of its codes, where "
                f"{most:.1%} could be used)"
            )
        if require.dead is not None and codes.dead > require.dead:
            yield f"dead {codes.dead:.3g} of branch {name}: codes that no scale uses, and not at most {require.dead}"
    if require.mse is not None and measured.mse > require.mse:
        yield f"mse {measured.mse:.4g} of all scales, and not at most {require.mse}"
    if require.psnr is not None and measured.psnr < require.psnr:
        yield f"psnr {measured.psnr:.4g} dB of all scales, and not {require.psnr}"
