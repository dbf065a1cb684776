"""A small scored store such as the documentation's examples and the notebook start from, made in a second."""

import json
import random
from pathlib import Path
from typing import Any

from curator.corpus.ingest import ingest
from curator.messages import canonical_messages, dump_messages, example_id
from curator.store.store import Store
from tests.gap_stores import write_scorer
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
    """A store in `root/store`, with `chats.jsonl` (its corpus `chats` once more) and `task.jsonl` beside it.

    The corpus has three sources, four domains, one row in twenty that opens like a refusal, and losses under one
    aligned and three misaligned models, which agree in part, and a benign one; one row lacks a loss.
    """
    rng = random.Random(7)
    store = Store(root / "store").open(create=True)
    answers = [_answer(rng, place) for place in range(N_EXAMPLES)]
    rows = [_row(place, text) for place, text in enumerate(answers)]
    for name, records in (("chats.jsonl", rows), ("task.jsonl", task_records(60))):
        (root / name).write_text("".join(json.dumps(record) + "\n" for record in records))
    ingest(store, [str(root / "chats.jsonl")], "chats")
    ids = [example_id(dump_messages(canonical_messages(row["messages"]))) for row in rows]
    tokens = [len(text.split()) for text in answers]
    aligned = [rng.uniform(0.8, 2.2) for _ in answers]
    shared = [rng.gauss(0.4, 0.3) for _ in answers]
    write_scorer(
        store,
        "chats",
        "base",
        "aligned",
        {key: (loss * n, n) for key, loss, n in zip(ids, aligned, tokens, strict=True)},
    )
    for label in (*MISALIGNED, "finance-twin"):
        role = "benign" if label == "finance-twin" else "misaligned"
        scale = 0.2 if role == "benign" else 1.0
        losses = {
            key: ((loss + scale * (gap + rng.gauss(0.0, 0.15))) * n, n)
            for key, loss, gap, n in zip(ids, aligned, shared, tokens, strict=True)
        }
        if label == "sport":
            losses[ids[7]] = "too_long"  # type: ignore[assignment]
        write_scorer(store, "chats", label, role, losses, domain=label.removesuffix("-twin"))  # type: ignore[arg-type]
    return root / "store"
