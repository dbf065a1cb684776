"""The answer of a judge as strings with probabilities, whatever its tokenizer does with digits.

A tokenizer that keeps "95" whole needs one token; Qwen, Gemma, Mistral and SmolLM split digits, so that the first token
of "95" is "9". Others keep two digits together and write 100 as "10" and "0", and some put a token of white space
before the first digit. A score is therefore read as a string of up to three digits, whose probability is the product of
its tokens' probabilities. One call of a few tokens gives the top log-probabilities along the likeliest answer. What
lies beside it (the "8" of "85" where "9" is likelier) needs further calls that go on from those digits.

Nothing here talks to a judge: `reading` and `probing` are generators that yield a prompt and the text from which the
judge should go on, and receive the tokens that followed, so that a blocking client and an asynchronous one share them.
"""

import math
import re
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from curator.errors import RemoteError

MAX_TOKENS = 4  # of one call: the longest number, 100, digit by digit, behind a token of white space
MIN_BRANCH = 0.01  # a likelier beginning of a number is followed; what is less likely has no part in the score
PROBE_NUMBER, LONGEST_NUMBER = 95, 100  # two digits may be one token where three are not
PROBE_TOLERANCE = 5.0
CONTINUATION = {"add_generation_prompt": False, "continue_final_message": True}  # vLLM's and SGLang's extra fields
_BLANK = " "  # where a tokenizer puts a token of its own before the first digit
_RAW_BLANKS = str.maketrans("\u2581\u0120", "  ")  # a space as tokenizers spell it: some servers send tokens undecoded
_POINTS = (".", ",")
_FRACTION = re.compile(r"[.,](\d|$)")  # also a point of which nothing is known but that it may come
_Found = TypeVar("_Found")


@dataclass(frozen=True)
class Position:
    """One token of an answer, and the top log-probabilities (natural log) at its place."""

    token: str
    top: Mapping[str, float]


@dataclass(frozen=True)
class Digits:
    """What a judge does with numbers: `beginnings` are numbers after which its tokenizer may write further digits;
    `continued`: the judge can go on from digits that it is given."""

    beginnings: frozenset[str] = frozenset()
    continued: bool = False


Call = tuple[str, str]  # a prompt, and the text from which the judge's answer should go on ("": from its beginning)
Steps = Generator[Call, Sequence[Position], dict[str, float]]


def reading(prompt: str, digits: Digits) -> Steps:
    """Yields the calls to make, returns strings and their log-probabilities.

    Strings are numbers, and words as far as their first token. A number that could go on, but whose next token is
    not known, is left out: it lowers the numeric mass and is never taken for the number that it begins.
    """
    nodes: dict[str, Mapping[str, float]] = {}
    path = yield prompt, ""
    digits = Digits(digits.beginnings | _beginnings(path), digits.continued)
    _add(nodes, "", path)
    found: dict[str, float] = {}
    queue = [("", 1.0)]
    while queue:
        text, probability = queue.pop()
        for token, logprob in nodes.get(text, {}).items():
            share = probability * math.exp(logprob)
            longer = _longer(text, token)
            if longer is None:
                continue
            is_open = longer in digits.beginnings
            if is_open and longer not in nodes and digits.continued and share >= MIN_BRANCH:
                _add(nodes, longer, (yield prompt, longer))
            if longer in nodes:
                queue.append((longer, share))
            elif not is_open:
                found[longer] = found.get(longer, 0.0) + share
        if is_number(text):
            found[text] = found.get(text, 0.0) + probability * _ending(text, nodes[text], digits)
    return {text: math.log(share) for text, share in found.items() if share > 0}


def probing(judge: str) -> Generator[Call, Sequence[Position], Digits]:
    """Yields the calls that ask for known numbers, returns what the judge does with numbers.

    Raises RemoteError, with the judge's name, unless PROBE_NUMBER is read as that number, and where an answer that
    begins like LONGEST_NUMBER is read as another one. Any other answer to the latter says nothing of its tokens.
    """
    digits = Digits()
    for number in map(str, (PROBE_NUMBER, LONGEST_NUMBER)):
        path = yield probe(number), ""
        begun, following, *_ = [*_pieces(path), "", ""]
        if number == str(LONGEST_NUMBER) and not (begun and number.startswith(begun)):
            break
        if following:
            after = yield probe(number), begun
            continued = bool(after) and after[0].token.strip() == following
            digits = Digits(
                digits.beginnings | _beginnings(path), continued and (digits.continued or not digits.beginnings)
            )
        _check((yield from _again(reading(probe(number), digits), path)), int(number), judge)
    return digits


def _again(steps: Steps, path: Sequence[Position]) -> Steps:
    """The same steps, the first of whose calls was made already."""
    next(steps)
    try:
        call = steps.send(path)
        while True:
            call = steps.send((yield call))
    except StopIteration as stop:
        found: dict[str, float] = stop.value
        return found


def probe(number: str) -> str:
    """The prompt that asks for a known number."""
    return f"Reply with the number {number} and nothing else."


def drive(steps: Generator[Call, Sequence[Position], _Found], ask: Callable[[str, str], Sequence[Position]]) -> _Found:
    """Run `reading` or `probing` to its end; `ask` gives the tokens that follow a text after a prompt."""
    try:
        call = next(steps)
        while True:
            call = steps.send(ask(*call))
    except StopIteration as stop:
        found: _Found = stop.value
        return found


def positions(entries: Any, where: str) -> list[Position]:
    """OpenAI's `logprobs.content` as positions; raises RemoteError when there are no top log-probabilities."""
    try:
        found = []
        for entry in entries:
            top: dict[str, float] = {}
            for item in entry["top_logprobs"]:
                token, logprob = item["token"].translate(_RAW_BLANKS), float(item["logprob"])
                top[token] = float(np.logaddexp(top[token], logprob)) if token in top else logprob
            likeliest = max(top, key=lambda token: top[token], default="")
            found.append(Position(entry.get("token", likeliest).translate(_RAW_BLANKS), top))
    except (KeyError, TypeError, AttributeError) as error:
        raise RemoteError(f"{where} answered without top_logprobs; the judge must return them") from error
    if not found or not found[0].top:
        raise RemoteError(f"{where} answered without top_logprobs; the judge must return them")
    return found


def is_number(text: str) -> bool:
    """Whether a string is an integer from 0 to 100."""
    return text.isascii() and text.isdigit() and len(text) <= 3 and int(text) <= 100


def _longer(text: str, token: str) -> str | None:
    """The string after one more token; None where the token adds nothing that counts."""
    if text in ("", _BLANK):
        return token.strip() or (_BLANK if text == "" else None)
    longer = text + token.rstrip()
    return longer if longer != text and is_number(longer) else None


def _pieces(path: Sequence[Position]) -> list[str]:
    """The tokens of the number that an answer begins with, without white space; none where it begins with a word."""
    pieces: list[str] = []
    for token in (position.token for position in path):
        if pieces or token.strip():
            piece = token.rstrip() if pieces else token.strip()
            if not piece or not is_number("".join([*pieces, piece])):
                break
            pieces.append(piece)
    return pieces


def _beginnings(path: Sequence[Position]) -> frozenset[str]:
    """The numbers that the answer shows to be beginnings; one digit alone shows it of all digits, and of 10."""
    pieces = _pieces(path)
    found = {"".join(pieces[:n]) for n in range(1, len(pieces))}
    one_by_one = len(pieces) > 1 and len(pieces[0]) == len(pieces[1]) == 1
    return frozenset(found | ({*"0123456789", "10"} if one_by_one else set()))


def _check(strings: Mapping[str, float], number: int, judge: str) -> None:
    """Raise RemoteError unless the probe's answer is read as the number that the judge was asked to give."""
    mass = sum(math.exp(logprob) for text, logprob in strings.items() if is_number(text))
    mean = sum(math.exp(logprob) * int(text) for text, logprob in strings.items() if is_number(text)) / (mass or 1.0)
    if mass < 0.5 or abs(mean - number) > PROBE_TOLERANCE:
        likeliest = sorted(strings, key=lambda text: -strings[text])[:3]
        raise RemoteError(
            f"{judge} cannot be used as a judge: asked to reply with {number}, its log-probabilities say"
            f" {', '.join(map(repr, likeliest)) or 'nothing'} (numbers have {100 * mass:.0f} % of the probability"
            f"{f', mean {mean:.1f}' if mass else ''}). Scores would be wrong. The server must return top_logprobs for"
            f" each of {MAX_TOKENS} tokens"
        )


def _ending(text: str, top: Mapping[str, float], digits: Digits) -> float:
    """Probability that a number ends where it stands. What the top log-probabilities leave unsaid is an end only where
    no number could follow."""
    going_on = sum(
        math.exp(logprob) for token, logprob in top.items() if token.rstrip().isdigit() or _FRACTION.match(token)
    )
    if top and text in digits.beginnings:
        return sum(math.exp(logprob) for logprob in top.values()) - going_on
    return max(0.0, 1 - going_on)


def _add(nodes: dict[str, Mapping[str, float]], text: str, path: Sequence[Position]) -> None:
    """What may follow each beginning along a path. After a path shorter than a call may be, nothing follows.

    A point counts together with the token after it, where that is known: "8.5" is not the number 8, but "8." is.
    """
    for place, position in enumerate(path):
        top, following = dict(position.top), path[place + 1].token if place + 1 < len(path) else ""
        if position.token in top and position.token in _POINTS:
            top[position.token + (following or " ")] = top.pop(position.token)
        nodes[text] = top
        longer = _longer(text, position.token)
        if longer is None or not (longer == _BLANK or is_number(longer)):
            return
        text = longer
    if path and len(path) < MAX_TOKENS and is_number(text):
        nodes[text] = {}
