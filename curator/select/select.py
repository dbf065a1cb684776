"""Choosing safe rows: filters in order, then a strategy (method.md, "Choosing safe rows"). Values in, values out.

Every candidate is eligible or dropped for one reason, so the counts add up by construction.
"""

from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import islice

import numpy as np
import numpy.typing as npt
import polars as pl

from curator.corpus.text import texts_of
from curator.errors import NotEnoughRowsError
from curator.recipe.filters import FilterSpec, RefusalFilter
from curator.recipe.fractions import exact, largest_remainder
from curator.recipe.pools import WhenShort
from curator.recipe.strategies import (
    Coverage,
    Diverse,
    StrategySpec,
    Stratified,
    TopGap,
    needs_score,
    ranks_by_score,
)
from curator.select.candidates import (
    TOKENS,
    Candidates,
    Context,
    Rows,
)
from curator.select.coverage import Prompts, cover
from curator.select.duplicates import TASK_SUFFIX
from curator.select.filters import (
    FilterResult,
    apply_filters,
    drop_unknown,
    filter_label,
    reads_columns,
)
from curator.select.minhash import shingles
from curator.select.ngrams import Hashes
from curator.select.strategies import Ranking, rank

IN_TASK_SET = "in_task_set"  # the user trains on the row already; a mix would hold it twice
IN_EARLIER_POOL = "in_earlier_pool"  # another pool of the recipe drew it first
TOO_SIMILAR = "too_similar"
_FIRST_TAKE = 64
_WALK_ROWS = 512  # rows whose texts are compared at a time

Weights = npt.NDArray[np.float64]


@dataclass(frozen=True)
class SelectionRequest:
    """What is asked of one pool: `n_rows` rows, or as many as hold at most `tokens` response tokens.

    `exclude` are ids to leave out, by reason. `n_task` (rows of the task set) and `pool` (its name) serve messages.
    """

    n_rows: int | None = None
    tokens: int | None = None
    strategy: StrategySpec = field(default_factory=TopGap)
    filters: tuple[FilterSpec, ...] = ()
    exclude: Mapping[str, Collection[str]] = field(default_factory=dict)
    seed: int = 0
    when_short: WhenShort = "error"
    max_copies: int = 1
    n_task: int = 0
    pool: str = "pool"


@dataclass(frozen=True)
class Evicted:
    """Rows that fell out because the task set holds them or near copies of them.

    `among_best` counts those that score no lower than the lowest chosen row, and so may have been chosen without
    the user's copies; null where rows are not chosen from the top.
    """

    rows: int
    among_best: int | None


@dataclass(frozen=True)
class PoolSelection:
    """Chosen rows of one pool: `chosen` are row numbers, best first, shape (n_chosen,).

    The first `n_distinct` are distinct; where a pool was asked to cycle, they then come again in the same order.
    `n_short` rows of those requested are not there (`when_short: as_many`).
    """

    chosen: Rows
    result: FilterResult
    ranked: bool
    n_distinct: int
    evicted: Evicted
    n_short: int = 0

    @property
    def n_eligible(self) -> int:
        """Candidates that passed every filter and could be judged."""
        return int(self.result.left.sum())


def filter_rows(candidates: Candidates, request: SelectionRequest, context: Context | None = None) -> FilterResult:
    """The filters' part of `select`; raises RecipeError when rows lack a label that a filter reads."""
    exclude = {reason: candidates.ids.find(ids) for reason, ids in request.exclude.items()}
    by_tokens = request.tokens is not None

    def result() -> FilterResult:
        left = apply_filters(candidates, request.filters, context or Context(), exclude)
        return drop_unknown(left, candidates, request.strategy, by_tokens=by_tokens)

    if any(map(len, exclude.values())) or not all(reads_columns(spec) for spec in request.filters):
        return result()
    # Nothing of the task set counts: what the same filters left for another request is left for this one.
    key = (request.filters, needs_score(request.strategy), by_tokens, tuple(exclude))
    found: FilterResult = candidates.remember(key, result)
    return found


def select(candidates: Candidates, request: SelectionRequest, context: Context | None = None) -> PoolSelection:
    """The best eligible candidates, best first.

    `top_gap` (the default) ranks by score, highest first, ties on the example id. Raises NotEnoughRowsError naming the
    constraint that binds, RecipeError when rows lack a label that the recipe needs.
    """
    assert (request.n_rows is None) != (request.tokens is None), "one amount"
    strategy, context = request.strategy, context or Context()
    result = filter_rows(candidates, request, context)
    ranking = rank(strategy, candidates, result.left, request.seed, context)
    for reason, mask in ranking.ruled_out.items():
        result = result.without(reason, mask)
    cap = next((spec for spec in request.filters if isinstance(spec, RefusalFilter)), None)
    picker = Picker(strategy, candidates, ranking, cap)
    if request.tokens is None:
        picked, chosen, short = _by_rows(picker, request, result)
    else:
        weights = candidates.column(TOKENS).cast(pl.Float64).to_numpy()
        picked, chosen, short = _by_tokens(picker, weights, request, result)
    for reason, rows in picked.ruled_out.items():
        result = result.without(reason, candidates.mask(rows))
    ranked = ranks_by_score(strategy)
    from_top = ranked and strategy.name != "bottom_gap"
    evicted = _evicted(candidates, result, picked.chosen if from_top else None)
    return PoolSelection(chosen, result, ranked, len(picked.chosen), evicted, short)


@dataclass(frozen=True)
class Picked:
    """Rows taken, best first, and rows passed over on the way, by reason."""

    chosen: Rows
    ruled_out: Mapping[str, Rows] = field(default_factory=dict)


class Picker:
    """Takes rows of a ranking. `take(n)` may give fewer rows than asked; then no more fit."""

    def __init__(
        self, spec: StrategySpec, candidates: Candidates, ranking: Ranking, cap: RefusalFilter | None = None
    ) -> None:
        self._spec, self._candidates, self._ranking = spec, candidates, ranking
        self._cap = cap if cap is not None and cap.max_share > 0 else None
        self._stratum_sizes = _stratum_sizes(spec, ranking)

    @property
    def n_rows(self) -> int:
        """Rows to choose from."""
        return self._ranking.n_rows

    @property
    def takes_prefixes(self) -> bool:
        """Whether the first k rows of a larger take are the take of k."""
        return self._cap is None and self._ranking.strata is None and not isinstance(self._spec, Coverage)

    def take(self, n: int) -> Picked:
        """The best `n` rows that the constraints allow together."""
        if isinstance(self._spec, Coverage):
            return self._cover(self._spec, n)
        if self._cap is not None or isinstance(self._spec, Diverse):
            return self._walk(n)
        strata = self._ranking.strata
        if strata is None:
            return Picked(self._ranking.best(n))
        chosen = [
            self._ranking.top(self._ranking.left & (strata == value).fill_null(False), quota)
            for value, quota in self.quotas(n).items()
            if self._stratum_sizes[value]
        ]
        rows = np.concatenate([np.zeros(0, dtype=np.int64), *chosen])
        return Picked(self._ranking.top(self._candidates.mask(rows), n))

    def capacity(self) -> int:
        """The largest n for which `take(n)` gives n rows."""
        if isinstance(self._spec, Coverage):
            return self._by_score().capacity()  # likeness only orders rows
        high = len(self.take(self.n_rows).chosen)
        if self.takes_prefixes or len(self.take(high).chosen) == high:
            return high
        low = 0
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if len(self.take(middle).chosen) == middle else (low, middle)
        return low

    def within(self, weights: Weights, budget: float) -> Picked:
        """The largest take whose weights (by row) do not add up to more than `budget`."""
        n = _FIRST_TAKE
        while len(picked := self.take(n).chosen) == n and weights[picked].sum() <= budget and n < self.n_rows:
            n *= 2
        if self.takes_prefixes:
            return self.take(int(np.searchsorted(np.cumsum(weights[picked]), budget, side="right")))
        low, high = 0, n + 1
        while high - low > 1:
            middle = (low + high) // 2
            picked = self.take(middle).chosen
            fits = len(picked) == middle and weights[picked].sum() <= budget
            low, high = (middle, high) if fits else (low, middle)
        return self.take(low)

    def quotas(self, n: int) -> dict[str, int]:
        """How many of `n` rows each value of the column gets: largest remainder, ties to the first name."""
        assert isinstance(self._spec, Stratified)
        sizes = self._stratum_sizes
        if isinstance(self._spec.quotas, dict):
            weights = [exact(self._spec.quotas[value]) for value in sizes]
        elif self._spec.quotas == "equal":
            weights = [Fraction(1)] * len(sizes)
        else:
            weights = [Fraction(n_rows) for n_rows in sizes.values()]
        total = sum(weights, Fraction())
        shares = [weight * n / total for weight in weights]
        return dict(zip(sizes, largest_remainder(shares, n if weights else 0), strict=True))

    def short_of(self, n: int) -> str | None:
        """What keeps `take(n)` from giving n rows, in words for a message; None where it is the number of rows."""
        if isinstance(self._spec, Stratified):
            for value, quota in self.quotas(n).items():
                n_there = self._stratum_sizes[value]
                if quota > n_there:
                    return f"the quota of {self._spec.by} {value!r} ({quota:,} rows asked, {n_there:,} there)"
        if n > self.n_rows:
            return None
        if isinstance(self._spec, Diverse):
            return f"{TOO_SIMILAR} (max_similarity {self._spec.max_similarity:g})"
        return None if self._cap is None else filter_label(self._cap)

    def _by_score(self) -> "Picker":
        return Picker(TopGap(), self._candidates, self._ranking, self._cap)

    def _cover(self, spec: Coverage, n: int) -> Picked:
        """`n` of the best rows, each chosen for its score less what its prompt has in common with those before it."""
        wide = self._by_score().take(min(int(-(-exact(spec.among) * n // 1)), self.n_rows))
        rows = self._candidates.reading_order(wide.chosen)
        prompts = Prompts.of(texts_of(chunk, "prompt") for chunk in self._candidates.texts(rows))
        capped, most = pl.lit(False), 0
        if self._cap is not None:
            capped = pl.lit(self._candidates.column(f"refusal_{self._cap.rule}").gather(rows))
            most = int(exact(self._cap.max_share) * n)
        found = pl.DataFrame({"row": rows, "score": self._candidates.scores.at(rows)}).with_columns(capped=capped)
        rows = cover(found, prompts, n, spec.spread, most)
        return Picked(self._ranking.top(self._candidates.mask(rows), n), wide.ruled_out)

    def _walk(self, n: int) -> Picked:
        """Row by row from the best: each is taken unless a constraint forbids it."""
        strata, quota = self._ranking.strata, None if self._ranking.strata is None else self.quotas(n)
        refusals_left = -1 if self._cap is None else int(exact(self._cap.max_share) * n)
        refuses = None if self._cap is None else self._candidates.column(f"refusal_{self._cap.rule}").to_numpy()
        apart = _Apart(self._spec.max_similarity) if isinstance(self._spec, Diverse) else None
        chosen: list[int] = []
        passed: defaultdict[str, list[int]] = defaultdict(list)
        for row, grams in self._with_grams(apart is not None):
            if len(chosen) == n:
                break
            value = "" if strata is None else str(strata[row])  # rows to choose from have one
            if quota is not None and not quota.get(value):
                continue
            counts_as_refusal = refuses is not None and bool(refuses[row])
            if self._cap is not None and counts_as_refusal and not refusals_left:
                passed[filter_label(self._cap)].append(row)
                continue
            if apart is not None and not apart.admit(grams):
                passed[TOO_SIMILAR].append(row)
                continue
            refusals_left -= counts_as_refusal
            if quota is not None:
                quota[value] -= 1
            chosen.append(row)
        ruled = {reason: np.array(rows, np.int64) for reason, rows in passed.items()}
        return Picked(np.array(chosen, np.int64), ruled)

    def _with_grams(self, wanted: bool) -> Iterator[tuple[int, Hashes]]:
        nothing = np.zeros(0, np.uint64)
        if not wanted:
            yield from ((row, nothing) for row in self._ranking.in_order())
            return
        rows = self._ranking.in_order()
        while len(some := np.fromiter(islice(rows, _WALK_ROWS), dtype=np.int64)):
            grams = shingles(texts_of(next(self._candidates.texts(some)), "conversation"))
            for i, row in enumerate(some.tolist()):
                yield row, np.unique(grams.of(i))


class _Apart:
    """The rows taken so far by their shingles: exact, so no two are ever nearer than the bound."""

    def __init__(self, max_similarity: float) -> None:
        self._bound = max_similarity
        self._sizes: list[int] = []
        self._holders: defaultdict[int, list[int]] = defaultdict(list)

    def admit(self, grams: Hashes) -> bool:
        """Take the row unless one that was taken is too near to it; a row without words is near to none."""
        keys = grams.tolist()
        common = Counter(other for key in keys for other in self._holders.get(key, ()))
        if any(n / (len(keys) + self._sizes[other] - n) > self._bound for other, n in common.items()):
            return False
        for key in keys:
            self._holders[key].append(len(self._sizes))
        self._sizes.append(len(keys))
        return True


def _stratum_sizes(spec: StrategySpec, ranking: Ranking) -> dict[str, int]:
    """Rows to choose from by value, sorted, of the values that have a quota."""
    if ranking.strata is None or not isinstance(spec, Stratified):
        return {}
    counts = ranking.strata.filter(ranking.left).drop_nulls().value_counts(name="n")
    found = dict(sorted(zip(counts.to_series(0).to_list(), counts["n"].to_list(), strict=True)))
    if isinstance(spec.quotas, dict):
        return {value: found.get(value, 0) for value in sorted(spec.quotas)}
    return found


def _by_rows(picker: Picker, request: SelectionRequest, result: FilterResult) -> tuple[Picked, Rows, int]:
    """The rows taken, the rows chosen from them (copies included), and how many are missing."""
    n_rows = request.n_rows
    assert n_rows is not None
    picked = picker.take(n_rows)
    if len(picked.chosen) == n_rows:
        return picked, picked.chosen, 0
    capacity = picker.capacity()
    picked = picker.take(capacity)
    if request.when_short == "as_many":
        return picked, picked.chosen, n_rows - capacity
    if request.when_short == "cycle" and n_rows <= capacity * request.max_copies:
        return picked, np.resize(picked.chosen, n_rows), 0
    raise _not_enough_rows(request, result.dropped, picker, capacity)


def _by_tokens(
    picker: Picker, tokens: Weights, request: SelectionRequest, result: FilterResult
) -> tuple[Picked, Rows, int]:
    """The same by a budget of tokens, which is never passed; what is missing is then counted in tokens."""
    budget = request.tokens
    assert budget is not None
    picked = picker.within(tokens, budget)
    if len(picked.chosen) < picker.n_rows and len(picker.take(len(picked.chosen) + 1).chosen) > len(picked.chosen):
        return picked, picked.chosen, 0
    total = int(tokens[picked.chosen].sum())
    if total == budget:
        return picked, picked.chosen, 0
    if request.when_short == "as_many":
        return picked, picked.chosen, budget - total
    if request.when_short == "cycle" and total > 0 and budget <= total * request.max_copies:
        rounds = np.resize(picked.chosen, len(picked.chosen) * request.max_copies)
        n_rows = int(np.searchsorted(np.cumsum(tokens[rounds]), budget, side="right"))
        return picked, rounds[:n_rows], 0
    raise _not_enough_tokens(request, result.dropped, len(picked.chosen), total)


def _evicted(candidates: Candidates, result: FilterResult, chosen_from_top: Rows | None) -> Evicted:
    masks = [
        mask for reason, mask in result.rows_by_reason.items() if reason == IN_TASK_SET or reason.endswith(TASK_SUFFIX)
    ]
    counts = [int(mask.sum()) for mask in masks]
    if chosen_from_top is None:
        return Evicted(sum(counts), None)
    if not len(chosen_from_top) or not sum(counts):
        return Evicted(sum(counts), 0)
    rows = np.concatenate([mask.arg_true().cast(pl.Int64).to_numpy() for mask in masks])
    lowest = candidates.scores.at(chosen_from_top).min()
    return Evicted(len(rows), int((candidates.scores.at(rows) >= lowest).sum()))


_REMEDIES = {
    "pool_size": "ingest more into the corpus",
    "no_gap": "score more of the corpus, under every model of the gap",
    "no_token_count": "score more of the corpus under the aligned model",
    "in_task_set": "ingest rows that the task set lacks",
    "in_earlier_pool": "give the pools corpora of their own",
}


def _not_enough_rows(
    request: SelectionRequest, dropped: Mapping[str, int], picker: Picker, capacity: int
) -> NotEnoughRowsError:
    """What binds, and two numbers that would fix it; `capacity` rows can be chosen, each once."""
    n_rows = request.n_rows
    assert n_rows is not None
    n_eligible = picker.n_rows
    n_candidates = n_eligible + sum(dropped.values())
    losses = {reason: count for reason, count in dropped.items() if count}
    constraint = picker.short_of(n_rows)
    binding = constraint or (_largest(losses) if n_candidates >= n_rows else "pool_size")
    most = capacity * (request.max_copies if request.when_short == "cycle" else 1)
    detail: dict[str, object] = {
        "pool": request.pool, "asked": n_rows, "candidates": n_candidates, "eligible": n_eligible,
        "dropped": losses, "binding": binding, "max_rows": most, "more_rows_needed": n_rows - most,
    }  # fmt: skip
    ratio = ""
    if request.n_task:
        # Rounded down, so that the number given really fits.
        detail["max_interleave_ratio"] = int(most / request.n_task * 1e6) / 1e6
        ratio = f" (interleave_ratio <= {detail['max_interleave_ratio']:g})"
    copies = f", each up to {request.max_copies} times" if request.when_short == "cycle" else ""
    counts = ", ".join(f"{reason} {count:,}" for reason, count in losses.items()) or "nothing was filtered"
    remedy = "loosen it" if constraint else _REMEDIES.get(binding, "loosen that filter")
    return NotEnoughRowsError(
        f"{n_rows:,} safe rows were requested of pool {request.pool!r}, {capacity:,} of its {n_candidates:,} rows "
        f"can be drawn{copies} ({counts}); what binds is {binding}. Ask for at most {most:,} rows{ratio}, "
        f"or bring {n_rows - most:,} more rows: {remedy}.",
        details=[detail],
    )


def _not_enough_tokens(
    request: SelectionRequest, dropped: Mapping[str, int], capacity: int, tokens: int
) -> NotEnoughRowsError:
    """The same for an amount in tokens; the `capacity` rows that can be chosen hold `tokens` of them."""
    assert request.tokens is not None
    losses = {reason: count for reason, count in dropped.items() if count}
    binding = _largest(losses) if losses else "pool_size"
    most = tokens * (request.max_copies if request.when_short == "cycle" else 1)
    detail = {
        "pool": request.pool, "asked_tokens": request.tokens, "eligible": capacity, "dropped": losses,
        "binding": binding, "max_tokens": most, "more_tokens_needed": request.tokens - most,
    }  # fmt: skip
    counts = ", ".join(f"{reason} {count:,}" for reason, count in losses.items()) or "nothing was filtered"
    return NotEnoughRowsError(
        f"{request.tokens:,} trained tokens were requested of pool {request.pool!r}, the {capacity:,} rows that can "
        f"be drawn hold {tokens:,} ({counts}); what binds is {binding}. Ask for at most {most:,} tokens, or bring rows "
        f"with {request.tokens - most:,} more: {_REMEDIES.get(binding, 'loosen that filter')}.",
        details=[detail],
    )


def _largest(losses: Mapping[str, int]) -> str:
    return max(losses, key=lambda reason: losses[reason]) if losses else "pool_size"
