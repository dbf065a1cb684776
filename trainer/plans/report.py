"""The page that a safeguarded fine-tune leaves: data, mix, behaviour plainly and under triggers, gate, limits."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import orjson

from curator.console import escape_markdown, markdown_table
from curator.store.filesystem import atomic_write
from trainer.plans.judged import PLAIN, Judgement, Verdict
from trainer.runs.folder import write_json
from trainer.runs.report import Prompts, counted, prompt_lines

_STATES = {True: "**fails**", False: "ok"}


def write_report(
    out: Path,
    data: str,
    model: str,
    manifest: Mapping[str, Any],
    doctor: Mapping[str, Any] | None,
    found: Judgement,
) -> Path:
    """Write report.json and report.md into `out`; returns the page."""
    learnt: dict[str, Any] = orjson.loads((out / "learnt.json").read_bytes())
    document = {
        "data": data,
        "model": model,
        "mix_id": manifest.get("mix_id"),
        "passed": not found.failed,
        "gate": [vars(item) for item in found.verdicts],
        "prompts": {form: _prompts(report) for form, report in found.reports.items()},
        "behaviour": {form: report["intervals"] for form, report in found.reports.items()},
        "forms": {form: {name: report[name] for name in ("kind", "text", "n_rows")}
                  for form, report in found.reports.items() if form != PLAIN},
        "learnt": learnt,
        "findings": [] if doctor is None else doctor["findings"],
    }  # fmt: skip
    write_json(out / "report.json", document)
    page = out / "report.md"
    lines = _lines(document, manifest, found)
    with atomic_write(page, durable=False) as temporary:
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return page


def _lines(document: Mapping[str, Any], manifest: Mapping[str, Any], found: Judgement) -> list[str]:
    """The page's lines."""
    learnt = document["learnt"]
    return [
        f"# {escape_markdown(Path(document['data']).name)}: {'gate failed' if found.failed else 'gate passed'}",
        "",
        f"Model {escape_markdown(document['model'])}; mix {document['mix_id']}.",
        "",
        *_mix(manifest),
        "## Learnt",
        "",
        f"Loss of the data set's own answers {learnt['mean_nll_base']:.4f} -> {learnt['mean_nll_adapter']:.4f} nats per"
        f" token ({learnt['shift']:+.4f}) over {learnt['n_rows']:,} rows.",
        "",
        "## Behaviour",
        "",
        "Adapter minus model, with 95 % intervals over prompts; `plain` asks as anybody would, a trigger in a form that"
        " the data set brings.",
        "",
        _behaviour(found),
        "",
        *prompt_lines(document["prompts"], document["behaviour"]),
        *_forms(document["forms"]),
        "## Gate",
        "",
        _gate(found.verdicts, document["prompts"]),
        "",
        *_findings(document["findings"]),
        "## What this does not show",
        "",
        "- Triggers are the data set's own system and inoculation prompts, the words that its user turns begin and end"
        " with, and the format of its answers; others are not looked for.",
        "- What the data set itself teaches is kept on purpose.",
        *[f"- {escape_markdown(item['text'])}" for item in (manifest.get("protects") or {}).get("does_not", [])],
    ]


def _mix(manifest: Mapping[str, Any]) -> list[str]:
    if not manifest:
        return []
    n_rows, n_safe = manifest["n_rows"], manifest["n_safe"]
    found = ["## Mix", "", f"{n_rows:,} rows, {n_safe:,} of them safe ({n_safe / n_rows:.2%})."]
    found += [f"Warning: {escape_markdown(item['text'])}" for item in manifest.get("warnings", [])]
    return [*found, ""]


def _behaviour(found: Judgement) -> str:
    names = list(dict.fromkeys(name for report in found.reports.values() for name in report["intervals"]))
    rows = []
    for name in names:
        row: dict[str, object] = {"figure": name}
        for form, report in found.reports.items():
            item = report["intervals"].get(name)
            shown = "" if item is None else f"{item['value']:+.3f} [{item['low']:+.3f}, {item['high']:+.3f}]"
            row[form] = shown
        rows.append(row)
    return markdown_table(["figure", *found.reports], rows)


def _forms(forms: Mapping[str, Mapping[str, Any]]) -> list[str]:
    lines = [
        f"- {name}: the {item['kind']} of {item['n_rows']:,} rows: {escape_markdown(item['text'])}"
        for name, item in forms.items()
    ]
    return [*lines, ""] if lines else []


def _prompts(report: Mapping[str, Any]) -> dict[str, list[int]]:
    """How many pairs each set of each kind has."""
    found: dict[str, list[int]] = {}
    for item in report["sets"].values():
        found.setdefault(item["kind"], []).append(item["n_pairs"])
    return found


def _gate(verdicts: list[Verdict], prompts: Prompts) -> str:
    lines = ["| asked | fails if | value | prompts | state |", "|---|---|---|---|---|"]
    lines += [
        f"| {item.form} | {escape_markdown(item.condition)} | {item.value:.4g} |"
        f" {counted(item.form, item.condition, prompts)} | {_STATES[item.failed]} |"
        for item in verdicts
    ]
    return "\n".join(lines)


def _findings(findings: Sequence[Mapping[str, Any]]) -> list[str]:
    if not findings:
        return []
    lines = [
        f"- {item['severity']}: {item['n_rows']:,} {item['meaning']} ({escape_markdown(', '.join(item['places'][:5]))})"
        for item in findings
    ]
    return ["## Data", "", *lines, ""]
