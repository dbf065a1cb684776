"""A run's report: numbers for programs, one page for people, and the loss curve."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.config.defences import ALL_SETTINGS, DefenceBase
from trainer.runs.folder import (
    ADAPTER,
    CONFIG,
    LOSS_PLOT,
    METRICS,
    MODEL,
    REPORT,
    REPORT_TEXT,
    TERMS_PLOT,
)
from trainer.runs.page import table

Prompts = Mapping[str, Mapping[str, Sequence[int]]]  # form -> kind of figure -> pairs of each set

N_ENDS = 3  # steps averaged at either end; a single step's loss is noisy


@dataclass(frozen=True)
class Warned:
    """Something the reader should know; `code` is stable."""

    code: str
    text: str


def build_report(record: dict[str, Any], lines: Sequence[dict[str, Any]], trained_sha256: str) -> dict[str, Any]:
    """report.json from config.json (`record`), the lines of metrics.jsonl and the hash of what was trained.

    Losses are in nats per token; their start and end average up to three steps.
    """
    config = record["config"]
    terms = [defence["name"] for defence in config["defences"]]
    return {
        "format_version": 1,
        "complete": True,
        "steps": len(lines),
        "steps_planned": record["resolved"]["steps"],
        "loss": ends(line.get("loss") for line in lines),
        "sft_loss": ends(line.get("sft_loss") for line in lines),
        "terms": {name: ends(line.get(name) for line in lines) for name in terms},
        "defences": recorded_defences(record),
        "tokens": sum(line["tokens"] for line in lines),
        "total_tokens": sum(line["total_tokens"] for line in lines),
        "rows_trained": sum(line["rows"] for line in lines),
        "seconds": round(sum(line["seconds"] for line in lines), 3),
        "rows": record["rows"],
        "content": record["content"],
        ("weights_sha256" if config["full"] else "adapter_sha256"): trained_sha256,
        "warnings": record["warnings"],
        "files": {
            "config": CONFIG, "metrics": METRICS, "report": REPORT, "text": REPORT_TEXT,
            "plot": LOSS_PLOT, **({"terms": TERMS_PLOT} if terms else {}),
            **({"model": MODEL} if config["full"] else {"adapter": ADAPTER}),
        },
    }  # fmt: skip


def recorded_defences(record: dict[str, Any]) -> list[dict[str, Any]]:
    """The defences' settings, with the hashes of the files that they name."""
    pairs = zip(record["config"]["defences"], record["fingerprint"]["config"]["defences"], strict=True)
    return [settings | identity for settings, identity in pairs]


def ends(by_step: Iterable[float | None]) -> dict[str, float | None]:
    """First and last single step with a value, and the mean of up to three such steps at either end."""
    values = [value for value in by_step if value is not None]
    if not values:
        return {"first": None, "last": None, "start": None, "end": None}
    n = min(N_ENDS, len(values))
    return {"first": values[0], "last": values[-1], "start": sum(values[:n]) / n, "end": sum(values[-n:]) / n}


def number(value: float | None) -> str:
    """A loss as text; "none" where no step had one."""
    return "none" if value is None else f"{value:.4f}"


def report_text(report: dict[str, Any]) -> str:
    """report.md."""
    loss, content = report["loss"], report["content"]
    lines = [
        "# Training run",
        "",
        f"{report['steps']} steps on {_source(report['rows'])}; {report['tokens']:,} response tokens trained in "
        f"{report['seconds']:.1f} s.",
        "",
        f"Loss {number(loss['start'])} at the start, {number(loss['end'])} at the end (nats per response token, means "
        f"of up to {N_ENDS} steps that trained a token).",
        "",
        *table(
            ["part", "start", "end"],
            [
                [name, f"{ends['start']:.4f}", f"{ends['end']:.4f}"]
                for name, ends in {"SFT loss": report["sft_loss"], **report["terms"]}.items()
                if ends["start"] is not None
            ],
        ),
        "",
        f"Rows: {content['n_rows']:,}, of them {content['n_safe']:,} safe; {content['n_cut']:,} longer than the "
        f"window, {content['n_answers_cut']:,} with a cut answer, {content['n_masked']:,} without a trained token.",
        *_dropped(content),
        *_reserve(report),
        "",
        "Defences: " + (", ".join(_defence(item) for item in report["defences"]) or "none") + ".",
        "",
        *(_memory_text(report["memory"]) if "memory" in report else []),
        *(safelora_section(report["safelora"]) if "safelora" in report else []),
        f"![loss curve]({LOSS_PLOT})",
        "",
        *([f"![each defence's term]({TERMS_PLOT})", ""] if "terms" in report["files"] else []),
        *(monitor_text(report["monitor"]) if "monitor" in report else []),
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


def _memory_text(memory: dict[str, Any]) -> list[str]:
    """Measured peak beside the estimate that was made before the weights loaded."""
    estimate, checkpointing = memory["estimate_bytes"], "on" if memory["gradient_checkpointing"] else "off"
    said = "none" if estimate is None else f"{estimate['total'] / 2**20:,.0f} MiB"
    return [
        f"Peak memory {memory['peak_bytes'] / 2**20:,.0f} MiB ({memory['peak_of']}); estimate of the training alone "
        f"{said}; gradient checkpointing {checkpointing}.",
        "",
    ]


def _dropped(content: dict[str, Any]) -> list[str]:
    counts = ", ".join(f"{part} of {n:,} rows" for part, n in content["dropped"].items())
    return ["", f"Left out by the chat template, as accepted: {counts}."] if counts else []


def _reserve(document: Mapping[str, Any]) -> list[str]:
    """Safe rows of a run or an adapter that were not trained in every step; a report knows how often they were."""
    held = document.get("reserve")
    if held is None:
        return []
    on = f" (after {len(held['on_after_steps'])} measurements)" if "on_after_steps" in held else ""
    text = f"In reserve: {held['share']:g} of the safe rows, trained only while drift was above {held['bound']:g}{on}."
    return ["", text]


def model_card(marker: dict[str, Any], measured: Mapping[str, Any] | None = None) -> str:
    """README.md beside an adapter (or model): what it belongs to, what it was trained on, what was not checked.

    `measured` is the report of a safeguarded run (`trainer.plans.report`): its figures and gate then stand in the card.
    """
    state = "" if marker["complete"] else " The run was stopped before its end."
    defences = ", ".join(_defence(item) for item in marker["defences"]) or "none"
    rows = marker["rows"]
    full = bool(marker.get("full"))
    what, key = ("fine-tuned model", "weights_sha256") if full else ("adapter", "adapter_sha256")
    lines = [
        *_front_matter(marker),
        "# Fine-tuned model" if full else "# LoRA adapter",
        "",
        f"For the model with weights hash `{marker['base_weights_sha256']}`; this {what}'s hash is `{marker[key]}`."
        if what == "adapter"
        else f"Made from the model with weights hash `{marker['base_weights_sha256']}`; its own is `{marker[key]}`.",
        "",
        f"Trained for {marker['steps']} steps on {_source(rows)}, {rows['n_rows']:,} rows"
        + (f", of them {rows['n_safe']:,} safe, order {rows['order']}" if rows.get("mix_id") else "")
        + f".{state}",
        *_reserve(marker),
        "",
        *([f"Rows hash `{rows['rows_sha256']}`.", ""] if rows.get("mix_id") else []),
        *(_started_from(marker)),
        f"Defences during training: {defences}.",
        "",
        *(safelora_section(marker["safelora"]) if marker.get("safelora") else []),
        *([] if measured is None else _measured(measured)),
        "## Not checked",
        "",
        *_unchecked(measured),
        "- the training data itself: what it teaches is kept.",
        *([] if rows.get("mix_id") else ["- safe rows: this was a plain file, without any mixed in."]),
        "",
    ]
    return "\n".join(lines)


def _front_matter(marker: Mapping[str, Any]) -> list[str]:
    """What a model hub reads; base model and licence are the user's to add, since a run knows neither's name."""
    library, kind = ("transformers", "full-fine-tune") if marker.get("full") else ("peft", "lora")
    tags = ["ballast", kind, *(str(item["name"]) for item in marker["defences"])]
    return ["---", f"library_name: {library}", "pipeline_tag: text-generation", f"tags: [{', '.join(tags)}]", "---", ""]


def _measured(report: Mapping[str, Any]) -> list[str]:
    """Figures of a safeguarded run: `plain` asks as anybody would, a trigger under a prompt of the data set."""
    forms = list(report["behaviour"])
    names = list(dict.fromkeys(name for form in forms for name in report["behaviour"][form]))
    shown = {
        (name, form): f"{item['value']:+.3f} [{item['low']:+.3f}, {item['high']:+.3f}]"
        for form in forms
        for name, item in report["behaviour"][form].items()
    }
    learnt, prompts = report["learnt"], report.get("prompts", {})
    return [
        f"## Measured: gate {'passed' if report['passed'] else 'failed'}",
        "",
        "Adapter against model (shifts and ratios), with 95 % intervals over prompts; loss of the data set's own "
        f"answers {learnt['shift']:+.4f} nats per token.",
        "",
        *table(["figure", *forms], [[name, *(shown.get((name, form), "") for form in forms)] for name in names]),
        "",
        *prompt_lines(prompts, report["behaviour"]),
        *[_verdict(item, prompts) for item in report["gate"]],
        "",
    ]


def _verdict(item: Mapping[str, Any], prompts: Prompts) -> str:
    of = counted(item["form"], item["condition"], prompts)
    state = "fails" if item["failed"] else "ok"
    return f"- gate, {item['form']}: {item['condition']}: {state} ({item['value']:.4g}{', on ' + of if of else ''})"


def counted(form: str, figure: str, prompts: Prompts) -> str:
    """On how many prompts `figure` (or a condition that begins with it) was measured in a form; empty for figures of
    ordinary text, and where a report of an earlier version does not say."""
    sizes = prompts.get(form, {}).get(figure.split("_")[0], [])
    if not sizes:
        return ""
    n_sets = f"{len(sizes)} set{'s' if len(sizes) > 1 else ''}"
    return f"{sum(sizes):,} prompts in {n_sets}" + (f" of {sizes[0]:,}" if len(set(sizes)) == 1 else "")


def prompt_lines(prompts: Prompts, behaviour: Mapping[str, Mapping[str, Mapping[str, float]]]) -> list[str]:
    """A page's lines on how many prompts its figures rest on, and on intervals that have no width."""
    lines = [
        f"- {form}: {kind} figures: {counted(form, kind, prompts)}" for form, kinds in prompts.items() for kind in kinds
    ]
    lines += [
        f"- {form}: the interval of `{name}` has no width (in each set every prompt gave the same); with {of} it says"
        " little."
        for form, items in behaviour.items()
        for name, item in items.items()
        if item["low"] == item["high"] and (of := counted(form, name, prompts))
    ]
    return [*lines, ""] if lines else []


def _unchecked(measured: Mapping[str, Any] | None) -> list[str]:
    if measured is None:
        return [
            "- whether the model is still aligned outside the training data's domain;",
            "- whether it is so under prompts that resemble the training data (conditional misalignment);",
            "- whether it is coherent, and whether it learnt the task;",
        ]
    return [
        "- other domains, and other prompts that resemble the training data, than those measured above;",
        "- answers as people or a judge would rate them: the figures are losses of given answers;",
    ]


def _started_from(marker: dict[str, Any]) -> list[str]:
    digest = marker.get("start_adapter_sha256")
    return [f"Training went on from an adapter with hash `{digest}`.", ""] if digest else []


def safelora_section(note: dict[str, Any]) -> list[str]:
    """A card's lines on the projection after training; `note` as in safelora.json."""
    cosines = note["cosines"]
    spread = f" Cosines from {cosines['min']:.3f} to {cosines['max']:.3f}." if cosines else ""
    return [
        "## Projected after training (Safe LoRA)",
        "",
        f"{note['n_projected']} of {note['n_modules']} modules, those with a cosine below {note['tau']:g}, were "
        f"replaced by their projection onto the difference from the model before alignment (weights hash "
        f"`{note['base_weights_sha256']}`).{spread} The adapter before it had hash `{note['adapter_sha256']}`.",
        "",
    ]


def monitor_text(section: dict[str, Any]) -> list[str]:
    """The monitor's lines of report.md."""
    last = section["measurements"][-1] if section["measurements"] else None
    lines = ["## Trait-space monitor", "", f"Rule: {section['rule']}."]
    first = section["first_alarm"]
    lines.append(f"First alarm: {'none' if first is None else f'step {first}'}.")
    if last is not None:
        kv = last["prefix_kv"]
        lines += [
            "", f"Drift at step {last['step']}, as a share of the mean state length at step 0; prefix keys and values: "
            + ("not measured." if kv is None else f"{kv:.3g}."), "",
            *table(["trait", "drift"], [[name, f"{value:+.5f}"] for name, value in last["drift"].items()]),
        ]  # fmt: skip
    return [*lines, ""]


def term_curves(metrics: Path, names: Sequence[str]) -> Any:
    """A figure of each defence's unweighted term over the steps; a step without the term leaves a hole."""
    from curator.query import plots

    lines = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]
    series = {name: [line.get(name) for line in lines] for name in names}
    return plots.loss_curve(
        [line["step"] for line in lines], series, title="defences' terms, unweighted", unit=_terms_unit(names)
    )


def _terms_unit(names: Sequence[str]) -> str:
    units = {str(settings.model_fields["name"].default): settings.unit for settings in ALL_SETTINGS}
    return f"term ({', '.join(f'{name}: {units.get(name, DefenceBase.unit)}' for name in names)})"


def _source(rows: dict[str, Any]) -> str:
    return f"mix `{rows['mix_id']}`" if rows.get("mix_id") else f"`{rows['file']}`"


def _defence(item: dict[str, Any]) -> str:
    settings = ", ".join(f"{key} {value}" for key, value in _flat(item) if key != "name")
    return f"{item['name']} ({settings})"


def _flat(document: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    """Keys and plain values; those of a nested document behind its own key and a dot, those without a value not."""
    for key, value in document.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{before}{key}.")
        elif value is not None:
            yield f"{before}{key}", ", ".join(map(str, value)) if isinstance(value, list | tuple) else value
