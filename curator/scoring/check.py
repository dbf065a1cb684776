"""Scoring some rows again: in another order and company, and with a plain reference that shares no code.

Differences are of a row's mean loss, in nats per token. Bounds are ours: 1e-4 in float32; in bfloat16 0.03 from 32
response tokens on, and 0.03 * 32 / n below, at most 0.2: single tokens were seen to err by up to 0.17, and the tokens
of one short answer err together, since they share a context (0.092 was seen over 6 tokens).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from curator.errors import ScoringError
from curator.scoring.engines.base import OnRows, RowLoss, Scores

if TYPE_CHECKING:
    from curator.render import Rendered

SHARE = 0.01
MIN_ROWS = 20
SEED_NAME = "score-check"
N_WORST = 5
_BOUND = {"float32": 1e-4, "bfloat16": 0.03}
_SETTLED_TOKENS = 32
_MOST = 0.2  # of a row of few tokens in bfloat16


@dataclass(frozen=True)
class Difference:
    """Row `example_id` again: mean losses in nats per token, and the most they may differ by."""

    example_id: str
    stored: float
    again: float
    n_response_tokens: int
    bound: float

    @property
    def size(self) -> float:
        """Absolute difference; infinite where the second loss is not finite."""
        found = abs(self.again - self.stored)
        return found if math.isfinite(found) else math.inf

    @property
    def excess(self) -> float:
        """Difference over bound: past 1 the check fails."""
        return self.size / self.bound

    def __str__(self) -> str:
        return (
            f"{self.example_id}: stored {self.stored:.6f}, again {self.again:.6f} nats per token over "
            f"{self.n_response_tokens} tokens"
        )


def n_check_rows(asked: int | None, n_rows: int) -> int:
    """How many of `n_rows` to score again: what was asked, or 1 % and at least 20; never more than there are."""
    wanted = max(MIN_ROWS, math.ceil(SHARE * n_rows)) if asked is None else asked
    return min(wanted, n_rows)


def row_bound(dtype: str, n_response_tokens: int) -> float:
    """The most that a row's mean may differ by between two right computations, in nats per token."""
    bound = _BOUND.get(dtype, _BOUND["bfloat16"])
    if dtype == "float32":
        return bound
    return max(bound, min(_MOST, bound * _SETTLED_TOKENS / n_response_tokens))


def compare(
    scorer: Scores,
    rows: "Mapping[str, Rendered]",
    stored: Mapping[str, RowLoss],
    dtype: str,
    on_rows: OnRows | None = None,
) -> list[Difference]:
    """Score the rows again in the mapping's order; the rows that differ most, measured by their bound, come first."""
    found = []
    for (example_id, _), loss in zip(rows.items(), scorer.score(list(rows.values()), on_rows), strict=True):
        n = stored[example_id].n_response_tokens
        again = loss.nll_sum / n if loss.n_response_tokens == n else math.nan
        found.append(Difference(example_id, stored[example_id].nll_sum / n, again, n, row_bound(dtype, n)))
    return sorted(found, key=lambda item: (-item.excess, item.example_id))


def summary(found: Sequence[Difference]) -> dict[str, Any]:
    """For scorer.json: largest and mean difference of a row's mean loss, in nats per token, and the worst row."""
    return {
        "max_abs": max((item.size for item in found), default=0.0),
        "mean_abs": math.fsum(item.size for item in found) / max(len(found), 1),
        "worst_row": found[0].example_id if found else None,
        "passed": all(item.excess <= 1.0 for item in found),
    }


def signed_summary(found: Sequence[Difference]) -> dict[str, Any]:
    """What merging an adapter changed: stored (merged) less again (unmerged) mean losses of rows, nats per token.

    `mean` keeps the sign: a gap is a mean over rows, and only what does not cancel moves it.
    """
    n = max(len(found), 1)
    return {
        "n_rows": len(found),
        "max_abs": max((item.size for item in found), default=0.0),
        "mean_abs": math.fsum(item.size for item in found) / n,
        "mean": math.fsum(item.stored - item.again for item in found) / n,
    }


def require_within_bound(found: Sequence[Difference], what: str, hint: str) -> None:
    """Raise ScoringError with the worst rows when one of them is past its bound."""
    past = [item for item in found if item.excess > 1.0]
    if not past:
        return
    shown = "; ".join(str(item) for item in past[:N_WORST])
    raise ScoringError(
        f"{len(past)} of {len(found)} checked rows differ {what} by more than {past[0].bound:.2g} nats per token, "
        f"worst first: {shown}. {hint}",
        details=[asdict(item) for item in past[:N_WORST]],
    )
