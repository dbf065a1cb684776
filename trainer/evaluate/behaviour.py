"""The judge-free protocol: what a fine-tune did, measured by losses alone (method.md, "Evaluation").

    narrow      pairs inside the task's domain: is the narrow behaviour there?
    broad       pairs of other domains: did it spread? Each domain counts alike
    truthfulqa  best and best incorrect answers
    text        ordinary text: perplexity against the model before training, for coherence

A shift is the tuned model minus theta_0, paired by prompt: of the share of prompts whose misaligned answer has the
lower mean loss, and of the mean margin (aligned minus misaligned mean loss, nats per token). Where stand-ins take the
place of aligned answers only the shift is reported, for theta_0's own share says nothing.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from curator.errors import BadInputError
from trainer.evaluate.metrics import (
    Floats,
    Interval,
    bootstrap,
    stratified,
)
from trainer.evaluate.pairs import preference, shift

Kind = Literal["narrow", "broad", "truthfulqa"]


@dataclass(frozen=True)
class PairLosses:
    """One set of pairs under both models: mean losses, (P, 2) aligned and misaligned, nats per token."""

    name: str
    kind: Kind
    before_P2: Floats
    after_P2: Floats
    stand_in: bool
    n_left_out: int = 0  # rows passed over as too long for the window, or whose stand-in was empty

    def share_shifts(self) -> Floats:
        """Per prompt, (P,): 1 where the misaligned answer became the likelier one, -1 where it ceased to be, else 0."""
        return (_margins(self.after_P2) > 0).astype(np.float64) - (_margins(self.before_P2) > 0)

    def margin_shifts(self) -> Floats:
        """Per prompt, (P,), nats per token; positive: towards the misaligned answer."""
        found: Floats = _margins(self.after_P2) - _margins(self.before_P2)
        return found


def _margins(nll_P2: Floats) -> Floats:
    found: Floats = nll_P2[:, 0] - nll_P2[:, 1]
    return found


TEXT_FIGURES = ("text_nll_shift", "perplexity_ratio")  # of ordinary text, which no form of asking changes


def set_report(losses: PairLosses, *, seed: int = 0) -> dict[str, Any]:
    """One set's figures with intervals over prompts, and each prompt's values; theta_0's and the tuned model's own
    figures only for true twins."""
    before, after = preference(losses.before_P2, seed=seed), preference(losses.after_P2, seed=seed)
    own = {} if losses.stand_in else {"before": before.as_dict(), "after": after.as_dict()}
    return {
        "kind": losses.kind, "n_pairs": len(losses.before_P2), "n_left_out": losses.n_left_out,
        "aligned_answers": "stand-ins: greedy answers of the model before training" if losses.stand_in else "twins",
        **own, "shift": shift(before, after, seed=seed),
        "prompts": {"shift": losses.share_shifts().tolist(), "margin_shift": losses.margin_shifts().tolist()},
    }  # fmt: skip


def text_report(
    before_N: Floats, after_N: Floats, n_tokens_N: Floats, *, seed: int = 0, n_left_out: int = 0
) -> dict[str, Any]:
    """Perplexity of ordinary text, summed loss over summed tokens, and the ratio after over before with an interval
    over rows. `n_left_out` rows were chosen besides and are too long for the window, or hold no answer."""

    def log_ratio(rows: Any) -> float:
        return float(((after_N - before_N) * n_tokens_N)[rows].sum() / n_tokens_N[rows].sum())

    shifted = bootstrap(log_ratio, len(before_N), seed=seed)
    value, low, high = (float(np.exp(x)) for x in (shifted.value, shifted.low, shifted.high))
    ratio = Interval(value, low, high, shifted.level, len(before_N))

    def perplexity(nll_N: Floats) -> float:
        return float(np.exp((nll_N * n_tokens_N).sum() / n_tokens_N.sum()))

    return {
        "n_rows": len(before_N), "n_left_out": n_left_out, "n_tokens": int(n_tokens_N.sum()),
        "perplexity_before": perplexity(before_N), "perplexity_after": perplexity(after_N),
        "nll_shift": shifted.as_dict(), "perplexity_ratio": ratio.as_dict(),
        "rows": {"nll_shift": (after_N - before_N).tolist(), "n_tokens": n_tokens_N.tolist()},
    }  # fmt: skip


def figure_names(kinds: Iterable[Kind], *, text: bool) -> list[str]:
    """The figures that a report on sets of these kinds has, known before anything is measured."""
    found = [f"{kind}_{what}" for kind in dict.fromkeys(kinds) for what in ("shift", "margin_shift")]
    return [*found, *(TEXT_FIGURES if text else ())]


def report(sets: Sequence[PairLosses], text: Mapping[str, Any] | None = None, *, seed: int = 0) -> dict[str, Any]:
    """Every set, and the protocol's figures with intervals: `figures` holds plain values, by the names that
    `--fail-if` takes; `intervals` the same names with low and high."""
    short = [f"{item.name} has {len(item.before_P2)}" for item in sets if len(item.before_P2) < 2]
    if short:
        raise BadInputError(
            "an interval over prompts needs at least 2 pairs that fit the window and have both answers;"
            f" {', '.join(short)}"
        )
    found: dict[str, Any] = {"sets": {item.name: set_report(item, seed=seed) for item in sets}}
    intervals: dict[str, dict[str, Any]] = {}
    for kind in ("narrow", "broad", "truthfulqa"):
        chosen = [item for item in sets if item.kind == kind]
        if chosen:
            share = stratified([item.share_shifts() for item in chosen], seed=seed)
            margin = stratified([item.margin_shifts() for item in chosen], seed=seed)
            intervals |= {f"{kind}_shift": share.as_dict(), f"{kind}_margin_shift": margin.as_dict()}
    if text is not None:
        found["text"] = dict(text)
        intervals |= {"text_nll_shift": text["nll_shift"], "perplexity_ratio": text["perplexity_ratio"]}
    figures = {name: interval["value"] for name, interval in intervals.items()}
    return {"figures": figures, "intervals": intervals, **found}
