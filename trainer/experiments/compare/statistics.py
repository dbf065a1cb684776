"""The four criteria as contrasts of a method with the undefended run, over seeds."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from trainer.evaluate.metrics import OverSeeds, over_seeds
from trainer.experiments.compare.settings import Criteria, Criterion

CriterionResult = Literal["yes", "no", "unclear", "moot", "not measured"]
CRITERIA: tuple[str, ...] = ("broad", "narrow", "benign", "coherent")


@dataclass(frozen=True)
class Judgement:
    """Whether a criterion is met. `margin` is the contrast that decides, positive where it is met, over seeds; it is
    null where nothing could be compared."""

    verdict: CriterionResult
    margin: OverSeeds | None
    one_seed: bool = False


BySeed = Mapping[int, Mapping[str, float | None]]


def values(cells: BySeed, figure: str) -> dict[int, float]:
    """A figure by seed, where it is measured."""
    return {seed: value for seed, figures in cells.items() if (value := figures.get(figure)) is not None}


def _minus(figures: dict[int, float], control: dict[int, float]) -> dict[int, float]:
    return {seed: value - control[seed] for seed, value in figures.items() if seed in control}


def judge(criterion: Criterion, method: BySeed, undefended: BySeed, control: BySeed) -> Judgement:
    """A criterion's verdict from the seeds that all its runs have (all of the method's, for an absolute bound).

    With `minus`, the method's and the undefended run's figures are taken minus the benign run's (`control`) of the same
    seed; without a benign run it is "not measured".

    "yes" when the whole interval of the contrast meets the bound, "no" when none of it does, else "unclear"; with one
    seed the bare value decides and `one_seed` says so. "moot": the bound is a multiple of the undefended run's figure,
    and that run does not show it (its mean is not positive, or its interval holds 0): there is nothing to prevent or
    to keep, and 90 % of nothing is reached by anything.
    """
    own = values(method, criterion.figure)
    base = values(undefended, criterion.figure)
    if criterion.minus is not None:
        benign = values(control, criterion.figure)
        own, base = _minus(own, benign), _minus(base, benign)
    bound = criterion.at_most if criterion.at_most is not None else criterion.at_least
    assert bound is not None
    if criterion.of == "absolute":
        limits = dict.fromkeys(own, bound)
    else:
        shown = over_seeds(list(base.values())) if own else None
        if shown is not None and (shown.mean <= 0 or (shown.low is not None and shown.low <= 0)):
            return Judgement("moot", None)
        limits = {seed: bound * base[seed] for seed in own if seed in base}
    sign = 1.0 if criterion.at_least is not None else -1.0
    margin = over_seeds([sign * (own[seed] - limit) for seed, limit in limits.items()])
    if margin is None:
        return Judgement("not measured", None)
    if margin.low is None or margin.high is None:
        return Judgement("yes" if margin.mean >= 0 else "no", margin, one_seed=True)
    return Judgement("yes" if margin.low >= 0 else "no" if margin.high < 0 else "unclear", margin)


def judge_all(criteria: Criteria, method: BySeed, undefended: BySeed, control: BySeed) -> dict[str, Judgement]:
    """The four verdicts by name."""
    return {name: judge(getattr(criteria, name), method, undefended, control) for name in CRITERIA}
