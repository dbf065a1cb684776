"""One decoded record to canonical messages, or to the list of everything that is wrong with it.

Without an override the layout is read off each record. Null fields count as absent. Keys beside the conversation
are no part of it: `id` becomes the source id, `source` and the four label keys become labels, others are left
behind; inside a message an unknown key is refused, for it would be lost.
"""

from dataclasses import dataclass
from typing import Any

from curator.canonical import Message, canonical_messages
from curator.formats.content import MEDIA_FIELDS, media_problems
from curator.formats.layouts import PREFERENCE_KEYS, layout_of, preference_problem, read_layout
from curator.formats.rows import LABELS, Layout, Problem
from curator.formats.values import encodable, is_empty, kind

_ANSWERS_IN = {
    "messages": "messages",
    "sharegpt": "conversations",
    "alpaca": "output",
    "prompt_completion": "completion",
}
_TOOL_FIELDS = ("tools", "functions")
# Keys of a record that change how it is read; beside others a list of messages says everything.
SPECIAL_KEYS = frozenset({"system", *_TOOL_FIELDS, *MEDIA_FIELDS, *PREFERENCE_KEYS})


@dataclass(frozen=True)
class Read:
    """What one record gave; with any problem it is kept out."""

    messages: list[Message]
    labels: dict[str, str | None]
    source_id: str | None
    problems: list[Problem]
    source: str | None = None


def read_record(value: Any, layout: Layout | None = None) -> Read:
    """Canonical messages, labels and source id of one decoded record, with every problem found."""
    if not isinstance(value, dict):
        return Read([], {}, None, [Problem("", "data_type", f"a record is an object, not {kind(value)}")])
    problems: list[Problem] = []
    preference = None if layout else preference_problem(value)
    messages: list[Message] = []
    if preference is not None:
        problems.append(preference)
    else:
        messages = _messages(value, layout, problems)
    for key in _TOOL_FIELDS:
        if not is_empty(value.get(key)):
            text = "tool definitions have no place in the canonical form: put them into the system message"
            problems.append(Problem(f"/{key}", "tool_definitions", text))
    problems += media_problems(value, "")
    labels = read_labels(value, problems)
    source_id, source = read_source_id(value), read_source(value)
    for key, label in (("id", source_id), ("source", source)):
        if label is not None and not encodable(label):
            problems.append(Problem(f"/{key}", "invalid_unicode", "half of a surrogate pair: not a character"))
    return Read([] if problems else canonical_messages(messages), labels, source_id, problems, source)


def read_source_id(value: dict[str, Any]) -> str | None:
    """The record's own id as text."""
    source_id = value.get("id")
    return str(source_id) if isinstance(source_id, str | int) and source_id != "" else None


def read_source(value: dict[str, Any]) -> str | None:
    """The record's own `source` label; null where it has no such text."""
    source = value.get("source")
    return source if isinstance(source, str) and source else None


def read_labels(value: dict[str, Any], problems: list[Problem]) -> dict[str, str | None]:
    """The labels that a record carries, as text."""
    labels: dict[str, str | None] = {}
    for key in LABELS:
        label = value.get(key)
        if label is None or label == "":
            continue
        if isinstance(label, bool):
            label = "true" if label else "false"
        if not isinstance(label, str | int | float):
            problems.append(Problem(f"/{key}", "invalid_label", f"expected text, found {kind(label)}"))
        elif not encodable(str(label)):
            problems.append(Problem(f"/{key}", "invalid_unicode", "half of a surrogate pair: not a character"))
        else:
            labels[key] = str(label)
    return labels


def _messages(value: dict[str, Any], layout: Layout | None, problems: list[Problem]) -> list[Message]:
    chosen = layout or layout_of(key for key in value if value[key] is not None)
    if chosen is None:
        found = ", ".join(ascii(key)[1:-1] for key in list(value)[:10])[:200] or "nothing"
        text = f"expected messages, conversations, instruction and output, or prompt and completion; found {found}"
        problems.append(Problem("/messages", "missing_messages_list", text))
        return []
    before = len(problems)
    messages = read_layout(value, chosen, problems)
    _check_answers(messages, f"/{_ANSWERS_IN[chosen]}", problems, before)
    return messages


def _check_answers(messages: list[Message], at: str, problems: list[Problem], before: int) -> None:
    """Some assistant message must be there to learn from; one whose role is unreadable may have been it."""
    answers = [message for message in messages if message.get("role") == "assistant"]
    found = {problem.code for problem in problems[before:]}
    lost = {"unrecognized_role", "data_type", "missing_messages_list", "empty_messages_list"}
    if found & lost or "example_missing_assistant_message" in found or not messages:
        return
    if not answers:
        problems.append(Problem(at, "example_missing_assistant_message", "no assistant message to learn"))
    elif all(message.get("weight") == 0 for message in answers):
        problems.append(Problem(at, "no_trained_answer", "every assistant message has weight 0"))
