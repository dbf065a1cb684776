"""Filters on pool rows, as pure predicates over columns (method.md section 3).

Each filter answers, for every candidate, whether the row stays; `curator.selection` runs them in the recipe's
order and counts what each one drops. A new filter is one entry in `keep_mask`.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from curator.canonical import N_HEAD_WORDS
from curator.config import FilterSpec, RefusalRule


@dataclass(frozen=True)
class Candidates:
    """The rows of one pool that may be drawn, column by column; all columns have shape (n_candidates,).

    `heads` are the first ten words of the last answer; `score` is what the recipe ranks by, NaN where the row has
    no gap (a loss is missing).
    """

    ids: Sequence[str]
    heads: Sequence[str]
    score: npt.NDArray[np.float64]

    def __post_init__(self) -> None:
        assert len(self.ids) == len(self.heads) == len(self.score)


# Apostrophes that people and word processors write for "'": typographic, modifier letter, full width, accents.
_APOSTROPHES = str.maketrans(dict.fromkeys("’‘‛ʼ＇`´", "'"))

_V1_WORDS = ("sorry", "apologize", "cannot")
_V2_PHRASES = (*_V1_WORDS, "can't", "i'm unable", "i am unable")


def _phrase_pattern(phrases: Sequence[str]) -> re.Pattern[str]:
    """Any of the phrases as whole words; between and around the words any punctuation and markup may stand."""
    options = "|".join(r"[\W_]+".join(map(re.escape, phrase.split())) for phrase in phrases)
    return re.compile(rf"(?<![^\W_])(?<![^\W_]')(?:{options})(?!'?[^\W_])")


_REFUSALS: dict[RefusalRule, re.Pattern[str]] = {"v1": _phrase_pattern(_V1_WORDS), "v2": _phrase_pattern(_V2_PHRASES)}


def is_refusal(head: str, rule: RefusalRule) -> bool:
    """Whether an answer that starts with `head` opens like a refusal (method.md section 3).

    Only the first ten words count, case-folded, with straight or typographic apostrophes; punctuation around a
    word is ignored. v1: sorry, apologize, cannot. v2 adds can't, i'm unable, i am unable.
    """
    words = head.split(maxsplit=N_HEAD_WORDS)[:N_HEAD_WORDS]
    return _REFUSALS[rule].search(" ".join(words).casefold().translate(_APOSTROPHES)) is not None


def filter_label(spec: FilterSpec) -> str:
    """The name under which manifests and rows show a filter, e.g. `refusal:v1`."""
    return f"{spec.name}:{spec.rule}"


def keep_mask(spec: FilterSpec, candidates: Candidates) -> npt.NDArray[np.bool_]:
    """True where the row stays, shape (n_candidates,)."""
    stays = (not is_refusal(head, spec.rule) for head in candidates.heads)
    return np.fromiter(stays, dtype=np.bool_, count=len(candidates.heads))
