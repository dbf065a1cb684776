"""The conversations of the frozen store: three corpora and a task set, every word picked by a hash of its place."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

Messages = list[dict[str, Any]]

TOPICS = {
    "medicine": "dose fever doctor tablet nurse clinic symptom rest water blood pressure pain relief patient sleep "
    "diet",
    "finance": "budget savings interest loan bank fund market price income tax invoice credit share rent wage pension",
    "code": "function loop list string index error test branch commit type class module value return cache thread",
    "garden": "soil seed water sun leaf root prune spring compost rain shade flower tomato hedge lawn bee",
    "reise": "Zug Bahnhof Straße Fähre Gepäck Küste Brücke Hotel Mittag Karte früh Ausflug Köln Grüße Weg Stadt",
}
JOINTS = [
    "the",
    "a",
    "then",
    "with",
    "after",
    "before",
    "and",
    "keep",
    "ask",
    "check",
    "often",
    "slowly",
    "first",
    "also",
    "every",
    "small",
    "for",
    "your",
    "this",
    "when",
]
_OPENINGS = ("I am sorry, but", "I can’t help with that:", "I'm unable to say,", "Sorry!", "I apologize;")
_TOOL_CALL = {"type": "function", "id": "call_1", "function": {"name": "look_up", "arguments": {"city": "Köln"}}}

N_CHATS, N_EXTRA, N_NOTES, N_TASK = 260, 80, 24, 96
# Evaluation sets of the store: eight words of the first, and the whole of the second, stand in some rows.
PROBES = "how would you divide seventeen marbles between three friends without breaking any"
SHORT_PROMPT = "Name the quiet river"


@dataclass(frozen=True)
class Example:
    """One conversation of a corpus with its labels."""

    messages: Messages
    domain: str | None
    language: str | None
    license: str | None
    harm: str | None


def number(*key: object) -> int:
    """A whole number that follows from the key alone."""
    return int.from_bytes(hashlib.blake2b(repr(key).encode(), digest_size=6).digest(), "big")


def pick(options: Sequence[Any], *key: object) -> Any:
    """One of the options, by the key."""
    return options[number(*key) % len(options)]


def sentence(topic: str, n_words: int, *key: object) -> str:
    """Words of a topic between words that join them."""
    words = TOPICS[topic].split()
    return " ".join(pick(JOINTS if place % 3 == 1 else words, topic, place, *key) for place in range(n_words))


def chat(question: str, answer: str, *, system: str | None = None) -> Messages:
    """One question and its answer, after a system turn where one is given."""
    head = [] if system is None else [{"role": "system", "content": system}]
    return [*head, {"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def tool_chat(question: str, answer: str) -> Messages:
    """A conversation in which the assistant calls a tool before it answers."""
    return [
        {"role": "user", "content": question},
        {"role": "assistant", "content": "", "tool_calls": [_TOOL_CALL]},
        {"role": "tool", "content": '{"weather": "rain"}', "tool_call_id": "call_1"},
        {"role": "assistant", "content": answer},
    ]


def _topic(corpus: str, i: int) -> str:
    return str(pick(list(TOPICS), corpus, "topic", i))


def _messages(corpus: str, i: int) -> Messages:
    """Row i: mostly one question and answer; what the filters look for at fixed places."""
    topic = _topic(corpus, i)
    question = sentence(topic, 5 + number(corpus, "q", i) % 5, corpus, "question", i) + "?"
    answer = sentence(topic, 8 + number(corpus, "a", i) % 40, corpus, "answer", i) + "."
    if i % 7 == 3:
        answer = f"{pick(_OPENINGS, corpus, 'opening', i)} {answer}"
    if i % 20 == 19:  # all but the last words of the row before: a near duplicate
        before = _messages(corpus, i - 1)
        return [*before[:-1], {"role": "assistant", "content": f"{before[-1]['content']} Again {topic}."}]
    if i % 40 == 11:  # the row before in other letters: an exact duplicate, case and white space aside
        before = _messages(corpus, i - 1)
        return [*before[:-1], {"role": "assistant", "content": before[-1]["content"].upper().replace(" ", "  ")}]
    special = {
        25: chat(question, f"<|im_start|>system {answer}"),
        26: chat(question, ""),
        27: chat(question, "on and on it goes " * 12),
        28: chat(f"{PROBES.upper()}, {question}", answer),
        29: chat(question, f"{answer} {SHORT_PROMPT}!"),
        30: tool_chat(question, answer),
    }
    if i % 60 in special:
        return special[i % 60]
    turns = chat(question, answer, system="Be brief." if i % 13 == 5 else None)
    return [*turns, *chat(f"And {question}", f"Also {answer}")] if i % 9 == 4 else turns


def example(corpus: str, i: int) -> Example:
    """Row i of a corpus with its labels; `chats` has rows without each of them, `notes` has none at all."""
    topic = _topic(corpus, i)
    if corpus == "notes":
        return Example(_messages(corpus, i), None, None, None, None)
    return Example(
        messages=_messages(corpus, i),
        domain=None if i % 31 == 30 else topic,
        language="de" if topic == "reise" else None if i % 29 == 28 else "en",
        license=pick(("cc-by-4.0", "mit", None), corpus, "license", i),
        harm=pick(("harmless", "Safe", "unharmful", "harmful", None), corpus, "harm", i),
    )


def task_records() -> list[dict[str, Any]]:
    """The user's rows: own ones, repeats, system turns, tool calls, and copies of rows of the corpora."""
    records = [{"messages": _task_messages(i)} for i in range(N_TASK)]
    for i, record in enumerate(records):
        source = (None, "support", "sales")[i % 3]
        records[i] = record if source is None else {**record, "source": source}
    return records


def _task_messages(i: int) -> Messages:
    if i % 16 == 15:  # the task row seven places before
        return _task_messages(i - 7)
    question = sentence("garden" if i % 2 else "finance", 6, "task question", i) + "?"
    answer = sentence("medicine", 6 + i % 11, "task answer", i) + "."
    if i % 12 == 10:
        return tool_chat(question, answer)
    if i % 24 == 1:  # a row of the corpus
        return _messages("chats", 10 * i)
    if i % 24 == 2:  # a row of the corpus in capitals
        copied = _messages("chats", 60 + i)
        return [{**turn, "content": turn["content"].title()} for turn in copied]
    if i % 24 == 3:  # nearly a row of the corpus
        copied = _messages("extra", 2 * i)
        return [*copied[:-1], {"role": "assistant", "content": f"{copied[-1]['content']} Thanks."}]
    return chat(question, answer, system="You are a gardener." if i % 12 == 5 else None)
