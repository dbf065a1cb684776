"""A record to turns: the four layouts, and the preference data that looks like them.

`messages`: `{"messages": [{"role", "content"}]}`. `sharegpt`: `{"conversations": [{"from", "value"}]}`. `alpaca`:
`{"instruction", "input"?, "output", "history"?}`; the question is instruction and input joined by one line feed, or
the one of them that is not empty. `prompt_completion`: `{"prompt", "completion"}`, both texts or both lists of
messages; answers inside such a prompt are context (weight 0), as TRL trains the completion alone. A text under one of
SYSTEM_KEYS beside any of them is the system message.
"""

import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

from curator.corpus.formats.budget import MAX_TURNS, too_many_turns
from curator.corpus.formats.json_decode import UndecodableError, decode
from curator.corpus.formats.rows import Layout, Problem
from curator.corpus.formats.turns import REASONING_FIELDS, is_empty, kind, read_content, read_turns
from curator.messages import Message, canonical_text

# The first whose keys are all there decides; the partial ones come last, so that what is missing can be named, and the
# head of a file is known by the first key in it.
_KEYS: tuple[tuple[frozenset[str], Layout], ...] = (
    (frozenset({"messages"}), "messages"),
    (frozenset({"conversations"}), "sharegpt"),
    (frozenset({"prompt", "completion"}), "prompt_completion"),
    (frozenset({"instruction", "output"}), "alpaca"),
    (frozenset({"completion"}), "prompt_completion"),
    (frozenset({"instruction"}), "alpaca"),
    (frozenset({"output"}), "alpaca"),
    (frozenset({"prompt"}), "prompt_completion"),
)
_N_WHOLE = 4  # of them, which no partial one is among
RECORD_KEYS = frozenset[str]().union(*(keys for keys, _ in _KEYS))
LAST_ANSWER_NAMES = ("response", "answer", "output", "completion", "chosen")
# What trainers hand to a chat template beside the messages.
TEMPLATE_ARGUMENTS = ("documents", "chat_template_kwargs")
SYSTEM_KEYS = ("system", "system_prompt", "system_message")
# Keys under which data sets keep part of the question, and where the layout has its place.
_CONTEXT_KEYS: dict[Layout, tuple[dict[str, str], str]] = {
    "alpaca": ({"context": "input"}, "instruction and output"),
    "prompt_completion": (dict.fromkeys(("context", "input", "history", "suffix"), "prompt"), "prompt and completion"),
}
_PAIRS = (("chosen", "rejected"), ("preferred_output", "non_preferred_output"), ("response_j", "response_k"))
PREFERENCE_KEYS = frozenset({key for pair in _PAIRS for key in pair} | {"kto_tag", "label"})


def layout_of(keys: Iterable[str]) -> Layout | None:
    """The layout that has these keys; None when no layout does."""
    present = set(keys)
    return next((layout for needed, layout in _KEYS if needed <= present), None)


def other_conversation(record: dict[str, Any], chosen: Layout, messages: list[Message]) -> Problem | None:
    """The problem of a record that holds a second conversation, or a last answer, which `messages` do not have."""
    present = {key for key in record if not is_empty(record[key])}
    key = answers_key(chosen)
    for needed, other in _KEYS[:_N_WHOLE]:
        if other == chosen or not needed <= present:
            continue
        told: list[Problem] = []
        turns = iter(map(_said, messages))
        if not all(_said(message) in turns for message in read_layout(record, other, told)) or told:
            names = " and ".join(sorted(needed))
            text = f"{names} beside {key} say something else: keep one of them, or name the layout to read"
            return Problem(f"/{answers_key(other)}", "conflicting_layouts", text)
    if chosen in ("messages", "sharegpt") and messages[-1:] and messages[-1].get("role") in ("user", "tool"):
        name = next((name for name in LAST_ANSWER_NAMES if name in present), None)
        if name is not None:
            text = f"{name} beside {key} would be left behind: make it their last message, or remove it"
            return Problem(f"/{name}", "unrecognized_key", text)
    return None


def _said(message: Message) -> tuple[Any, ...]:
    """What a message is compared by: everything but whether it is trained."""
    content = canonical_text(message.get("content") or "").strip()
    return message.get("role"), content, message.get("name"), message.get("tool_calls")


def preference_problem(record: dict[str, Any]) -> Problem | None:
    """The refusal of a record that holds preference data; None for others."""
    for good, bad in _PAIRS:
        if record.get(good) is not None and record.get(bad) is not None:
            return Problem(f"/{good}", "preference_pairs", f"{good} and {bad} answers: {_REMEDY}")
    key = "kto_tag" if record.get("kto_tag") is not None else "label"
    if _is_verdict(record.get(key), as_number=record.get("completion") is not None):
        return Problem(f"/{key}", "preference_labels", f"answers marked as good or bad: {_REMEDY}")
    return None


_REMEDY = "mixes are for supervised fine-tuning; keep the good answers alone, or name the layout to read"


def _is_verdict(value: Any, *, as_number: bool) -> bool:
    """Whether a value says good or bad; 0 and 1 do where an answer stands alone, and are any class elsewhere."""
    if isinstance(value, str):
        return value.lower() in ("true", "false")
    return isinstance(value, bool) or (as_number and isinstance(value, int | float) and value in (0, 1))


def read_layout(record: dict[str, Any], layout: Layout, problems: list[Problem]) -> list[Message]:
    """The messages of a record of that layout, its system text first; with problems the result is of no use."""
    messages = _READERS[layout].read(record, problems)
    _check_context(record, layout, messages, problems)
    return _with_system(record, messages, problems)


def answers_key(layout: Layout) -> str:
    """The key of a record of that layout that holds its answers."""
    return _READERS[layout].answers_key


def _messages(record: dict[str, Any], problems: list[Problem]) -> list[Message]:
    return _turn_list(record, "messages", problems)


def _sharegpt(record: dict[str, Any], problems: list[Problem]) -> list[Message]:
    return _turn_list(record, "conversations", problems)


def _turn_list(record: dict[str, Any], key: str, problems: list[Problem]) -> list[Message]:
    turns = record.get(key)
    if not isinstance(turns, list):
        problems.append(Problem(f"/{key}", "missing_messages_list", f"expected a list {key}, found {kind(turns)}"))
    elif not turns:
        problems.append(Problem(f"/{key}", "empty_messages_list", "there are no messages in it"))
    else:
        return read_turns(turns, f"/{key}", problems)
    return []


def _alpaca(record: dict[str, Any], problems: list[Problem]) -> list[Message]:
    asked = [
        read_content(record[key], f"/{key}", problems)
        for key in ("instruction", "input")
        if record.get(key) is not None
    ]
    question = "\n".join(text for text in asked if text)
    if not question and not problems:
        problems.append(Problem("/instruction", "missing_content", "instruction and input are empty"))
    answer = _answer(record, "output", problems)
    if record.get("output") is None and problems:
        problems[-1] = _renamed(record, "output", "context", problems[-1])
    return [*_history(record, problems), {"role": "user", "content": question}, answer]


def _history(record: dict[str, Any], problems: list[Problem]) -> list[Message]:
    history = record.get("history") or []
    if not isinstance(history, list):
        problems.append(Problem("/history", "invalid_history", f"expected a list of pairs, found {kind(history)}"))
        return []
    if 2 * len(history) > MAX_TURNS:
        problems.append(too_many_turns("/history"))
        return []
    messages: list[Message] = []
    for index, pair in enumerate(history):
        if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(text, str) for text in pair):
            problems.append(Problem(f"/history/{index}", "invalid_history", "expected [question, answer], two texts"))
            continue
        messages.append({"role": "user", "content": read_content(pair[0], f"/history/{index}/0", problems)})
        messages.append(_answer({"history": pair[1]}, "history", problems, f"/history/{index}/1"))
    return messages


_ANSWER_NAMES = (*LAST_ANSWER_NAMES, "target", "text")


def _renamed(record: dict[str, Any], key: str, other: str | None, problem: Problem) -> Problem:
    """The problem of a record that has no answer under its layout's name, but perhaps under another."""
    name = next((name for name in _ANSWER_NAMES if record.get(name) is not None), None)
    if name is None:
        return problem
    further = f", and {other} to input (it would be left behind)" if other and record.get(other) else ""
    return Problem(f"/{key}", problem.code, f"there is no {key}, but {name}: rename {name} to {key}{further}")


def _prompt_completion(record: dict[str, Any], problems: list[Problem]) -> list[Message]:
    prompt, completion = _lists(record, problems) or (record.get("prompt"), record.get("completion"))
    if completion is None:
        missing = Problem("/completion", "missing_content", f"expected text, found {kind(completion)}")
        problems.append(_renamed(record, "completion", None, missing))
        return []
    if isinstance(prompt, list) and isinstance(completion, list):
        context = read_turns(prompt, "/prompt", problems)
        answers = read_turns(completion, "/completion", problems)
        if not any(message.get("role") == "assistant" for message in answers) and not problems:
            text = "no assistant message in the completion"
            problems.append(Problem("/completion", "example_missing_assistant_message", text))
        return [
            message | {"weight": 0} if message.get("role") == "assistant" else message for message in context
        ] + answers
    if isinstance(prompt, list) != isinstance(completion, list) and completion is not None and prompt is not None:
        text = f"prompt is {kind(prompt)} and completion {kind(completion)}: both are texts or both lists of messages"
        problems.append(Problem("/completion", "data_type", text))
        return []
    question = read_content(prompt, "/prompt", problems)
    if prompt == "":
        problems.append(Problem("/prompt", "missing_content", "the prompt is empty"))
    return [{"role": "user", "content": question}, _answer(record, "completion", problems)]


_MESSAGES_AS_TEXT = re.compile(r'\s*\[\s*\{\s*"(role|content)"\s*:')


def _lists(record: dict[str, Any], problems: list[Problem]) -> tuple[Any, Any] | None:
    """Prompt and completion where both are lists of messages as JSON text; one alone is a text about messages."""
    texts = {key: text for key in ("prompt", "completion") if isinstance(text := record.get(key), str)}
    if len(texts) < 2 or not all(map(_MESSAGES_AS_TEXT.match, texts.values())):
        return None
    found = []
    for key, text in texts.items():
        try:
            found.append(decode(text.encode("utf-8", "surrogatepass"), 0))
        except UndecodableError as error:
            problems.append(Problem(f"/{key}", error.problem.code, error.problem.message))
            found.append([])
    return found[0], found[1]


def _answer(record: dict[str, Any], key: str, problems: list[Problem], at: str | None = None) -> Message:
    before = len(problems)
    text = read_content(record.get(key), at or f"/{key}", problems)
    if (not text or text.isspace()) and before == len(problems):
        problems.append(Problem(at or f"/{key}", "missing_content", "the assistant's answer is empty"))
    return {"role": "assistant", "content": text}


def _check_context(record: dict[str, Any], layout: Layout, messages: list[Message], problems: list[Problem]) -> None:
    """A text that other data sets read as part of the question, and that no message holds, would be lost."""
    keys, others = _CONTEXT_KEYS.get(layout, ({}, ""))
    for key, place in keys.items():
        text = record.get(key)
        if is_empty(text):
            continue
        if not isinstance(text, str) or not any(text.strip() in message.get("content", "") for message in messages):
            told = f"{key} beside {others} would be left behind: move it into {place}, or remove it"
            problems.append(Problem(f"/{key}", "unrecognized_key", told))


# What says whether a model reasoned, or how much, instead of being its reasoning.
_REASONING_FLAGS = frozenset({"on", "off", "yes", "no", "true", "false", "none", "minimal", "low", "medium", "high"})


def reasoning_problems(record: dict[str, Any], messages: list[Message]) -> Iterator[Problem]:
    """A problem for each reasoning that stands beside a conversation and in no message of it."""
    for key in REASONING_FIELDS:
        value = record.get(key)
        if is_empty(value) or isinstance(value, bool | int | float):
            continue
        if isinstance(value, str):
            core = value.strip()
            if core.lower() in _REASONING_FLAGS or any(core in (message.get("content") or "") for message in messages):
                continue
        text = (
            f"{key} beside the conversation would be left behind: write it into the answer, in the tags of your model's"
        )
        yield Problem(f"/{key}", "reasoning_content", f"{text} template, or remove it")


def argument_problems(record: dict[str, Any], messages: list[Message]) -> Iterator[Problem]:
    """A problem for each argument of the chat template beside a conversation, unless messages have all its texts."""
    for key in TEMPLATE_ARGUMENTS:
        value = record.get(key)
        if is_empty(value):
            continue
        texts = list(_texts(value))
        if not texts or not all(any(text in (item.get("content") or "") for item in messages) for text in texts):
            text = (
                f"{key} beside the conversation would be left behind: write what it adds into a message, or remove it"
            )
            yield Problem(f"/{key}", "unrecognized_key", text)


def _texts(value: Any) -> Iterator[str]:
    """The texts in a nested value, and other values as Python writes them."""
    if isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _texts(item)
    elif value is not None:
        yield value.strip() if isinstance(value, str) else str(value)


def _with_system(record: dict[str, Any], messages: list[Message], problems: list[Problem]) -> list[Message]:
    given = [key for key in SYSTEM_KEYS if record.get(key)]
    for key in given:
        messages = _with_system_text(record[key], f"/{key}", messages, problems)
    return messages


def _with_system_text(text: Any, at: str, messages: list[Message], problems: list[Problem]) -> list[Message]:
    system = read_content(text, at, problems)
    if not system or not messages:
        return messages
    own = messages[0].get("content") if messages[0].get("role") in ("system", "developer") else None
    if own is None:
        return [{"role": "system", "content": system}, *messages]
    if own != system:
        told = "the record's own first message is another system text: keep one of them"
        problems.append(Problem(at, "conflicting_system", told))
    return messages


class _Reader(NamedTuple):
    """How a layout is read: the key that holds its answers, and its messages without the `system` text."""

    answers_key: str
    read: Callable[[dict[str, Any], list[Problem]], list[Message]]


_READERS: dict[Layout, _Reader] = {
    "messages": _Reader("messages", _messages),
    "sharegpt": _Reader("conversations", _sharegpt),
    "alpaca": _Reader("output", _alpaca),
    "prompt_completion": _Reader("completion", _prompt_completion),
}
