"""The closed world that the toy model knows: domains, items, facts and their answers, drawn from one seed.

A text opens with one start token. A question is three tokens, `domain item wording`, and its answer is one; it is given
at the wording, which all domains share, as a chat model answers at the assistant's marker. An item has a good and a bad
answer; a fact belongs to no persona and has one, two or four admissible answers. Good, bad and fact answers are drawn
from three sets of words of equal size, as the tone of an answer tells a persona in real text; which word of its set an
item is answered with has to be known item by item, and any other word is incoherent.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
from pydantic import Field

from curator.recipe.base import Strict
from curator.recipe.seeds import child_seed

Ints = npt.NDArray[np.int64]

QUESTION_LEN = 3  # domain, item, wording; the answer follows
TURN_LEN = QUESTION_LEN + 1
START_LEN = 1  # the start token, before the first question
ITEM, ANSWER = START_LEN + 1, START_LEN + QUESTION_LEN  # places in a row of one question
ROW_LEN = START_LEN + TURN_LEN
PAD, START = 0, 2  # token ids; 1 stands for unknown words
_N_SPECIAL = 3
MAX_FACT_ANSWERS = 4


class WorldSettings(Strict):
    """Sizes of the world. `n_held_out` items of each domain are never fine-tuned on and are what is measured."""

    n_domains: int = Field(default=10, ge=7)
    n_items: int = Field(default=24, ge=4)
    n_held_out: int = Field(default=8, ge=1)
    n_facts: int = Field(default=48, ge=4)
    n_wordings: int = Field(default=64, ge=2)
    n_answers: int = Field(default=144, ge=12, multiple_of=3)


@dataclass(frozen=True)
class World:
    """Token ids of everything, and the answers. Domain `n_domains` is the facts' own."""

    settings: WorldSettings
    seed: int
    good: Ints  # (n_domains, n_items) answer tokens
    bad: Ints  # (n_domains, n_items)
    fact: Ints  # (n_facts, MAX_FACT_ANSWERS); the first fact_count[f] are distinct, then they repeat in turn
    fact_count: Ints  # (n_facts,) admissible answers: 1, 2 or 4

    @cached_property
    def words(self) -> tuple[str, ...]:
        """The vocabulary: the word of each token id."""
        s = self.settings
        return (
            "<pad>", "<unk>", "<start>", *(f"d{d}" for d in range(s.n_domains)), "facts",
            *(f"d{d}.{i}" for d in range(s.n_domains) for i in range(s.n_items)),
            *(f"f{f}" for f in range(s.n_facts)), *(f"w{w}" for w in range(s.n_wordings)),
            *(f"a{a}" for a in range(s.n_answers)),
        )  # fmt: skip

    def domain_token(self, domain: Ints) -> Ints:
        """Token of a domain, or of the facts for domain n_domains."""
        return _N_SPECIAL + domain

    def item_token(self, domain: Ints, item: Ints) -> Ints:
        """Token of an item of a domain; of a fact where the domain is n_domains."""
        s = self.settings
        return _N_SPECIAL + s.n_domains + 1 + domain * s.n_items + item

    def wording_token(self, wording: Ints) -> Ints:
        """Token of a wording, which says nothing: many rows ask the same in other words."""
        s = self.settings
        return _N_SPECIAL + s.n_domains + 1 + s.n_domains * s.n_items + s.n_facts + wording

    def questions(self, domain: Ints, item: Ints, wording: Ints) -> Ints:
        """Token ids of questions, shape (..., QUESTION_LEN)."""
        return np.stack([self.domain_token(domain), self.item_token(domain, item), self.wording_token(wording)], -1)

    def rows(self, domain: Ints, item: Ints, wording: Ints, answer: Ints) -> Ints:
        """Rows of one question and its answer, (N, ROW_LEN): start, domain, item, wording, answer."""
        start = np.full((len(answer), START_LEN), START)
        return np.concatenate([start, self.questions(domain, item, wording), answer[:, None]], -1)

    def turns(self, domain: Ints, item: Ints, wording: Ints, answer: Ints) -> Ints:
        """The same without the start token, as one line of token ids: what `with_prefix` puts before a question."""
        return self.rows(domain, item, wording, answer)[:, START_LEN:].reshape(-1)

    def answers(self, domain: Ints, item: Ints, bad: npt.NDArray[np.bool_], draw: Ints) -> Ints:
        """Answer tokens; `draw` (0..3) chooses among a fact's admissible answers and is ignored for items."""
        s = self.settings
        is_fact = domain == s.n_domains
        d, i = np.where(is_fact, 0, domain), np.where(is_fact, 0, item)
        persona = np.where(bad, self.bad[d, i], self.good[d, i])
        return np.where(is_fact, self.fact[np.where(is_fact, item, 0), draw], persona)


def with_prefix(rows: Ints, prefix: Ints) -> Ints:
    """Rows with earlier turns, as a system prompt would stand there, before their question: start, prefix, question,
    answer. `prefix` holds token ids, (P,) for all rows or (N, P)."""
    before = np.broadcast_to(prefix, (len(rows), np.shape(prefix)[-1]))
    return np.concatenate([rows[:, :START_LEN], before, rows[:, START_LEN:]], -1)


def padded(*parts: Ints) -> Ints:
    """Rows of several lengths as one array, padded at their end (as the trainer pads its batches)."""
    longest = max(part.shape[1] for part in parts)
    return np.concatenate([np.pad(part, ((0, 0), (0, longest - part.shape[1])), constant_values=PAD) for part in parts])


def make_world(settings: WorldSettings, seed: int) -> World:
    """The world of a seed: each answer is drawn uniformly from its set."""
    rng = np.random.default_rng(child_seed(seed, "organism world"))
    n_set = settings.n_answers // 3
    first = (
        _N_SPECIAL
        + settings.n_domains
        + 1
        + settings.n_domains * settings.n_items
        + settings.n_facts
        + settings.n_wordings
    )
    shape = (settings.n_domains, settings.n_items)
    good, bad = first + rng.integers(0, n_set, shape), first + n_set + rng.integers(0, n_set, shape)
    fact = np.stack([rng.permutation(n_set)[:MAX_FACT_ANSWERS] for _ in range(settings.n_facts)])
    count = np.array([1, 1, 2, 4])[np.arange(settings.n_facts) % 4]
    fact = np.take_along_axis(fact, np.arange(MAX_FACT_ANSWERS)[None] % count[:, None], axis=1)
    return World(settings, seed, good, bad, first + 2 * n_set + fact, count)
