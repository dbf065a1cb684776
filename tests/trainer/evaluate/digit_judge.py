"""A judge on a loopback address with a tokenizer of the test's: its answers follow a distribution known to the test."""

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tests.loopback import ChatHandler

END = "<|im_end|>"
SENTENCEPIECE_BLANK = "\N{LOWER ONE EIGHTH BLOCK}"


def one_by_one(number: str) -> list[str]:
    """95 as 9 and 5."""
    return list(number)


def whole(number: str) -> list[str]:
    """Each number one token."""
    return [number]


def in_pairs(number: str) -> list[str]:
    """Two digits a token, from the left: 100 as 10 and 0."""
    return [number[at : at + 2] for at in range(0, len(number), 2)]


def in_pairs_from_the_right(number: str) -> list[str]:
    """Two digits a token, from the right: 100 as 1 and 00."""
    first = len(number) % 2
    return [piece for piece in (number[:first], *in_pairs(number[first:])) if piece]


def partly_merged(number: str) -> list[str]:
    """A vocabulary that holds 95 and 100, and other numbers digit by digit."""
    return [number] if number in ("95", "100") else list(number)


def behind_blank(cut: Callable[[str], list[str]], blank: str) -> Callable[[str], list[str]]:
    """The same behind a token of white space."""
    return lambda number: [blank, *cut(number)]


def _after(tokens: Sequence[str], given: str) -> tuple[str, ...] | None:
    """What follows a text that was given; None for an answer that does not begin with it."""
    for n in range(1, len(tokens)):
        if "".join(tokens[:n]).strip(f"{SENTENCEPIECE_BLANK} \n") == given:
            return tuple(tokens[n:])
    return None


class DigitJudge(ChatHandler):
    """`server.answers`: probabilities of whole answers by words of the prompt; the number that a prompt names is given
    back where none fits. `server.cut`: the tokens of a number; `server.continues` a begun answer; `server.n_positions`
    at most."""

    def serve(self) -> None:
        server = self.server
        body = json.loads(self.body())
        server.seen.append(body)
        given = body["messages"][-1]["content"] if body["messages"][-1]["role"] == "assistant" else ""
        if given and not server.continues:
            self.answer({"error": {"message": "unknown field continue_final_message"}}, 400)
            return
        prompt = body["messages"][0]["content"]
        named = {next(iter(re.findall(r"\d+", prompt)), "none"): 1.0}
        answers: Mapping[str, float] = next((item for words, item in server.answers.items() if words in prompt), named)
        left = [
            ((*(server.cut(answer) if answer.isdigit() else re.findall(r"\d|\D+", answer)), END), probability)
            for answer, probability in answers.items()
        ]
        if given:
            left = [(rest, probability) for tokens, probability in left if (rest := _after(tokens, given))]
        entries: list[dict[str, Any]] = []
        while left and len(entries) < min(body["max_tokens"], server.n_positions):
            next_tokens: dict[str, float] = {}
            total = sum(probability for _, probability in left)
            for tokens, probability in left:
                next_tokens[tokens[0]] = next_tokens.get(tokens[0], 0.0) + probability / total
            token = max(next_tokens, key=lambda name: next_tokens[name])
            top = [{"token": name, "logprob": math.log(p)} for name, p in next_tokens.items()]
            entries.append({"token": token, "logprob": math.log(next_tokens[token]), "top_logprobs": top})
            left = [(tokens[1:], probability) for tokens, probability in left if tokens[0] == token and tokens[1:]]
        self.answer({"choices": [{"logprobs": {"content": entries}}]})
