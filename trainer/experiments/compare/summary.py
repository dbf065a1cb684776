"""From finished cells to one row a method: figures over seeds, verdicts, cost."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from trainer.evaluate.metrics import OverSeeds, over_seeds
from trainer.experiments.compare.cells import Cell
from trainer.experiments.compare.methods import CONTROL, RANDOM, UNDEFENDED
from trainer.experiments.compare.prompts import Runs, bounds, prompt_values
from trainer.experiments.compare.settings import AnyPlan
from trainer.experiments.compare.statistics import Judgement, judge_all

FIGURES = ("broad_shift", "broad_margin_shift", "narrow_shift", "narrow_margin_shift", "truthfulqa_shift",
           "truthfulqa_margin_shift", "perplexity_ratio", "conditional_broad_shift",
           "conditional_broad_margin_shift", "broad_misaligned", "narrow_misaligned", "incoherent",
           "facts_kept", "benign_exact_match")  # fmt: skip
COSTS = ("train_s", "peak_mib", "n_rows", "n_safe", "n_tokens", "measure_s")


@dataclass(frozen=True)
class TableRow:
    """One method at one ratio. `difference` is the method minus the undefended run, paired by seed; `over_benign` minus
    the benign run; `over_random`, of methods that choose safe rows, minus as many rows at random.

    `over_prompts`: low and high of the bootstrap over prompts, of a method with a single seed, which has no interval
    over seeds.
    """

    label: str
    method: str
    ratio: float | None
    seeds: tuple[int, ...]
    figures: dict[str, OverSeeds]
    difference: dict[str, OverSeeds]
    verdicts: dict[str, Judgement]
    cost: dict[str, OverSeeds]
    score_s: float | None  # seconds of scoring the pool and its misaligned models, where rows are chosen by gap
    reason: str | None = None  # why the method does not apply here
    over_prompts: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    over_random: Mapping[str, OverSeeds] = field(default_factory=dict)
    over_benign: Mapping[str, OverSeeds] = field(default_factory=dict)
    cells: Sequence[Mapping[str, Any]] = ()  # each seed's figures, and the values by prompt that they are means of

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "label": self.label, "method": self.method, "ratio": self.ratio, "seeds": list(self.seeds),
            "figures": {name: item.as_dict() for name, item in self.figures.items()},
            "over_prompts": dict(self.over_prompts),
            "difference_from_undefended": {name: item.as_dict() for name, item in self.difference.items()},
            "difference_from_benign": {name: item.as_dict() for name, item in self.over_benign.items()},
            "difference_from_random": {name: item.as_dict() for name, item in self.over_random.items()},
            "verdicts": {
                name: {"verdict": item.verdict, "one_seed": item.one_seed,
                       "margin": None if item.margin is None else item.margin.as_dict()}
                for name, item in self.verdicts.items()
            },
            "cost": {name: item.as_dict() for name, item in self.cost.items()}, "score_s": self.score_s,
            "reason": self.reason, "cells": list(self.cells),
        }  # fmt: skip


def rows(
    cells: Sequence[Cell], results: Sequence[Mapping[str, Any] | None], plan: AnyPlan, score_s: float | None
) -> list[TableRow]:
    """One row a method and ratio, in the grid's order; a method without a finished cell has an empty one."""
    by_label: dict[str, list[tuple[Cell, Mapping[str, Any]]]] = {}
    for cell, result in zip(cells, results, strict=True):
        found = by_label.setdefault(cell.label, [])
        if result is not None:
            found.append((cell, result))
    others = _Others(_runs(by_label.get(UNDEFENDED, [])), _runs(by_label.get(CONTROL, [])))
    first = {cell.label: cell for cell in reversed(cells)}
    at_random = {
        first[label].ratio: _runs(found) for label, found in by_label.items() if first[label].method.name == RANDOM
    }
    return [
        _row(first[label], found, others.at(at_random.get(first[label].ratio, Runs())), plan, score_s)
        for label, found in by_label.items()
    ]


def _row(
    cell: Cell,
    found: Sequence[tuple[Cell, Mapping[str, Any]]],
    others: "_Others",
    plan: AnyPlan,
    score_s: float | None,
) -> TableRow:
    own = _runs(found)
    names = [name for name in FIGURES if own.series(name).values]
    costs = [result["cost"] for _, result in found if result["status"] == "done"]
    reasons = [result["reason"] for _, result in found if result["status"] != "done"]
    return TableRow(
        label=cell.label, method=cell.method.name, ratio=cell.ratio, seeds=tuple(own.figures),
        figures=_known({name: own.series(name).interval(bounds(name)) for name in names}),
        difference={} if cell.method.name == UNDEFENDED else _paired(own, others.undefended),
        over_benign={} if cell.method.name == CONTROL else _paired(own, others.benign),
        over_random=_paired(own, others.at_random) if cell.method.ratio and cell.method.name != RANDOM else {},
        verdicts={} if cell.method.name == CONTROL or not own.figures else judge_all(
            plan.criteria, own, others.undefended, others.benign
        ),
        cells=_cell_values(own),
        cost=_summed({name: [float(cost[name]) for cost in costs if cost.get(name) is not None] for name in COSTS}),
        score_s=score_s if cell.method.needs_scores else None,
        reason=reasons[0] if reasons else None, over_prompts=_over_prompts(found, names),
    )  # fmt: skip


def _runs(found: Sequence[tuple[Cell, Mapping[str, Any]]]) -> Runs:
    done = {cell.seed: result for cell, result in found if result["status"] == "done"}
    return Runs(
        {seed: dict(item["figures"]) for seed, item in done.items()},
        {seed: prompt_values(item) for seed, item in done.items()},
    )


def _cell_values(own: Runs) -> list[dict[str, Any]]:
    """Plain values for JSON."""
    return [
        {"seed": seed, "figures": dict(figures),
         "prompts": {name: [group.tolist() for group in groups] for name, groups in own.prompts[seed].items()}}
        for seed, figures in own.figures.items()
    ]  # fmt: skip


@dataclass(frozen=True)
class _Others:
    """The runs that a method is held against."""

    undefended: Runs
    benign: Runs
    at_random: Runs = field(default_factory=Runs)

    def at(self, at_random: Runs) -> "_Others":
        """With the random rows of one ratio."""
        return _Others(self.undefended, self.benign, at_random)


def _over_prompts(
    found: Sequence[tuple[Cell, Mapping[str, Any]]], names: Sequence[str]
) -> dict[str, tuple[float, float]]:
    done = [result.get("intervals", {}) for _, result in found if result["status"] == "done"]
    if len(done) != 1:
        return {}
    return {name: (done[0][name]["low"], done[0][name]["high"]) for name in names if name in done[0]}


def _paired(own: Runs, other: Runs) -> dict[str, OverSeeds]:
    """One minus the other, over the seeds that both have."""
    return _known({
        name: own.series(name).minus(other.series(name)).interval(bounds(name, difference=True)) for name in FIGURES
    })  # fmt: skip


def _known(found: Mapping[str, OverSeeds | None]) -> dict[str, OverSeeds]:
    return {name: item for name, item in found.items() if item is not None}


def _summed(by_name: Mapping[str, Sequence[float]]) -> dict[str, OverSeeds]:
    return _known({name: over_seeds(list(given)) for name, given in by_name.items()})
