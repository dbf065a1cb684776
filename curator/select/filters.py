"""Filters on pool rows (method.md, "Choosing safe rows"): apply them in order and record each row's first reason.

A filter is one function and one line in `FILTERS`. A filter on columns gives Polars expressions, which are evaluated
over all rows; a filter on texts looks at the rows that earlier filters left.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import polars as pl

from curator.errors import RecipeError
from curator.recipe.filters import (
    ContaminationFilter,
    ExactDuplicates,
    FilterSpec,
    HarmFilter,
    HygieneCheck,
    HygieneFilter,
    LabelFilter,
    LengthFilter,
    Missing,
    NearDuplicates,
    RefusalFilter,
)
from curator.recipe.strategies import StrategySpec, needs_score
from curator.select.candidates import (
    TOKENS,
    Candidates,
    Context,
    Rows,
    label_values,
)
from curator.select.duplicates import contaminated, exact_duplicates, near_duplicates

NO_GAP = "no_gap"  # a loss is missing: the row cannot be judged
NO_TOKENS = "no_token_count"  # an amount in tokens cannot count the row


@dataclass(frozen=True)
class FilterResult:
    """What the filters made of a pool's rows: `left` is a mask of those that may be chosen.

    `rows_by_reason` has, in the order in which they were tried, a mask of the rows dropped for each reason; a row is
    dropped for the first that applies. `unjudged` has, by filter, a mask of the rows that passed because they lack the
    label that it reads.
    """

    left: pl.Series
    rows_by_reason: Mapping[str, pl.Series] = field(default_factory=dict)
    unjudged: Mapping[str, pl.Series] = field(default_factory=dict)

    @property
    def n_unjudged(self) -> dict[str, int]:
        """Number of rows by filter that passed it unjudged and may be chosen."""
        counts = {name: int((mask & self.left).sum()) for name, mask in self.unjudged.items()}
        return {name: count for name, count in counts.items() if count}

    @property
    def reasons(self) -> tuple[str, ...]:
        """The reasons in the order in which they were tried."""
        return tuple(self.rows_by_reason)

    @property
    def eligible(self) -> Rows:
        """Rows that may be chosen, ascending."""
        rows: Rows = self.left.arg_true().cast(pl.Int64).to_numpy()
        return rows

    @property
    def dropped(self) -> dict[str, int]:
        """Number of rows dropped for each reason."""
        return {reason: int(mask.sum()) for reason, mask in self.rows_by_reason.items()}

    @property
    def reason_column(self) -> pl.Series:
        """The reason of every row, null for those that may be chosen."""
        if not self.rows_by_reason:
            return pl.repeat(None, len(self.left), dtype=pl.String, eager=True)
        kind = pl.Enum(self.reasons)
        masks = pl.DataFrame(list(self.rows_by_reason.values()), schema=[*map(str, range(len(self.reasons)))])
        chain: Any = pl
        for place, reason in enumerate(self.reasons):
            chain = chain.when(pl.col(str(place))).then(pl.lit(reason, kind))
        return masks.select(chain.otherwise(None)).to_series()

    def reason_of(self, row: int) -> str | None:
        """Why a row cannot be chosen; None when it can."""
        return next((reason for reason, mask in self.rows_by_reason.items() if mask[int(row)]), None)

    def without(self, reason: str, rows: pl.Series) -> "FilterResult":
        """The same with the masked rows dropped, those that an earlier reason dropped aside."""
        hit = self.left & rows
        known = self.rows_by_reason.get(reason)
        found = {**self.rows_by_reason, reason: hit if known is None else known | hit}
        return FilterResult(self.left & ~rows, found, self.unjudged)


@dataclass(frozen=True)
class Rule:
    """A filter on columns as expressions: the rows that each reason drops, of which the first counts.

    `unknown` are rows without the label `name` that the filter reads; `missing` says whether they fail the recipe,
    pass (and are counted) or are dropped for a reason of their own.
    """

    name: str
    drops: Mapping[str, pl.Expr]
    unknown: pl.Expr | None = None
    missing: Missing = "fail"


ByColumns = Callable[[Any, Candidates], Rule]
ByTexts = Callable[[Any, Candidates, Rows, Context], Mapping[str, Rows]]


@dataclass(frozen=True)
class Filter:
    """How rows are judged: by expressions over columns, or by a function that reads the texts of the rows left."""

    by_columns: ByColumns | None = None
    by_texts: ByTexts | None = None


def apply_filters(
    candidates: Candidates,
    filters: Sequence[FilterSpec],
    context: Context,
    exclude: Mapping[str, Rows],
) -> FilterResult:
    """Drop the rows in `exclude` (by reason), then apply the filters in order.

    Raises RecipeError when rows lack a label that a filter reads and the filter does not say what to do.
    """
    result = FilterResult(pl.repeat(True, len(candidates), dtype=pl.Boolean, eager=True))
    for reason, rows in exclude.items():
        result = result.without(reason, candidates.mask(rows))
    for spec in filters:
        way = FILTERS[type(spec)]
        if way.by_columns is not None:
            result = _apply_rule(way.by_columns(spec, candidates), candidates, result)
        elif way.by_texts is not None:
            found = way.by_texts(spec, candidates, result.eligible, context)
            for reason, rows in found.items():
                result = result.without(reason, candidates.mask(rows))
    return result


def drop_unknown(
    result: FilterResult, candidates: Candidates, strategy: StrategySpec, *, by_tokens: bool
) -> FilterResult:
    """Drop rows that a strategy which ranks cannot judge, and those that an amount in tokens cannot count."""
    if needs_score(strategy):
        result = result.without(NO_GAP, ~candidates.scores.known)
    if by_tokens:
        result = result.without(NO_TOKENS, candidates.column(TOKENS).is_null())
    return result


def _apply_rule(rule: Rule, candidates: Candidates, result: FilterResult) -> FilterResult:
    expressions = {str(place): mask.fill_null(False) for place, mask in enumerate(rule.drops.values())}
    if rule.unknown is not None:
        expressions["unknown"] = rule.unknown
    names = sorted({name for mask in expressions.values() for name in mask.meta.root_names()})
    masks = candidates.columns(*names).select(**expressions)
    unknown = masks["unknown"] if rule.unknown is not None else None
    n_unknown = 0 if unknown is None else int((unknown & result.left).sum())
    if n_unknown and rule.missing == "fail":
        n_left = int(result.left.sum())
        raise RecipeError(
            f"the {rule.name} filter cannot judge {n_unknown:,} of {n_left:,} rows, which have no {rule.name}: bring "
            "the label, or say missing: ignore to let them pass or missing: drop to leave them out",
            details=[{"filter": rule.name, "rows": n_left, "without": n_unknown}],
        )
    for place, reason in enumerate(rule.drops):
        mask = masks[str(place)]
        result = result.without(reason, mask & ~unknown if n_unknown and unknown is not None else mask)
    if unknown is not None and rule.missing == "drop":
        result = result.without(f"{rule.name}:missing", unknown)
    if n_unknown and unknown is not None and rule.missing == "ignore":
        known = result.unjudged.get(rule.name)
        masks_by_name = {**result.unjudged, rule.name: unknown if known is None else known | unknown}
        result = FilterResult(result.left, result.rows_by_reason, masks_by_name)
    return result


def _refusal(spec: RefusalFilter, candidates: Candidates) -> Rule:
    """Rows whose last answer opens like a refusal; a share of them that may stay is kept while rows are chosen."""
    flag = pl.col(f"refusal_{spec.rule}")
    return Rule(spec.name, {filter_label(spec): flag & (spec.max_share == 0)})


def _harm(spec: HarmFilter, candidates: Candidates) -> Rule:
    """Rows whose harm label is not one of those to keep are dropped."""
    keep = {label.casefold() for label in spec.keep}
    drops = _label_in("harm", candidates, lambda label: label.casefold() not in keep)
    return Rule("harm", {"harm": drops}, pl.col("harm").is_null(), spec.missing)


def _label(spec: LabelFilter, candidates: Candidates) -> Rule:
    """Rows whose label is not included, or is excluded, are dropped."""
    include, exclude = frozenset(spec.include), frozenset(spec.exclude)
    drops = _label_in(spec.name, candidates, lambda label: (bool(include) and label not in include) or label in exclude)
    return Rule(spec.name, {spec.name: drops}, pl.col(spec.name).is_null(), spec.missing)


def _label_in(name: str, candidates: Candidates, test: Callable[[str], bool]) -> pl.Expr:
    """Rows whose label passes a test, which each distinct label is put to once."""
    return pl.col(name).is_in([label for label in label_values(candidates.column(name)) if test(label)])


def _length(spec: LengthFilter, candidates: Candidates) -> Rule:
    """Rows outside a bound are dropped as too short or too long; those without a count are unjudged."""
    bounds = [("n_chars", spec.min_chars, spec.max_chars), (TOKENS, spec.min_tokens, spec.max_tokens)]
    used = [name for name, *limits in bounds if any(limit is not None for limit in limits)]
    short = pl.any_horizontal([pl.lit(False), *(pl.col(name) < low for name, low, _ in bounds if low is not None)])
    long = pl.any_horizontal([pl.lit(False), *(pl.col(name) > high for name, _, high in bounds if high is not None)])
    unknown = pl.any_horizontal([pl.col(name).is_null() for name in used])
    return Rule("length", {"length:short": short, "length:long": long}, unknown, spec.missing)


def _hygiene(spec: HygieneFilter, candidates: Candidates) -> Rule:
    """Rows that no one should train on; the first check that a row fails, in the order of `spec.checks`, counts."""
    fails: dict[HygieneCheck, pl.Expr] = {
        "template_marker": pl.col("template_marker"),
        "no_question": pl.col("no_question"),
        "empty": pl.col("empty"),
        "looped": pl.col("repetition") > spec.max_repeated,
    }
    return Rule("hygiene", {f"hygiene:{name}": fails[name] for name in spec.checks})


FILTERS: Mapping[type, Filter] = {
    RefusalFilter: Filter(by_columns=_refusal),
    HarmFilter: Filter(by_columns=_harm),
    LabelFilter: Filter(by_columns=_label),
    LengthFilter: Filter(by_columns=_length),
    HygieneFilter: Filter(by_columns=_hygiene),
    ExactDuplicates: Filter(by_texts=exact_duplicates),
    NearDuplicates: Filter(by_texts=near_duplicates),
    ContaminationFilter: Filter(by_texts=contaminated),
}


def reads_columns(spec: FilterSpec) -> bool:
    """Whether a filter's answer follows from the pool's columns alone."""
    return FILTERS[type(spec)].by_columns is not None


def filter_label(spec: FilterSpec) -> str:
    """The name under which manifests and rows show a filter, e.g. `refusal:v1`."""
    if not isinstance(spec, RefusalFilter):
        return spec.name
    return f"{spec.name}:{spec.rule}" + (f":share<={spec.max_share:g}" if spec.max_share else "")
