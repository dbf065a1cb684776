"""`python -m trainer.sft`: verify the rows, train in their order, leave one folder. Read it top to bottom."""

import hashlib
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from curator.commands import report_error, say_json
from curator.errors import BallastError, MissingError
from curator.progress import say
from curator.scoring.identity import adapter_sha256, check_model_dir, weights_sha256
from trainer.config import TrainConfig
from trainer.inputs import Inputs, read_inputs
from trainer.options import Invocation, parse_arguments
from trainer.report import Warned, build_report, model_card, report_text
from trainer.runfolder import (
    ADAPTER,
    CONFIG,
    FORMAT_VERSION,
    LOSS_PLOT,
    MARKER,
    METRICS,
    REPORT,
    REPORT_TEXT,
    Fingerprint,
    RunFolder,
    environment,
    write_json,
)

if TYPE_CHECKING:
    from trainer.fit import Fitted, Ready

STOPPED = 130  # what a shell reports for a program ended by Ctrl-C

Say = Callable[[str], None]


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code: 0 done or done before, 2 bad input, 130 stopped by Ctrl-C."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    # Before torch loads: threads that wait sleep instead of spinning. Where other processes want the same cores,
    # spinning made the steps of a tiny model up to 40 times slower.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        return run(parse_arguments(arguments))
    except BallastError as error:
        report_error(error, as_json="--json" in arguments)
        return 2
    except KeyboardInterrupt:
        sys.stderr.write("stopped before training\n")
        return STOPPED


def run(invocation: Invocation) -> int:
    """One training run, or nothing when this very run is complete in its folder."""
    config = invocation.config
    tell: Say = (lambda text: None) if invocation.json else say
    folder = RunFolder(config.out)
    check_model_dir(config.model)
    weights = weights_sha256(config.model)
    mark = fingerprint(config, weights)
    done = folder.claim(mark, invocation.overwrite)
    if done is not None:
        tell(f"{config.out} holds this very run, complete ({done['steps']} steps); --overwrite trains again")
        if invocation.json:
            say_json(done)
        return 0

    inputs = read_inputs(config, folder.path, weights, invocation.api_key)
    tell(_content_line(inputs))

    # torch, transformers and TRL load here: bad options and bad rows have failed by now.
    from trainer.fit import fit, load, planned_steps

    ready = load(config)
    n_steps = planned_steps(config, len(inputs.prepared.input_ids))
    warned = inputs.warnings + _schedule_warnings(config, n_steps)
    for item in warned:
        sys.stderr.write(f"warning: {item.text}\n")
    folder.write_json(CONFIG, _record(config, mark, inputs, ready, n_steps, warned))
    tell(_model_line(config, ready, n_steps))

    fitted = fit(ready, inputs.prepared, inputs.renderer, config, folder.path / METRICS)
    if not fitted.lines:
        raise KeyboardInterrupt
    adapter = save(fitted, folder.path / ADAPTER, config, weights, inputs)
    if fitted.stopped:
        sys.stderr.write(f"stopped after {len(fitted.lines)} of {n_steps} steps; {folder.path / ADAPTER} is usable\n")
        return STOPPED
    report = build_report(
        config, fitted.lines, n_steps, inputs.prepared.report().as_dict(), inputs.rows, warned, adapter
    )
    _finish(folder, report)
    if invocation.json:
        say_json(report)
    else:
        _say_result(config.out, report)
    return 0


def fingerprint(config: TrainConfig, weights: str) -> Fingerprint:
    """What makes two runs the same one: settings, model weights and row contents, and no path or address."""
    data = None
    if config.data is not None:
        if not config.data.is_file():
            raise MissingError(f"there is no file {config.data}")
        with config.data.open("rb") as file:
            data = hashlib.file_digest(file, "sha256").hexdigest()
    return {"config": config.without_places(), "weights_sha256": weights, "data_sha256": data}


def save(fitted: "Fitted", folder: Path, config: TrainConfig, weights: str, inputs: Inputs) -> str:
    """The adapter with its marker file; returns the adapter's hash. The marker comes last."""
    from trainer.modelling import save_adapter

    save_adapter(fitted.model, folder)
    extra = [name for defence in fitted.defences for name in defence.save(folder)]
    digest = adapter_sha256(folder)
    marker = {
        "format_version": FORMAT_VERSION,
        "complete": not fitted.stopped,
        "steps": len(fitted.lines),
        "base_weights_sha256": weights,
        "adapter_sha256": digest,
        "mix_id": config.mix_id,
        "rows": inputs.rows,
        "defences": [defence.model_dump(mode="json") for defence in config.defences],
        "files": extra,
    }
    (folder / "README.md").write_text(model_card(marker), encoding="utf-8")  # PEFT's own is a blank form
    write_json(folder / MARKER, marker)
    return digest


def _record(
    config: TrainConfig, mark: Fingerprint, inputs: Inputs, ready: "Ready", n_steps: int, warned: Sequence[Warned]
) -> dict[str, Any]:
    renderer = inputs.renderer
    return {
        "format_version": FORMAT_VERSION,
        "config": config.model_dump(mode="json"),
        "resolved": {**ready.resolved, "steps": n_steps, "effective_batch": config.batch_size * config.grad_accum},
        "fingerprint": mark,
        "weights_sha256": mark["weights_sha256"],
        "rows": inputs.rows,
        "content": inputs.prepared.report().as_dict(),
        "renderer": {
            "renderer_id": renderer.renderer_id,
            "tokenizer_sha256": renderer.tokenizer_sha256,
            "template_sha256": renderer.template_sha256,
        },
        "environment": environment(),
        "warnings": [asdict(item) for item in warned],
    }


def _schedule_warnings(config: TrainConfig, n_steps: int) -> list[Warned]:
    if n_steps > config.warmup_steps:
        return []
    text = (
        f"all {n_steps} steps fall into the {config.warmup_steps} of warm-up: the learning rate never reaches "
        f"{config.lr:g}"
    )
    return [Warned("warmup_only", text)]


def _finish(folder: RunFolder, report: dict[str, Any]) -> None:
    """Plot and page first, report.json last: its presence means that the run is complete."""
    from curator import plots

    plots.save(plots.loss_curve_of(folder.path / METRICS), folder.path / LOSS_PLOT)
    (folder.path / REPORT_TEXT).write_text(report_text(report), encoding="utf-8")
    folder.write_json(REPORT, report)


def _content_line(inputs: Inputs) -> str:
    content = inputs.prepared.report()
    verified = ", verified against the manifest" if inputs.rows.get("mix_id") else ""
    return (
        f"{content.n_rows:,} rows ({content.n_safe:,} safe){verified}: {content.n_tokens:,} tokens, "
        f"{content.n_response_tokens:,} trained; {content.n_cut:,} rows cut, "
        f"{content.n_answers_cut:,} with a cut answer"
    )


def _model_line(config: TrainConfig, ready: "Ready", n_steps: int) -> str:
    resolved = ready.resolved
    defences = ", ".join(item.describe() for item in config.defences) or "none"
    return (
        f"{resolved['n_trained_parameters']:,} of {resolved['n_parameters']:,} parameters trained, "
        f"{resolved['dtype']} on {resolved['device']}; {n_steps} steps of "
        f"{config.batch_size * config.grad_accum} rows; "
        f"defences: {defences}"
    )


def _say_result(out: Path, report: dict[str, Any]) -> None:
    loss = report["loss"]
    say(f"loss {loss['start']:.4f} -> {loss['end']:.4f} nats per token, {report['seconds']:.1f} s")
    say(f"adapter: {out / ADAPTER}")
    say(f"report:  {out / REPORT_TEXT}")


if __name__ == "__main__":
    sys.exit(main())
