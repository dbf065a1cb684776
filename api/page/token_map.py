"""Losses of a row's tokens as a heat map: which colour each token has, and what is said of it without colour.

Shaped from what `GET /v1/token-losses/{job}` answers; a template writes it.
"""

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from api.page.text import figure

DIFFERENCE = "difference"
MAX_SHOWN_TOKENS = 2_000  # of one map, and rows of its table
LOSS_EDGES = (0.5, 1.0, 2.0, 4.0, 8.0)  # nats
DIFFERENCE_EDGES = (-2.0, -0.5, -0.1, 0.1, 0.5, 2.0)  # nats, misaligned less aligned
_LOSS_LOOKS = ("h1", "h2", "h3", "h4", "h5", "h6")
_DIFFERENCE_LOOKS = ("n3", "n2", "n1", "z", "p1", "p2", "p3")
Values = Sequence[float | None]


@dataclass(frozen=True)
class Token:
    """A token as it is drawn: its look (a class of the style, '' for context) and what it says when pointed at."""

    text: str
    look: str
    title: str


@dataclass(frozen=True)
class Choice:
    """What a map may show: `name` is of the link, `words` for people; `mean` in nats per token."""

    name: str
    words: str
    role: str
    mean: float


@dataclass(frozen=True)
class TokenMap:
    """One map with its legend, and the table of all models. `absent`: models that did not run, and why."""

    chosen: Choice
    choices: tuple[Choice, ...]
    tokens: tuple[Token, ...]
    legend: tuple[tuple[str, str], ...]
    columns: tuple[str, ...]
    rows: tuple[tuple[int, str, tuple[float | None, ...]], ...]  # number, text, values by column
    n_hidden: int
    n_trained: int
    n_riskier: int | None  # trained tokens that are likelier under the misaligned models
    absent: tuple[tuple[str, str], ...]


def token_map(found: Mapping[str, Any], under: str) -> TokenMap:
    """The map of one model, by scorer id, or of the difference; of the first that there is where `under` is none."""
    ran = [item for item in found["models"] if item["nll"] is not None]
    alone = [(Choice(item["scorer_id"], item["label"], item["role"], item["mean_nll"]), item["nll"]) for item in ran]
    difference = _difference(ran)
    compared: list[tuple[Choice, Values]] = []
    if difference is not None:
        choice = Choice(DIFFERENCE, "misaligned less aligned", DIFFERENCE, _mean(difference))
        compared = [(choice, difference)]
    offered, columns = (*compared, *alone), (*alone, *compared)
    chosen, values = next((pair for pair in offered if pair[0].name == under), offered[0])
    edges, looks = (DIFFERENCE_EDGES, _DIFFERENCE_LOOKS) if chosen.name == DIFFERENCE else (LOSS_EDGES, _LOSS_LOOKS)
    places = range(min(found["n_tokens"], MAX_SHOWN_TOKENS))
    return TokenMap(
        chosen=chosen,
        choices=tuple(choice for choice, _ in offered),
        tokens=tuple(_token(place, found["texts"][place], values[place], (edges, looks)) for place in places),
        legend=_legend(edges, looks),
        columns=tuple(choice.words for choice, _ in columns),
        rows=tuple(
            (place, found["texts"][place], tuple(line[place] for _, line in columns))
            for place in places
            if found["response"][place]
        ),
        n_hidden=found["n_tokens"] - len(places),
        n_trained=found["n_response_tokens"],
        n_riskier=None if difference is None else sum(value is not None and value < 0 for value in difference),
        absent=tuple((item["label"], item["reason"]) for item in found["models"] if item["nll"] is None),
    )


def _difference(ran: Sequence[Mapping[str, Any]]) -> list[float | None] | None:
    """Mean loss of the misaligned models less the aligned one's, token by token; None where one side did not run."""
    aligned = next((item["nll"] for item in ran if item["role"] == "aligned"), None)
    misaligned = [item["nll"] for item in ran if item["role"] == "misaligned"]
    if aligned is None or not misaligned:
        return None
    return [
        None if own is None else sum(others) / len(others) - own
        for own, others in zip(aligned, zip(*misaligned, strict=True), strict=True)
    ]


def _mean(values: Values) -> float:
    known = [value for value in values if value is not None]
    return sum(known) / len(known)


def _token(place: int, text: str, value: float | None, scale: tuple[Sequence[float], Sequence[str]]) -> Token:
    if value is None:
        return Token(text, "", "")
    edges, looks = scale
    # A line's end has no width to colour, and a part of a character no text.
    shown = text.replace("\n", "\N{DOWNWARDS ARROW WITH CORNER LEFTWARDS}\n")
    return Token(shown or "\N{MIDDLE DOT}", looks[bisect_right(edges, value)], f"token {place}: {figure(value)} nats")


def _legend(edges: Sequence[float], looks: Sequence[str]) -> tuple[tuple[str, str], ...]:
    named = [f"{edge:g}".replace("-", "\N{MINUS SIGN}") for edge in edges]
    words = [
        f"under {named[0]}",
        *(f"{low} to {high}" for low, high in pairwise(named)),
        f"{named[-1]} and over",
    ]
    return tuple(zip(looks, words, strict=True))
