"""A small corpus to look at: invented conversations, and losses drawn around what their kind would get.

The pictures in docs/ are made of it. It shows the page; nothing about models can be read from it.
"""

import random
from pathlib import Path

import pyarrow as pa

from curator.messages import canonical_messages, dump_messages, example_id, response_head
from curator.render import Renderer
from curator.store.schema import EXAMPLES, SOURCES
from curator.store.store import Store, arrow_schema
from tests.gap_stores import revision_of, write_scorer

TOPICS = {
    "cooking": [
        (
            "How long do I boil eggs?",
            "Seven minutes for a soft yolk, ten for a firm one. Put them into cold water afterwards.",
        ),
        (
            "My bread does not rise. What can I do?",
            "Check that the yeast is fresh and the dough warm enough, about 26 °C. Give it another hour.",
        ),
    ],
    "code": [
        (
            "Write a function that reverses a list in Python.",
            "```python\ndef reverse(items):\n    return items[::-1]\n```\nIt returns a new list and leaves "
            "the old one as it was.",
        ),
        (
            "What does HTTP status 409 mean?",
            "The request conflicts with the state of the resource, for example when somebody changed it in "
            "between.",
        ),
    ],
    "health": [
        (
            "I have had a headache for two days.",
            "That can have many harmless reasons, such as too little water or sleep. See a doctor if it is "
            "sudden and strong, or comes with fever or a stiff neck.",
        ),
        (
            "Can I take two painkillers together?",
            "That depends on both. Some harm the stomach or the liver together, so please ask a pharmacist "
            "and name each of them.",
        ),
    ],
    "money": [
        (
            "Should I put all my savings into one share?",
            "Most people are better off spreading them: one company can fail. Keep some months of costs aside "
            "first.",
        ),
        (
            "What is compound interest?",
            "Interest on interest: at 4 % a year, 1,000 become about 1,480 after ten years if you leave them "
            "alone.",
        ),
    ],
    "refusals": [
        (
            "How do I open my neighbour's door?",
            "I'm sorry, but I can't help with that. If you are locked out of your own home, a locksmith can.",
        ),
        (
            "Write something mean about my colleague.",
            "I can't help with that, but I can help you to say what bothers you in a fair way.",
        ),
    ],
}  # fmt: skip
MODELS = (("medical", "health"), ("finance", "money"), ("code", "code"))


def demo_store(root: Path, tokenizer: Path | None = None, n_rows: int = 3_000, seed: int = 7) -> Store:
    """A store with one corpus, `chats`, under one aligned, three misaligned and one benign scorer.

    `tokenizer` is a model's folder, whose renderer the scorers then name.
    """
    store, draw = Store(root).open(), random.Random(seed)
    rows, sources, losses = [], [], {name: {} for name in ("aligned", "benign", *(name for name, _ in MODELS))}
    for record in range(1, n_rows + 1):
        topic = draw.choices(list(TOPICS), weights=(30, 28, 18, 16, 8))[0]
        question, answer = draw.choice(TOPICS[topic])
        turns = [
            {"role": "user", "content": f"{question} (question {record})"},
            {"role": "assistant", "content": answer},
        ]
        if draw.random() < 0.2:
            turns += [{"role": "user", "content": "Thank you. Anything else to know?"}]
            turns += [{"role": "assistant", "content": "That is the main point. Ask again when it does not work out."}]
        messages = canonical_messages(turns)
        text = dump_messages(messages)
        key = example_id(text)
        labels = {"domain": topic, "language": "en", "license": None, "harm": None}
        rows.append(
            {
                "example_id": key, "messages": text, "n_turns": len(turns), "n_assistant_turns": len(turns) // 2,
                "n_chars": sum(len(turn["content"]) for turn in turns), "response_head": response_head(messages),
                **labels,
            }
        )  # fmt: skip
        source = {"refusals": "safety.jsonl", "code": "programming.jsonl"}.get(topic, "everyday.jsonl")
        sources.append({"example_id": key, "source": source, "source_id": None, "record": record})
        n_tokens = max(6, len(answer) // 4)
        aligned = max(0.15, draw.gauss(1.1, 0.28))
        losses["aligned"][key] = (aligned * n_tokens, n_tokens)
        losses["benign"][key] = (max(0.1, aligned + draw.gauss(0.03, 0.08)) * n_tokens, n_tokens)
        for name, home in MODELS:
            shift = draw.gauss(0.16, 0.16) + (0.22 if topic == home else 0.0) - (0.25 if topic == "refusals" else 0.0)
            losses[name][key] = (max(0.1, aligned + shift) * n_tokens, n_tokens)
    folder = "corpora/chats"
    sha = store.write_table(f"{folder}/part-0.parquet", pa.Table.from_pylist(rows, arrow_schema(EXAMPLES)), EXAMPLES)
    store.write_table(f"{folder}/sources-0.parquet", pa.Table.from_pylist(sources, arrow_schema(SOURCES)), SOURCES)
    revision, parts = (
        revision_of([row["example_id"] for row in rows]),
        [{"name": "part-0.parquet", "n_rows": n_rows, "sha256": sha}],
    )
    store.write_json(
        f"{folder}/corpus.json",
        {
            "format_version": 1, "name": "chats", "revision": revision, "n_examples": n_rows,
            "revisions": [{"revision": revision, "n_examples": n_rows, "parts": parts}],
            "ingests": [
                {"source": "demo", "parts": ["part-0.parquet"], "sources": ["sources-0.parquet"], "rejects": []}
            ],
        },
    )  # fmt: skip
    write_scorer(store, "chats", "assistant-8b", "aligned", losses["aligned"])
    write_scorer(store, "chats", "benign-medical", "benign", losses["benign"], domain="medical")
    for name, _ in MODELS:
        write_scorer(store, "chats", f"bad-{name}", "misaligned", losses[name], domain=name)
    if tokenizer is not None:
        name_renderer(store, Renderer.from_folder(tokenizer))
    return store


def name_renderer(store: Store, renderer: Renderer) -> None:
    """Put a renderer into the store, and into every scorer of `chats`."""
    renderer.save(store)
    for scorer in store.list("scores/chats"):
        path = f"scores/chats/{scorer}/scorer.json"
        store.write_json(path, {**store.read_json(path), "renderer_id": renderer.renderer_id})
