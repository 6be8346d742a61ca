"""The factor on the loss that keeps small gradients above fp16's smallest number (arXiv 1710.03740, 3.2).

It halves when a step was skipped, and doubles after so many applied steps in a row. All ranks see the same steps
applied, so all have the same scale without asking.

DeepSpeed's own scaler comes with its fp16 mode only, which turns all parameters to fp16, codebooks included. It also
changes the scale between the norm and the division by it (0.19.8), so the step at which the scale doubles is half as
long. Here a scale holds for a whole step, and DeepSpeed is told it (`override_loss_scale`).
"""

from __future__ import annotations

from typing import Any

SMALLEST = 1.0


class LossScale:
    """The loss scale of a run, equal on all ranks.

    Args:
        initial: at the first step.
        window: applied steps in a row after which it doubles.
    """

    def __init__(self, initial: float, window: int) -> None:
        self.value = initial
        self._window, self._applied = window, 0

    def update(self, applied: bool) -> None:
        """Account for an optimizer step that was computed with `value`."""
        self._applied = self._applied + 1 if applied else 0
        if not applied:
            self.value = max(self.value / 2, SMALLEST)
        elif self._applied == self._window:
            self.value, self._applied = self.value * 2, 0

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds of it."""
        return {"value": self.value, "applied_in_a_row": self._applied}

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from what `state` gave."""
        self.value, self._applied = state["value"], state["applied_in_a_row"]
