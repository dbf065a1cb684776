"""The error of a recipe that asks for more than there is: what binds, and two numbers that would fix it."""

from collections.abc import Mapping
from dataclasses import dataclass

from curator.errors import NotEnoughRowsError
from curator.recipe.pools import WhenShort
from curator.select.picks import Picker


@dataclass(frozen=True)
class Asked:
    """What was asked of a pool: rows or response tokens, and what to do when there are fewer."""

    pool: str
    n_rows: int | None
    tokens: int | None
    when_short: WhenShort
    max_copies: int
    n_task: int


_REMEDIES = {
    "pool_size": "ingest more into the corpus",
    "no_gap": "score more of the corpus, under every model of the gap",
    "no_token_count": "score more of the corpus under the aligned model",
    "in_task_set": "ingest rows that the task set lacks",
    "in_earlier_pool": "give the pools corpora of their own",
}


def not_enough(
    asked: Asked, dropped: Mapping[str, int], picker: Picker, capacity: int, tokens: int | None = None
) -> NotEnoughRowsError:
    """The error; `capacity` rows (with `tokens` response tokens) can be drawn, each once."""
    if asked.n_rows is None:
        return _not_enough_tokens(asked, dropped, capacity, tokens or 0)
    n_eligible = picker.n_rows
    n_candidates = n_eligible + sum(dropped.values())
    losses = {reason: count for reason, count in dropped.items() if count}
    constraint = picker.short_of(asked.n_rows)
    binding = constraint or (_largest(losses) if n_candidates >= asked.n_rows else "pool_size")
    most = capacity * (asked.max_copies if asked.when_short == "cycle" else 1)
    detail: dict[str, object] = {
        "pool": asked.pool, "asked": asked.n_rows, "candidates": n_candidates, "eligible": n_eligible,
        "dropped": losses, "binding": binding, "max_rows": most, "more_rows_needed": asked.n_rows - most,
    }  # fmt: skip
    ratio = ""
    if asked.n_task:
        # Rounded down, so that the number given really fits.
        detail["max_interleave_ratio"] = int(most / asked.n_task * 1e6) / 1e6
        ratio = f" (interleave_ratio <= {detail['max_interleave_ratio']:g})"
    copies = f", each up to {asked.max_copies} times" if asked.when_short == "cycle" else ""
    told = ", ".join(f"{reason} {count:,}" for reason, count in losses.items()) or "nothing was filtered"
    remedy = "loosen it" if constraint else _REMEDIES.get(binding, "loosen that filter")
    return NotEnoughRowsError(
        f"{asked.n_rows:,} safe rows were asked of pool {asked.pool!r}, {capacity:,} of its {n_candidates:,} rows can "
        f"be drawn{copies} ({told}); what binds is {binding}. Ask for at most {most:,} rows{ratio}, "
        f"or bring {asked.n_rows - most:,} more rows: {remedy}.",
        details=[detail],
    )


def _not_enough_tokens(asked: Asked, dropped: Mapping[str, int], capacity: int, tokens: int) -> NotEnoughRowsError:
    assert asked.tokens is not None
    losses = {reason: count for reason, count in dropped.items() if count}
    binding = _largest(losses) if losses else "pool_size"
    most = tokens * (asked.max_copies if asked.when_short == "cycle" else 1)
    detail = {
        "pool": asked.pool, "asked_tokens": asked.tokens, "eligible": capacity, "dropped": losses, "binding": binding,
        "max_tokens": most, "more_tokens_needed": asked.tokens - most,
    }  # fmt: skip
    told = ", ".join(f"{reason} {count:,}" for reason, count in losses.items()) or "nothing was filtered"
    return NotEnoughRowsError(
        f"{asked.tokens:,} trained tokens were asked of pool {asked.pool!r}, the {capacity:,} rows that can be drawn "
        f"hold {tokens:,} ({told}); what binds is {binding}. Ask for at most {most:,} tokens, or bring rows with "
        f"{asked.tokens - most:,} more: {_REMEDIES.get(binding, 'loosen that filter')}.",
        details=[detail],
    )


def _largest(losses: Mapping[str, int]) -> str:
    return max(losses, key=lambda reason: losses[reason]) if losses else "pool_size"
