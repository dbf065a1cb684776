"""Checking chat rows: ours (every code, canonical JSON) beside the usual fine-tuning format check.

The usual check is the one that OpenAI's cookbook published and many copied: the lines decoded (here with orjson), then
each message's keys, role and content looked at. It counts problems, and neither names the row nor normalises, finds
repeated keys or gives canonical text. It is run as published, with all rows decoded first, and streamed, one row at a
time, which is its best form. All read the same file from the page cache, in turns.
"""

import random
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from time import perf_counter
from typing import Any

import orjson

from curator.corpus.formats import Row, read_rows
from curator.messages import example_id

N_ROWS = 100_000
_WORDS = """
    time people way water work life hand part place case week point number group problem fact book question house power
    game line member law car city name team minute idea body information back parent face others level office door
    health person art war history party result change morning reason research girl moment air teacher force education
"""
_OTHER_WORDS = ("café", "naïve", "Größe", "señor", "東京", "“quoted”", "—", "😀")
_KEYS = ("role", "content", "name", "function_call", "weight")
_ROLES = ("system", "user", "assistant", "function")


def write_chat_rows(path: Path, n_rows: int = N_ROWS, seed: int = 0) -> int:
    """Write rows of about 1.2 kB (1 to 3 exchanges, every fourth with words outside ASCII); returns the bytes."""
    draw = random.Random(seed)
    with path.open("wb") as file:
        for number in range(n_rows):
            messages = [{"role": "system", "content": "Be brief."}] if number % 3 == 0 else []
            for _ in range(draw.choice((1, 1, 2, 3))):
                messages.append({"role": "user", "content": _text(draw, draw.randint(4, 32), number)})
                messages.append({"role": "assistant", "content": _text(draw, draw.randint(32, 136), number)})
            file.write(orjson.dumps({"messages": messages}, option=orjson.OPT_APPEND_NEWLINE))
    return path.stat().st_size


def _text(draw: random.Random, n_words: int, number: int) -> str:
    words = draw.choices(_WORDS.split(), k=n_words)
    if number % 4 == 0:
        words[:3] = draw.choices(_OTHER_WORDS, k=3)
    words[n_words // 2] += ".\n"
    return " ".join(words)


def usual_check(path: Path) -> Counter[str]:
    """Problems by kind, as published: every row is decoded before the first is looked at."""
    with path.open("rb") as file:
        examples = [orjson.loads(line) for line in file]
    return _check_examples(examples)


def usual_check_streamed(path: Path) -> Counter[str]:
    """The same with one row in memory."""
    with path.open("rb") as file:
        return _check_examples(orjson.loads(line) for line in file)


def _check_examples(examples: Iterable[Any]) -> Counter[str]:
    errors: Counter[str] = Counter()
    for example in examples:
        if not isinstance(example, dict):
            errors["data_type"] += 1
            continue
        messages = example.get("messages", None)
        if not messages:
            errors["missing_messages_list"] += 1
            continue
        _check_messages(messages, errors)
    return errors


def _check_messages(messages: list[dict[str, Any]], errors: Counter[str]) -> None:
    for message in messages:
        if "role" not in message or "content" not in message:
            errors["message_missing_key"] += 1
        if any(key not in _KEYS for key in message):
            errors["message_unrecognized_key"] += 1
        if message.get("role", None) not in _ROLES:
            errors["unrecognized_role"] += 1
        content = message.get("content", None)
        if (not content and not message.get("function_call", None)) or not isinstance(content, str):
            errors["missing_content"] += 1
    if not any(message.get("role", None) == "assistant" for message in messages):
        errors["example_missing_assistant_message"] += 1


def our_check(path: Path) -> Counter[str]:
    """Problems by code; every good row's canonical JSON is made."""
    errors: Counter[str] = Counter()
    for item in read_rows(path):
        if not isinstance(item, Row):
            errors[item.code] += 1
    return errors


def our_check_and_ids(path: Path) -> int:
    """The same with the id of every good row; returns the number of distinct ones."""
    return len({example_id(item.json) for item in read_rows(path) if isinstance(item, Row)})


def measure(folder: Path, n_rows: int = N_ROWS, repeats: int = 5) -> dict[str, Any]:
    """Best seconds of each way over `repeats` turns, and the usual check's seconds over ours (1: the same).

    `ratio` compares with the check as published, `ratio_streamed` with its streamed form.
    """
    path = folder / "chat.jsonl"
    n_bytes = write_chat_rows(path, n_rows)
    ways: dict[str, Callable[[Path], object]] = {
        "usual_check": usual_check,
        "usual_check_streamed": usual_check_streamed,
        "ours": our_check,
        "ours_with_ids": our_check_and_ids,
    }
    seconds = dict.fromkeys(ways, float("inf"))
    for _ in range(repeats):
        for name, way in ways.items():
            begin = perf_counter()
            way(path)
            seconds[name] = min(seconds[name], perf_counter() - begin)
    ratios = {
        "ratio": seconds["usual_check"] / seconds["ours"],
        "ratio_streamed": seconds["usual_check_streamed"] / seconds["ours"],
    }
    return {"n_rows": n_rows, "bytes": n_bytes, "repeats": repeats, "seconds": seconds, **ratios}
