"""What can be seen in a row's text without a model: its answers, its language, and markers that forge turns.

Is a row in a language of the pool? By py3langid over the answers' text (docs/method.md, "Audits").

A name is given only to text of some length and when the identifier is sure; short rows pass unjudged.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from curator.corpus.text import content_text, template_marker
from curator.errors import MissingDependencyError
from curator.messages import (
    canonical_messages,
    dump_messages,
    example_id,
    load_messages,
)

MIN_LETTERS = 40
MIN_PROBABILITY = 0.95
MIN_POOL_SHARE = 0.02  # a language of fewer of the pool's rows is none of its own
MAX_CHARS = 2_000


@lru_cache(maxsize=1)
def _identifier() -> Any:
    try:
        from py3langid.langid import MODEL_FILE, LanguageIdentifier
    except ImportError as error:
        raise MissingDependencyError(
            "audits name languages with py3langid: pip install 'ballast-mix[audit]'"
        ) from error
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


@dataclass(frozen=True)
class RowText:
    """One row: the id that an ingest gives it, the language of its answers, and the first marker found in a turn."""

    example_id: str
    language: str | None
    forged: str | None


def read_text(messages: str, control_tokens: Iterable[str]) -> RowText:
    """What a row's canonical JSON shows; `control_tokens` are those of the model's own template and tokenizer."""
    turns = canonical_messages(load_messages(messages))
    texts = [content_text(turn.get("content")) for turn in turns]
    forged = next((found for text in texts if (found := _marker(text, control_tokens)) is not None), None)
    return RowText(example_id(dump_messages(turns)), language_of(answers(turns)), forged)


def answers(turns: Iterable[Mapping[str, Any]]) -> str:
    """The text of a conversation's assistant turns."""
    return "\n".join(content_text(turn.get("content")) for turn in turns if turn["role"] == "assistant")


def _marker(text: str, control_tokens: Iterable[str]) -> str | None:
    found = next((token for token in control_tokens if token in text), None)
    return found or template_marker(text)
