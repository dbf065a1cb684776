"""Rows that no one should train on: leaked template markers, empty turns, answers that loop (ours)."""

import re
from collections.abc import Callable

import numpy as np

from curator.corpus.text import content_text
from curator.messages import load_messages
from curator.recipe.filters import HygieneCheck, HygieneFilter
from curator.select.candidates import Candidates, Verdict
from curator.select.columns import Indices

_NGRAM = 5
_MIN_NGRAMS = 20  # shorter answers may repeat themselves with good reason
_MAX_RUN = 60  # the same visible character over and over; rulers of Markdown and code are shorter or exempt

# Marks that chat templates put between turns; in a content they forge turns or come from careless scraping.
_MARKERS = re.compile(
    r"<\|[a-z][a-z0-9_]{1,40}\|>"  # <|im_start|>, <|eot_id|>, <|endoftext|>, <|user|>
    r"|<｜[^｜<>\n]{1,40}｜>"
    r"|\[/?INST\]|<</?SYS>>|<(?:start|end)_of_turn>|<(?:begin|end)_of_text>"
    r"|^###\s*(?:Instruction|Response|Human|Assistant)\s*:"
    r"|^(?:Human|Assistant|USER|ASSISTANT)\s*:"
    r"|</s>\s*$",
    re.MULTILINE,
)
_RUN = re.compile(rf"([^\s\-=_*~.#+/\\|<>])\1{{{_MAX_RUN - 1}}}")


def hygiene_verdict(spec: HygieneFilter, candidates: Candidates, rows: Indices) -> Verdict:
    """The first check that a row fails, in the order of `spec.checks`, is its reason."""
    codes = np.zeros(len(rows), dtype=np.int16)
    place = 0
    for chunk in candidates.texts(rows):
        for text in chunk:
            turns = load_messages(text)
            found = (code for code, name in enumerate(spec.checks, start=1) if _CHECKS[name](turns, spec))
            codes[place] = next(found, 0)
            place += 1
    return Verdict(tuple(f"hygiene:{name}" for name in spec.checks), codes)


def _has_marker(turns: list[dict[str, object]], spec: HygieneFilter) -> bool:
    return any(_MARKERS.search(content_text(turn.get("content"))) for turn in turns)


def template_marker(text: str) -> str | None:
    """The first mark of a chat template in a turn's text, which there forges a turn; None without one."""
    found = _MARKERS.search(text)
    return None if found is None else found.group().strip()


def _has_empty_turn(turns: list[dict[str, object]], spec: HygieneFilter) -> bool:
    return any(
        not content_text(turn.get("content")).strip() and not turn.get("tool_calls")
        for turn in turns
        if turn["role"] in ("user", "assistant")
    )


def _loops(turns: list[dict[str, object]], spec: HygieneFilter) -> bool:
    answers = (content_text(turn.get("content")) for turn in turns if turn["role"] == "assistant")
    return any(is_looped(answer, spec.max_repeated) for answer in answers)


def is_looped(answer: str, max_repeated: float) -> bool:
    """Whether more than `max_repeated` of the word 5-grams occurred before, or one character runs on and on."""
    if _RUN.search(answer):
        return True
    words = answer.split()
    n_grams = len(words) - _NGRAM + 1
    if n_grams < _MIN_NGRAMS:
        return False
    distinct = len({tuple(words[i : i + _NGRAM]) for i in range(n_grams)})
    return 1 - distinct / n_grams > max_repeated


_CHECKS: dict[HygieneCheck, Callable[[list[dict[str, object]], HygieneFilter], bool]] = {
    "template_marker": _has_marker,
    "empty": _has_empty_turn,
    "looped": _loops,
}
