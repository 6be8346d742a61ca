"""The DeepSpeed JSON: what follows from the trainer's config, and what the user adds in `extra`."""

from __future__ import annotations

from typing import Any

from data_pipeline.errors import UsageError
from trainer.config import TrainerConfig

_OWN = {
    "optimizer": "learning_rate, betas and weight_decay",
    "scheduler": "learning_rate, final_learning_rate and warmup_steps",
    "fp16": "precision",
    "bf16": "precision",
    "bfloat16": "precision",
    "torch_autocast": "precision",
    "communication_data_type": "communication",
    "checkpoint": "checkpoint_every and keep_checkpoints",
    "activation_checkpointing": "activation_checkpointing",
    "compile": "compile",
}
"""Keys of DeepSpeed's for which the trainer's config has fields of its own."""
_REFUSED = {
    "extra.zero_optimization.compute_grad_norm": "as gradients that are not finite are found by their norm",
}


def deepspeed_config(
    config: TrainerConfig, world: int, elements: int | None = None, *, overlap: bool = True
) -> dict[str, Any]:
    """The DeepSpeed JSON of a trainer's config on `world` workers, not yet checked by DeepSpeed.

    Args:
        config: of the trainer.
        world: number of workers.
        elements: that are trained; a bucket has no more, as DeepSpeed allocates all of it. None if they are not known.
        overlap: whether their devices can compute and communicate side by side.

    Raises:
        ValueError: if the global batch cannot be cut into equal micro-batches over the workers, or `extra` sets what
            is derived.
    """
    micro, accumulation = config.split_over(world)
    overlap = overlap and config.overlap_communication and config.zero_stage > 0
    zero: dict[str, Any] = {"stage": config.zero_stage, "overlap_comm": overlap}
    derived: dict[str, Any] = {
        "train_batch_size": config.global_batch,
        "train_micro_batch_size_per_gpu": micro,
        "gradient_accumulation_steps": accumulation,
        # Stage 0 in fp32: our optimizer clips by itself, after it has checked the norm.
        "gradient_clipping": config.gradient_clipping if config.zero_stage else 0.0,
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
    }
    if config.offload == "optimizer":
        zero["offload_optimizer"] = {"device": "cpu"}
        derived["zero_force_ds_cpu_optimizer"] = False  # torch's AdamW: DeepSpeed's needs a compiler on every node
    if config.communication != "fp32":
        derived["communication_data_type"] = config.communication
    merged = _merge(derived, config.extra, "extra")
    # `extra` may set one of them otherwise; DeepSpeed wants an even number.
    size = config.bucket_elements if elements is None else max(2, min(config.bucket_elements, elements))
    for bucket in ("reduce_bucket_size", "allgather_bucket_size"):
        merged["zero_optimization"].setdefault(bucket, size + size % 2)
    return merged


def _merge(derived: dict[str, Any], extra: dict[str, Any], path: str) -> dict[str, Any]:
    merged = dict(derived)
    for key, value in extra.items():
        place = f"{path}.{key}"
        if path == "extra" and key in _OWN:
            raise ValueError(f"trainer.{place}: set trainer's own {_OWN[key]} instead")
        if place in _REFUSED:
            raise ValueError(f"trainer.{place}: leave it out, {_REFUSED[place]}")
        if key not in derived:
            merged[key] = value
        elif isinstance(derived[key], dict) and isinstance(value, dict):
            merged[key] = _merge(derived[key], value, place)
        else:
            raise ValueError(f"trainer.{place}: {derived[key]!r} follows from the rest of the config; leave it out")
    return merged


class _Asked(dict[str, Any]):
    """A dict that remembers which of its keys were looked up."""

    def __init__(self, *items: Any) -> None:
        super().__init__(*items)
        self.keys_asked: set[str] = set()

    def __copy__(self) -> _Asked:
        return self

    def __getitem__(self, key: str) -> Any:
        self.keys_asked.add(key)
        return super().__getitem__(key)

    def __contains__(self, key: object) -> bool:
        self.keys_asked.add(str(key))
        return super().__contains__(key)

    def get(self, key: str, default: Any = None) -> Any:
        """A value."""
        self.keys_asked.add(key)
        return super().get(key, default)


def check_settings(settings: dict[str, Any]) -> None:
    """Let DeepSpeed's own parser read the JSON. It ignores unknown keys at the top: those that it never asks for.

    torch.distributed must be initialized, as the parser compares batch and workers.

    Raises:
        UsageError: if DeepSpeed refuses a value, or does not know a key.
    """
    from deepspeed.runtime.config import DeepSpeedConfig
    from pydantic import ValidationError

    asked = _Asked(settings)
    try:
        DeepSpeedConfig(asked)
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise UsageError(f"trainer.extra: DeepSpeed refuses it ({problems})") from None
    except (AssertionError, ValueError, TypeError, KeyError) as error:
        raise UsageError(f"trainer.extra: DeepSpeed refuses it ({error})") from None
    unknown = sorted(settings.keys() - asked.keys_asked)
    if unknown:
        raise UsageError(f"trainer.extra.{unknown[0]}: DeepSpeed has no such setting")
