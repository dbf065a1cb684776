"""What `python -m trainer.sft` prints before and after training."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from curator.console import say
from trainer.config import TrainConfig
from trainer.config.options import Invocation
from trainer.data.inputs import Inputs
from trainer.data.rows import dropped_text
from trainer.defenses.safelora import summary
from trainer.runs.folder import REPORT_TEXT
from trainer.runs.report import Warned, number


def content_line(inputs: Inputs) -> str:
    """What will be trained, before the model loads."""
    content = inputs.prepared.report()
    verified = ", verified against the manifest" if inputs.rows.get("mix_id") else ""
    return (
        f"{content.n_rows:,} rows ({content.n_safe:,} safe){verified}: {content.n_tokens:,} tokens, "
        f"{content.n_response_tokens:,} trained; {content.n_cut:,} rows cut, "
        f"{content.n_answers_cut:,} with a cut answer"
        + (f"; left out by the chat template: {dropped_text(content.dropped)}" if content.dropped else "")
    )


def model_line(config: TrainConfig, resolved: Mapping[str, Any]) -> str:
    """What is trained, on what and how, before the first step."""
    defences = ", ".join(item.describe() for item in config.defences) or "none"
    copy = resolved["reference_bytes"]
    return (
        f"{resolved['n_trained_parameters']:,} of {resolved['n_parameters']:,} parameters trained, "
        f"{resolved['dtype']} on {resolved['device']}; {resolved['steps']} steps of "
        f"{resolved['effective_batch']} rows; "
        f"defences: {defences}"
        + (f"; the frozen copy they compare with takes {copy / 2**20:,.0f} MiB more" if copy else "")
    )


def say_result(out: Path, place: Path, report: dict[str, Any]) -> None:
    """How it ended, and where everything lies."""
    loss = report["loss"]
    say(f"loss {number(loss['start'])} -> {number(loss['end'])} nats per token, {report['seconds']:.1f} s")
    say(f"{place.name}: {place}")
    if "safelora" in report:
        for line in summary(report["safelora"]):
            say(f"safelora: {line}")
    say(f"report:  {out / REPORT_TEXT}")


def stopped_line(invocation: "Invocation", place: Path, n_done: int, n_steps: int, checkpoint: int | None) -> str:
    """How Ctrl-C left the run: what `place` holds, and where the next start begins.

    `checkpoint` is the step of the newest complete one. A second Ctrl-C interrupts a step, and leaves none of it.
    """
    again = "the same command"
    if invocation.overwrite:
        again += " without --overwrite"
    if invocation.resume is not None and invocation.resume.step is not None:
        again += f" with --resume in the place of --resume {invocation.resume.step}"
    line = f"stopped after {n_done} of {n_steps} steps; {place} is usable"
    if checkpoint == n_done:
        return f"{line}, and {again} goes on from there"
    if checkpoint is not None:
        return (
            f"{line}, but there is no checkpoint of step {n_done}: {again} goes on from "
            f"step {checkpoint} and removes {place.name}/; copy it to keep it"
        )
    return (
        f"{line}, but there is no checkpoint: the same command starts over and "
        f"removes {place.name}/; copy it to keep it, and give --save-steps for checkpoints on the way"
    )


def run_warnings(config: TrainConfig, n_steps: int, inputs: Inputs, n_processes: int) -> list[Warned]:
    """What the settings give up."""
    found = []
    if n_steps <= config.warmup_steps:
        text = (
            f"all {n_steps} steps fall into the {config.warmup_steps} of warm-up: the learning rate never reaches "
            f"{config.lr:g}"
        )
        found.append(Warned("warmup_only", text))
    if config.reorder:
        found.append(Warned("reordered", f"--reorder {config.reorder} gives up the order of the rows, as asked"))
    n_fill = -len(inputs.prepared.input_ids) % (config.batch_size * n_processes)
    if n_processes > 1 and n_fill:
        text = f"{n_fill} rows of one untrained token fill the last batches of each epoch over {n_processes} processes"
        found.append(Warned("filled_batches", text))
    return found
