"""Filters on labels and lengths. A row without the label is unjudged: `missing` says what becomes of it."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from curator.config.filters import HarmFilter, LabelFilter, LengthFilter, Missing
from curator.errors import RecipeError
from curator.filters.candidates import Candidates, Indices, Verdict

Mask = npt.NDArray[np.bool_]


def harm_verdict(spec: HarmFilter, candidates: Candidates, rows: Indices) -> Verdict:
    """Rows whose harm label is not one of those to keep are dropped."""
    labels = [candidates.labels["harm"][i] for i in rows]
    keep = {label.casefold() for label in spec.keep}
    stays = _mask(label is not None and label.casefold() in keep for label in labels)
    return with_missing("harm", ("harm",), spec.missing, _mask(label is None for label in labels), [~stays])


def label_verdict(spec: LabelFilter, candidates: Candidates, rows: Indices) -> Verdict:
    """Rows whose label is not included, or is excluded, are dropped."""
    labels = [candidates.labels[spec.name][i] for i in rows]
    include, exclude = frozenset(spec.include), frozenset(spec.exclude)
    drops = _mask((bool(include) and label not in include) or label in exclude for label in labels)
    return with_missing(spec.name, (spec.name,), spec.missing, _mask(label is None for label in labels), [drops])


def length_verdict(spec: LengthFilter, candidates: Candidates, rows: Indices) -> Verdict:
    """Rows outside a bound are dropped as too short or too long; those without a count are unjudged."""
    short, long, unknown = (np.zeros(len(rows), dtype=np.bool_) for _ in range(3))
    for column, low, high in (
        ("n_chars", spec.min_chars, spec.max_chars),
        ("n_response_tokens", spec.min_tokens, spec.max_tokens),
    ):
        if low is None and high is None:
            continue
        counts = candidates.counts[column][rows]
        unknown |= np.isnan(counts)
        short |= counts < (-np.inf if low is None else low)
        long |= counts > (np.inf if high is None else high)
    return with_missing("length", ("length:short", "length:long"), spec.missing, unknown, [short, long])


def with_missing(
    name: str, reasons: tuple[str, ...], missing: Missing, unknown: Mask, drops: Sequence[Mask]
) -> Verdict:
    """A verdict from what each reason would drop, rows without a label apart; the first reason that applies counts.

    Raises RecipeError when rows lack the label and `missing` is `fail`.
    """
    n_unknown = int(unknown.sum())
    if n_unknown and missing == "fail":
        raise RecipeError(
            f"the {name} filter cannot judge {n_unknown:,} of {len(unknown):,} rows, which have no {name}: bring the "
            "label, or say missing: ignore to let them pass or missing: drop to leave them out",
            details=[{"filter": name, "rows": len(unknown), "without": n_unknown}],
        )
    codes = np.zeros(len(unknown), dtype=np.int16)
    for code, drop in enumerate(drops, start=1):
        codes[(codes == 0) & drop & ~unknown] = code
    if missing == "drop":
        codes[unknown] = len(reasons) + 1
        reasons = (*reasons, f"{name}:missing")
    return Verdict(reasons, codes, n_unknown if missing == "ignore" else 0)


def _mask(values: object) -> Mask:
    return np.fromiter(values, dtype=np.bool_)  # type: ignore[call-overload, no-any-return]
