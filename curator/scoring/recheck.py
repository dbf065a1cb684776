"""After a run: a seeded sample of its new rows scored again, before any manifest lists them."""

import heapq
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

from curator.corpus.manifest import Corpus
from curator.recipe.seeds import hash_keys
from curator.scoring.blocks import corpus_rows
from curator.scoring.check import (
    SEED_NAME,
    Difference,
    compare,
    n_check_rows,
    require_within_bound,
    signed_summary,
    summary,
)
from curator.scoring.engines.base import ReferenceFactory, RowLoss
from curator.scoring.parts import ScoreRow
from curator.scoring.worker import BlockScorer

if TYPE_CHECKING:
    from curator.render import Rendered


def recheck(
    worker: BlockScorer, corpus: Corpus, parts: Sequence[str], reference: ReferenceFactory | None
) -> dict[str, Any]:
    """Score rows of these parts again in another order, then with the reference; returns what scorer.json keeps.

    The engine is closed before the reference is loaded, so that two models never share the memory. Raises
    ScoringError showing the worst rows when one is past its bound; the parts stay unlisted then.
    """
    request = worker.task.request
    stored = _stored(worker, parts)
    n = n_check_rows(request.check_rows, len(stored))
    record: dict[str, Any] = {"revision": corpus.revision, "n_new_rows": len(stored), "n_rows": n, "seed": 0}
    if request.parallel:
        record["parallel"] = dict(request.parallel)
    if not n:
        return {**record, "permuted": None, "reference": None, "reason": _why_none(request.check_rows)}
    rows = _rendered(worker, corpus, _sample(stored, n))
    hint = f"Nothing new was listed; look into the engine, and delete {worker.task.folder} to score again"
    found = compare(worker.engine.get(), rows, stored, request.dtype, worker.meter.rows)
    record["permuted"] = summary(found)
    require_within_bound(found, "when scored again in another order", hint)
    worker.engine.close()
    if reference is None:
        return {**record, "reference": None, "reason": "the weights are not on this machine"}
    name, found = _against(reference, worker, rows, stored)
    record["reference"] = {"name": name, **summary(found)}
    if request.merge_adapter and request.adapter_dir is not None:
        record["merge_error"] = signed_summary(found)  # the reference runs the adapter unmerged
        hint = f"Merging rounds the adapter into {request.dtype} weights: score it without --merge-adapter. {hint}"
    require_within_bound(found, f"from {name}", hint)
    return {**record, "reason": None}


def _against(
    factory: ReferenceFactory, worker: BlockScorer, rows: "dict[str, Rendered]", stored: dict[str, RowLoss]
) -> tuple[str, list[Difference]]:
    reference = factory()
    try:
        return reference.name, compare(reference, rows, stored, worker.task.request.dtype, worker.meter.rows)
    finally:
        reference.close()


def _stored(worker: BlockScorer, parts: Sequence[str]) -> dict[str, RowLoss]:
    columns = ["example_id", "status", "nll_sum", "n_response_tokens"]
    found = {}
    for name in parts:
        for row in worker.store.read_table(f"{worker.task.folder}/{name}", columns).to_pylist():
            if row["status"] == "scored":
                found[row["example_id"]] = RowLoss(row["nll_sum"], row["n_response_tokens"])
    return found


def _sample(ids: Collection[str], n: int) -> list[str]:
    """`n` ids in hash order, which has nothing to do with the order they were scored in."""
    ordered = list(ids)
    keyed = zip(hash_keys(ordered, 0, SEED_NAME), ordered, strict=True)
    return [example_id for _, example_id in heapq.nsmallest(n, keyed)]


def _rendered(worker: BlockScorer, corpus: Corpus, ids: Sequence[str]) -> "dict[str, Rendered]":
    found = {}
    for example_id, messages in corpus_rows(worker.store, corpus, frozenset(ids)):
        row = worker.render(example_id, messages)
        if not isinstance(row, ScoreRow):
            found[example_id] = row
    return {example_id: found[example_id] for example_id in ids if example_id in found}


def _why_none(asked: int | None) -> str:
    return "not requested" if asked == 0 else "no new row has a loss"
