"""The refusal rule: whether an answer opens like a refusal (docs/method.md, "Choosing safe rows").

`curator.select.pool_frame` makes a column of it for every pool row, and `curator.select.filters` reads that column.
"""

import re
from collections.abc import Sequence

from curator.errors import BadInputError
from curator.messages import N_HEAD_WORDS
from curator.recipe import RefusalRule

# Apostrophes that people and word processors write for "'": typographic, modifier letter, full width, accents.
_APOSTROPHES = str.maketrans(dict.fromkeys("’‘‛ʼ＇`´", "'"))

_V1_WORDS = ("sorry", "apologize", "cannot")
_V2_PHRASES = (*_V1_WORDS, "can't", "i'm unable", "i am unable")


def _phrase_pattern(phrases: Sequence[str]) -> re.Pattern[str]:
    """Any of the phrases as whole words; between and around the words any punctuation and markup may stand."""
    options = "|".join(r"[\W_]+".join(map(re.escape, phrase.split())) for phrase in phrases)
    return re.compile(rf"(?<![^\W_])(?<![^\W_]')(?:{options})(?!'?[^\W_])")


_REFUSALS: dict[RefusalRule, re.Pattern[str]] = {"v1": _phrase_pattern(_V1_WORDS), "v2": _phrase_pattern(_V2_PHRASES)}
_STEMS: dict[RefusalRule, tuple[str, ...]] = {"v1": _V1_WORDS, "v2": ("sorry", "apologize", "can", "unable")}


def is_refusal(head: str, rule: RefusalRule) -> bool:
    """Whether an answer that starts with `head` opens like a refusal (method.md, "Choosing safe rows").

    Only the first ten words count, case-folded, with straight or typographic apostrophes; punctuation around a
    word is ignored. v1: sorry, apologize, cannot. v2 adds can't, i'm unable, i am unable. Raises BadInputError on
    another rule, which a statement of SQL may give.
    """
    if rule not in _STEMS:
        raise BadInputError(f"refusal rule {rule!r}: write is_refusal(answer, rule) with {' or '.join(_STEMS)}")
    folded = head.casefold()
    if not any(stem in folded for stem in _STEMS[rule]):  # far cheaper than the pattern, and most answers end here
        return False
    words = head.split(maxsplit=N_HEAD_WORDS)[:N_HEAD_WORDS]
    return _REFUSALS[rule].search(" ".join(words).casefold().translate(_APOSTROPHES)) is not None
