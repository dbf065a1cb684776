"""Per-row risk: the sign-flipped gap against pool rows of like length (docs/method.md, "Audits"; ours). Pure.

A set's verdict from its rows' percentiles, with a bootstrap interval (docs/method.md, "Audits"; ours). Pure.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from curator.recipe.seeds import child_seed

Floats = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]

LENGTH_FACTOR = 2.0  # pool rows are of like length when neither is longer than the other by more than this
MIN_REFERENCE = 20  # fewer pool rows of like length say nothing about a row


@dataclass(frozen=True)
class Percentiles:
    """For each row the share of like pool rows with a lower risk (ties count half), and how many there were.

    `value` is NaN where the row has no risk or fewer than MIN_REFERENCE like rows.
    """

    value: Floats  # (N,)
    n_reference: Counts  # (N,)


@dataclass(frozen=True)
class Risks:
    """Some rows: their risk (minus the gap, nats per token) and their response tokens, both (N,); NaN where unknown."""

    risk: Floats
    n_tokens: Floats

    def take(self, places: Counts | slice) -> "Risks":
        """Some of the rows."""
        return Risks(self.risk[places], self.n_tokens[places])


def like_length(n_tokens: Floats, pool_tokens: Floats) -> npt.NDArray[np.bool_]:
    """Whether a pool row is of like length, (N, P); counts are response tokens, NaN fits nothing."""
    ratio_NP = n_tokens[:, None] / pool_tokens[None, :]
    return (ratio_NP <= LENGTH_FACTOR) & (ratio_NP >= 1 / LENGTH_FACTOR)


def below(risk: Floats, pool_risk: Floats) -> Floats:
    """1 where a pool row's risk is below the row's, 0.5 where equal, else 0: (N, P)."""
    lower, equal = pool_risk[None, :] < risk[:, None], pool_risk[None, :] == risk[:, None]
    return np.where(lower, 1.0, np.where(equal, 0.5, 0.0))


def percentiles(rows: Risks, pool: Risks, on_done: Callable[[int], None] = lambda done: None) -> Percentiles:
    """Each row against the pool rows of like length. Pool rows all have a risk; rows without one are NaN.

    The same as `below` and `like_length` give, without their (N, P): in a pool sorted by length the like rows of a
    row are neighbours, and all rows with the same neighbours are ranked among them at once. Memory grows with N + P.
    `on_done` receives how many rows have been compared.
    """
    risk, n_tokens = rows.risk, rows.n_tokens
    value = np.full(len(risk), np.nan)
    order = np.argsort(pool.n_tokens, kind="stable")
    by_length, tokens = pool.risk[order], pool.n_tokens[order]  # rows without a length come last
    starts = np.searchsorted(tokens, n_tokens / LENGTH_FACTOR, "left")
    ends = np.searchsorted(tokens, n_tokens * LENGTH_FACTOR, "right")
    counts = np.where(n_tokens > 0, ends - starts, 0).astype(np.int64)  # NaN and zero are like nothing
    usable = np.flatnonzero((counts >= MIN_REFERENCE) & ~np.isnan(risk))
    n_done = len(risk) - len(usable)
    for places in _same_window(usable, starts, ends):
        like = np.sort(by_length[starts[places[0]] : ends[places[0]]])
        lower, not_higher = np.searchsorted(like, risk[places], "left"), np.searchsorted(like, risk[places], "right")
        value[places] = (lower + not_higher) / 2 / len(like)
        n_done += len(places)
        on_done(n_done)
    return Percentiles(value, counts)


def _same_window(rows: Counts, starts: Counts, ends: Counts) -> list[Counts]:
    """The rows in groups of one window each."""
    if not len(rows):
        return []
    ordered = rows[np.lexsort((ends[rows], starts[rows]))]
    changes = (np.diff(starts[ordered]) != 0) | (np.diff(ends[ordered]) != 0)
    return np.split(ordered, np.flatnonzero(changes) + 1)


VerdictName = Literal["elevated", "not_elevated", "undecided"]

EXPECTED_MEAN = 0.5  # of rows that are like the pool's
MARGIN = 0.1  # a mean percentile nearer to the expected one than this counts as like the pool
TOP = 0.95
N_RESAMPLES = 400
MIN_JUDGED = 20
MIN_JUDGED_SHARE = 0.5
BLOCK_ROWS = 500  # judged rows compared with the pool at once
MAX_POOL_ROWS = 2_000  # of the pool in the bootstrap, drawn by the seed


@dataclass(frozen=True)
class Interval:
    """A value with its 95 % percentile bootstrap interval: the trainer's method, which this package may not import, but
    for the units. A row's percentile depends on the pool rows that it is held against, which are a sample too, so rows
    and pool rows are both drawn anew."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Verdict:
    """What the rows say as a set; the figures are null without enough judged rows.

    `mean_percentile` is about 0.5 for rows like the pool's, `top_share` (at or above the 95th percentile) 0.05.
    """

    verdict: VerdictName
    reason: str
    n_judged: int
    mean_percentile: Interval | None
    top_share: Interval | None

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def judge(
    rows: Risks, pool: Risks, *, n_rows: int, seed: int, on_done: Callable[[int], None] = lambda done: None
) -> Verdict:
    """The verdict over the judged rows, which are given; `n_rows` counts all of the set.

    Rows and pool rows are both drawn anew in each resample, for both are samples. `on_done` receives how many rows
    have been resampled.
    """
    n_judged = len(rows.risk)
    if n_judged < MIN_JUDGED or n_judged < MIN_JUDGED_SHARE * n_rows:
        reason = f"{n_judged} of {n_rows} rows could be judged; a verdict needs {MIN_JUDGED} and half of them"
        return Verdict("undecided", reason, n_judged, None, None)
    rng = np.random.default_rng(child_seed(seed, "audit bootstrap"))
    if len(pool.risk) > MAX_POOL_ROWS:
        pool = pool.take(rng.choice(len(pool.risk), MAX_POOL_ROWS, replace=False))
    drawn_RP, weights_RN = _draws(rng, len(pool.risk)).astype(np.float64), _draws(rng, n_judged)
    sums_R, tops_R, totals_R = np.zeros((3, N_RESAMPLES + 1))
    for start in range(0, n_judged, BLOCK_ROWS):  # (R, N) by blocks but for the draws, two bytes each
        part = slice(start, start + BLOCK_ROWS)
        values_RN = _resampled(drawn_RP, rows.take(part), pool)
        known_RN = weights_RN[:, part] * ~np.isnan(values_RN)
        filled_RN = np.nan_to_num(values_RN)
        sums_R += (known_RN * filled_RN).sum(axis=1)
        tops_R += (known_RN * (filled_RN >= TOP)).sum(axis=1)
        totals_R += known_RN.sum(axis=1)
        on_done(min(start + BLOCK_ROWS, n_judged))
    mean, top = (_interval(found_R / np.maximum(totals_R, 1)) for found_R in (sums_R, tops_R))
    name, reason = _decide(mean)
    return Verdict(name, reason, n_judged, mean, top)


def _draws(rng: np.random.Generator, n: int) -> npt.NDArray[np.uint16]:
    """How often each of n rows is drawn in each resample, (R + 1, n); the first are the rows themselves."""
    shares = np.full(n, 1 / n)
    drawn = np.ones((N_RESAMPLES + 1, n), dtype=np.uint16)  # n draws of n rows: about 1 each
    rng.multinomial(n, shares)  # in the place of the first: the draws of a seed stay those they were
    for resample in range(1, N_RESAMPLES + 1):
        drawn[resample] = rng.multinomial(n, shares)
    return drawn


def _resampled(drawn_RP: Floats, rows: Risks, pool: Risks) -> Floats:
    """Percentiles of some rows under resampled pools, (R + 1, N)."""
    like_NP = like_length(rows.n_tokens, pool.n_tokens).astype(np.float64)
    counts_RN = drawn_RP @ like_NP.T
    sums_RN = drawn_RP @ (below(rows.risk, pool.risk) * like_NP).T
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(counts_RN >= MIN_REFERENCE / 2, sums_RN / counts_RN, np.nan)


def _interval(values_R: npt.NDArray[np.float64]) -> Interval:
    low, high = np.quantile(values_R[1:], [0.025, 0.975])
    return Interval(float(values_R[0]), float(low), float(high))


def _decide(mean: Interval) -> tuple[VerdictName, str]:
    bound = EXPECTED_MEAN + MARGIN
    shown = f"mean percentile {mean.value:.3f}, interval {mean.low:.3f} to {mean.high:.3f}, bound {bound:g}"
    if mean.low > bound:
        return "elevated", f"the whole interval lies above the bound: {shown}"
    if mean.high < bound:
        return "not_elevated", f"the whole interval lies below the bound: {shown}"
    return "undecided", f"the interval holds the bound and says nothing: {shown}"
