"""Folded tokens, shown to a generator as positions of one fold: what folding has to be compared with.

Shape suffixes: B batch, L positions, F folds, U = L * F positions of one fold.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import cast

from torch import Tensor, nn

from model.config import GeneratorConfig
from model.layout import TokenLayout
from model.protocols import Generator, SamplingPlan, StepTaught, TeacherForcing, Terms


class Unfolded(nn.Module):
    """A generator of U positions of one fold, to everyone else one of L positions of F folds.

    Args:
        inner: of the unfolded layout.
        layout: of the tokens as they are stored.
    """

    def __init__(self, inner: Generator, layout: TokenLayout) -> None:
        super().__init__()
        self.inner, self.layout = cast("nn.Module", inner), layout

    @property
    def _inner(self) -> Generator:
        return cast("Generator", self.inner)

    @property
    def config(self) -> GeneratorConfig:
        """The inner one's."""
        return self._inner.config

    @property
    def null_class(self) -> int:
        """The label that means "no class"."""
        return self._inner.null_class

    def of_step(self, step: int, seed_S: Tensor) -> dict[str, Tensor]:
        """What the inner one needs to know of a step (`StepTaught`)."""
        return cast("StepTaught", self.inner).of_step(step, seed_S)

    def training_terms(
        self,
        tokens_BLF: Tensor,
        condition_B: Tensor,
        seed_B: Tensor | None,
        forcing: TeacherForcing | None = None,
        of_step: Mapping[str, Tensor] | None = None,
    ) -> Terms:
        """The inner one's, of the unfolded tokens."""
        tokens_BU1 = tokens_BLF.flatten(1)[..., None]
        if of_step is None:
            return self._inner.training_terms(tokens_BU1, condition_B, seed_B, forcing)
        return cast("StepTaught", self.inner).training_terms(tokens_BU1, condition_B, seed_B, forcing, of_step)

    def sample(self, plan: SamplingPlan, forcing: TeacherForcing | None = None) -> Tensor:
        """Drawn unfolded, and folded again."""
        kept = None if plan.kept_BLF is None else plan.kept_BLF.flatten(1)[..., None]
        unfolded = replace(plan, uniform_BLF=plan.uniform_BLF.flatten(1)[..., None], kept_BLF=kept)
        return self._inner.sample(unfolded, forcing).view(plan.uniform_BLF.shape)

    def no_decay_parameters(self) -> set[str]:
        """The inner one's."""
        return {f"inner.{name}" for name in self._inner.no_decay_parameters()}
