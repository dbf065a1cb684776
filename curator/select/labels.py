"""Filters on labels and lengths. A row without the label is unjudged: `missing` says what becomes of it."""

from collections.abc import Sequence

import numpy as np

from curator.errors import RecipeError
from curator.recipe.filters import (
    HarmFilter,
    LabelFilter,
    LengthFilter,
    Missing,
)
from curator.select.candidates import Columns, Verdict
from curator.select.columns import Mask


def harm_verdict(spec: HarmFilter, columns: Columns, left: Mask) -> Verdict:
    """Rows whose harm label is not one of those to keep are dropped."""
    labels = columns.labels["harm"]
    keep = {label.casefold() for label in spec.keep}
    stays = labels.where(lambda label: label.casefold() in keep)
    return with_missing("harm", ("harm",), spec.missing, left, labels.missing, [~stays])


def label_verdict(spec: LabelFilter, columns: Columns, left: Mask) -> Verdict:
    """Rows whose label is not included, or is excluded, are dropped."""
    labels = columns.labels[spec.name]
    include, exclude = frozenset(spec.include), frozenset(spec.exclude)
    drops = labels.where(lambda label: (bool(include) and label not in include) or label in exclude)
    return with_missing(spec.name, (spec.name,), spec.missing, left, labels.missing, [drops])


def length_verdict(spec: LengthFilter, columns: Columns, left: Mask) -> Verdict:
    """Rows outside a bound are dropped as too short or too long; those without a count are unjudged."""
    short, long, unknown = (np.zeros(columns.n_rows, dtype=np.bool_) for _ in range(3))
    for name, low, high in (
        ("n_chars", spec.min_chars, spec.max_chars),
        ("n_response_tokens", spec.min_tokens, spec.max_tokens),
    ):
        if low is None and high is None:
            continue
        counts = columns.counts[name]
        if counts.dtype.kind == "f":
            unknown |= np.isnan(counts)
        if low is not None:
            short |= counts < low
        if high is not None:
            long |= counts > high
    return with_missing("length", ("length:short", "length:long"), spec.missing, left, unknown, [short, long])


def with_missing(
    name: str, reasons: tuple[str, ...], missing: Missing, left: Mask, unknown: Mask, drops: Sequence[Mask]
) -> Verdict:
    """A verdict from what each reason would drop, rows without a label apart; the first reason that applies counts.

    Raises RecipeError when rows lack the label and `missing` is `fail`.
    """
    n_unknown = int(np.count_nonzero(unknown & left))
    n_left = int(np.count_nonzero(left)) if n_unknown else 0
    if n_unknown and missing == "fail":
        raise RecipeError(
            f"the {name} filter cannot judge {n_unknown:,} of {n_left:,} rows, which have no {name}: bring the "
            "label, or say missing: ignore to let them pass or missing: drop to leave them out",
            details=[{"filter": name, "rows": n_left, "without": n_unknown}],
        )
    codes, open_ = np.zeros(len(unknown), dtype=np.int8), ~unknown if n_unknown else None
    for code, drop in enumerate(drops, start=1):  # the first reason that applies stays
        hit = drop if open_ is None else drop & open_
        codes += hit.view(np.int8) * np.int8(code)
        open_ = ~hit if open_ is None else open_ & ~hit
    if missing == "drop":
        codes[unknown] = len(reasons) + 1
        reasons = (*reasons, f"{name}:missing")
    return Verdict(reasons, codes, n_unknown if missing == "ignore" else 0)
