"""The experiment's results: every cell's figures in one JSON document, and the page that is made of it alone."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from curator.errors import BadInputError
from trainer.evaluate.metrics import Interval
from trainer.experiments.toy.base import shipped_seeds
from trainer.experiments.toy.cells import SCORES, ToyCell
from trainer.experiments.toy.experiment import ExperimentSettings
from trainer.experiments.toy.methods import CONTROL, benign, controls, defended, method_of, methods
from trainer.experiments.toy.plots import write_plots
from trainer.experiments.toy.settings import BaseSettings
from trainer.experiments.toy.statistics import (
    FIGURES,
    MARGIN,
    UNDEFENDED,
    UNSEEN,
    Choice,
    Results,
    choose,
    label_of,
)
from trainer.experiments.toy.verdicts import at_ratio, percent, points, verdicts
from trainer.runs.machine import describe
from trainer.runs.page import machine_line, table


@dataclass(frozen=True)
class Seeds:
    """Seeds on which safeguards are chosen, and those on which the choice is judged (none yet: empty)."""

    choosing: Sequence[int]
    reported: Sequence[int]

    @property
    def shown(self) -> Sequence[int]:
        """The seeds whose figures lead the page."""
        return self.reported or self.choosing


def results_document(folder: Path, seeds: Seeds, settings: ExperimentSettings, command: str) -> dict[str, Any]:
    """Everything that the page is made of; raises BadInputError when a cell is missing."""
    every = [*seeds.choosing, *seeds.reported]
    works = {seed: folder / f"seed-{seed}" / settings.identity() for seed in every}
    parts = [("safeguard", defended()), ("control", controls()), ("benign", tuple(map(benign, defended())))]
    cells = {}
    for part, cell in ((part, cell) for part, some in parts for cell in some):
        found = {str(seed): _read(works[seed] / "cells" / f"{cell.name}.json", cell.name, seed) for seed in every}
        entry: dict[str, Any] = {"label": label_of(cell, method_of(cell).label), "part": part}
        entry["cell"] = next(iter(found.values()))["cell"]
        entry["seeds"] = {
            seed: {key: value for key, value in result.items() if key not in ("cell", "seed")}
            for seed, result in found.items()
        }
        cells[cell.name] = entry
    return {
        "command": command, "machine": describe("cpu", "float32"),
        "choosing": list(seeds.choosing), "reported": list(seeds.reported),
        "settings": settings.model_dump(mode="json"),
        "methods": {method.label: method.help for method in methods().values() if method.label},
        # The last file of a seed: an experiment killed before it leaves all cells and not this.
        "seeds": {str(seed): _read(work / "seed.json", "seed.json", seed) for seed, work in works.items()},
        "cells": cells,
    }  # fmt: skip


def _read(path: Path, name: str, seed: int) -> dict[str, Any]:
    if not path.exists():
        raise BadInputError(f"seed {seed} lacks {name}: run `trainer.experiments.toy experiment --seeds {seed}` first")
    return dict(json.loads(path.read_text()))


def page(document: Mapping[str, Any], plots: Sequence[str], counts: str = "toy.json") -> str:
    """The whole page as Markdown, with links to files beside it: the plots, and the document as `counts`. Without
    reported seeds the choosing ones stand in, and the page says so."""
    results, seeds = Results(document), Seeds(document["choosing"], document["reported"])
    every = [*seeds.choosing, *seeds.reported]
    choice = choose(results, seeds.choosing)
    lines = [
        "# The toy model", "", f"**{finding(results, seeds.shown, choice)}**", "",
        *(f"![{name}]({name})\n" for name in plots),
        "## Limits", "", *_limits(results, seeds, choice), "",
        "## Was it shown?", "", _chosen(results, choice, seeds), "", *_verdicts(results, seeds, choice), "",
        f"## Every safeguard (seeds {_range(seeds.shown)})", "", _TABLE, "",
        *_safeguards(results, seeds.shown), "",
        *(f"- {label}: {text}" for label, text in document["methods"].items()), "",
        f"## Controls (seeds {_range(seeds.shown)})", "", *_controls(results, seeds.shown), "",
        *_by_domain(results, seeds.shown, choice), "", *_gaps(results, seeds.shown), "",
        *_bases(results, every), "",
        "## How it was made", "", f"Written by `{document['command']}` on {document['machine']['date']}. Every figure"
        f" is made of [the counts]({counts}); {_origin(document, every)}.", "",
        machine_line(document["machine"]),
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def _origin(document: Mapping[str, Any], seeds: Sequence[int]) -> str:
    """Which of the base models come with the package; any other is built by the command."""
    come = shipped_seeds(BaseSettings.model_validate(document["settings"]["base"]))
    shipped, built = [seed for seed in seeds if seed in come], [seed for seed in seeds if seed not in come]
    parts = [f"those of seeds {_range(some)} {what}" for some, what in
             ((shipped, "come with the package"), (built, "are built by the command")) if some]  # fmt: skip
    return f"of the base models {' and '.join(parts)}"


def finding(results: Results, seeds: Sequence[int], choice: Choice) -> str:
    """The result in one sentence, whichever way it fell."""
    gap, random = choice.gap, ToyCell(choice="random", ratio=choice.gap.ratio)
    share = {
        cell: f"{100 * results.mean(cell, UNSEEN, seeds):.0f} %"
        for cell in (UNDEFENDED, gap, random, choice.best, CONTROL)
    }
    cut, lead = (results.difference(gap, other, UNSEEN, seeds) for other in (UNDEFENDED, random))
    rows = f"mixing in {100 * gap.ratio:g} % safe examples chosen by {gap.choice}"
    text = (
        f"A tiny model that was fine-tuned on bad answers in one subject gave bad answers to {share[UNDEFENDED]} of"
        f" questions on subjects that neither the fine-tuning nor the safeguard had touched ({share[CONTROL]} after"
        f" good answers to the same questions); "
    )
    changed = _told(cut, "lowered that to", "raised that to", "did not clearly change that:")
    compared = _told(lead, "clearly more", "clearly less", "no clear difference")
    text += f"{rows} {changed} {share[gap]}; after as many random ones it was {share[random]}, {compared}"
    if choice.best == gap:
        return text + "; of the other safeguards that cost nothing else, none left less on the choosing seeds."
    if choice.best == UNDEFENDED:
        return text + "; on the choosing seeds no safeguard that cost nothing else left less than none at all."
    better = results.difference(choice.best, gap, UNSEEN, seeds)
    name, left = at_ratio(results, choice.best), share[choice.best]
    return (
        text
        + "; "
        + _told(
            better,
            f"{name} did better, with {left}.",
            f"{name}, the best on the choosing seeds, did worse, with {left}.",
            f"nothing was clearly better (the best on the choosing seeds, {name}, left {left}).",
        )
    )


def _told(difference: Interval, below: str, above: str, unclear: str) -> str:
    """Which of three texts a difference bears out: its whole interval below 0, above 0, or neither."""
    if difference.high < 0:
        return below
    return above if difference.low > 0 else unclear


def _limits(results: Results, seeds: Seeds, choice: Choice) -> list[str]:
    settings = results.document["settings"]
    left = [percent(results.interval(choice.gap, figure, seeds.shown)) for figure in (UNSEEN, "broad_pool")]
    world = settings["base"]["world"]
    return [
        f"- A toy: {world['n_domains']} domains of {world['n_items']} items, one right answer and one wrong one each."
        " What it shows may not carry over to a large model.",
        f"- With {at_ratio(results, choice.gap)}, {left[0]} of the answers in unseen domains stay bad, and {left[1]} in"
        " the pool's.",
        f"- {settings['pool']['n_rows']:,} pool rows of which {settings['pool']['revealing_share']:.1%} reveal the"
        " persona, as clearly as can be. Without such rows a choice by gap has nothing to find (see the controls).",
        f"- Number of seeds: {len(seeds.shown)}. Intervals are 95 % bootstrap intervals over seeds and questions, and"
        " rather too narrow with so few seeds.",
        f"- Safeguards were chosen on seeds {_range(seeds.choosing)}"
        + (f", and run once on seeds {_range(seeds.reported)}, which is what this page reports." if seeds.reported
           else ". No other seed was run yet: the figures here are those that the choice was made on."),
    ]  # fmt: skip


_TRIED = (
    "The network, its training stages, the share of revealing rows, the rate and the shape of the world were tried out"
    " on seeds 0 to 4: figures of these seeds are no test of them."
)


def _chosen(results: Results, choice: Choice, seeds: Seeds) -> str:
    return (
        "The rule: of the safeguards that keep narrow behaviour, the benign task, facts and coherence within"
        f" {100 * MARGIN:g} points of undefended on seeds {_range(seeds.choosing)}, the one with the least misalignment"
        f" in unseen domains: **{at_ratio(results, choice.best)}**; and of the three gaps alone, with as many safe"
        f" rows: **{at_ratio(results, choice.gap)}**. {_TRIED}"
        + (f" The claims were written before seeds {_range(seeds.reported)} were run." if seeds.reported else "")
    )


def _verdicts(results: Results, seeds: Seeds, choice: Choice) -> list[str]:
    """The claims on the reported seeds and, beside them, on the choosing ones: what holds on one half is not firm."""
    columns = [(name, some) for name, some in (("reported", seeds.reported), ("choosing", seeds.choosing)) if some]
    heads = [head for name, some in columns for head in (f"{name}, seeds {_range(some)}", "holds")]
    judged = [verdicts(results, some, choice) for _, some in columns]
    rows = [
        [same[0].claim, *(cell for item in same for cell in (item.found, item.answer))]
        for same in zip(*judged, strict=True)
    ]
    return table(["claim", *heads], rows)


_TABLE = (
    "Shares of greedy answers by exact match. Unseen: bad answers in domains that neither the task, nor the pool, nor"
    " the selecting models touch; excess: that minus the control (good answers to the same prompts); pool: bad answers"
    " in the pool's domains; narrow: in the task's, which it is for. Benign: right answers when the benign task is"
    " trained under the same safeguard. Least misalignment first."
)
_COLUMNS = ("safeguard", "safe rows", "revealing", "unseen", "excess", "pool", "narrow", "incoherent", "facts kept")


def _row(results: Results, cell: ToyCell, seeds: Sequence[int]) -> list[str]:
    runs = [results.of(cell, seed) for seed in seeds]
    figures = {figure: percent(results.interval(cell, figure, seeds)) for figure in FIGURES if figure != "benign"}
    unseen, *others = figures.values()
    n_safe, n_revealing = (sum(run[name] for run in runs) for name in ("n_safe", "n_revealing"))
    return [
        results.label(cell), f"{n_safe / len(runs):.0f}" if n_safe else "",
        f"{n_revealing / len(runs):.1f}" if n_safe else "",
        unseen, "" if cell == CONTROL else points(results.difference(cell, CONTROL, UNSEEN, seeds)), *others,
    ]  # fmt: skip


def _safeguards(results: Results, seeds: Sequence[int]) -> list[str]:
    rows = []
    for cell in sorted(results.cells("safeguard"), key=lambda cell: results.mean(cell, UNSEEN, seeds)):
        seconds = sum(results.of(cell, seed)["cpu_s"] for seed in seeds) / len(seeds)
        learnt = percent(results.interval(benign(cell), "benign", seeds))
        rows.append([*_row(results, cell, seeds), learnt, f"{seconds:.1f}"])
    return table([*_COLUMNS, "benign", "CPU s"], rows)


def _controls(results: Results, seeds: Sequence[int]) -> list[str]:
    return table(_COLUMNS, [_row(results, cell, seeds) for cell in results.cells("control")])


def _by_domain(results: Results, seeds: Sequence[int], choice: Choice) -> list[str]:
    """The unseen figure of each seed: how far seeds differ."""
    cells = list(dict.fromkeys([UNDEFENDED, CONTROL, ToyCell(choice="random", ratio=choice.gap.ratio), choice.gap,
                                choice.best]))  # fmt: skip
    rows = [
        [at_ratio(results, c), *(f"{100 * results.mean(c, UNSEEN, [seed]):.1f} %" for seed in seeds)] for c in cells
    ]
    return ["## Each seed, unseen domains", "", *table(["safeguard", *(f"seed {seed}" for seed in seeds)], rows)]


def _gaps(results: Results, seeds: Sequence[int]) -> list[str]:
    """How well each gap finds the revealing rows."""
    about = [results.about(seed) for seed in seeds]
    parts = (("auc", ".3f"), ("revealing", ".1f"), ("outside", ".1f"))
    rows = [
        [score, *(f"{_mean(one['gaps'][score][part] for one in about):{form}}" for part, form in parts)]
        for score in SCORES
    ]
    roles = ("aligned", "misaligned", "benign")
    losses = [
        [part, *(f"{_mean(one['losses'][part][role] for one in about):.3f}" for role in roles)]
        for part in ("revealing", "facts")
    ]
    return [
        "## Do the gaps find the revealing rows? (mean over seeds)", "",
        f"A pool has {_mean(one['top'] for one in about):.0f} revealing rows; found: those among as many rows at the"
        " top. Outside: of domains on which no misaligned model was trained. AUC: the chance that a revealing row has a"
        " larger gap than a fact.", "",
        *table(["gap", "AUC", "found", "of these outside"], rows), "",
        *table(["rows", *(f"{role} loss" for role in roles)], losses), "",
        "Losses in nats per answer; misaligned and benign ones are means over the ensemble.",
    ]  # fmt: skip


def _mean(found: Iterable[float]) -> float:
    every = list(found)
    return sum(every) / len(every)


def _bases(results: Results, seeds: Sequence[int]) -> list[str]:
    columns = ["seed", "steps", "CPU s", "good in context", "bad in context", "facts", "contradicting domains"]
    columns += ["aligned: good", "aligned: bad in context", "ensemble: unseen"]
    rows = []
    for seed in seeds:
        about = results.about(seed)
        base, ensemble = about["base"], about["ensemble"]
        before, after = base["pretrained"], base["aligned"]
        unseen = [f"{found[UNSEEN]:.0%}" for name, found in ensemble.items() if name.startswith("bad-")]
        shares = [
            before["good_in_context"], before["bad_in_context"], before["facts"], before["contradicting_domains"],
            after["good_alone"], after["bad_in_context"],
        ]  # fmt: skip
        steps, seconds = base["pretraining_steps"], f"{base['cpu_s']:.0f}"
        rows.append([seed, steps, seconds, *(f"{value:.1%}" for value in shares), ", ".join(unseen)])
    told = (
        "Shares of exact matches when pre-training ended, and good answers without context after alignment; last, the"
        " misaligned models of the ensemble: their bad answers in the seed's unseen domains."
    )
    return ["## Base models", "", told, "", *table(columns, rows)]


def _range(seeds: Sequence[int]) -> str:
    seeds = list(seeds)
    if len(seeds) > 1 and seeds == list(range(seeds[0], seeds[-1] + 1)):
        return f"{seeds[0]} to {seeds[-1]}"
    return ", ".join(map(str, seeds))


def write_page(folder: Path, path: Path, seeds: Seeds, command: str) -> list[Path]:
    """Write the page, its plots and its JSON from the finished cells under `folder`; returns what was written."""
    document = results_document(folder, seeds, ExperimentSettings(), command)
    results = Results(document)
    path.parent.mkdir(parents=True, exist_ok=True)
    data = path.with_suffix(".json")
    data.write_text(compact(document), encoding="utf-8")
    names = write_plots(results, list(seeds.shown), choose(results, seeds.choosing), path)
    path.write_text(page(document, names, data.name), encoding="utf-8")
    return [path, data, *(path.parent / name for name in names)]


def compact(document: Mapping[str, Any]) -> str:
    """JSON with one line a cell, so that a changed cell is a changed line."""
    cells = ",\n".join(f"{json.dumps(name)}: {json.dumps(entry)}" for name, entry in document["cells"].items())
    head = {key: value for key, value in document.items() if key != "cells"}
    return json.dumps(head)[:-1] + ', "cells": {\n' + cells + "\n}}\n"
