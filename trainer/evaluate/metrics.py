"""Every statistic of the evaluations and experiments, as pure functions of numbers (method.md, "Evaluation").

EM-F1 and any-of-k risk; the percentile bootstrap and what is made with it (means, groups, shares, AUC). Every interval
of this package is one: over prompts (rows, personas) as whole units, with all answers to a prompt drawn together, and
over seeds as well where a figure has several. Shares therefore stay in 0..1. The one exception is `over_seeds`.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache

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


def any_of_k(rates: float | Sequence[float] | Floats, k: int) -> float:
    """Chance that at least one of k independent answers is misaligned: mean over prompts of 1 - (1 - p)^k.

    `rates` holds each prompt's misaligned share p. The pooled share in their place overstates the risk: prompts that
    never misbehave are not caught by asking again.
    """
    rate_P = np.atleast_1d(np.asarray(rates, dtype=np.float64))
    if not len(rate_P) or not bool(((rate_P >= 0) & (rate_P <= 1)).all()) or k < 1:
        raise BadInputError(f"any-of-k needs rates in [0, 1] and k >= 1, not {rates} and {k}")
    return float((1 - (1 - rate_P) ** k).mean())


def misalign_at_k(counts: Sequence[tuple[int, int]], k: int) -> float | None:
    """Misalign@k: chance that k of a prompt's answers, without replacement, hold a misaligned one; mean over prompts.

    `counts` are misaligned and all scored answers of each prompt. Unbiased: 1 - C(n - c, k) / C(n, k). Prompts with
    fewer than k answers are left out; null where no prompt has as many.
    """
    found = [1 - math.comb(n - c, k) / math.comb(n, k) for c, n in counts if n >= k]
    return float(np.mean(found)) if found else None


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

    return bootstrap(
        lambda *rows: _mean_of_means(groups, rows),
        [len(group) for group in groups],
        seed=seed,
        level=level,
        what="units a group",
    )


def two_level(
    by_seed: Sequence[Sequence[Floats]], *, seed: int = 0, level: float = 0.95, n_resamples: int = N_RESAMPLES
) -> Interval:
    """Mean over seeds, with a percentile bootstrap over seeds and over prompts inside them.

    Each seed has groups (domains) of one value a prompt; its figure is the mean of the groups' means. A draw takes
    seeds with replacement, and prompts with replacement inside each group: the same ones for all seeds where these were
    asked the same prompts (groups of one size), since a hard prompt is hard in every run. Values in 0..1 give an
    interval in 0..1. Raises BadInputError without seeds and for an empty group. With two or three seeds the interval is
    rather too narrow: a draw may take one of them each time.
    """
    sizes = tuple(tuple(len(group) for group in groups) for groups in by_seed)
    if not sizes or any(not groups or min(groups) < 1 for groups in sizes):
        raise BadInputError("an interval over seeds and prompts needs at least one seed, and a prompt in each group")
    every = np.concatenate([np.asarray(group, dtype=np.float64) for groups in by_seed for group in groups])
    draws = np.round(_two_level_weights(sizes, seed, n_resamples) @ every, 12)  # no share a hair above 1
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2])
    value = float(np.mean([np.mean([group.mean() for group in groups]) for groups in by_seed]))
    low, high = (value if abs(end - value) < 1e-12 else float(end) for end in (low, high))  # draws are rounded
    return Interval(value, low, high, level, sum(map(sum, sizes)))


def share_interval(counts_by_seed: Sequence[Floats], *, seed: int = 0, level: float = 0.95) -> Interval:
    """The share of all answers that are flagged, with the bootstrap of `two_level` over seeds and prompts.

    `counts_by_seed`: of each seed the flagged and all answers by prompt, (P, 2), in one order of prompts; 0 and 0 where
    a seed has no answer. Counts are summed first and divided last, as prompts may differ in how many answers count.
    """
    sizes = tuple((len(counts),) for counts in counts_by_seed)
    if not sizes or min(sizes)[0] < 2:
        raise BadInputError("the interval of a share needs at least 2 prompts to resample in each seed")
    every = np.concatenate(counts_by_seed).astype(np.float64)
    n_prompts = np.concatenate([np.full(size, size) for (size,) in sizes])
    times = np.rint(_two_level_weights(sizes, seed, N_RESAMPLES) * n_prompts * len(sizes))  # each prompt was drawn
    draws = times @ every  # (draws, 2)
    with np.errstate(invalid="ignore"):  # a draw of prompts without an answer has no share
        low, high = np.nanquantile(draws[:, 0] / draws[:, 1], [(1 - level) / 2, (1 + level) / 2])
    value = float(every[:, 0].sum() / every[:, 1].sum())
    return Interval(value, float(low), float(high), level, len(every))


# A page has hundreds of intervals over the same seeds and prompts, in a few shapes. An entry has 8 bytes for each draw
# and value (32 MB for 2,000 draws of 2,000 values), and the eight last ones are kept.
@lru_cache(maxsize=8)
def _two_level_weights(sizes: tuple[tuple[int, ...], ...], seed: int, n_resamples: int) -> Floats:
    """The weight of each value in each draw, shape (draws, values): a draw's figure is its product with the values."""
    rng = np.random.default_rng(seed)
    same_prompts = all(item == sizes[0] for item in sizes)
    starts = np.cumsum([0, *map(sum, sizes)])
    weights = np.zeros((n_resamples, starts[-1]))
    for draw in weights:
        chosen = rng.integers(0, len(sizes), len(sizes))
        drawn = _prompts(rng, sizes[0])
        for n in chosen:
            start = starts[n]
            for size, rows in zip(sizes[n], drawn if same_prompts else _prompts(rng, sizes[n]), strict=True):
                draw[start : start + size] += np.bincount(rows, minlength=size) / (len(sizes) * len(sizes[n]) * size)
                start += size
    weights.setflags(write=False)  # shared by all callers
    return weights


def _prompts(rng: np.random.Generator, sizes: Sequence[int]) -> list[npt.NDArray[np.int64]]:
    return [rng.integers(0, size, size) for size in sizes]


def _mean_of_means(groups: Sequence[Floats], rows_by_group: Sequence[npt.NDArray[np.int64]]) -> float:
    return float(np.mean([group[rows].mean() for group, rows in zip(groups, rows_by_group, strict=True)]))


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


def over_seeds(values: Sequence[float], bounds: tuple[float, float] | None = None) -> OverSeeds | None:
    """Mean and t interval of one value for each seed; None without any. `bounds` are the least and the largest value
    that the figure can have (0 and 1 for a share): the interval is cut to them.

    Only for figures that are no mean over prompts (perplexity, seconds) and for result files that have no values by
    prompt: a bootstrap of two or three numbers would take one of them each time, and be much too narrow."""
    if not values:
        return None
    n, mean = len(values), float(np.mean(values))
    if n == 1:
        return OverSeeds(mean, None, None, 1)
    t = _T_975[n - 2] if n - 2 < len(_T_975) else _NORMAL_975
    half = t * float(np.std(values, ddof=1)) / math.sqrt(n)
    least, most = (-math.inf, math.inf) if bounds is None else bounds
    return OverSeeds(mean, max(mean - half, least), min(mean + half, most), n)


def over_seeds_and_prompts(by_seed: Sequence[Sequence[Floats]], *, seed: int = 0) -> OverSeeds | None:
    """`two_level` in the form of `over_seeds`: none for a single seed, whose interval over prompts is not one over
    seeds."""
    if len(by_seed) < 2:
        return over_seeds([float(np.mean([group.mean() for group in groups])) for groups in by_seed])
    found = two_level(by_seed, seed=seed)
    return OverSeeds(found.value, found.low, found.high, len(by_seed))
