"""Drifts of finished adapters as one Markdown page."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trainer.monitor.alarm import read_rule
from trainer.monitor.directions import load_directions
from trainer.runs.page import results_page, table, written_by


def page(
    found: dict[str, dict[str, Any]], directions: Path, alarm: Path | None, machine: dict[str, Any], command: str
) -> str:
    """One row an adapter: drift along each trait, of prefix keys and values, and the verdict where there is a rule."""
    made = load_directions(directions)
    rule = "nothing is judged" if alarm is None else read_rule(alarm, made.directions_id).describe()
    rows = []
    for name, section in found.items():
        last = section["measurements"][-1]
        cells = [f"{last['drift'][trait]:+.4f}" for trait in made.traits]
        cells.append("" if last["prefix_kv"] is None else f"{last['prefix_kv']:.3g}")
        rows.append([name, *cells, _verdict(last)])
    lines = [
        f"Base model with weights `{made.weights_sha256[:12]}`; directions at row {made.layer}, {made.n_questions} "
        "questions a trait. Drift is the mean projection of 90 neutral prompts at their last token, as a share of the "
        "base's mean state length, minus the base's own. Prefix: squared relative distance of keys and values.", "",
        f"Rule: {rule}.", "",
        *table(["adapter", *made.traits, "prefix", "verdict"], rows), "",
    ]  # fmt: skip
    last = {name: section["measurements"][-1] for name, section in found.items()}
    return results_page("Trait-space drift", finding(last), lines, written_by(command, machine))


def finding(last: Mapping[str, Mapping[str, Any]]) -> str:
    """For how many adapters the rule gives an alarm, and which moved furthest along which trait, in one sentence."""
    name, trait = max(
        ((name, trait) for name, item in last.items() for trait in item["drift"]),
        key=lambda pair: abs(last[pair[0]]["drift"][pair[1]]),
    )
    judged = [item["alarm"] for item in last.values() if "alarm" in item]
    alarms = f"The rule gives an alarm for {sum(judged)} of {len(judged)} adapters"
    return (
        f"{alarms if judged else 'Without a rule no adapter is judged'}; of {len(last)}, {name} moved furthest along a "
        f"trait: {last[name]['drift'][trait]:+.4f} of the base's mean state length along {trait}."
    )


def _verdict(last: dict[str, Any]) -> str:
    if "alarm" not in last:
        return ""
    figure = (
        f"predicted EM rate {100 * last['predicted_em_rate']:.1f} %"
        if "predicted_em_rate" in last
        else f"{last['z_trait']} {last['z']:+.1f} sd"
    )
    return f"{'alarm' if last['alarm'] else 'no alarm'}, {figure}"
