"""TiTok's tokenizer: an image as a row of latents, painted by a second transformer (arXiv 2406.07550).

    image -> encoder -> K vectors -> codes (of a Gaussian bottleneck: draws) -> decoder -> a vector per patch -> head

    target    the head gives                              what is trained
    rgb       pixels                                      all of it (single-stage)
    codes     logits over a frozen proxy's codes          all but the pixel decoder (stage 1)
    pixels    the same; pixels of a soft look-up in them  decoder, pixel codebook and pixel decoder (stage 2)

Inside, images are in [0, 1]; those that it is given and gives are in [-1, 1], as everywhere.

Shapes: B batch, K latents (L positions, of F = 1 fold), C channels of a code (of the image, in image_BCHW), N patches,
D width of a transformer, H = W side of the image in pixels, V codes of the proxy.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import ClassVar, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from model.config.titok import NO_TOKENS, GaussianConfig, TiTokConfig
from model.layers.convolutional_autoencoder import ConvolutionalDecoder
from model.layers.precision import without_autocast
from model.layers.titok_vit import CodeHead, LatentDecoder, LatentEncoder, PixelHead
from model.layout import TokenLayout
from model.protocols import Draws, Quantizer, Terms, Tokenizer, TokenizerOutput, Uniform
from model.quantizers.flat import FlatQuantizer
from model.quantizers.gaussian import divergence_loss, gaussian_of
from model.tokenizers.maskgit_vqgan import MaskgitVqganTokenizer

KEPT_LATENTS, PROXY = "kept_latents", "proxy_BK"
"""What a training pass is given of each sample: how many latents its decoder sees; the codes of the proxy."""
_NOT_DECAYED = re.compile(r"_embedding|_positions|_token|from_latent|codebook")
_FROZEN = {
    "codes": ("pixel_codebook.", "pixel_decoder."),
    "pixels": ("encoder.", "quantizer."),
}
"""Beginnings of the names of what is not trained, by target."""


class Bottleneck(NamedTuple):
    """What is between encoder and decoder in training."""

    code_BKC: Tensor
    """What the decoder reads; gradients go straight through to the encoder."""
    token_BK: Tensor
    """Token ids, int64; [B, 0] without codes."""
    losses: Terms
    hits: Terms
    seen: Terms
    means: Terms


class PixelCodebook(nn.Module):
    """The proxy's codes, looked up by logits."""

    def __init__(self, codes: int, channels: int) -> None:
        super().__init__()
        self.codebook = nn.Parameter(torch.randn(codes, channels) * channels**-0.5)

    def forward(self, logits_BNV: Tensor, *, soft: bool) -> Tensor:
        """Means of the codes by the logits' probabilities [B, N, C], or the likeliest codes, without gradients."""
        if soft:
            return logits_BNV.float().softmax(-1).to(self.codebook.dtype) @ self.codebook
        return F.embedding(logits_BNV.argmax(-1), self.codebook)


class TiTokTokenizer(nn.Module):
    """Encoder, quantizer or Gaussian bottleneck, decoder, head, and the proxy's decoder where it paints."""

    ENCODES: ClassVar[tuple[str, ...]] = ("encoder.", "quantizer.")
    DECODES: ClassVar[tuple[str, ...]] = (
        *("quantizer.", "decoder.", "head.", "pixel_codebook.", "pixel_decoder."),
        *("target", "proxy_codes", "latent_dropout"),
    )
    NEITHER: ClassVar[tuple[str, ...]] = ("quantizer.commitment", "quantizer.divergence", "linear_decoder")
    """What only training has."""

    def __init__(self, config: TiTokConfig) -> None:
        super().__init__()
        self.config = config
        size, latents, code_dim = config.image_size, config.latents, config.quantizer.width
        gaussian = isinstance(config.quantizer, GaussianConfig)
        self.encoder = LatentEncoder(
            *(config.encoder, size, latents, 2 * code_dim if gaussian else code_dim),
            interleaved=config.latent_layout == "interleaved",
        )
        self.quantizer = None if isinstance(config.quantizer, GaussianConfig) else FlatQuantizer(config.quantizer)
        self.decoder = LatentDecoder(config.decoder, size, latents, code_dim)
        width, patch = config.decoder.width, config.decoder.patch_size
        self.head = PixelHead(width, patch) if config.target == "rgb" else CodeHead(width, config.proxy_codes)
        paints = config.pixel_decoder
        self.pixel_codebook = None if paints is None else PixelCodebook(config.proxy_codes, paints.code_dim)
        self.pixel_decoder = None if paints is None else ConvolutionalDecoder(paints, paints.code_dim)
        side = config.linear_decoder.image_size if config.linear_decoder else 0
        self.linear_decoder = nn.Linear(latents * code_dim, 3 * side**2) if side else None
        for name, parameter in self.named_parameters():
            if name.startswith(_FROZEN.get(config.target, "-")):
                parameter.requires_grad_(False)

    @property
    def layout(self) -> TokenLayout:
        """One group of all latents, and one fold.

        Raises:
            ValueError: if its bottleneck is Gaussian.
        """
        return self.config.layout

    @property
    def prefixes(self) -> tuple[int, ...]:
        """All latents; fewer mean something only where training has dropped the others."""
        dropout = self.config.latent_dropout
        return (*(() if dropout is None else dropout.kept), self.config.latents)

    @property
    def codebooks(self) -> dict[str, tuple[int, int]]:
        """The one that is trained, if there is one."""
        if self.quantizer is None or self.config.target == "pixels":
            return {}
        return {f"quantizer.{name}": shape for name, shape in self.quantizer.codebooks.items()}

    @property
    def last_layer(self) -> str:
        """The convolution before the pixels; before the logits, where nothing is painted."""
        names = {"rgb": "head.conv_out.weight", "codes": "head.to_logits.weight"}
        return names.get(self.config.target, "pixel_decoder.end.weight")

    def no_decay_parameters(self) -> set[str]:
        """As published: embeddings of patches and codes, all tables and tokens, and codebooks."""
        return {name for name, _ in self.named_parameters() if _NOT_DECAYED.search(name)}

    def draw(
        self,
        uniform: Uniform,
        positions_B: npt.NDArray[np.int64],
        step_positions: npt.NDArray[np.int64],  # noqa: ARG002 - a Tokenizer has it
    ) -> Draws:
        """Latent dropout: how many latents each sample keeps."""
        dropout = self.config.latent_dropout
        if dropout is None:
            return Draws()
        dropped = uniform("latent_dropout", positions_B) < dropout.share
        choice = np.floor(uniform("kept_latents", positions_B) * len(dropout.kept)).astype(np.int64)
        return Draws({KEPT_LATENTS: np.where(dropped, np.array(dropout.kept)[choice], self.config.latents)})

    def encode(self, image_BCHW: Tensor) -> Tensor:
        """Images in [-1, 1] -> vectors before the bottleneck, [B, K, C]; [B, K, 2 * C] of a Gaussian one.

        Raises:
            ValueError: if the images are not of the tokenizer's size.
        """
        size = self.config.image_size
        if image_BCHW.shape[1:] != (3, size, size):
            raise ValueError(f"image of shape {list(image_BCHW.shape[1:])}: this tokenizer takes [3, {size}, {size}]")
        vectors_BKC: Tensor = self.encoder((image_BCHW + 1) / 2)
        return vectors_BKC

    def tokenize(self, image_BCHW: Tensor) -> Tensor:
        """Images in [-1, 1] -> token ids [B, K, 1], int64.

        Raises:
            ValueError: if its bottleneck is Gaussian.
        """
        return self._codes().tokenize(self.encode(image_BCHW))[..., None]

    def detokenize(self, tokens_BLF: Tensor, keep: int | None = None) -> Tensor:
        """Tokens of the first `keep` latents (None: of all) -> images clamped to [-1, 1], float32.

        Raises:
            ValueError: if `keep` is none of `prefixes`, or nothing can be painted.
        """
        if keep is not None and keep not in self.prefixes:
            raise ValueError(f"keep {keep}: images can be decoded from {', '.join(map(str, self.prefixes))} latents")
        code_BKC = self._codes().dequantize(tokens_BLF[..., 0].long())
        kept_B = None if keep is None else tokens_BLF.new_full((len(tokens_BLF),), keep)
        return self.decode(_first(code_BKC, kept_B)).float().clamp(-1, 1)

    def fold_quantizers(self) -> tuple[Quantizer, ...]:
        """Of the latents.

        Raises:
            ValueError: if its bottleneck is Gaussian.
        """
        return (self._codes().quantizer,)

    def pooled(self, tokens_BLF: Tensor) -> Tensor:
        """Tokens -> the mean of the latents' codes, [B, 1, C], float32; which latent has which code is lost in it.

        Raises:
            ValueError: if its bottleneck is Gaussian.
        """
        return self._codes().dequantize(tokens_BLF[..., 0].long()).mean(1, keepdim=True)

    def reconstruct(self, image_BCHW: Tensor, seed_B: Tensor | None = None) -> Tensor:
        """What is left of images in [-1, 1] behind the bottleneck; with a Gaussian one of its means, or of draws.

        Args:
            image_BCHW: the images.
            seed_B: int64, a random number per sample, from which the draws follow; None takes the means.
        """
        if self.quantizer is not None:
            return self.detokenize(self.tokenize(image_BCHW))
        gaussian = gaussian_of(self.encode(image_BCHW))
        code_BKC = gaussian.mean_BKC if seed_B is None else gaussian.sample(seed_B)
        return self.decode(code_BKC).float().clamp(-1, 1)

    def patches(self, code_BKC: Tensor) -> Tensor:
        """Codes -> what the head makes of the decoder's patches: logits [B, N, V]; of `rgb` pixels in [0, 1]."""
        found: Tensor = self.head(self.decoder(code_BKC))
        return found

    def decode(self, code_BKC: Tensor) -> Tensor:
        """Codes -> images, not clamped.

        Raises:
            ValueError: if it predicts a proxy's codes, and has nothing to paint them with.
        """
        found = self.patches(code_BKC)
        return 2 * (found if self.config.target == "rgb" else self._paint(found)) - 1

    def _paint(self, logits_BNV: Tensor) -> Tensor:
        """Images in [0, 1] of logits: of the likeliest codes in stage 1, of their means in stage 2."""
        if self.pixel_codebook is None or self.pixel_decoder is None:
            raise ValueError(
                "this tokenizer predicts the codes of a proxy and has no pixel_decoder to paint them: give it one "
                "(tokenizer.model.pixel_decoder), and train stage 2"
            )
        code_BNC = self.pixel_codebook(logits_BNV, soft=self.config.target == "pixels")
        side = math.isqrt(code_BNC.shape[1])
        image_BCHW: Tensor = self.pixel_decoder(rearrange(code_BNC, "b (h w) c -> b c h w", h=side))
        return image_BCHW

    def forward(
        self,
        image_BCHW: Tensor,
        drawn: Mapping[str, Tensor] | None = None,
        seed_B: Tensor | None = None,
        *,
        decode: bool = True,
    ) -> TokenizerOutput:
        """One training pass.

        `drawn` is what `draw` gave, and of the target `codes` the proxy's codes [B, N] as `proxy_BK`. `seed_B`, int64,
        is a random number per sample, which a Gaussian bottleneck draws from. Without `decode` there is no
        reconstruction; of the target `codes` there never is.
        """
        drawn = drawn or {}
        found = self._bottleneck(image_BCHW, seed_B)
        losses, seen_BCHW = found.losses, image_BCHW[:0]
        if decode:
            code_BKC = _first(found.code_BKC, drawn.get(KEPT_LATENTS))
            losses = losses | self._linear_loss(code_BKC, image_BCHW)
            if self.config.target == "codes":
                losses = losses | {"codes": _code_loss(self.patches(code_BKC), drawn[PROXY])}
            else:
                seen_BCHW = self.decode(code_BKC)
        return TokenizerOutput(
            reconstruction_BCHW=seen_BCHW,
            tokens_BLF=found.token_BK[..., None],
            losses=losses,
            branch_BPC=None,
            hits=found.hits,
            seen=found.seen,
            means=found.means,
        )

    def _linear_loss(self, code_BKC: Tensor, image_BCHW: Tensor) -> Terms:
        """What the linear decoder's image differs from the image, if there is one."""
        if self.linear_decoder is None:
            return {}
        config = self.config.linear_decoder
        assert config is not None
        small_BCHW = F.adaptive_avg_pool2d(image_BCHW.float(), config.image_size)
        found_BX: Tensor = self.linear_decoder(code_BKC.flatten(1).to(self.linear_decoder.weight.dtype))
        with without_autocast(image_BCHW.device):
            return {"linear": config.weight * F.mse_loss(found_BX.float(), small_BCHW.flatten(1))}

    def _bottleneck(self, image_BCHW: Tensor, seed_B: Tensor | None) -> Bottleneck:
        if self.config.target == "pixels":
            return self._frozen_bottleneck(image_BCHW, seed_B)
        vectors_BKC = self.encode(image_BCHW)
        if self.quantizer is None:
            return self._draw_latents(vectors_BKC, seed_B)
        found = self.quantizer(vectors_BKC)
        hits, seen = ({f"quantizer.{name}": rows for name, rows in each.items()} for each in (found.hits, found.seen))
        return Bottleneck(found.vectors_BKC, found.tokens_BK, found.losses, hits, seen, found.means)

    def _draw_latents(self, vectors_BKC: Tensor, seed_B: Tensor | None) -> Bottleneck:
        assert isinstance(self.config.quantizer, GaussianConfig)
        if seed_B is None:
            raise ValueError("a Gaussian bottleneck in training needs seed_B, one random number per sample")
        gaussian = gaussian_of(vectors_BKC)
        with without_autocast(vectors_BKC.device):
            losses = {"divergence": divergence_loss(gaussian, self.config.quantizer)}
            code_BKC = gaussian.sample(seed_B)
        return Bottleneck(code_BKC, seed_B.new_zeros(len(seed_B), 0), losses, {}, {}, {})

    @torch.no_grad()
    def _frozen_bottleneck(self, image_BCHW: Tensor, seed_B: Tensor | None) -> Bottleneck:
        """Of stage 2: what the decoder reads, and nothing that is minimized or counted."""
        vectors_BKC = self.encode(image_BCHW)
        if self.quantizer is None:
            return self._draw_latents(vectors_BKC, seed_B)._replace(losses={})
        token_BK = self.quantizer.tokenize(vectors_BKC)
        return Bottleneck(self.quantizer.dequantize(token_BK), token_BK, {}, {}, {}, {})

    def _codes(self) -> FlatQuantizer:
        if self.quantizer is None:
            raise ValueError(NO_TOKENS)
        return self.quantizer

    def project_teacher(self, feature_BD: Tensor) -> Tensor:  # noqa: ARG002 - a Tokenizer has it
        """Nothing of it is compared with a teacher.

        Raises:
            ValueError: always.
        """
        raise ValueError("TiTok's latents are compared with no teacher: set the weights of loss.semantic to 0")

    def losses_of_means(self, means: Terms) -> Terms:
        """The quantizer's, of the global batch."""
        return {} if self.quantizer is None else self.quantizer.losses_of_means(means)

    @torch.no_grad()
    def adopt(self, proxy: Tokenizer) -> None:
        """Take the codebook and the decoder of the proxy, which paint its codes, if there is a place for them.

        Args:
            proxy: a tokenizer that `TiTokConfig.check_proxy` lets pass.
        """
        if self.pixel_codebook is None or self.pixel_decoder is None:
            return
        assert isinstance(proxy, MaskgitVqganTokenizer)
        self.pixel_codebook.codebook.copy_(proxy.codebook)
        self.pixel_decoder.load_state_dict(proxy.decoder.state_dict())


def _first(code_BKC: Tensor, kept_B: Tensor | None) -> Tensor:
    """Zeros in place of the codes behind the first that a sample keeps."""
    if kept_B is None:
        return code_BKC
    latents_K = torch.arange(code_BKC.shape[1], device=code_BKC.device)
    return code_BKC * (latents_K < kept_B[:, None])[..., None]


def _code_loss(logits_BNV: Tensor, proxy_BK: Tensor) -> Tensor:
    """Cross entropy to the proxy's codes, a mean over patches; in float32."""
    with without_autocast(logits_BNV.device):
        return F.cross_entropy(logits_BNV.float().flatten(0, 1), proxy_BK.flatten())
