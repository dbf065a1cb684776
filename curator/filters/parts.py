"""The text of a conversation, or of one side of it, from canonical JSON."""

from collections.abc import Sequence
from typing import Any

from curator.canonical import load_messages
from curator.config.filters import TextPart

_ROLES: dict[TextPart, frozenset[str] | None] = {
    "conversation": None,
    "prompt": frozenset({"user"}),
    "response": frozenset({"assistant"}),
}


def text_of(messages: str, part: TextPart) -> str:
    """Contents of the turns of one side (prompt: user turns, response: assistant turns) or of all, line by line."""
    roles = _ROLES[part]
    return "\n".join(
        content_text(message.get("content"))
        for message in load_messages(messages)
        if roles is None or message["role"] in roles
    )


def texts_of(messages: Sequence[str], part: TextPart) -> list[str]:
    """`text_of` each."""
    return [text_of(item, part) for item in messages]


def content_text(content: Any) -> str:
    """A turn's text; of several content parts, their texts; '' where a turn has none (a tool call)."""
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        return "\n".join(
            item["text"] for item in content if isinstance(item, dict) and isinstance(item.get("text"), str)
        )
    return ""
