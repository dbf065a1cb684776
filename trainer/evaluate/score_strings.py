"""The answer of a judge as strings with probabilities, whatever its tokenizer does with digits.

A tokenizer that keeps "95" whole needs one token; Qwen, Gemma, Mistral and SmolLM split digits, so that the first token
of "95" is "9". A score is therefore read as a string of up to three digits, whose probability is the product of its
tokens' probabilities. One call of a few tokens gives the top log-probabilities along the likeliest answer. What lies
beside it (the "8" of "85" where "9" is likelier) needs further calls that go on from those digits.

Nothing here talks to a judge: `reading` and `probing` are generators that yield the text from which the judge should go
on and receive the tokens that followed, so that a blocking client and an asynchronous one share them.
"""

import math
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from curator.errors import RemoteError

MAX_TOKENS = 3  # of one call: the longest number, 100, digit by digit
MIN_BRANCH = 0.01  # a likelier beginning of a number is followed; what is less likely has no part in the score
PROBE_NUMBER, PROBE_TOLERANCE = 95, 5.0
PROBE = f"Reply with the number {PROBE_NUMBER} and nothing else."
CONTINUATION = {"add_generation_prompt": False, "continue_final_message": True}  # vLLM's and SGLang's extra fields
_BLANK = " "  # where a tokenizer puts a token of its own before the first digit
_Found = TypeVar("_Found")


@dataclass(frozen=True)
class Position:
    """One token of an answer, and the top log-probabilities (natural log) at its place."""

    token: str
    top: Mapping[str, float]


@dataclass(frozen=True)
class Digits:
    """What a judge does with numbers: `split` them into several tokens; `continued`: it can go on from given digits."""

    split: bool = False
    continued: bool = False


Steps = Generator[str, Sequence[Position], dict[str, float]]


def reading(digits: Digits) -> Steps:
    """Yields the texts to go on from ("" first), returns strings and their log-probabilities.

    Strings are numbers, and words as far as their first token. A number that could go on, but whose next token is
    not known, is left out: it lowers the numeric mass and is never taken for the number that it begins.
    """
    nodes: dict[str, Mapping[str, float]] = {}
    _add(nodes, "", (yield ""))
    found: dict[str, float] = {}
    queue = [("", 1.0)]
    while queue:
        text, probability = queue.pop()
        for token, logprob in nodes.get(text, {}).items():
            share = probability * math.exp(logprob)
            longer = _longer(text, token)
            if longer is None:
                continue
            if _is_open(longer, digits) and longer not in nodes and digits.continued and share >= MIN_BRANCH:
                _add(nodes, longer, (yield longer))
            if longer in nodes:
                queue.append((longer, share))
            elif not _is_open(longer, digits):
                found[longer] = found.get(longer, 0.0) + share
        if is_number(text):
            found[text] = found.get(text, 0.0) + probability * _ending(text, nodes[text], digits)
    return {text: math.log(share) for text, share in found.items() if share > 0}


def probing() -> Generator[str, Sequence[Position], tuple[Digits, dict[str, float]]]:
    """The same for PROBE: what the judge does with numbers, and the strings of its answer."""
    path = yield ""
    first = next((item.token.strip() for item in path if item.token.strip()), "")
    number = str(PROBE_NUMBER)
    split = first != number and number.startswith(first or "-")
    continued = False
    if split:
        after = yield number[0]
        continued = bool(after) and after[0].token.strip() == number[1]
    digits = Digits(split, continued)
    steps = reading(digits)
    next(steps)
    answer: Sequence[Position] = path
    while True:
        try:
            asked = steps.send(answer)
        except StopIteration as stop:
            return digits, stop.value
        answer = yield asked


def drive(steps: Generator[str, Sequence[Position], _Found], ask: Callable[[str], Sequence[Position]]) -> _Found:
    """Run `reading` or `probing` to its end; `ask` gives the tokens that follow a text."""
    try:
        text = next(steps)
        while True:
            text = steps.send(ask(text))
    except StopIteration as stop:
        found: _Found = stop.value
        return found


def check_probe(strings: Mapping[str, float], judge: str) -> None:
    """Raise RemoteError unless the probe's answer is read as the number that the judge was told to give."""
    mass = sum(math.exp(logprob) for text, logprob in strings.items() if is_number(text))
    mean = sum(math.exp(logprob) * int(text) for text, logprob in strings.items() if is_number(text)) / (mass or 1.0)
    if mass < 0.5 or abs(mean - PROBE_NUMBER) > PROBE_TOLERANCE:
        likeliest = sorted(strings, key=lambda text: -strings[text])[:3]
        raise RemoteError(
            f"{judge} cannot be used as a judge: told to reply with {PROBE_NUMBER}, its log-probabilities say"
            f" {', '.join(map(repr, likeliest)) or 'nothing'} (numbers have {100 * mass:.0f} % of the probability"
            f"{f', mean {mean:.1f}' if mass else ''}). Scores would be wrong. The server must return top_logprobs for"
            f" each of {MAX_TOKENS} tokens"
        )


def positions(entries: Any, where: str) -> list[Position]:
    """OpenAI's `logprobs.content` as positions; raises RemoteError when there are no top log-probabilities."""
    try:
        found = []
        for entry in entries:
            top = {item["token"]: float(item["logprob"]) for item in entry["top_logprobs"]}
            likeliest = max(top, key=lambda token: top[token], default="")
            found.append(Position(str(entry.get("token", likeliest)), top))
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


def _is_open(text: str, digits: Digits) -> bool:
    """Whether a number may go on to another one under this tokenizer."""
    return digits.split and is_number(text) and (len(text) == 1 or text == "10")


def _ending(text: str, top: Mapping[str, float], digits: Digits) -> float:
    """Probability that a number ends where it stands. What the top log-probabilities leave unsaid is an end only where
    no number could follow."""
    going_on = sum(math.exp(logprob) for token, logprob in top.items() if token.rstrip().isdigit())
    if top and _is_open(text, digits):
        return sum(math.exp(logprob) for logprob in top.values()) - going_on
    return max(0.0, 1 - going_on)


def _add(nodes: dict[str, Mapping[str, float]], text: str, path: Sequence[Position]) -> None:
    """What may follow each beginning along a path. After a path shorter than a call may be, nothing follows."""
    for position in path:
        nodes[text] = position.top
        longer = _longer(text, position.token)
        if longer is None or not (longer == _BLANK or is_number(longer)):
            return
        text = longer
    if path and len(path) < MAX_TOKENS and is_number(text):
        nodes[text] = {}
