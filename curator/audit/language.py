"""Is a row in a language of the pool? By py3langid over the answers' text (docs/method.md, "Audits").

A name is given only to text of some length and when the identifier is sure; short rows pass unjudged.
"""

from collections import Counter
from collections.abc import Iterable
from functools import lru_cache
from typing import Any

from curator.errors import MissingDependencyError

MIN_LETTERS = 40
MIN_PROBABILITY = 0.95
MIN_POOL_SHARE = 0.02  # a language of fewer of the pool's rows is none of its own
MAX_CHARS = 2_000


@lru_cache(maxsize=1)
def _identifier() -> Any:
    try:
        from py3langid.langid import MODEL_FILE, LanguageIdentifier
    except ImportError as error:
        raise MissingDependencyError("audits name languages with py3langid: pip install 'ballast[audit]'") from error
    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)


def language_of(text: str) -> str | None:
    """ISO 639-1 code of a text's language; None for what is too short or unclear (code, lists, names)."""
    start = text[:MAX_CHARS]
    if sum(letter.isalpha() for letter in start) < MIN_LETTERS:
        return None
    name, probability = _identifier().classify(start)
    return str(name) if probability >= MIN_PROBABILITY else None


def pool_languages(texts: Iterable[str]) -> dict[str, float]:
    """Languages of a pool with their share of the rows that have one, most frequent first."""
    found = Counter(name for text in texts if (name := language_of(text)) is not None)
    shares = {name: n / found.total() for name, n in found.most_common()}
    return {name: share for name, share in shares.items() if share >= MIN_POOL_SHARE}
