"""Intervals over seeds: means of cells, and the four criteria as contrasts of a method with the undefended run."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Literal

import numpy as np

from trainer.experiments.compare.settings import Criteria, Criterion

# 97.5 % quantiles of Student's t by degrees of freedom, 1 to 30 (any table of the distribution); beyond: the normal's.
_T_975 = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131,
    2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)  # fmt: skip
_NORMAL_975 = 1.960

Verdict = Literal["yes", "no", "unclear", "moot", "not measured"]
CRITERIA: tuple[str, ...] = ("broad", "narrow", "benign", "coherent")


@dataclass(frozen=True)
class OverSeeds:
    """A figure's mean over seeds with a 95 % t interval; none for a single seed, which says nothing of spread."""

    mean: float
    low: float | None
    high: float | None
    n_seeds: int

    def as_dict(self) -> dict[str, float | int | None]:
        """Plain values for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Judgement:
    """Whether a criterion is met. `margin` is the contrast that decides, positive where it is met, over seeds; it is
    null where nothing could be compared."""

    verdict: Verdict
    margin: OverSeeds | None
    one_seed: bool = False


def over_seeds(values: Sequence[float]) -> OverSeeds | None:
    """Mean and t interval of one value for each seed; None without any."""
    if not values:
        return None
    n, mean = len(values), float(np.mean(values))
    if n == 1:
        return OverSeeds(mean, None, None, 1)
    t = _T_975[n - 2] if n - 2 < len(_T_975) else _NORMAL_975
    half = t * float(np.std(values, ddof=1)) / math.sqrt(n)
    return OverSeeds(mean, mean - half, mean + half, n)


BySeed = Mapping[int, Mapping[str, float | None]]


def values(cells: BySeed, figure: str) -> dict[int, float]:
    """A figure by seed, where it is measured."""
    return {seed: value for seed, figures in cells.items() if (value := figures.get(figure)) is not None}


def judge(criterion: Criterion, method: BySeed, undefended: BySeed) -> Judgement:
    """A criterion's verdict from the seeds that both runs have (all of the method's, for an absolute bound).

    "yes" when the whole interval of the contrast meets the bound, "no" when none of it does, else "unclear"; with one
    seed the bare value decides and `one_seed` says so. "moot": the bound is a multiple of the undefended run's figure,
    and that run does not show it (its mean is not positive, or its interval holds 0): there is nothing to prevent or
    to keep, and 90 % of nothing is reached by anything.
    """
    own = values(method, criterion.figure)
    base = values(undefended, criterion.figure)
    bound = criterion.at_most if criterion.at_most is not None else criterion.at_least
    assert bound is not None
    if criterion.of == "absolute":
        limits = dict.fromkeys(own, bound)
    else:
        shown = over_seeds(list(base.values()))
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


def judge_all(criteria: Criteria, method: BySeed, undefended: BySeed) -> dict[str, Judgement]:
    """The four verdicts by name."""
    return {name: judge(getattr(criteria, name), method, undefended) for name in CRITERIA}
