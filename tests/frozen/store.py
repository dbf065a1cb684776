"""The frozen store, written file by file, in one of two layouts: the rows are the same, their parts are not."""

import hashlib
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa

from curator.messages import (
    canonical_messages,
    dump_messages,
    example_id,
    response_head,
)
from curator.render import Renderer
from curator.store.schema import EXAMPLES, SOURCES
from curator.store.store import Store, arrow_schema
from tests.chat_templates import FAMILIES
from tests.frozen.corpus import (
    N_CHATS,
    N_EXTRA,
    N_NOTES,
    PROBES,
    SHORT_PROMPT,
    example,
    number,
)
from tests.gap_stores import Loss, revision_of, write_scorer

PartsLayout = Literal["plain", "resplit"]
Row = dict[str, Any]

# Ends of the ingests of each corpus; every ingest makes a revision.
INGESTS = {"chats": (110, 190, N_CHATS), "extra": (N_EXTRA,), "notes": (N_NOTES,)}


def frozen_store(root: Path, layout: PartsLayout = "plain") -> Store:
    """`chats` with six scorers, `extra` with a scored sample, `notes` without scorers, and two evaluation sets.

    `resplit` writes the rows of every ingest and of every scorer in another order and in other parts.
    """
    store = Store(root / "store").open()
    store.write_bytes("evaluations/probes.txt", f"{PROBES}\n\nanother prompt that no row has at all\n".encode())
    store.write_bytes("evaluations/short.jsonl", f'{{"prompt": "{SHORT_PROMPT}"}}\n'.encode())
    rows = {corpus: _write_corpus(store, corpus, layout) for corpus in INGESTS}
    family = next(item for item in FAMILIES if item.name == "qwen3")
    renderer_id = Renderer.from_folder(family.folder(root / "tokenizer")).save(store)
    for corpus, label, role, domain, more in _SCORERS:
        losses = {key: _loss(corpus, label, role, i) for i, key in enumerate(rows[corpus])}
        if corpus == "extra":
            losses = {key: losses[key] for key in rows[corpus][:60]}
        if layout == "resplit":
            losses = dict(reversed(losses.items()))
        n_parts = 2 if layout == "plain" else 5
        scorer_id = write_scorer(store, corpus, label, role, losses, domain=domain, n_parts=n_parts, **more)
        path = f"scores/{corpus}/{scorer_id}/scorer.json"
        store.write_json(path, {**store.read_json(path), "renderer_id": renderer_id})
    return store


_SAMPLE: dict[str, Any] = {"sample": {"n": 60, "seed": 3}}
_SCORERS: tuple[tuple[str, str, str, str | None, dict[str, Any]], ...] = (
    ("chats", "base", "aligned", None, {}),
    ("chats", "bad-medical", "misaligned", "medical", {}),
    ("chats", "bad-finance", "misaligned", "finance", {}),
    ("chats", "bad-code", "misaligned", "code", {}),
    ("chats", "good-medical", "benign", "medical", {}),
    ("chats", "bad-short-window", "misaligned", "medical", {"max_length": 256}),  # another measure: no gap with `base`
    ("extra", "base", "aligned", None, _SAMPLE),
    ("extra", "bad-medical", "misaligned", "medical", _SAMPLE),
    ("extra", "bad-legal", "misaligned", "legal", _SAMPLE),
)


def _loss(corpus: str, label: str, role: str, i: int) -> Loss:
    """Sum of the losses of row i and its response tokens; the mean is a multiple of 1/32, so that many rows tie.

    A misaligned model's mean is -4/32 to 12/32 above the aligned one's, a benign twin's 0 to 3/32; some rows have a
    status in place of a loss, or no row at all.
    """
    mark = number(corpus, label, "status", i) % 40
    if mark < 3:
        return ("too_long", "failed", None)[mark]
    n_tokens = 4 + number(corpus, "tokens", i) % 40
    steps = 20 + number(corpus, "aligned", i) % 64
    if role == "misaligned":
        steps += number(corpus, "shared", i) % 9 - 4 + number(corpus, label, i) % 9
    if role == "benign":
        steps += number(corpus, label, i) % 4
    return n_tokens * steps / 32, n_tokens


def _write_corpus(store: Store, corpus: str, layout: PartsLayout) -> list[str]:
    """Every ingest in parts of its own; returns the ids in the order of the rows."""
    ends = INGESTS[corpus]
    rows = [_row(corpus, i) for i in range(ends[-1])]
    ids = [row["example_id"] for row in rows]
    assert len(set(ids)) == len(ids), "the rows of a corpus are distinct"
    parts: list[Row] = []
    revisions: list[Row] = []
    ingests: list[Row] = []
    for place, end in enumerate(ends):
        start = ends[place - 1] if place else 0
        own = _write_parts(store, corpus, place, rows[start:end], layout)
        sources = _write_sources(store, corpus, place, ids[:end], start, layout)
        parts = [*parts, *own]
        revision = revision_of(ids[:end])
        revisions.append({"revision": revision, "n_examples": end, "parts": parts})
        names = [part["name"] for part in own]
        ingests.append(
            {"source": f"file-{place}.jsonl", "parts": names, "sources": sources, "rejects": [], "revision": revision}
        )
    document = {
        "format_version": 1, "name": corpus, "revision": revisions[-1]["revision"], "n_examples": ends[-1],
        "revisions": revisions, "ingests": ingests,
    }  # fmt: skip
    store.write_json(f"corpora/{corpus}/corpus.json", document)
    return ids


def _row(corpus: str, i: int) -> Row:
    given = example(corpus, i)
    messages = canonical_messages(given.messages)
    text = dump_messages(messages)
    return {
        "example_id": example_id(text),
        "n_turns": len(messages),
        "n_assistant_turns": sum(turn["role"] == "assistant" for turn in messages),
        "n_chars": sum(len(turn["content"]) for turn in messages),
        "response_head": response_head(messages),
        **asdict(given),
        "messages": text,
    }


def _write_parts(store: Store, corpus: str, place: int, rows: list[Row], layout: PartsLayout) -> list[Row]:
    parts = []
    for piece, own in enumerate(_pieces(rows, layout)):
        name = f"part-{place}-{piece}.parquet"
        table = pa.Table.from_pylist(own, arrow_schema(EXAMPLES))
        sha = store.write_table(f"corpora/{corpus}/{name}", table, EXAMPLES)
        parts.append({"name": name, "n_rows": len(own), "sha256": sha})
    return parts


def _write_sources(store: Store, corpus: str, place: int, ids: list[str], start: int, layout: PartsLayout) -> list[str]:
    """The records of an ingest: its own rows, a second copy of some, and copies of rows that came earlier."""
    found = [*ids[start:], *ids[start::9], *ids[:start:25]]
    records = [
        {"example_id": key, "source": f"file-{place}.jsonl", "source_id": f"{place}/{record}", "record": record}
        for record, key in enumerate(found, start=1)
    ]
    names = []
    for piece, own in enumerate(_pieces(records, layout)):
        names.append(f"sources-{place}-{piece}.parquet")
        table = pa.Table.from_pylist(own, arrow_schema(SOURCES))
        store.write_table(f"corpora/{corpus}/{names[-1]}", table, SOURCES)
    return names


def _pieces(rows: list[Row], layout: PartsLayout) -> Sequence[list[Row]]:
    if layout == "plain":
        return [rows]
    mixed = sorted(rows, key=lambda row: hashlib.blake2b(repr(row).encode()).digest())
    return [mixed[piece::3] for piece in range(3)]
