"""What a run writes: config.json before its first step; model, marker, plots, pages and report.json after its last.

config.json holds the settings, what "auto" turned out to be, and the fingerprint that tells two runs apart; marker,
report and pages are made from it and from the lines of metrics.jsonl.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from curator.scoring.identity import adapter_sha256, weights_sha256
from trainer.config import TrainConfig
from trainer.config.monitor import MonitorSettings
from trainer.data.inputs import Inputs, data_sha256
from trainer.defenses.safelora import safelora
from trainer.runs.device import peak_bytes, peak_of
from trainer.runs.folder import (
    ADAPTER,
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
    recorded_defences,
    report_text,
    term_curves,
)
from trainer.runs.weights import copy_tokenizer

if TYPE_CHECKING:
    from trainer.loop.fit import Fitted

MonitorSection = Callable[[MonitorSettings, Sequence[dict[str, Any]]], dict[str, Any]]


def fingerprint(config: TrainConfig, weights: str, renderer_id: str, n_processes: int = 1) -> Fingerprint:
    """What makes two runs the same one: settings, weights, rendering and row contents, and no path or address."""
    data = None if config.data is None else data_sha256(config.data)
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


def run_record(
    config: TrainConfig, mark: Fingerprint, inputs: Inputs, resolved: dict[str, Any], warned: Sequence[Warned]
) -> dict[str, Any]:
    """config.json. `resolved` is what is known only once the model is loaded: dtype, device, sizes, steps."""
    renderer = inputs.renderer
    return {
        "format_version": FORMAT_VERSION,
        "config": config.model_dump(mode="json"),
        "resolved": resolved,
        "fingerprint": mark,
        "weights_sha256": mark["weights_sha256"],
        "rows": inputs.rows,
        "content": inputs.prepared.report().as_dict(),
        "renderer": {
            "renderer_id": renderer.renderer_id,
            "tokenizer_sha256": renderer.tokenizer_sha256,
            "template_sha256": renderer.template_sha256,
            "settings": renderer.settings.document(),
        },
        "environment": environment(),
        "warnings": [asdict(item) for item in warned],
    }


def trained_folder(config: TrainConfig) -> Path:
    """Where the adapter, or after full fine-tuning the model, is saved."""
    return config.out / (MODEL if config.full else ADAPTER)


def finish(
    config: TrainConfig, record: dict[str, Any], fitted: "Fitted", monitored: MonitorSection
) -> dict[str, Any] | None:
    """Save what was trained and, unless the run was stopped, write its report; returns the report or None.

    `monitored` makes the monitor's part of the report. report.json comes last: its presence means that the run is
    complete.
    """
    digest = save(config, record, fitted)
    if fitted.stopped:
        return None
    report = build_report(record, fitted.lines, digest)
    device = record["resolved"]["device"]
    report["memory"] = record["resolved"]["memory"] | {"peak_bytes": peak_bytes(device), "peak_of": peak_of(device)}
    if config.monitor is not None:
        report["monitor"] = monitored(config.monitor, fitted.lines)
    if config.reserve is not None:
        on = [item["step"] for item in report["monitor"]["measurements"] if item["reserve"]]
        report["reserve"] = config.reserve.model_dump(mode="json") | {"on_after_steps": on}
    if config.safelora is not None:
        report |= _project(config)
    _write_pages(RunFolder(config.out), report)
    return report


def save(config: TrainConfig, record: dict[str, Any], fitted: "Fitted") -> str:
    """The adapter (or model) with its card and marker; returns its hash. The marker comes last."""
    from trainer.loop.model import save_model  # loads torch, which bad options can do without

    folder = trained_folder(config)
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
        "base_weights_sha256": record["weights_sha256"],
        ("weights_sha256" if config.full else "adapter_sha256"): digest,
        "start_adapter_sha256": record["fingerprint"].get("start_adapter_sha256"),
        "mix_id": config.mix_id,
        "rows": record["rows"],
        "defences": recorded_defences(record),
        "files": extra,
        **({} if config.reserve is None else {"reserve": config.reserve.model_dump(mode="json")}),
    }
    (folder / "README.md").write_text(model_card(marker), encoding="utf-8")  # PEFT's own is a blank form
    write_json(folder / MARKER, marker)
    return digest


def _project(config: TrainConfig) -> dict[str, Any]:
    """Writes safelora/ beside adapter/; returns what the report says of it."""
    assert config.safelora is not None
    adapter, projected = trained_folder(config), config.out / SAFELORA
    note = safelora(adapter, config.safelora.base, config.model, config.safelora.tau, projected, overwrite=True)
    return {"safelora": {key: value for key, value in note.items() if key != "modules"} | {"folder": SAFELORA}}


def _write_pages(folder: RunFolder, report: dict[str, Any]) -> None:
    from curator.query import plots

    plots.save(plots.loss_curve_of(folder.path / METRICS), folder.path / LOSS_PLOT)
    if report["terms"]:
        plots.save(term_curves(folder.path / METRICS, list(report["terms"])), folder.path / TERMS_PLOT)
    (folder.path / REPORT_TEXT).write_text(report_text(report), encoding="utf-8")
    folder.write_json(REPORT, report)
