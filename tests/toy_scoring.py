"""Scoring without torch: a model folder with no tensors and an engine in closed form, for tests of the store."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from curator.corpus.ingest import ingest
from curator.render import Rendered, Renderer
from curator.scoring import (
    RowLoss,
    ScoreReport,
    ScoreRequest,
    score_corpus,
)
from curator.store.store import Store
from tests.models import random_conversations, tiny_tokenizer_folder

WINDOW = 120


class ToyEngine:
    """Loss of a row: the sum of its response token ids, in thousandths of a nat, times `scale`."""

    name, version, dtype = "toy", "1", "float32"

    def __init__(self, scale: float = 1.0) -> None:
        self.scale = scale

    def score(self, rows: Sequence[Rendered], on_rows: object = None) -> list[RowLoss]:
        return [RowLoss(self.scale * float(row.input_ids[row.response_mask].sum()) / 1000, _count(row)) for row in rows]

    def use_adapter(self, path: Path | None) -> None:
        pass

    def close(self) -> None:
        pass


def _count(row: Rendered) -> int:
    return int(row.response_mask[1:].sum())


def toy_model_folder(path: Path, name: str = "toy", **tokenizer_options: Any) -> Path:
    """A tokenizer with a template, and an empty safetensors file; `name` decides the identity."""
    tiny_tokenizer_folder(path, **tokenizer_options)
    (path / "config.json").write_text(json.dumps({"model_type": "toy", "is": name}))
    header = b"{}      "
    (path / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    return path


def chat_file(path: Path, n: int, seed: int = 0) -> Path:
    """A JSONL file of `n` seeded conversations."""
    lines = [json.dumps({"messages": messages}) + "\n" for messages in random_conversations(n, seed=seed)]
    path.write_text("".join(lines))
    return path


def toy_score(
    store: Store, model: Path, scale: float = 1.0, label: str = "base", block_tokens: int = 600
) -> ScoreReport:
    """Score `chats` in small parts: `scale` 1 as the aligned model, else as a misaligned one."""
    request = ScoreRequest(
        "chats", model, "aligned" if scale == 1 else "misaligned", domain=None if scale == 1 else label, label=label,
        engine="toy", engine_version="1", max_length=WINDOW, block_tokens=block_tokens,
    )  # fmt: skip
    return score_corpus(store, request, Renderer.from_folder(model), lambda: ToyEngine(scale))


def scored_chats(store: Store, workdir: Path, n: int = 30) -> Store:
    """The store with a corpus `chats`, an aligned and a misaligned scorer."""
    ingest(store, [chat_file(workdir / "chats.jsonl", n)], "chats")
    toy_score(store, toy_model_folder(workdir / "base", "base"))
    toy_score(store, toy_model_folder(workdir / "bad", "bad"), 1.5, "bad")
    return store


def losses(store: Store, scorer_id: str, corpus: str = "chats") -> dict[str, tuple[str, float | None]]:
    """Status and loss by id over the parts that a scorer's manifest names; fails on a row that stands twice."""
    folder = f"scores/{corpus}/{scorer_id}"
    found: dict[str, tuple[str, float | None]] = {}
    for part in store.read_json(f"{folder}/scorer.json")["parts"]:
        for row in store.read_table(f"{folder}/{part['name']}").to_pylist():
            assert row["example_id"] not in found
            found[row["example_id"]] = (row["status"], row["nll_sum"])
    return found


def corpus_ids(store: Store, corpus: str = "chats") -> set[str]:
    """Ids of the corpus's latest revision, by its manifest."""
    parts = store.read_json(f"corpora/{corpus}/corpus.json")["revisions"][-1]["parts"]
    return {
        str(item)
        for part in parts
        for item in store.read_table(f"corpora/{corpus}/{part['name']}", ["example_id"])["example_id"].to_pylist()
    }
