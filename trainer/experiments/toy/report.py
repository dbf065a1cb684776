"""The experiment's page: what was chosen on some seeds, what the others then showed, and every cell's figures."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from curator.errors import BadInputError
from trainer.evaluate.metrics import mean_interval
from trainer.experiments.toy.cells import CONTROL_RATIOS, SCORES, grid
from trainer.experiments.toy.experiment import ROUGH, ExperimentSettings
from trainer.experiments.toy.plots import write_plots
from trainer.experiments.toy.statistics import (
    Choice,
    Results,
    choose,
    values,
)
from trainer.experiments.toy.verdicts import percent, verdicts
from trainer.runs.machine import describe
from trainer.runs.page import page_head, table

_ENSEMBLES = {
    "held_out": "usual, own domain held out", "with_own_domain": "usual, with the own domain's model",
    "rough": "rough, own domain held out",
}  # fmt: skip
FIGURES = ("broad", "narrow", "incoherent", "facts")


def read_results(
    folder: Path, settings_id: str, seeds: Sequence[int]
) -> tuple[dict[str, dict[int, Any]], dict[int, Any]]:
    """Results by cell name and seed, and what is known of each seed; raises BadInputError when one is missing."""
    results: dict[str, dict[int, Any]] = {}
    about: dict[int, Any] = {}
    for seed in seeds:
        work = folder / f"seed-{seed}" / settings_id
        for cell in grid():
            path = work / "cells" / f"{cell.name}.json"
            if not path.exists():
                raise BadInputError(
                    f"seed {seed} lacks the cell {cell.name}: "
                    f"run `trainer.experiments.toy experiment --seeds {seed}` first"
                )
            results.setdefault(cell.name, {})[seed] = json.loads(path.read_text())
        reported = (
            work / "seed.json"
        )  # the last file of a seed: an experiment killed before it leaves all cells and not this
        if not reported.exists():
            raise BadInputError(
                f"seed {seed} lacks seed.json: run `trainer.experiments.toy experiment --seeds {seed}` once more"
            )
        about[seed] = json.loads(reported.read_text())
    return results, about


@dataclass(frozen=True)
class Seeds:
    """Seeds on which score and ratio are chosen, and those on which the choice is judged (none yet: empty)."""

    choosing: Sequence[int]
    reported: Sequence[int]

    @property
    def shown(self) -> Sequence[int]:
        """The seeds whose figures lead the page."""
        return self.reported or self.choosing


def page(
    results: Results, about: Mapping[int, Any], seeds: Seeds, settings: ExperimentSettings, command: str,
    plots: Sequence[str],
) -> str:  # fmt: skip
    """The whole page as Markdown; without reported seeds the choosing ones stand in, and the page says so."""
    choosing, reported, shown = seeds.choosing, seeds.reported, seeds.shown
    choice = choose(results, choosing)
    lines = [
        *page_head("The toy model", command, describe("cpu", "float32")),
        f"- settings and score chosen on seeds {_range(choosing)}; "
        + (f"reported, run once, on seeds {_range(reported)}" if reported else "no other seed was run yet"),
        f"- {settings.n_task_rows:,} task rows, {settings.pool.n_rows:,} pool rows of which"
        f" {settings.pool.revealing_share:.1%} reveal the persona, three misaligned models of other domains trained on"
        f" {settings.n_ensemble_rows:,} rows each; what each word means: [docs/toy.md](../toy.md)",
        "", f"## Was it shown? (seeds {_range(shown)})", "",
        _chosen(choice, choosing), "",
        *_verdicts(results, choosing, reported, choice),
        *_finding(about, shown), *(f"\n![{name}]({name})" for name in plots),
    ]  # fmt: skip
    for title, some in (("Reported", reported), ("Choosing", choosing)):
        if some:
            lines += ["", f"## {title} seeds ({_range(some)}), every cell", "", *_cells(results, some)]
    return "\n".join([*lines, "", *_bases(about, [*choosing, *reported])]) + "\n"


def _verdicts(results: Results, choosing: Sequence[int], reported: Sequence[int], choice: Choice) -> list[str]:
    """The claims on the reported seeds and, beside them, on the choosing ones: what holds on one half is not firm."""
    columns = [(name, seeds) for name, seeds in (("reported", reported), ("choosing", choosing)) if seeds]
    heads = [head for name, seeds in columns for head in (f"{name}, seeds {_range(seeds)}", "holds")]
    judged = [verdicts(results, seeds, choice) for _, seeds in columns]
    rows = [
        [
            same_claim[0].claim,
            *(cell for item in same_claim for cell in (item.found, "yes" if item.holds else "**no**")),
        ]
        for same_claim in zip(*judged, strict=True)
    ]
    return table(["claim", *heads], rows)


def _chosen(choice: Choice, seeds: Sequence[int]) -> str:
    ratios = ", ".join(f"{ratio:g}" for ratio in CONTROL_RATIOS)
    text = (
        f"On seeds {_range(seeds)} the rule (largest cut of broad misalignment among the ratios that have controls,"
        f" {ratios}, at which random rows cut it by a third or less and narrow behaviour stays within 5 points) chose"
        f" **{choice.score}** at r = {choice.ratio:g}: cut {choice.cut:.1%}, random {choice.random_cut:.1%}."
    )
    return text if choice.admissible else text.replace("chose", "admitted nothing; largest lead over random:")


def _finding(about: Mapping[int, Any], seeds: Sequence[int]) -> list[str]:
    """How well each gap finds the revealing rows, under three ensembles."""
    top = _mean(about[seed]["top"] for seed in seeds)
    parts = (("auc", ".3f"), ("revealing", ".1f"), ("outside", ".1f"))
    lines = [
        "", "## Do the gaps find the revealing rows? (mean over seeds)", "",
        f"A pool has {top:.0f} revealing rows; found: those among as many rows at the top. Outside: of domains on which"
        " no misaligned model was trained. AUC: the chance that a revealing row has a larger gap than a fact. The rough"
        f" ensemble is tuned at {ROUGH} times the rate.", "",
    ]  # fmt: skip
    rows = [
        [name, score, *(f"{_mean(about[seed][kind][score][part] for seed in seeds):{form}}" for part, form in parts)]
        for kind, name in _ENSEMBLES.items()
        for score in SCORES
    ]
    lines += table(["ensemble", "gap", "AUC", "found", "of these outside"], rows)
    found = {score: _mean(about[seed]["rough"][score]["revealing"] for seed in seeds) for score in SCORES}
    best = max(SCORES, key=found.__getitem__)
    lines += [
        "", f"Under the rough ensemble, whose models also forget the facts, {best} finds most revealing rows:"
        f" {', '.join(f'{score} {value:.1f}' for score, value in found.items())} of {top:.0f}.",
    ]  # fmt: skip
    roles = ("aligned", "misaligned", "benign")
    losses = [
        [name, part, *(f"{_mean(about[seed][kind][part][role] for seed in seeds):.3f}" for role in roles)]
        for kind, name in (("losses", "usual"), ("rough_losses", "rough"))
        for part in ("revealing", "facts")
    ]
    lines += ["", *table(["ensemble", "rows", *(f"{role} loss" for role in roles)], losses)]
    return [*lines, "", "Losses in nats per answer; misaligned and benign ones are means over the ensemble."]


def _mean(found: Iterable[float]) -> float:
    every = list(found)
    return sum(every) / len(every)


def _cells(results: Results, seeds: Sequence[int]) -> list[str]:
    columns = ["task", "safe rows", "r", "revealing", "broad", "narrow", "incoherent", "facts kept", "benign", "CPU s"]
    rows = []
    for cell in grid():
        found = results[cell.name]
        revealing = sum(found[seed]["n_revealing"] for seed in seeds) / max(1, sum(found[s]["n_safe"] for s in seeds))
        name = cell.choice + (", none revealing" if cell.pool != "whole" else "")
        name = f"KL {cell.kl:g}" if cell.kl else name
        figures = [percent(mean_interval(values(results, cell, figure, seeds))) for figure in FIGURES]
        benign = percent(mean_interval(values(results, cell, "benign", seeds))) if cell.task == "benign" else ""
        seconds = sum(found[seed]["cpu_s"] for seed in seeds) / len(seeds)
        share = f"{revealing:.0%}" if cell.ratio else ""
        ratio = f"{cell.ratio:g}" if cell.ratio else ""
        rows.append([cell.task, name, ratio, share, *figures, benign, f"{seconds:.1f}"])
    return table(columns, rows)


def _bases(about: Mapping[int, Any], seeds: Sequence[int]) -> list[str]:
    columns = ["seed", "steps", "CPU s", "good in context", "bad in context", "facts", "contradicting domains"]
    columns += ["aligned: good", "aligned: bad in context", "ensemble: broad"]
    rows = []
    for seed in seeds:
        base, ensemble = about[seed]["base"], about[seed]["ensemble"]
        before, after = base["pretrained"], base["aligned"]
        task = f"bad-{about[seed]['roles']['task']}"
        broad = [f"{m['broad']:.0%}" for name, m in ensemble.items() if name.startswith("bad-") and name != task]
        shares = [
            before["good_in_context"], before["bad_in_context"], before["facts"], before["contradicting_domains"],
            after["good_alone"], after["bad_in_context"],
        ]  # fmt: skip
        steps, seconds = base["pretraining_steps"], f"{base['cpu_s']:.0f}"
        rows.append([seed, steps, seconds, *(f"{value:.1%}" for value in shares), ", ".join(broad)])
    told = "Shares of exact matches when pre-training ended, and good answers without context after alignment."
    return ["## Base models", "", told, "", *table(columns, rows)]


def _range(seeds: Sequence[int]) -> str:
    seeds = list(seeds)
    if len(seeds) > 1 and seeds == list(range(seeds[0], seeds[-1] + 1)):
        return f"{seeds[0]} to {seeds[-1]}"
    return ", ".join(map(str, seeds))


def write_page(folder: Path, path: Path, seeds: Seeds, command: str) -> list[Path]:
    """Write the page and its plots from the finished cells under `folder`; returns what was written."""
    settings = ExperimentSettings()
    results, about = read_results(folder, settings.identity(), [*seeds.choosing, *seeds.reported])
    path.parent.mkdir(parents=True, exist_ok=True)
    names = write_plots(results, list(seeds.shown), path.parent, path.stem)
    path.write_text(page(results, about, seeds, settings, command, names), encoding="utf-8")
    return [path, *(path.parent / name for name in names)]
