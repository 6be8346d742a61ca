"""Which samples a training stage has consumed."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from cluster.terminal.output import say, say_json
from data_pipeline.text.counted import counted

ledger = typer.Typer(no_args_is_help=True, help="Which samples a stage has consumed.")

Run = Annotated[str, typer.Argument(metavar="RUN", help="Folder of a run, or of one stage of it, at any URI.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@ledger.command("audit")
def audit(run: Run, as_json: Json = False) -> None:
    """Prove that each sample was consumed once per epoch, over all restarts and world sizes; exit code 1 if not."""
    from data_pipeline.errors import FoldtrainError
    from data_pipeline.tools import auditing

    wrong = []
    for folder in auditing.find_stages(run):
        found = auditing.audit_stage(folder)
        history = found.history
        record = {
            "stage": folder,
            "steps": history.steps,
            "global_batch": history.order.global_batch,
            "starts": [{"step": step, "world": world} for step, world in history.starts],
            "repeated_steps": history.repeated_steps,
            "passed_over_steps": sum(stop - first for part in history.segments for first, stop in part.skipped),
            "epochs": [{"consumed": consumed, "samples": samples, "most": m} for consumed, samples, m in found.epochs],
            "mix": [list(part) for part in history.order.mix],
            "problems": list(found.problems),
        }
        if as_json:
            say_json(record)
        else:
            say(*_lines(record))
        wrong += [f"{folder}: {problem}" for problem in found.problems]
    if wrong:
        raise FoldtrainError(f"{len(wrong)} problems, the first: {wrong[0]}")


def _lines(record: dict[str, Any]) -> list[str]:
    starts, epochs, problems = record["starts"], record["epochs"], record["problems"]
    assert isinstance(starts, list)
    assert isinstance(epochs, list)
    assert isinstance(problems, list)
    turns = ", ".join(f"{counted(start['world'], 'rank')} from step {start['step']}" for start in starts)
    steps = counted(record["steps"], "step")
    whole = [epoch for epoch in epochs if epoch["consumed"] == epoch["samples"]]
    lines = [
        f"{record['stage']}: {steps} of {counted(record['global_batch'], 'sample')}; {turns}",
        f"  {counted(record['repeated_steps'], 'step was', 'steps were')} done again after a restart",
        f"  {counted(record['passed_over_steps'], 'step was', 'steps were')} passed over after a spike of the loss",
        _whole(len(whole), epochs, is_mix=bool(record["mix"]))
        if not problems
        else "  the order is not as it should be",
    ]
    if epochs and epochs[-1] not in whole and not problems and not record["mix"]:
        lines.append(f"  epoch {len(epochs) - 1} so far: {counted(epochs[-1]['consumed'], 'sample')}, none twice")
    return [*lines, *(f"  {problem}" for problem in problems)]


def _whole(count: int, epochs: list[dict[str, int]], *, is_mix: bool) -> str:
    if is_mix:
        rounds = counted(count, "whole round")
        return f"  {rounds} through the sets of the mix, each of a set's samples exactly once, and none twice"
    samples = counted(epochs[0]["samples"] if epochs else 0, "sample")
    return f"  {counted(count, 'whole epoch')}, each of {samples} exactly once"


@ledger.command("step")
def step(
    folder: Annotated[str, typer.Argument(metavar="STAGE", help="Folder of a stage, at any URI.")],
    number: Annotated[int, typer.Argument(metavar="STEP", help="Optimizer step, from 0.")],
) -> None:
    """Print the keys of the samples of a step, one a line, in their order over all ranks."""
    from data_pipeline.tools.auditing import step_keys

    for key in step_keys(folder, number):
        say(key)


def register(app: typer.Typer) -> None:
    """Add the commands of this file."""
    app.add_typer(ledger, name="ledger", rich_help_panel="Runs")
