"""What `foldtrain evaluate` prints at its end: the numbers that are looked at first."""

from __future__ import annotations

from typing import Any

from cluster.terminal.output import console
from data_pipeline.text.counted import counted


def print_summary(record: dict[str, Any]) -> None:
    """Of a record as evaluation.json has it."""
    reconstruction, generation = record["reconstruction"], record["generation"]
    errors = ", ".join(f"{error:.4f}" for error in reconstruction["mse_of_prefixes"])
    finest = ", ".join(f"{branch[-1]:.0%}" for branch in record["codebook_use"])
    lines = [f"reconstruction error by positions kept: {errors}", f"codebook use of the last group: {finest}"]
    if record["baselines"] is not None:
        components = ", ".join(f"{each['mse']:.4f}" for each in record["baselines"]["components"])
        lines.insert(
            1,
            f"principal components at the same bits: {components}; the mean image: "
            f"{record['baselines']['mean_image']:.4f}",
        )
    if record["probe"] is not None:
        seen = ", ".join(f"{name} {share:.1%}" for name, share in record["probe"]["branches"].items())
        lines.append(f"a linear layer finds the class in: {seen}; in pixels {record['probe']['pixels']:.1%}")
    if generation["frechet_distance"] is not None:
        lines.append(
            "Fréchet distance in the teacher's feature space: "
            f"reconstruction {reconstruction['frechet_distance']:.3f}, generation {generation['frechet_distance']:.3f}"
        )
    if "memorization" in record:
        near = record["memorization"]
        lines.append(
            f"nearest training images of {counted(near['samples'], 'sample')}: samples/nearest.png; as near as the "
            f"nearest 1 % of held-out images ({near['threshold']:.3g}): {near['share']:.1%}"
        )
    if generation["class_accuracy"] is not None:
        samples = counted(generation["samples"], "sample is", "samples are")
        lines.append(
            f"judge: {generation['class_accuracy']:.1%} of {samples} of the asked class "
            f"(it is right on {generation['judge_accuracy_on_real']:.1%} of real images)"
        )
    console().print("\n".join(lines))
