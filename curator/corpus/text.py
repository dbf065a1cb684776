"""The text of a conversation, or of one side of it, from canonical JSON, and what a text shows by rule.

Whether an answer repeats itself, shows nothing, or holds marks of a chat template.
"""

import math
import re
import unicodedata
from collections.abc import Sequence
from typing import Any

from curator.messages import Message, load_messages
from curator.recipe.filters import TextPart

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


NGRAM = 5  # words
_MIN_NGRAMS = 20  # shorter answers may repeat themselves with good reason
_MAX_RUN = 60  # the same visible character over and over; rulers of Markdown and code are shorter or exempt

# Marks that chat templates put between turns; in a content they forge turns or come from careless scraping.
_MARKERS = re.compile(
    r"<\|[A-Za-z][A-Za-z0-9_]{1,40}\|>|<\|turn>"  # <|im_start|>, <|eot_id|>, <|START_OF_TURN_TOKEN|>
    r"|<｜[^｜<>\n]{1,40}｜>"
    r"|\[/?INST\]|<</?SYS>>|<(?:start|end)_of_turn>|<(?:begin|end)_of_text>"
    r"|^###\s*(?:Instruction|Response|Human|Assistant)\s*:"
    r"|^(?:Human|Assistant|USER|ASSISTANT)\s*:"
    r"|</s>\s*$",
    re.MULTILINE,
)
_RUN = re.compile(rf"([^\s\-=_*~.#+/\\|<>])\1{{{_MAX_RUN - 1}}}")
_NO_LETTER = re.compile(r"[\W_]+")
N_HEAD_CHARS = 400  # holds three of the longest pieces
_UNIT = re.compile(r"(.{2,40}?)\1\1+", re.DOTALL)  # a text that is nothing but one piece three times or more


def shows_nothing(text: str) -> bool:
    """Whether nothing of the text is visible.

    White space, format characters (zero-width spaces, direction marks), control characters and fillers show nothing.
    """
    return all(c.isspace() or _is_hidden(c) for c in text)


def _is_hidden(character: str) -> bool:
    return unicodedata.category(character) in ("Cf", "Cc") or character in _FILLERS


# Letters and marks by their category, though fonts draw nothing for them.
_FILLERS = frozenset("\u034f\u115f\u1160\u17b4\u17b5\u2800\u3164\uffa0") | {chr(c) for c in range(0xFE00, 0xFE10)}


def has_question(messages: Sequence[Message]) -> bool:
    """Whether any user turn has visible text: without one the answers have no question."""
    return any(
        message["role"] == "user" and not shows_nothing(content_text(message.get("content"))) for message in messages
    )


def has_empty_turn(messages: Sequence[Message]) -> bool:
    """Whether a turn of user or assistant shows no text and calls no tool."""
    return any(
        shows_nothing(content_text(message.get("content"))) and not message.get("tool_calls")
        for message in messages
        if message["role"] in ("user", "assistant")
    )


def template_marker(text: str) -> str | None:
    """The first chat-template marker in a turn's text, where it would forge a turn; None without one."""
    found = _MARKERS.search(text)
    return None if found is None else found.group().strip()


def is_looped(answer: str, max_repeated: float) -> bool:
    """Whether an answer repeats itself: its `repetition` is above `max_repeated`, which is at most 1."""
    return repetition(answer) > max_repeated


def repetition(answer: str) -> float:
    """How far an answer repeats itself: the share of its word 5-grams that occurred before in it.

    Infinite where one character runs on and on, or the whole is one piece with letters again and again ("ha ha ha").
    0 for an answer with few n-grams.
    """
    if _RUN.search(answer) or _is_one_piece(answer):
        return math.inf
    words = answer.split()
    n_grams = len(words) - NGRAM + 1
    if n_grams < _MIN_NGRAMS:
        return 0.0
    distinct = len({tuple(words[i : i + NGRAM]) for i in range(n_grams)})
    return 1 - distinct / n_grams


def _is_one_piece(answer: str) -> bool:
    """Whether letters and digits are one piece repeated three times or more; the first ones rule out most answers."""
    if not _UNIT.match(_NO_LETTER.sub("", answer[:N_HEAD_CHARS]).casefold()):
        return False
    letters = _NO_LETTER.sub("", answer).casefold()
    # "11111" and "aaaaa" are left to the run of one character; in other scripts one letter is a syllable or a word.
    varied = (len(set(letters)) > 1 or not letters.isascii()) and not letters.isdecimal()
    return varied and _UNIT.fullmatch(letters) is not None and (len(letters) >= 6 or len(answer.split()) >= 3)
