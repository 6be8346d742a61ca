"""A training stage as plain data: what the driver hands to every worker. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from data_pipeline import storage
from data_pipeline.config import ReadingConfig
from data_pipeline.errors import UsageError
from data_pipeline.leases.lease import Claim
from data_pipeline.shards import weights
from data_pipeline.shards.manifest import ImageManifest, TokenManifest, differences
from data_pipeline.shards.weights import Card
from trainer.config import ClassifierStageConfig, GeneratorStageConfig, TokenizerStageConfig, TrackingConfig
from trainer.registry import trained_in

INITIAL = "initial"
"""Input of a job: the weights that training starts from."""
PROXY = "proxy"
"""Input of a job: the tokenizer whose codes are learnt."""
HELD_OUT = "held_out"
"""Input of a job: images that nothing is trained on, or their tokens, to look at. It is no part of the lineage."""
HELD_OUT_IMAGES = "held_out_images"
"""Input of a generator's job: images that nothing is trained on, to compare samples with. No part of the lineage."""

StageSection = ClassifierStageConfig | TokenizerStageConfig | GeneratorStageConfig

# Settings of the trainer that do not change what is computed, so a run may be continued with others.
_NEUTRAL = {
    "zero_stage",
    "offload",
    "bucket_elements",
    "overlap_communication",
    "micro_batch",
    "activation_checkpointing",
    "compile",
    "log_every",
    "max_skipped_steps",
    "checkpoint_every",
    "checkpoint_minutes",
    "keep_checkpoints",
    "keep_every",
    "keep_best",
    "max_failed_checkpoints",
    "checkpoint_wait_seconds",
}

# Settings of the trainer with which a run may go on otherwise than it began, if that is asked for: neither the state
# nor the position in the data depends on them.
_CHANGEABLE = {
    "steps",
    "learning_rate",
    "final_learning_rate",
    "warmup_steps",
    "warmup_rate",
    "schedule",
    "stair_steps",
    "weight_decay",
    "final_weight_decay",
    "betas",
    "gradient_clipping",
    "precision",
    "communication",
    "initial_loss_scale",
    "loss_scale_window",
    "spikes",
    "extra",
}

# Settings of `data.reading` that decide what is seen, and in which order.
_SEEN = {"decode", "crop", "shuffle_window"}


@dataclass(frozen=True)
class TrainJob:
    """One network to train.

    `inputs` are URIs of what it is trained from (images, teacher, tokenizer, tokens, and the weights that it starts
    from, `INITIAL`) and looked at with (`HELD_OUT`, `HELD_OUT_IMAGES`), `lineage` the fingerprints of the former,
    `config` the resolved config of the whole run, which is recorded and counted from, `classes` the names of the
    classes of the data, by label, `peak_tflops` what one device could do, in place of the table's. With
    `accept_changes` a run may go on with other settings of its optimizer. `lease` is what the driver holds.
    """

    stage: str
    folder: str
    section: StageSection
    seed: int
    fit: str
    reading: ReadingConfig
    inputs: dict[str, str]
    lineage: dict[str, str]
    config: dict[str, Any]
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    classes: tuple[str, ...] = ()
    peak_tflops: float | None = None
    accept_changes: bool = False
    lease: Claim | None = None
    manifests: dict[str, ImageManifest | TokenManifest] = field(default_factory=dict)
    """By input: those that the driver has read; a worker reads what is missing."""

    @property
    def checkpoints(self) -> str:
        """Folder of the checkpoints."""
        return storage.join(self.folder, "checkpoints")

    @property
    def export(self) -> str:
        """Folder of the finished network."""
        return storage.join(self.folder, "export")

    def settings(self) -> dict[str, Any]:
        """All that decides the result. A run is continued only with the same."""
        section = self.section.model_dump(mode="json")
        section["trainer"] = {k: v for k, v in section["trainer"].items() if k not in _NEUTRAL}
        section.pop("validation", None)  # looks on
        seen = {"fit": self.fit} | self.reading.model_dump(mode="json", include=_SEEN)
        return {"stage": self.stage, "section": section, "seed": self.seed, "data": seen, "lineage": self.lineage}

    def is_finished(self) -> bool:
        """Whether the network is there already, made with these settings, after as many steps.

        Raises:
            UsageError: if the folder holds a run with other settings, and may not go on with these.
        """
        try:
            recorded = storage.read_json(self._settings)
        except FileNotFoundError:
            return False
        found = differences(recorded, self.settings())
        exported = storage.exists(storage.join(self.export, "card.json"))
        card = weights.read_card(self.export, self.stage) if exported else None
        if found:
            self._refuse(found, card)
        return card is not None and not self._is_longer(card)

    def _is_longer(self, card: Card) -> bool:
        """Whether more steps are asked for than the finished network was trained for."""
        return card.steps is not None and self.section.trainer.steps > card.steps

    @property
    def _settings(self) -> str:
        return storage.join(self.folder, "settings.json")

    def _refuse(self, found: list[str], card: Card | None) -> None:
        """Raise, unless the run is to go on with what was changed, and can.

        Args:
            found: the changes.
            card: of the finished network, if it is there.
        """
        keys = {line.split(":")[0].removeprefix("section.trainer.").split(".")[0] for line in found}
        allowed = keys <= _CHANGEABLE
        can = allowed and (card is None or self._is_longer(card))
        if can and self.accept_changes:
            if card is not None:
                self._check_checkpoint(card)
            return
        whole, changes = "run" if card is None else "finished run", "\n  ".join(found)
        raise UsageError(
            f"{self.folder} holds a {whole} with other settings (there -> asked for now):\n  {changes}\n"
            "Set `run` to another folder, or restore the settings, or delete that folder to start anew"
            f"{self._way_on(can, allowed, card)}."
        )

    def _way_on(self, can: bool, allowed: bool, card: Card | None) -> str:
        """What else the user may do, in words."""
        if can and card is not None:
            return f", or set accept_changes=true to train it further, from step {card.steps} on, with these"
        if can:
            return ", or set accept_changes=true to go on from the newest checkpoint with these"
        if allowed and card is not None and card.steps is not None:
            key = f"{trained_in(self.stage).section}.trainer.steps"
            return f", or set {key} above {card.steps} and accept_changes=true to train it further with these"
        return ""

    def _check_checkpoint(self, card: Card) -> None:
        """A finished network is trained further from its checkpoint: its export has no moments."""
        from trainer.checkpoints.catalog import latest_step

        if latest_step(self.checkpoints) is None:
            raise UsageError(
                f"{self.folder} holds a network of {card.steps} steps, but {self.checkpoints} has no "
                "complete checkpoint from which it could be trained further: restore one, or set `run` to another "
                "folder"
            )

    def begin(self, step: int = 0) -> None:
        """Record the config, and the settings so that a later start can compare; and what has changed, as an event.

        Called once the start is accepted: when the workers are there, and have read where they go on from.

        Args:
            step: from which it goes on.
        """
        import yaml

        self._record_changes(step)
        resolved = yaml.safe_dump(self.config, sort_keys=False, allow_unicode=True)
        storage.write_bytes(storage.join(self.folder, "config.yaml"), resolved.encode())
        storage.write_json(storage.join(self.folder, "lineage.json"), self.lineage)
        storage.write_json(self._settings, self.settings())

    def _record_changes(self, step: int) -> None:
        try:
            found = differences(storage.read_json(self._settings), self.settings())
        except FileNotFoundError:
            return
        if found:
            from trainer.records.run_directory import append_event

            append_event(self.folder, "settings_changed", step, changes=found)
