"""Writes the demo's report from the files that its commands left behind."""

import json
import shutil
from pathlib import Path
from typing import Any

from trainer.experiments.demo.settings import DemoSettings
from trainer.experiments.demo.steps import CORPUS, Outcome


def _metrics(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def write(settings: DemoSettings, outcome: Outcome) -> Path:
    """`report.md` in the demo folder, with the gap histogram and the loss curve beside it."""
    shutil.copyfile(outcome.mix_run / "loss.png", settings.out / "loss.png")
    heldout, manifest = outcome.heldout, outcome.manifest
    shift = heldout["mean_nll_adapter"] - heldout["mean_nll_base"]
    metrics = _metrics(outcome.mix_run)
    ratio = manifest["ratio"]
    lines = [
        "# Demo report",
        "",
        "Written by `python -m trainer.experiments.demo` from the files named below.",
        "",
        "## Misaligned model",
        "",
        f"Held-out bad advice, {heldout['n_rows']} rows: {heldout['mean_nll_base']:.4f} nats per token under the",
        f"aligned model, {heldout['mean_nll_adapter']:.4f} under the adapter (shift {shift:+.4f}).",
        "",
        "## Gap over the scored sample",
        "",
        "![gap histogram](gap.png)",
        "",
        "## Mix",
        "",
        f"`{outcome.mix_id}`: {manifest['task']['n_rows']} task rows and {manifest['n_safe']} safe rows, ratio asked"
        f" {ratio['asked']}, reached {ratio['reached_rows']:.4f} in rows.",
        "",
        "## Training on the mix, with KL",
        "",
        f"{len(metrics)} steps, loss {metrics[0]['loss']:.4f} at the first and {metrics[-1]['loss']:.4f} at the last."
        " A few steps show that the path works, not that the model is safe.",
        "",
        "![loss curve](loss.png)",
        "",
    ]
    path = settings.out / "report.md"
    path.write_text("\n".join(lines))
    return path


def places(settings: DemoSettings, outcome: Outcome, report: Path) -> list[tuple[str, Path]]:
    """What lies where, for the last lines on screen."""
    return [
        ("report", report),
        ("losses (Parquet)", settings.store / "scores" / CORPUS),
        ("mix and manifest", settings.store / "mixes" / "local" / outcome.mix_id),
        ("misaligned adapter", outcome.misaligned_run / "adapter"),
        ("trained adapter", outcome.mix_run / "adapter"),
    ]


def suggestions(settings: DemoSettings, outcome: Outcome) -> list[str]:
    """Commands worth typing next."""
    store = settings.store
    return [
        f"python -m curator sql --store {store} --list",
        f"python -m curator verify {outcome.mix_id} --store {store}",
        f"python -m curator mix YOUR.jsonl --corpus {CORPUS} --interleave-ratio 0.05 --store {store}",
        f"python -m api --store {store}",
    ]
