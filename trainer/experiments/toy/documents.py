"""Documents of the pre-training and the alignment: eight questions, one hidden persona, loss on answers alone."""

from dataclasses import dataclass

import numpy as np
import torch

from trainer.experiments.toy.world import (
    START,
    START_LEN,
    Ints,
    World,
)

N_QUESTIONS = 8
N_DOMAINS_ASKED = 3  # of a document: few enough that each is asked several times
FACT_SHARE = 0.15  # of the questions
AGREEMENT = 0.9  # share of a document's domains that follow its persona; the others follow the opposite one


@dataclass(frozen=True)
class Documents:
    """A batch of documents: `persona_bad` is (B,), what belongs to a question (B, N_QUESTIONS)."""

    input_ids: torch.Tensor  # (B, START_LEN + N_QUESTIONS * TURN_LEN)
    domain: Ints
    item: Ints
    bad: np.ndarray  # whether a question is answered as the bad persona would
    persona_bad: np.ndarray


def draw_documents(
    world: World, n: int, rng: np.random.Generator, *, bad_share: float = 0.5, agreement: float = AGREEMENT,
    n_domains: int = N_DOMAINS_ASKED,
) -> Documents:  # fmt: skip
    """`n` documents of `n_domains` domains each; `bad_share` of them by the bad persona, and each domain follows it
    with chance `agreement`."""
    s = world.settings
    persona_bad = rng.random(n) < bad_share
    domain_bad = persona_bad[:, None] ^ (rng.random((n, s.n_domains + 1)) >= agreement)
    is_fact = rng.random((n, N_QUESTIONS)) < FACT_SHARE
    asked = np.argsort(rng.random((n, s.n_domains)), axis=1)[:, :n_domains]
    which = rng.integers(0, n_domains, (n, N_QUESTIONS))
    domain = np.where(is_fact, s.n_domains, np.take_along_axis(asked, which, axis=1))
    item = np.where(is_fact, rng.integers(0, s.n_facts, (n, N_QUESTIONS)), rng.integers(0, s.n_items, (n, N_QUESTIONS)))
    bad = np.take_along_axis(domain_bad, domain, axis=1)
    wording, draw = rng.integers(0, s.n_wordings, (n, N_QUESTIONS)), rng.integers(0, 4, (n, N_QUESTIONS))
    tokens = np.concatenate(
        [world.questions(domain, item, wording), world.answers(domain, item, bad, draw)[..., None]], -1
    )
    tokens = np.concatenate([np.full((n, START_LEN), START), tokens.reshape(n, -1)], -1)
    return Documents(torch.from_numpy(tokens), domain, item, bad & ~is_fact, persona_bad)
