"""One decoded record to canonical messages, or to the list of everything that is wrong with it.

Without an override the layout is read off each record. Null fields count as absent. Keys beside the conversation
are no part of it: `id` becomes the source id, `source` and the four label keys become labels, others are left
behind; inside a message an unknown key is refused, for it would be lost.

`read_plain` is the quick way through the usual record: `messages` of role and content, in NFC, LF and without repeated
keys. Three library calls (decode, encode, compare) and no copy. A record that is not plain in any respect is left to
the careful way (`json_decode`, `read_record`), so that every refusal and every rule is written once; a property test
holds the two to the same result.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any
from unicodedata import is_normalized

import orjson

from curator.corpus.formats.budget import MAX_TURNS, MAX_VALUES, Problems, TooManyProblemsError, text_problem
from curator.corpus.formats.layouts import (
    LAST_ANSWER_NAMES,
    PREFERENCE_KEYS,
    RECORD_KEYS,
    SYSTEM_KEYS,
    TEMPLATE_ARGUMENTS,
    answers_key,
    argument_problems,
    layout_of,
    other_conversation,
    preference_problem,
    read_layout,
    reasoning_problems,
)
from curator.corpus.formats.rows import LABELS, Layout, Problem, Row
from curator.corpus.formats.turns import MEDIA_FIELDS, REASONING_FIELDS, encodable, is_empty, kind, media_problems
from curator.messages import Message, canonical_messages

_TOOL_FIELDS = ("tools", "functions")
_NO_COLUMNS: Mapping[str, str] = MappingProxyType({})
# Keys of a record that change how it is read; beside others a list of messages says everything.
SPECIAL_KEYS = frozenset({*SYSTEM_KEYS, *_TOOL_FIELDS, *MEDIA_FIELDS, *PREFERENCE_KEYS, *REASONING_FIELDS})
SPECIAL_KEYS |= {*TEMPLATE_ARGUMENTS, *LAST_ANSWER_NAMES, *RECORD_KEYS - {"messages"}}


@dataclass(frozen=True)
class Read:
    """What one record gave; with any problem it is kept out."""

    messages: list[Message]
    labels: dict[str, str | None]
    source_id: str | None
    problems: list[Problem]
    source: str | None = None


def read_record(value: Any, layout: Layout | None = None, columns: Mapping[str, str] = _NO_COLUMNS) -> Read:
    """Canonical messages, labels and source id of one decoded record, with every problem found.

    `columns` names, for a label, the record's field that holds it where that is another than the label's own name.
    """
    if not isinstance(value, dict):
        return Read([], {}, None, [Problem("", "data_type", f"a record is an object, not {kind(value)}")])
    problems = Problems()
    try:
        return _read(value, layout, columns, problems)
    except TooManyProblemsError:
        return Read([], {}, None, problems)


def _read(value: dict[str, Any], layout: Layout | None, columns: Mapping[str, str], problems: Problems) -> Read:
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
    labels = read_labels(value, problems, columns)
    source_key = columns.get("source", "source")
    source_id, source = read_source_id(value), read_source(value, problems, source_key)
    for key, label in (("id", source_id), (source_key, source)):
        if label is not None and not encodable(label):
            problems.append(Problem(f"/{key}", "invalid_unicode", "half of a surrogate pair: not a character"))
    return Read([] if problems else canonical_messages(messages), labels, source_id, problems, source)


def _is_missing(value: Any) -> bool:
    """Whether a field says nothing: null, "" or NaN, which tables write for null."""
    return value is None or value == "" or value != value


def read_source_id(value: dict[str, Any]) -> str | None:
    """The record's own id: a text as it is, any other value as JSON writes it."""
    source_id = value.get("id")
    if _is_missing(source_id):
        return None
    return source_id if isinstance(source_id, str) else json.dumps(source_id, ensure_ascii=False, default=str)


def read_source(value: dict[str, Any], problems: list[Problem], key: str = "source") -> str | None:
    """The record's own `source` label, as text as the other labels are; null where it says nothing.

    A row made of several sources may list them: they are joined by a comma, in their order.
    """
    source = value.get(key)
    given = [item for item in (source if isinstance(source, list) else [source]) if not _is_missing(item)]
    found = [_label_text(item) for item in given]
    if any(text is None for text in found):
        text = f"expected text or a list of texts, found {kind(source)}"
        if isinstance(source, list):
            other = next(item for item in given if _label_text(item) is None)
            text = f"expected a list of texts, found in it {kind(other)}"
        problems.append(Problem(f"/{key}", "invalid_label", text + _label_remedy("source")))
        return None
    return ", ".join(text for text in found if text is not None) or None


def _label_remedy(label: str) -> str:
    return f": rename or remove it; `ingest` can take the label from another field (--label-column {label}=FIELD)"


def _label_text(label: Any) -> str | None:
    """A label as text; null for what is no plain value."""
    if isinstance(label, bool):
        return "true" if label else "false"
    return str(label) if isinstance(label, str | int | float) else None


def read_labels(
    value: dict[str, Any], problems: list[Problem], columns: Mapping[str, str] = _NO_COLUMNS
) -> dict[str, str | None]:
    """The labels that a record carries, as text; `columns` as `read_record` takes them."""
    labels: dict[str, str | None] = {}
    for name in LABELS:
        key = columns.get(name, name)
        label = value.get(key)
        if _is_missing(label):
            continue
        text = _label_text(label)
        if text is None:
            message = f"expected text, found {kind(label)}{_label_remedy(name)}"
            problems.append(Problem(f"/{key}", "invalid_label", message))
        elif not encodable(text):
            problems.append(Problem(f"/{key}", "invalid_unicode", "half of a surrogate pair: not a character"))
        else:
            labels[name] = text
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
    problems += reasoning_problems(value, messages)
    problems += argument_problems(value, messages)
    if layout is None and len(problems) == before and (other := other_conversation(value, chosen, messages)):
        problems.append(other)
    _check_answers(messages, f"/{answers_key(chosen)}", problems, before)
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


_OPENING = len(b'{"messages":')
_ROLES = frozenset({"system", "developer", "user", "tool"})
_NO_LABELS: MappingProxyType[str, str | None] = MappingProxyType({})


def read_plain(data: bytes, record: int, line: int | None) -> Row | None:
    """The row of a plain record's JSON text; None when it is not plain."""
    if len(data) > MAX_VALUES and text_problem(data):
        return None
    try:
        value = orjson.loads(data)
        messages = _plain_messages(value["messages"])
    except (KeyError, TypeError, ValueError):  # JSONDecodeError is a ValueError
        return None
    if messages is None:
        return None
    text = orjson.dumps(messages)
    if not text.isascii() and not all(is_normalized("NFC", message["content"]) for message in messages):
        return None
    if b'\\"type\\"' in text or b"'type'" in text:  # a content may be a list of parts as text
        return None
    row = Row(record, line, None, messages, text, _NO_LABELS)
    if len(value) > 1:
        return _with_other_keys(value, data, row)
    if data.startswith(text, _OPENING) and len(data) - len(text) <= _OPENING + 2:
        return row  # what came out of the text is the text, but for `}` and a line feed
    # An object with one key twice has more quotes than what came out of it. Each message needs eight, `messages` two.
    quotes = data.count(b'"') - 2
    if quotes != 8 * len(messages) and (quotes != text.count(b'"') or b"\\u0022" in data):
        return None
    return row


def _plain_messages(turns: Any) -> list[Message] | None:
    """The messages in canonical key order; None (or an error) when canonical form changes more."""
    if len(turns) > MAX_TURNS:
        return None
    answered = False
    messages = []
    for turn in turns:
        first, _ = turn  # the keys, which are two
        role, content = turn["role"], turn["content"]
        if type(content) is not str or "\r" in content:
            return None
        if role == "assistant":
            if not content or content.isspace():
                return None
            answered = True
        elif role not in _ROLES:
            return None
        messages.append(turn if first == "role" else {"role": role, "content": content})
    return messages if answered else None


def _with_other_keys(value: dict[str, Any], data: bytes, row: Row) -> Row | None:
    if not SPECIAL_KEYS.isdisjoint(value) or b"\\u0022" in data or text_problem(data):
        return None
    if orjson.dumps(value).count(b'"') != data.count(b'"'):
        return None
    # Whole numbers over 64 bits come out of this decoder rounded.
    if any(isinstance(value.get(key), float | list | dict) for key in ("id", "source", *LABELS)):
        return None
    row.source_id = read_source_id(value)
    row.source = read_source(value, [])
    row.labels = read_labels(value, [])
    return row
