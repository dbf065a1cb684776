"""A store with a scored corpus of made-up conversations, and a user's file of others, some of them near copies."""

from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
import orjson
import pyarrow as pa

from curator.console import Progress
from curator.corpus.manifest import revision_of
from curator.messages import dump_messages, example_id, response_head
from curator.store.schema import EXAMPLES, SCORES, SOURCES
from curator.store.store import Store, arrow_schema

CORPUS = "bench"
PART_ROWS = 50_000
NEAR_EVERY = 100  # every hundredth user row is a pool row with two words changed
_IDENTITY = {
    "chat_template_sha256": "t", "tokenizer_sha256": "k", "mask_rule": "all", "max_length": 512, "dtype": "float32",
    "engine": "torch", "engine_version": "1", "adapter_sha256": None,
}  # fmt: skip

Messages = list[dict[str, object]]


def conversations(n_rows: int, seed: int) -> Iterator[Messages]:
    """One question and one answer each, of 60 to 140 words by Zipf's law; every row holds its own number."""
    draw = np.random.default_rng(seed)
    words = _vocabulary()
    chances = 1.0 / np.arange(1, len(words) + 1)
    for start in range(0, n_rows, 10_000):
        n_here = min(10_000, n_rows - start)
        lengths = draw.integers(60, 140, 10_000)  # all of them, so that fewer rows are the first of more
        chosen = words[draw.choice(len(words), int(lengths.sum()), p=chances / chances.sum())].tolist()
        ends = np.cumsum(lengths).tolist()
        for place, (begin, end) in enumerate(zip([0, *ends[: n_here - 1]], ends[:n_here], strict=True)):
            cut = begin + 15
            question = " ".join(chosen[begin:cut]) + "?"
            answer = f"{' '.join(chosen[cut:end])} {seed}-{start + place}."
            yield [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


@lru_cache(maxsize=1)
def _vocabulary() -> npt.NDArray[np.object_]:
    draw = np.random.default_rng(1)
    letters = np.array(list("abcdefghijklmnoprstuvw"))
    lengths = draw.integers(2, 10, 20_000)
    return np.array(["".join(letters[draw.integers(0, len(letters), n)]) for n in lengths.tolist()], dtype=object)


def write_user_file(path: Path, n_rows: int) -> int:
    """A JSON Lines file of `n_rows` rows, every hundredth near to a pool row; returns how many are."""
    pool, n_near = conversations(n_rows // NEAR_EVERY * 2, seed=0), 0
    with path.open("wb") as file:
        for number, messages in enumerate(conversations(n_rows, seed=1)):
            if number % NEAR_EVERY == NEAR_EVERY - 1:
                messages, n_near = next(pool), n_near + 1
                words = str(messages[-1]["content"]).split()
                words[5], words[30] = "changed", "words"
                messages[-1]["content"] = " ".join(words)
            file.write(orjson.dumps({"messages": messages}, option=orjson.OPT_APPEND_NEWLINE))
    return n_near


def write_scored_corpus(store: Store, n_rows: int, n_misaligned: int = 4) -> None:
    """Examples, sources and losses under one aligned and some misaligned scorers, with their manifests."""
    folder, ids, parts, sources = f"corpora/{CORPUS}", list[str](), list[dict[str, object]](), list[str]()
    rows: list[dict[str, object]] = []
    with Progress(n_rows, "rows", "making a pool") as bar:
        for number, messages in enumerate(conversations(n_rows, seed=0), start=1):
            text = dump_messages(messages)
            rows.append({
                "example_id": example_id(text), "messages": text, "n_turns": 2, "n_assistant_turns": 1,
                "n_chars": sum(len(str(turn["content"])) for turn in messages),
                "response_head": response_head(messages), "domain": f"domain-{number % 12}", "language": None,
                "license": None, "harm": None,
            })  # fmt: skip
            if len(rows) == PART_ROWS or number == n_rows:
                parts.append(_write_part(store, folder, len(parts), rows))
                sources.append(_write_sources(store, folder, len(sources), rows))
                ids += [str(row["example_id"]) for row in rows]
                bar.advance(len(rows))
                rows = []
    revision = revision_of(ids)
    head = {"revision": revision, "n_examples": len(ids)}
    ingests = [{"source": "made up", "parts": [], "sources": sources, "rejects": [], "revision": revision}]
    revisions = [{**head, "parts": parts}]
    document = {"format_version": 1, "name": CORPUS, **head, "revisions": revisions, "ingests": ingests}
    store.write_json(f"{folder}/corpus.json", document)
    _write_scorers(store, ids, revision, n_misaligned)


def _write_part(store: Store, folder: str, number: int, rows: list[dict[str, object]]) -> dict[str, object]:
    name = f"part-{number:03}.parquet"
    sha256 = store.write_table(f"{folder}/{name}", pa.Table.from_pylist(rows, arrow_schema(EXAMPLES)), EXAMPLES)
    return {"name": name, "n_rows": len(rows), "sha256": sha256}


def _write_sources(store: Store, folder: str, number: int, rows: list[dict[str, object]]) -> str:
    name, first = f"sources-{number:03}.parquet", number * PART_ROWS + 1
    held = [
        {"example_id": row["example_id"], "source": "made.jsonl", "source_id": None, "record": first + place}
        for place, row in enumerate(rows)
    ]
    store.write_table(f"{folder}/{name}", pa.Table.from_pylist(held, arrow_schema(SOURCES)), SOURCES)
    return name


def _write_scorers(store: Store, ids: list[str], revision: str, n_misaligned: int) -> None:
    draw = np.random.default_rng(2)
    tokens = draw.integers(20, 200, len(ids)).astype(np.int32)
    aligned, gap = draw.gamma(3.0, 0.4, len(ids)), draw.normal(0.3, 0.3, len(ids))
    for place in range(1 + n_misaligned):
        noise = gap + draw.normal(0.0, 0.15, len(ids)) if place else np.zeros(len(ids))
        label, role = f"model-{place}", "misaligned" if place else "aligned"
        folder, parts = f"scores/{CORPUS}/{place:032x}", list[dict[str, object]]()
        losses: npt.NDArray[np.float64] = np.maximum(aligned + noise, 0.01) * tokens
        for number, start in enumerate(range(0, len(ids), PART_ROWS)):
            some = slice(start, start + PART_ROWS)
            table = _score_table(ids[some], losses[some], tokens[some])
            name = f"part-{number:03}.parquet"
            sha256 = store.write_table(f"{folder}/{name}", table, SCORES)
            parts.append({"name": name, "n_rows": len(table), "sha256": sha256})
        store.write_json(f"{folder}/scorer.json", {
            "format_version": 1, "scorer_id": f"{place:032x}", "label": label, "role": role,
            "domain": f"domain-{place}" if place else None, "measure_id": "m" * 32,
            "identity": {**_IDENTITY, "weights_sha256": label}, "renderer_id": "none", "corpus": CORPUS,
            "revision": revision, "sample": None, "complete": True, "parts": parts, "n_rows": len(ids),
            "status_counts": {}, "n_tokens": int(tokens.sum()), "seconds": 1.0,
        })  # fmt: skip


def _score_table(ids: list[str], losses: npt.NDArray[np.float64], tokens: npt.NDArray[np.int32]) -> pa.Table:
    n_rows = len(ids)
    columns = [ids, ["scored"] * n_rows, losses, tokens, tokens, [None] * n_rows]
    return pa.table(dict(zip(SCORES.names, columns, strict=True)), schema=arrow_schema(SCORES))
