"""What `python -m trainer.sft` says to people before and after training."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from curator.progress import say
from trainer.config import TrainConfig
from trainer.inputs import Inputs
from trainer.runfolder import REPORT_TEXT
from trainer.safelora import summary

if TYPE_CHECKING:
    from trainer.fit import Ready


def content_line(inputs: Inputs) -> str:
    """What will be trained, before the model loads."""
    content = inputs.prepared.report()
    verified = ", verified against the manifest" if inputs.rows.get("mix_id") else ""
    return (
        f"{content.n_rows:,} rows ({content.n_safe:,} safe){verified}: {content.n_tokens:,} tokens, "
        f"{content.n_response_tokens:,} trained; {content.n_cut:,} rows cut, "
        f"{content.n_answers_cut:,} with a cut answer"
    )


def model_line(config: TrainConfig, ready: "Ready", n_steps: int, n_processes: int) -> str:
    """What is trained, on what and how, before the first step."""
    resolved = ready.resolved
    defences = ", ".join(item.describe() for item in config.defences) or "none"
    copy = resolved["reference_bytes"]
    return (
        f"{resolved['n_trained_parameters']:,} of {resolved['n_parameters']:,} parameters trained, "
        f"{resolved['dtype']} on {resolved['device']}; {n_steps} steps of "
        f"{config.batch_size * config.grad_accum * n_processes} rows; "
        f"defences: {defences}"
        + (f"; the frozen copy they compare with takes {copy / 2**20:,.0f} MiB more" if copy else "")
    )


def say_result(out: Path, place: Path, report: dict[str, Any]) -> None:
    """How it ended, and where everything lies."""
    loss = report["loss"]
    say(f"loss {loss['start']:.4f} -> {loss['end']:.4f} nats per token, {report['seconds']:.1f} s")
    say(f"{place.name}: {place}")
    if "safelora" in report:
        for line in summary(report["safelora"]):
            say(f"safelora: {line}")
    say(f"report:  {out / REPORT_TEXT}")
