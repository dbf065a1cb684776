"""A run's report: numbers for programs, one page for people, and the loss curve."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from trainer.config import TrainConfig
from trainer.runfolder import ADAPTER, CONFIG, LOSS_PLOT, METRICS, REPORT, REPORT_TEXT

N_ENDS = 3  # steps averaged at either end; a single step's loss is noisy


@dataclass(frozen=True)
class Warned:
    """Something the reader should know; `code` is stable."""

    code: str
    text: str


def build_report(
    config: TrainConfig,
    lines: Sequence[dict[str, Any]],
    n_planned: int,
    content: dict[str, Any],
    rows: dict[str, Any],
    warnings: Sequence[Warned],
    adapter_sha256: str,
) -> dict[str, Any]:
    """report.json: losses in nats per token (start and end average up to three steps), tokens, seconds.

    `rows` says where the rows came from, `content` what they hold.
    """
    terms = [defence.name for defence in config.defences]
    return {
        "format_version": 1,
        "complete": True,
        "steps": len(lines),
        "steps_planned": n_planned,
        "loss": _ends(lines, "loss"),
        "sft_loss": _ends(lines, "sft_loss"),
        "terms": {name: _ends(lines, name) for name in terms},
        "defences": [defence.model_dump(mode="json") for defence in config.defences],
        "tokens": sum(line["tokens"] for line in lines),
        "total_tokens": sum(line["total_tokens"] for line in lines),
        "rows_trained": sum(line["rows"] for line in lines),
        "seconds": round(sum(line["seconds"] for line in lines), 3),
        "rows": rows,
        "content": content,
        "adapter_sha256": adapter_sha256,
        "warnings": [asdict(warned) for warned in warnings],
        "files": {
            "config": CONFIG, "metrics": METRICS, "report": REPORT, "text": REPORT_TEXT,
            "plot": LOSS_PLOT, "adapter": ADAPTER,
        },
    }  # fmt: skip


def _ends(lines: Sequence[dict[str, Any]], name: str) -> dict[str, float | None]:
    """First and last single step, and the mean of up to three steps at either end."""
    values = [line[name] for line in lines if name in line]
    if not values:
        return {"first": None, "last": None, "start": None, "end": None}
    n = min(N_ENDS, len(values))
    return {"first": values[0], "last": values[-1], "start": sum(values[:n]) / n, "end": sum(values[-n:]) / n}


def report_text(report: dict[str, Any]) -> str:
    """report.md."""
    loss, content = report["loss"], report["content"]
    lines = [
        "# Training run",
        "",
        f"{report['steps']} steps on {_source(report['rows'])}; {report['tokens']:,} response tokens trained in "
        f"{report['seconds']:.1f} s.",
        "",
        f"Loss {loss['start']:.4f} at the start, {loss['end']:.4f} at the end (nats per response token, means of up "
        f"to {N_ENDS} steps).",
        "",
        "| part | start | end |",
        "|---|---|---|",
        *(
            f"| {name} | {ends['start']:.4f} | {ends['end']:.4f} |"
            for name, ends in {"SFT loss": report["sft_loss"], **report["terms"]}.items()
            if ends["start"] is not None
        ),
        "",
        f"Rows: {content['n_rows']:,}, of them {content['n_safe']:,} safe; {content['n_cut']:,} longer than the "
        f"window, {content['n_answers_cut']:,} with a cut answer, {content['n_masked']:,} without a trained token.",
        "",
        "Defences: " + (", ".join(_defence(item) for item in report["defences"]) or "none") + ".",
        "",
        f"![loss curve]({LOSS_PLOT})",
        "",
        "## Warnings",
        "",
        *([f"- {item['text']}" for item in report["warnings"]] or ["None."]),
        "",
        "## Not checked here",
        "",
        "A falling loss says that the rows were learnt. Whether the model stayed aligned, keeps the narrow behaviour "
        "and stays coherent is a matter of evaluation.",
        "",
    ]
    return "\n".join(lines)


def model_card(marker: dict[str, Any]) -> str:
    """README.md beside an adapter: what it belongs to, what it was trained on, and what was not checked."""
    state = "" if marker["complete"] else " The run was stopped before its end."
    defences = ", ".join(_defence(item) for item in marker["defences"]) or "none"
    lines = [
        "# LoRA adapter",
        "",
        f"For the model with weights hash `{marker['base_weights_sha256']}`; this adapter's hash is "
        f"`{marker['adapter_sha256']}`.",
        "",
        f"Trained for {marker['steps']} steps on {_source(marker['rows'])}.{state}",
        "",
        f"Defences during training: {defences}.",
        "",
        "Not checked: whether the model is still aligned outside the training data's domain, under prompts that "
        "resemble the training data, and whether it is coherent. What the training data itself teaches is kept.",
        "",
    ]
    return "\n".join(lines)


def _source(rows: dict[str, Any]) -> str:
    return f"mix `{rows['mix_id']}`" if rows.get("mix_id") else f"`{rows['file']}`"


def _defence(item: dict[str, Any]) -> str:
    settings = ", ".join(f"{key} {value}" for key, value in item.items() if key != "name")
    return f"{item['name']} ({settings})"
