"""A store written file by file as its layout says, with losses that a test chooses.

Imports the store and the message canonicaliser alone, so that what reads it is tested against written facts.
"""

import hashlib
from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from curator.messages import (
    canonical_messages,
    dump_messages,
    example_id,
    response_head,
)
from curator.store.schema import EXAMPLES, SCORES, SOURCES
from curator.store.store import Store, arrow_schema

Loss = tuple[float, int] | str | None  # (nll_sum, n_response_tokens), a status, or no row at all

IDENTITY = {
    "weights_sha256": "w", "adapter_sha256": None, "chat_template_sha256": "t", "tokenizer_sha256": "k",
    "mask_rule": "all", "max_length": 512, "dtype": "float32", "engine": "torch", "engine_version": "1",
}  # fmt: skip


def revision_of(ids: list[str]) -> str:
    return hashlib.blake2b("\n".join(sorted(ids)).encode(), digest_size=16).hexdigest()


def conversation(answer: str) -> tuple[str, str, str]:
    """Id, canonical JSON and response head of one question with this answer."""
    messages = canonical_messages([{"role": "user", "content": "q"}, {"role": "assistant", "content": answer}])
    text = dump_messages(messages)
    return example_id(text), text, response_head(messages)


def write_corpus(
    store: Store, corpus: str, answers: list[str], *, domains: Mapping[str, str] | None = None
) -> list[str]:
    """One part, one source record for each answer; returns the ids in the order of `answers`."""
    rows, sources, ids = [], [], []
    for record, answer in enumerate(answers, start=1):
        key, text, head = conversation(answer)
        ids.append(key)
        sources.append({"example_id": key, "source": f"file{record % 2}.jsonl", "source_id": None, "record": record})
        rows.append(
            {
                "example_id": key,
                "messages": text,
                "n_turns": 2,
                "n_assistant_turns": 1,
                "n_chars": len(answer) + 1,
                "response_head": head,
                "domain": (domains or {}).get(answer),
                "language": None,
                "license": None,
                "harm": None,
            }
        )
    folder = f"corpora/{corpus}"
    distinct = list({row["example_id"]: row for row in rows}.values())
    sha = store.write_table(
        f"{folder}/part-0.parquet", pa.Table.from_pylist(distinct, arrow_schema(EXAMPLES)), EXAMPLES
    )
    store.write_table(f"{folder}/sources-0.parquet", pa.Table.from_pylist(sources, arrow_schema(SOURCES)), SOURCES)
    parts = [{"name": "part-0.parquet", "n_rows": len(distinct), "sha256": sha}]
    revision = revision_of([row["example_id"] for row in distinct])
    document = {
        "format_version": 1, "name": corpus, "revision": revision, "n_examples": len(distinct),
        "revisions": [{"revision": revision, "n_examples": len(distinct), "parts": parts}],
        "ingests": [{"source": "file", "parts": ["part-0.parquet"], "sources": ["sources-0.parquet"], "rejects": []}],
    }  # fmt: skip
    store.write_json(f"{folder}/corpus.json", document)
    return ids


def _score_row(key: str, loss: Loss) -> dict[str, Any]:
    if isinstance(loss, tuple):
        nll_sum, count = loss
        return {
            "example_id": key, "status": "scored", "nll_sum": nll_sum, "n_response_tokens": count,
            "n_tokens": count + 3, "reason": None,
        }  # fmt: skip
    return {
        "example_id": key, "status": loss, "nll_sum": None, "n_response_tokens": 0, "n_tokens": 3, "reason": f"{loss}",
    }  # fmt: skip


def write_scorer(
    store: Store,
    corpus: str,
    label: str,
    role: str,
    losses: Mapping[str, Loss],
    *,
    domain: str | None = None,
    complete: bool = True,
    n_parts: int = 1,
    sample: dict[str, int] | None = None,
    **identity: Any,
) -> str:
    """The losses of one scorer by example id, in `n_parts` files; returns the scorer id."""
    full = {**IDENTITY, "weights_sha256": label, **identity}
    measure = {key: value for key, value in full.items() if key not in ("weights_sha256", "adapter_sha256")}
    scorer_id = hashlib.blake2b(repr((label, sorted(full.items(), key=str))).encode(), digest_size=16).hexdigest()
    folder = f"scores/{corpus}/{scorer_id}"
    rows = [_score_row(key, loss) for key, loss in losses.items() if loss is not None]
    parts = []
    for place in range(n_parts):
        name = f"part-{place}.parquet"
        table = pa.Table.from_pylist(rows[place::n_parts], arrow_schema(SCORES))
        parts.append(
            {"name": name, "n_rows": table.num_rows, "sha256": store.write_table(f"{folder}/{name}", table, SCORES)}
        )
    document = {
        "format_version": 1, "scorer_id": scorer_id, "label": label, "role": role, "domain": domain,
        "measure_id": hashlib.blake2b(repr(sorted(measure.items())).encode(), digest_size=16).hexdigest(),
        "identity": full, "renderer_id": "r", "corpus": corpus,
        "revision": store.read_json(f"corpora/{corpus}/corpus.json")["revision"], "sample": sample,
        "complete": complete, "parts": parts, "n_rows": len(rows), "status_counts": {}, "n_tokens": 3 * len(rows),
        "seconds": 1.5,
    }  # fmt: skip
    store.write_json(f"{folder}/scorer.json", document)
    return scorer_id
