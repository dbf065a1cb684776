"""What can be seen in a row's text without a model: its answers, its language, and markers that forge turns."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from curator.audit.language import language_of
from curator.canonical import canonical_messages, dump_messages, example_id, load_messages
from curator.filters.hygiene import template_marker
from curator.filters.parts import content_text


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
