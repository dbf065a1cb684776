"""What a fine-tuning endpoint of the OpenAI form would say of a file, check by check.

The names are those of OpenAI's published data check for chat fine-tuning and of its file errors; the bounds are the
documented ones (at least ten examples). The file is read as that endpoint reads it: JSON Lines and nothing else.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

MIN_EXAMPLES = 10
MAX_PLACES = 20
_ROLES = frozenset({"system", "developer", "user", "assistant", "tool", "function"})
_MESSAGE_KEYS = frozenset(
    {"role", "content", "name", "function_call", "tool_calls", "tool_call_id", "weight", "refusal", "audio"}
)
_RECORD_KEYS = frozenset({"messages", "tools", "functions", "parallel_tool_calls"})

CHECKS = {
    "invalid_jsonl": "Expected file to have JSONL format, where every line is a valid JSON dictionary",
    "missing_messages_list": "the line has no list of messages",
    "message_missing_key": "a message lacks its role, or its content and calls",
    "message_unrecognized_key": "a message or the line has a key that the endpoint does not know",
    "unrecognized_role": "a role is none of system, developer, user, assistant, tool, function",
    "missing_content": "a content is neither a text nor a list of parts",
    "example_missing_assistant_message": "no assistant answers",
    "invalid_weight": "a weight is neither 0 nor 1, or stands at another role than assistant",
    "invalid_n_examples": f"the file has fewer than {MIN_EXAMPLES} examples",
}


@dataclass
class CheckResult:
    """How many lines fail one check, and the first of them (1-based)."""

    code: str
    n_lines: int = 0
    lines: list[int] = field(default_factory=list)
    example: str = ""

    def add(self, line: int, example: str) -> None:
        """Count a line."""
        self.n_lines += 1
        self.example = self.example or example
        if len(self.lines) < MAX_PLACES:
            self.lines.append(line)


def check_openai(path: Path) -> list[CheckResult]:
    """The checks that fail, in the order of CHECKS; none when the endpoint would take the file."""
    found = {code: CheckResult(code) for code in CHECKS}
    for number, code, example in line_faults(path):
        found[code].add(number, example)
    return [result for result in found.values() if result.n_lines]


def line_faults(path: Path) -> Iterator[tuple[int, str, str]]:
    """(line, code of CHECKS, example) of every fault, in the order of the file; too few examples come last."""
    n_examples = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                n_examples += 1
                yield from ((number, code, example) for code, example in _line_faults(line))
    if n_examples < MIN_EXAMPLES:
        yield 1, "invalid_n_examples", f"{n_examples} examples"


def _line_faults(line: bytes) -> Iterator[tuple[str, str]]:
    """Each check that the line fails, once."""
    try:
        record = orjson.loads(line)
    except orjson.JSONDecodeError:
        record = None
    if not isinstance(record, dict):
        yield "invalid_jsonl", "Line starts with: " + line[:40].decode("utf-8", "replace").strip()
        return
    messages = record.get("messages")
    if not isinstance(messages, list) or not messages:
        yield "missing_messages_list", ", ".join(map(str, list(record)[:5]))
        return
    faults: dict[str, str] = {}
    for key in record:
        if key not in _RECORD_KEYS:
            faults.setdefault("message_unrecognized_key", str(key))
    for message in messages:
        for code, example in _message_faults(message):
            faults.setdefault(code, example)
    if not any(isinstance(item, dict) and item.get("role") == "assistant" for item in messages):
        faults.setdefault("example_missing_assistant_message", "")
    yield from faults.items()


def _message_faults(message: Any) -> Iterator[tuple[str, str]]:
    if not isinstance(message, Mapping):
        yield "message_missing_key", str(message)[:40]
        return
    if "role" not in message or not ({"content", "tool_calls", "function_call"} & set(message)):
        yield "message_missing_key", ", ".join(map(str, message))
    for key in message:
        if key not in _MESSAGE_KEYS:
            yield "message_unrecognized_key", str(key)
    role = message.get("role")
    if role not in _ROLES:
        yield "unrecognized_role", str(role)
    content = message.get("content")
    called = message.get("tool_calls") or message.get("function_call")
    if "content" in message and not isinstance(content, str | list) and not (content is None and called):
        yield "missing_content", str(role)
    weight = message.get("weight")
    if weight is not None and (isinstance(weight, bool) or weight not in (0, 1) or role != "assistant"):
        yield "invalid_weight", str(weight)
