"""`python -m trainer.sft`: verify the rows, train in their order, leave one folder. Read it top to bottom."""

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from curator.console import report_error, say, say_json
from curator.errors import BadInputError, BallastError, IntegrityError
from curator.render import Renderer
from curator.scoring.engines.native_memory import keep_pages
from curator.scoring.identity import adapter_sha256, check_model_dir, weights_sha256
from trainer.config import TrainConfig
from trainer.config.options import Invocation, cache_folder, parse_arguments
from trainer.data.cache import RenderCache
from trainer.data.inputs import Inputs, file_sha256, read_inputs
from trainer.defenses.model_fit import check_fit, check_vectors
from trainer.defenses.safelora import check_shapes, safelora
from trainer.loop.processes import Team
from trainer.loop.summary import (
    content_line,
    model_line,
    run_warnings,
    say_result,
    stopped_line,
)
from trainer.monitor.report import check_files, monitor_section
from trainer.runs.checkpoints import complete_checkpoints
from trainer.runs.folder import (
    ADAPTER,
    CONFIG,
    FORMAT_VERSION,
    LOSS_PLOT,
    MARKER,
    METRICS,
    MODEL,
    REPORT,
    REPORT_TEXT,
    SAFELORA,
    TERMS_PLOT,
    Fingerprint,
    RunFolder,
    environment,
    write_json,
)
from trainer.runs.report import (
    Warned,
    build_report,
    model_card,
    report_text,
    term_curves,
)
from trainer.runs.weights import check_quantisation, check_trackers, copy_tokenizer, lora_config

if TYPE_CHECKING:
    from trainer.loop.fit import Fitted, Ready

STOPPED = 130  # what a shell reports for a program ended by Ctrl-C

Say = Callable[[str], None]


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code: 0 done or done before, 2 bad input, 130 stopped by Ctrl-C."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    team = Team()
    # Before torch loads: threads that wait sleep instead of spinning. Where other processes want the same cores,
    # spinning made the steps of a tiny model up to 40 times slower.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        return run(parse_arguments(arguments), team)
    except BallastError as error:
        if team.leads:
            report_error(error, as_json="--json" in arguments)
        return 2
    except KeyboardInterrupt:
        sys.stderr.write("stopped outside of a step; complete checkpoints in --out, if there are any, are kept\n")
        return STOPPED
    finally:
        team.leave()


def run(invocation: Invocation, team: Team | None = None) -> int:
    """One training run, or nothing when this very run is complete in its folder."""
    config, team = invocation.config, team or Team()
    tell: Say = say if team.leads and not invocation.json else lambda text: None
    folder = RunFolder(config.out)
    check_model_dir(config.model)
    check_quantisation(config.model)
    check_trackers(config.report_to)
    check_fit(config.defences, config.model)
    if config.safelora is not None:
        check_shapes(config.safelora.base, config.model)
    if config.start_adapter is not None:
        lora_config(config.start_adapter)
    team.join(on_cpu=config.device == "cpu")
    weights = team.first(lambda: weights_sha256(config.model))
    renderer_id = Renderer.from_folder(config.model).renderer_id
    unnamed = check_vectors(config.defences, weights)
    if config.monitor is not None:
        check_files(config.monitor, weights, renderer_id)
    mark = fingerprint(config, weights, renderer_id, team.size)
    if mark.get("safelora_base_sha256") == weights:
        raise BadInputError("--safelora names the very model that is trained; it takes the one before alignment")
    claim = team.first(lambda: folder.claim(mark, invocation.overwrite, invocation.resume))
    if claim.report is not None:
        tell(f"{config.out} holds this very run, complete ({claim.report['steps']} steps); --overwrite trains again")
        if invocation.json and team.leads:
            say_json(claim.report)
        return 0
    if claim.checkpoint is not None:
        tell(f"going on from the checkpoint of step {claim.checkpoint.step}")

    inputs = gather_inputs(invocation, weights, team)
    tell(content_line(inputs))

    # torch, transformers and TRL load here: bad options and bad rows have failed already.
    from trainer.loop.fit import fit, load, planned_steps

    ready = load(config)
    if config.monitor is not None:
        from trainer.monitor.callback import watcher

        ready = replace(ready, watch=watcher(config, ready.model, inputs.renderer))
    n_steps = planned_steps(config, len(inputs.prepared.input_ids), team.size)
    warned = inputs.warnings + run_warnings(config, n_steps, inputs, team.size, unnamed)
    if team.leads:
        for item in warned:
            sys.stderr.write(f"warning: {item.text}\n")
        folder.write_json(CONFIG, _record(config, mark, inputs, ready, n_steps, warned, team.size))
    tell(model_line(config, ready, n_steps, team.size))

    fitted = fit(ready, inputs.prepared, inputs.renderer, config, folder.path / METRICS, claim.checkpoint)
    if not fitted.lines:
        raise KeyboardInterrupt
    return team.first(lambda: _finish(invocation, folder, fitted, inputs, n_steps, warned, weights))


def gather_inputs(invocation: Invocation, weights: str, team: Team) -> Inputs:
    """The rows; of several processes the first one renders, and the others read what it kept."""
    config = invocation.config
    cache = RenderCache(cache_folder(config.cache, config.out))
    if team.size > 1 and cache.folder is None:
        cache = RenderCache(config.out / "rows")
    if team.size == 1:
        return read_inputs(config, config.out, weights, invocation.api_key, cache)

    def lead() -> tuple[str, Any, Any]:
        own = read_inputs(config, config.out, weights, invocation.api_key, cache)
        return own.cache_key, own.rows, own.warnings

    key, rows, warned = team.first(lead)
    found = cache.load(key)
    if found is None:
        raise IntegrityError(f"the rendered rows in {cache.folder} cannot be read by every process")
    return Inputs(found[0], rows, Renderer.from_folder(config.model), warned, key)


def fingerprint(config: TrainConfig, weights: str, renderer_id: str, n_processes: int = 1) -> Fingerprint:
    """What makes two runs the same one: settings, weights, rendering and row contents, and no path or address."""
    data = None if config.data is None else file_sha256(config.data)
    found = {
        "config": config.without_places(),
        "weights_sha256": weights,
        "renderer_id": renderer_id,
        "data_sha256": data,
    }
    if config.start_adapter is not None:
        found["start_adapter_sha256"] = adapter_sha256(config.start_adapter)
    if config.safelora is not None:
        found["safelora_base_sha256"] = weights_sha256(config.safelora.base)
    return found if n_processes == 1 else found | {"processes": n_processes}


def _finish(
    invocation: Invocation,
    folder: RunFolder,
    fitted: "Fitted",
    inputs: Inputs,
    n_steps: int,
    warned: Sequence[Warned],
    weights: str,
) -> int:
    config = invocation.config
    place = folder.path / (MODEL if config.full else ADAPTER)
    digest = save(fitted, place, config, weights, inputs)
    if fitted.stopped:
        kept = [checkpoint.step for checkpoint in complete_checkpoints(folder.path)]
        sys.stderr.write(stopped_line(invocation, place, len(fitted.lines), n_steps, max(kept, default=None)) + "\n")
        return STOPPED
    content = inputs.prepared.report().as_dict()
    report = build_report(config, fitted.lines, n_steps, content, inputs.rows, warned, digest)
    if config.monitor is not None:
        report["monitor"] = monitor_section(config.monitor, fitted.lines)
    if config.safelora is not None:
        report |= _project(folder.path, place, config)
    _complete(folder, report)
    if invocation.json:
        say_json(report)
    else:
        say_result(config.out, place, report)
    return 0


def _project(folder: Path, adapter: Path, config: TrainConfig) -> dict[str, Any]:
    """Writes safelora/ beside adapter/; returns what the report says of it."""
    assert config.safelora is not None
    note = safelora(adapter, config.safelora.base, config.model, config.safelora.tau, folder / SAFELORA, overwrite=True)
    return {"safelora": {key: value for key, value in note.items() if key != "modules"} | {"folder": SAFELORA}}


def save(fitted: "Fitted", folder: Path, config: TrainConfig, weights: str, inputs: Inputs) -> str:
    """The adapter with its marker file; returns the adapter's hash. The marker comes last."""
    from trainer.loop.model import save_model

    save_model(fitted.model, folder)
    extra = [name for defence in fitted.defences for name in defence.save(folder)]
    if config.full:
        copy_tokenizer(config.model, folder)
    digest = weights_sha256(folder) if config.full else adapter_sha256(folder)
    marker = {
        "format_version": FORMAT_VERSION,
        "complete": not fitted.stopped,
        "full": config.full,
        "steps": len(fitted.lines),
        "base_weights_sha256": weights,
        ("weights_sha256" if config.full else "adapter_sha256"): digest,
        "start_adapter_sha256": adapter_sha256(config.start_adapter) if config.start_adapter else None,
        "mix_id": config.mix_id,
        "rows": inputs.rows,
        "defences": [defence.model_dump(mode="json") for defence in config.defences],
        "files": extra,
    }
    (folder / "README.md").write_text(model_card(marker), encoding="utf-8")  # PEFT's own is a blank form
    write_json(folder / MARKER, marker)
    return digest


def _record(
    config: TrainConfig,
    mark: Fingerprint,
    inputs: Inputs,
    ready: "Ready",
    n_steps: int,
    warned: Sequence[Warned],
    n_processes: int,
) -> dict[str, Any]:
    renderer = inputs.renderer
    return {
        "format_version": FORMAT_VERSION,
        "config": config.model_dump(mode="json"),
        "resolved": {
            **ready.resolved,
            "steps": n_steps,
            "processes": n_processes,
            "effective_batch": config.batch_size * config.grad_accum * n_processes,
        },
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


def _complete(folder: RunFolder, report: dict[str, Any]) -> None:
    """Plots and page first, report.json last: its presence means that the run is complete."""
    from curator.query import plots

    plots.save(plots.loss_curve_of(folder.path / METRICS), folder.path / LOSS_PLOT)
    if report["terms"]:
        plots.save(term_curves(folder.path / METRICS, list(report["terms"])), folder.path / TERMS_PLOT)
    (folder.path / REPORT_TEXT).write_text(report_text(report), encoding="utf-8")
    folder.write_json(REPORT, report)


if __name__ == "__main__":
    keep_pages()  # of this process alone, so not in main(), which others may call
    sys.exit(main())
