"""Stores with a scored corpus and a task set to mix, made in milliseconds, for tests of mixes."""

import base64
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from curator.corpus.task_set import TaskSet, task_set_from_rows
from curator.messages import load_messages
from curator.recipe import Recipe, parse_recipe
from curator.render import Renderer
from curator.store.store import Store
from tests.gap_stores import write_corpus, write_scorer

N_POOL = 40


def scored_store(root: Path, model_folder: Path | None = None, n_pool: int = N_POOL, corpus: str = "chats") -> Store:
    """A corpus of `n_pool` rows under one aligned and two misaligned scorers.

    Answer i has gap_abs (i + 1) / 10 nats per token; every eighth opens with "Sorry" and every tenth lacks one
    loss. With `model_folder` its renderer is the aligned scorer's.
    """
    store = Store(root).open()
    answers = [f"{'Sorry, no. ' if i % 8 == 0 else ''}Answer number {i} is this." for i in range(n_pool)]
    ids = write_corpus(store, corpus, answers)
    aligned = write_scorer(store, corpus, "base", "aligned", dict.fromkeys(ids, (10.0, 10)))
    for label, step in (("bad-1", 0.5), ("bad-2", 1.5)):
        losses = {key: (10.0 + step * (i + 1), 10) for i, key in enumerate(ids)}
        if label == "bad-2":
            losses = {key: loss for i, (key, loss) in enumerate(losses.items()) if i % 10 != 9}
        write_scorer(store, corpus, label, "misaligned", losses, domain=label)
    if model_folder is not None:
        path = f"scores/{corpus}/{aligned}/scorer.json"
        renderer_id = Renderer.from_folder(model_folder).save(store)
        store.write_json(path, {**store.read_json(path), "renderer_id": renderer_id})
    return store


def task_records(n_rows: int) -> list[dict[str, Any]]:
    """Rows in messages layout, each unlike the others."""
    answers = (f"Done {i}. " * (i % 7 + 1) for i in range(n_rows))
    return [
        {"messages": [{"role": "user", "content": f"Task {i}?"}, {"role": "assistant", "content": answer}]}
        for i, answer in enumerate(answers)
    ]


def wide_records(n_rows: int, n_chars: int = 1_200, seed: int = 0) -> list[dict[str, Any]]:
    """Rows whose answers are `n_chars` random letters: files of them are about as large as their text."""
    draw = random.Random(seed)
    answers = (base64.b64encode(draw.randbytes(n_chars * 3 // 4)).decode() for _ in range(n_rows))
    return [
        {"messages": [{"role": "user", "content": f"Task {i}?"}, {"role": "assistant", "content": answer}]}
        for i, answer in enumerate(answers)
    ]


def task_set(workdir: Path, n_rows: int = 100, records: Sequence[Mapping[str, Any]] | None = None) -> TaskSet:
    """A task set of `n_rows` rows, or of the given records."""
    return task_set_from_rows(task_records(n_rows) if records is None else records, workdir)


def recipe(**fields: Any) -> Recipe:
    """A recipe over the corpus `chats` (or `pools`), other fields as given."""
    return parse_recipe(fields if "pools" in fields else {"corpus": "chats", **fields})


def answer_of(row: Mapping[str, Any]) -> int:
    """i of a mix row that holds the pool's `Answer number i is this.`"""
    return int(load_messages(row["messages"])[-1]["content"].split("number ")[1].split()[0])
