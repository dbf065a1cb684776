"""What a calibration card measures, from stored losses: separation, noise of the gap, rows that have none.

The gap itself is computed in sql/ alone; here its columns are compared.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from curator.corpus.refusals import is_refusal
from trainer.evaluate.metrics import Floats, Interval

SCORES = ("gap_rel", "gap_abs", "gap_contrast")
TIE_LEVEL = 0.95
CUTS = (0.01, 0.05, 0.2)  # shares of the pool that a selection may take from the top


@dataclass(frozen=True)
class Separation:
    """AUC of one domain's misaligned answers against ordinary ones, under one choice of models."""

    domain: str
    score: str
    held_out: bool  # whether the models of this domain are left out
    auc: Interval
    n_misaligned: int
    n_ordinary: int
    n_models: int

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {**vars(self), "auc": self.auc.as_dict()}


def scores_of(table: pa.Table, score: str, domain: str | None = None) -> Floats:
    """A gap column's values where there is one, of all rows or of a domain's."""
    values = table.column(score).to_numpy(zero_copy_only=False).astype(np.float64)
    kept = np.isfinite(values)
    if domain is not None:
        kept &= np.array([item == domain for item in table.column("domain").to_pylist()], dtype=np.bool_)
    found: Floats = values[kept]
    return found


def noise(stored: Mapping[str, Floats], again: Mapping[str, Floats], paths: str = "two paths") -> dict[str, Any]:
    """Noise of the gap between two paths to the same losses (`paths` names them), in nats per token (gap_abs).

    Both map a model's name (`aligned`, or a misaligned one) to mean losses of the same rows, (N,). The tie band is the
    95 % quantile of the absolute difference: rows whose gaps lie closer than that are not distinguished.
    """
    difference_N = _gap_abs(again) - _gap_abs(stored)
    size_N = np.abs(difference_N)
    return {
        "n_rows": len(size_N), "source": paths, "sd": float(np.std(difference_N)),
        "max_abs": float(size_N.max()), "tie_band": float(np.quantile(size_N, TIE_LEVEL)),
        "per_model_max_abs": {name: float(np.abs(again[name] - stored[name]).max()) for name in stored},
    }  # fmt: skip


def _gap_abs(losses: Mapping[str, Floats]) -> Floats:
    others = [values for name, values in losses.items() if name != "aligned"]
    found: Floats = np.mean(others, axis=0) - losses["aligned"]
    return found


def recorded_noise(checks: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, Any] | None:
    """The same from what `curator score` recorded when it scored a sample again; None where it was not asked to.

    Where every scorer was held against the plain reference, that other path is taken; else the same engine in another
    order, so in other batch shapes alone. Only mean differences are recorded, so errors are taken for independent and
    normal: a loss's standard deviation is sqrt(pi / 2) times its mean absolute difference, and the gap's variance their
    sum (1 / K^2 for each of K models).
    """
    for path, source in (("reference", "engine against the plain reference"), ("permuted", "engine in another order")):
        found = {name: [item for item in entries if item.get(path)] for name, entries in checks.items()}
        if found and all(found.values()):
            return _from_means(found, path, f"mean differences recorded by the scoring runs ({source})")
    return None


def _from_means(found: Mapping[str, Sequence[Mapping[str, Any]]], path: str, source: str) -> dict[str, Any]:
    spread, n_rows = {}, 0
    for name, entries in found.items():
        n = sum(item["n_rows"] for item in entries)
        mean_abs = sum(item[path]["mean_abs"] * item["n_rows"] for item in entries) / n
        spread[name], n_rows = math.sqrt(math.pi / 2) * mean_abs, max(n_rows, n)
    others = [value for name, value in spread.items() if name != "aligned"]
    sd = math.sqrt(spread["aligned"] ** 2 + sum(value**2 for value in others) / max(len(others), 1) ** 2)
    return {
        "n_rows": n_rows, "source": source, "sd": sd, "max_abs": None, "tie_band": 1.96 * sd, "per_model_max_abs": None,
    }  # fmt: skip


def ties(gaps: Floats, band: float) -> dict[str, Any]:
    """What the tie band does to a ranking: rows that lie within it of the cut at some shares of the pool."""
    ordered = np.sort(gaps)[::-1]
    near = {}
    for share in CUTS:
        cut = ordered[max(0, math.ceil(share * len(ordered)) - 1)]
        near[f"{100 * share:g} %"] = int((np.abs(ordered - cut) < band).sum())
    spread = float(np.std(gaps))
    return {
        "n_rows": len(gaps),
        "gap_sd": spread,
        "band_over_sd": band / spread if spread else None,
        "rows_near_cut": near,
    }


def coverage(table: pa.Table, statuses: Mapping[str, int], *, only_fitting: bool = False) -> dict[str, Any]:
    """Shares of a corpus without a gap, cut off by the window, or opening like a refusal; statuses are the aligned
    scorer's, of rows without a loss.

    Too long is a share of the rows that the scorer looked at; null where it looked at none, and where it drew only rows
    that fit (`only_fitting`), which `too_long_unknown` says.
    """
    n_rows = table.num_rows
    heads = [head or "" for head in table.column("response_head").to_pylist()]
    complete = sum(table.column("complete").to_pylist())
    n_seen = n_rows - statuses.get("not_scored", 0)
    unknown = "only rows that fit were sampled" if only_fitting else None if n_seen else "no row was looked at"
    return {
        "n_rows": n_rows, "n_with_gap": complete, "statuses": dict(statuses), "n_looked_at": n_seen,
        "share_too_long": None if unknown else statuses.get("too_long", 0) / n_seen, "too_long_unknown": unknown,
        "share_refusals": {
            rule: sum(is_refusal(head, rule) for head in heads) / n_rows if n_rows else None for rule in ("v1", "v2")
        },
    }  # fmt: skip
