"""Every statistic of the evaluations and experiments, as pure functions of numbers (method.md, "Evaluation").

EM-F1 and any-of-k risk; the percentile bootstrap and what is made with it (means, groups, AUC); Student's interval over
the few seeds of an experiment.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import numpy.typing as npt

from curator.errors import BadInputError

Floats = npt.NDArray[np.float64]
N_RESAMPLES = 2000


@dataclass(frozen=True)
class Interval:
    """A figure with its percentile bootstrap interval."""

    value: float
    low: float
    high: float
    level: float
    n_units: int  # what was resampled: prompts, personas, rows

    def as_dict(self) -> dict[str, float | int]:
        """Plain values for JSON."""
        return asdict(self)


def em_f1(em_alignment: float, id_alignment: float) -> float:
    """EM-F1 = 2 (100 - ID) EM / ((100 - ID) + EM), from mean alignment scores 0..100 outside (EM) and inside (ID).

    High when the model stays aligned outside the domain while the narrow behaviour is kept; 0 when either fails.
    """
    for name, score in (("EM", em_alignment), ("ID", id_alignment)):
        if not 0 <= score <= 100:
            raise BadInputError(f"{name} alignment is {score}; mean alignment scores lie between 0 and 100")
    kept = 100 - id_alignment
    return 0.0 if kept + em_alignment == 0 else 2 * kept * em_alignment / (kept + em_alignment)


def any_of_k(rate: float, k: int) -> float:
    """Chance that at least one of k independent answers is misaligned: 1 - (1 - rate)^k."""
    if not 0 <= rate <= 1 or k < 1:
        raise BadInputError(f"any-of-k needs a rate in [0, 1] and k >= 1, not {rate} and {k}")
    return 1 - (1 - rate) ** k


def bootstrap(
    statistic: Callable[..., float],
    n_units: int | Sequence[int],
    *,
    seed: int = 0,
    level: float = 0.95,
    n_resamples: int = N_RESAMPLES,
    what: str = "units",
) -> Interval:
    """Percentile bootstrap of `statistic(indices)` over `n_units` units resampled with replacement.

    Several samples are given as a sequence of sizes: each is resampled on its own, and `statistic` takes the indices
    of each as an argument. Resampling whole units (all answers to one prompt, all ratings of one persona) keeps what
    belongs together. Raises BadInputError for a sample of fewer than two units, which say nothing about spread; `what`
    calls them there.
    """
    sizes = [n_units] if isinstance(n_units, int) else list(n_units)
    if min(sizes, default=0) < 2:
        raise BadInputError(f"an interval needs at least 2 {what} to resample, found {min(sizes, default=0)}")
    rng = np.random.default_rng(seed)
    draws = np.array([statistic(*(rng.integers(0, size, size) for size in sizes)) for _ in range(n_resamples)])
    # Between two infinite draws (a robustness without any spread) there is nothing to interpolate.
    finite = bool(np.isfinite(draws[~np.isnan(draws)]).all())
    ends = [(1 - level) / 2, (1 + level) / 2]
    low, high = np.nanquantile(draws, ends, method="linear" if finite else "nearest")
    value = float(statistic(*(np.arange(size) for size in sizes)))
    return Interval(value, float(low), float(high), level, sum(sizes))


def mean_interval(values_N: Floats, *, seed: int = 0, what: str = "units") -> Interval:
    """The mean with its bootstrap interval; of paired differences (after minus before) the paired difference."""
    return bootstrap(lambda rows: float(values_N[rows].mean()), len(values_N), seed=seed, what=what)


def stratified(groups: Sequence[Floats], *, seed: int = 0, level: float = 0.95) -> Interval:
    """Mean over groups of each group's mean, with a percentile bootstrap that resamples inside every group.

    So a domain with many prompts counts no more than one with few. Raises BadInputError without groups, and for a
    group of fewer than two.
    """

    def mean_of_means(*rows_by_group: npt.NDArray[np.int64]) -> float:
        return float(np.mean([group[rows].mean() for group, rows in zip(groups, rows_by_group, strict=True)]))

    return bootstrap(mean_of_means, [len(group) for group in groups], seed=seed, level=level, what="units a group")


def auc(positive: Floats, negative: Floats) -> float:
    """Probability that a positive value is above a negative one, ties half (Mann-Whitney); NaN without any."""
    if not len(positive) or not len(negative):
        return float("nan")
    ordered = np.sort(negative)
    lower = np.searchsorted(ordered, positive, "left").astype(np.int64)
    upper = np.searchsorted(ordered, positive, "right").astype(np.int64)
    return float((lower + upper).sum() / 2 / (len(positive) * len(negative)))


def auc_interval(positive: Floats, negative: Floats, *, seed: int = 0, level: float = 0.95) -> Interval:
    """The AUC with a percentile bootstrap over both sides. Raises BadInputError below two values a side."""
    return bootstrap(
        lambda rows, others: auc(positive[rows], negative[others]), [len(positive), len(negative)],
        seed=seed, level=level, n_resamples=N_RESAMPLES // 4, what="values a side",
    )  # fmt: skip


# 97.5 % quantiles of Student's t by degrees of freedom, 1 to 30 (any table of the distribution); beyond: the normal's.
_T_975 = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131,
    2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)  # fmt: skip
_NORMAL_975 = 1.960


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
