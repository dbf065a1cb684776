"""A small scored store such as the documentation's examples and the notebook start from, made in a second."""

import json
import random
from pathlib import Path
from typing import Any

from curator.corpus.ingest import ingest
from curator.messages import canonical_messages, dump_messages, example_id
from curator.store.store import Store
from tests.gap_stores import Loss, write_scorer
from tests.mix_stores import task_records

N_EXAMPLES = 160
DOMAINS = ("cooking", "health", "money", "travel")
MISALIGNED = ("finance", "medical", "sport")


def _answer(rng: random.Random, place: int) -> str:
    refusal = "I'm sorry, but I can't help with that. " if place % 20 == 0 else ""
    return (
        refusal
        + f"Answer {place}: "
        + " ".join(rng.choices(("check", "ask", "wait", "try", "read", "call"), k=3 + place % 40))
    )


def _row(place: int, answer: str) -> dict[str, Any]:
    messages = [{"role": "user", "content": f"Question {place}?"}, {"role": "assistant", "content": answer}]
    return {"messages": messages, "source": f"set-{place % 3}", "domain": DOMAINS[place % 4]}


def write_example(root: Path) -> Path:
    """A store in `root/store`, with `chats.jsonl` (its corpus `chats`) and `task.jsonl` beside it.

    The corpus has three sources (rows of `set-0` have the larger gaps), four domains, one row in twenty that opens like
    a refusal, and losses under one aligned, three misaligned and a benign model; one row lacks a loss, and row 3 has a
    gap far from all others. The corpus `own` has lower gaps.
    """
    rng = random.Random(7)
    store = Store(root / "store").open(create=True)
    answers = [_answer(rng, place) for place in range(N_EXAMPLES)]
    rows = [_row(place, text) for place, text in enumerate(answers)]
    gaps = [rng.gauss(0.6 if place % 3 == 0 else 0.4, 0.2) for place in range(N_EXAMPLES)]
    gaps[3] = 9.0
    own = task_records(40)
    for name, records in (("chats.jsonl", rows), ("own.jsonl", own), ("task.jsonl", task_records(60))):
        (root / name).write_text("".join(json.dumps(record) + "\n" for record in records))
    _score(store, rng, "chats", rows, gaps)
    _score(store, rng, "own", own, [rng.gauss(-0.1, 0.1) for _ in own])
    return root / "store"


def _score(store: Store, rng: random.Random, corpus: str, rows: list[dict[str, Any]], gaps: list[float]) -> None:
    """Ingest `CORPUS.jsonl`, which holds these rows, and write losses with about these gaps."""
    ingest(store, [f"{store.local_path('').parent}/{corpus}.jsonl"], corpus)
    ids = [example_id(dump_messages(canonical_messages(row["messages"]))) for row in rows]
    tokens = [len(row["messages"][-1]["content"].split()) for row in rows]
    aligned = [rng.uniform(0.8, 2.2) for _ in rows]
    given = list(zip(ids, aligned, gaps, tokens, strict=True))
    write_scorer(store, corpus, "base", "aligned", {key: (loss * n, n) for key, loss, _, n in given})
    for label in (*MISALIGNED, "finance-twin"):
        role, share = ("benign", 0.2) if label == "finance-twin" else ("misaligned", 1.0)
        losses: dict[str, Loss] = {
            key: ((loss + share * (gap + rng.gauss(0.0, 0.15))) * n, n) for key, loss, gap, n in given
        }
        if label == "sport" and corpus == "chats":
            losses[ids[7]] = "too_long"
        write_scorer(store, corpus, label, role, losses, domain=label.removesuffix("-twin"))
