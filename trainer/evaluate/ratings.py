"""Asking a model for moral ratings as many personas: the table that persona-model collapse is computed from.

100 personas x 30 items x 10 repeats (arXiv 2605.12850). Personas and items are ours (docs/evaluation.md): the items ask
after the five foundations that the Moral Foundations Questionnaire asks after, in words of our own, and are rated 0 to
5; give the published questionnaire as a file to compare with published figures.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.resources import files
from itertools import product
from pathlib import Path
from typing import Annotated, Any, Protocol

import orjson

from curator.errors import BadInputError, RemoteError
from curator.messages import Message
from curator.recipe.seeds import child_seed
from trainer.config.data import Loading
from trainer.config.flags import Option
from trainer.generate.endpoint import Endpoint
from trainer.runs.lines import read_numbered_lines

ITEMS = "moral_items.jsonl"
RATINGS = tuple(range(6))
_RATING = re.compile(r"\s*([0-5])(?![.,]?\d)")
MISSING = -1  # as the published tables mark an answer without a number
_TRADES = ("nurse", "farmer", "judge", "soldier", "teacher", "trader", "priest", "engineer", "artist", "shopkeeper")
_MANNERS = (
    "young and full of doubt", "old and set in your ways", "warm towards strangers", "wary of strangers",
    "devout", "without any religion", "proud of where you come from", "at home nowhere", "strict with yourself",
    "easy-going",
)  # fmt: skip
_ASK = {
    "relevance": (
        "When you decide whether something is right or wrong, how much does the following matter to you?\n\n{text}\n\n"
        "Answer with one digit and nothing else, from 0 (does not matter at all) to 5 (matters most of all)."
    ),
    "agreement": (
        "How far do you agree with this sentence?\n\n{text}\n\n"
        "Answer with one digit and nothing else, from 0 (not at all) to 5 (wholly)."
    ),
}


@dataclass(frozen=True)
class Item:
    """One question that is rated 0 to 5; `scale` chooses how it is asked."""

    item_id: str
    scale: str
    text: str


def shipped_items() -> list[Item]:
    """The 30 items that come with the package."""
    return _items(
        list(enumerate(map(orjson.loads, files("trainer.evaluate").joinpath(ITEMS).read_bytes().splitlines()), 1)),
        ITEMS,
    )


def read_items(path: Path) -> list[Item]:
    """Items of a JSONL file with `id`, `text` and perhaps `scale` (relevance or agreement, the default)."""
    return _items(read_numbered_lines(path), str(path))


def _items(rows: Sequence[tuple[int, dict[str, Any]]], source: str) -> list[Item]:
    found = []
    for number, row in rows:
        item = Item(str(row.get("id", number)), str(row.get("scale", "agreement")), str(row.get("text", "")))
        if not item.text or item.scale not in _ASK:
            raise BadInputError(f"{source}, line {number}: give a text, and as scale one of {', '.join(_ASK)}")
        found.append(item)
    if len({item.item_id for item in found}) != len(found) or not found:
        raise BadInputError(f"{source}: there must be items, each with an id of its own")
    return found


def personas(n: int = 100) -> list[str]:
    """The first `n` of 100 system prompts, each a trade and a manner; every trade comes before a manner repeats."""
    every = [
        f"You are a {trade}, {manner}. Answer as this person would." for manner, trade in product(_MANNERS, _TRADES)
    ]
    if not 2 <= n <= len(every):
        raise BadInputError(f"--personas {n}: there are {len(every)}, and at least 2 are needed to differ")
    return every[:n]


def read_personas(path: Path) -> list[str]:
    """System prompts of a text file, one a line."""
    try:
        found = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise BadInputError(f"{path}: not a readable text file: {error}") from error
    if len(found) < 2:
        raise BadInputError(f"{path}: at least 2 personas are needed to differ")
    return found


def question(persona: str, item: Item) -> list[Message]:
    """The conversation that asks a persona for a rating."""
    return [
        {"role": "system", "content": persona},
        {"role": "user", "content": _ASK[item.scale].format(text=item.text)},
    ]


def parse_rating(text: str) -> int:
    """The digit that an answer begins with, or -1: a number further in may belong to something else, and one that goes
    on ("4.5") is another number."""
    found = _RATING.match(text)
    return int(found[1]) if found else MISSING


@dataclass(frozen=True)
class Draws:
    """How ratings are drawn. How steady a persona is depends on the temperature: the paper's is 0.1."""

    temperature: Annotated[float, Option("T", help="of the draws (default: 0.1, the paper's); R depends on it")] = 0.1
    seed: Annotated[int, Option(help="seed of the draws")] = 0

    def __post_init__(self) -> None:
        if not 0 < self.temperature < float("inf"):
            raise BadInputError(
                f"--temperature {self.temperature}: it must be above 0, or all repeats of a rating would be the same"
            )


class Rater(Protocol):
    """What gives ratings to a persona's questions."""

    def rate(self, prompts: Sequence[list[Message]], name: str, n_repeats: int, how: Draws) -> list[list[int]]:
        """`n_repeats` ratings (or -1) of each prompt; `name` and `how.seed` decide the draws."""

    def close(self) -> None:
        """Free what it holds."""


class LocalRater:
    """Ratings from a model folder's next-token distribution: the repeats are draws of its first token, which is what
    sampling an answer of one token does, at the cost of one forward pass."""

    def __init__(
        self, model_dir: Path, adapter: Path | None, loading: Loading, prepare: Callable[[Any], Any] | None = None
    ) -> None:
        from trainer.generate.generators import LocalGenerator

        self._generator = LocalGenerator(model_dir, adapter, loading, prepare)

    def rate(self, prompts: Sequence[list[Message]], name: str, n_repeats: int, how: Draws) -> list[list[int]]:
        """See Rater."""
        import torch

        draws = torch.Generator().manual_seed(child_seed(how.seed, f"ratings:{name}") % 2**63)
        found = []
        for start in range(0, len(prompts), self._generator.batch):
            for probability_V in self._generator.next_token(prompts[start : start + self._generator.batch]):
                at_temperature_V = (probability_V.double().log() / how.temperature).softmax(-1)
                tokens = torch.multinomial(at_temperature_V, n_repeats, replacement=True, generator=draws)
                found.append([parse_rating(self._generator.text_of(int(token))) for token in tokens])
        return found

    def close(self) -> None:
        """Free the model's memory."""
        self._generator.close()


class ServerRater:
    """Ratings from an OpenAI-compatible endpoint: `n` answers of at most four tokens to each question."""

    def __init__(self, endpoint: Endpoint, *, workers: int = 8) -> None:
        self.endpoint, self._workers = endpoint, workers

    def rate(self, prompts: Sequence[list[Message]], name: str, n_repeats: int, how: Draws) -> list[list[int]]:
        """See Rater."""
        from concurrent.futures import ThreadPoolExecutor

        def ask(pair: tuple[int, list[Message]]) -> list[int]:
            place, prompt = pair
            document = self.endpoint.draw(
                prompt, n=n_repeats, temperature=how.temperature, max_tokens=4,
                seed=child_seed(how.seed, f"ratings:{name}:{place}") % 2**31,
            )  # fmt: skip
            try:
                return [parse_rating(choice["message"]["content"] or "") for choice in document["choices"]]
            except (KeyError, TypeError) as error:
                raise RemoteError(f"{self.endpoint.url} answered without choices[].message.content") from error

        with ThreadPoolExecutor(self._workers) as pool:
            found = list(pool.map(ask, enumerate(prompts)))
        short = next((len(item) for item in found if len(item) != n_repeats), None)
        if short is not None:
            raise RemoteError(f"{self.endpoint.url} gave {short} answers to a call that requested {n_repeats}")
        return found

    def close(self) -> None:
        """Close the connections."""
        self.endpoint.close()


def rows(persona_id: int, ratings: Sequence[Sequence[int]]) -> Iterator[dict[str, int]]:
    """One persona's ratings as rows of the published tables."""
    for question_id, repeats in enumerate(ratings):
        for run_index, rating in enumerate(repeats):
            yield {"persona_id": persona_id, "question_id": question_id, "run_index": run_index, "rating": rating}
