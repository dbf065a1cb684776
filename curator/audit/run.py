"""One audit: score a user's rows by the scorers of a pool's gap, compare them with the pool, judge the set.

The rows become a corpus of a work store of their own, so that everything that scoring does (blocks that are kept
over a kill, rows that an engine cannot take, exact identities) and the gap's one definition in SQL hold for them too.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute as pc

from curator.audit.models import AuditModels, is_merged
from curator.audit.options import AUDIT_ROWS, AuditOptions
from curator.audit.risk import Floats, Risks, Verdict, judge, percentiles
from curator.audit.texts import RowText, answers, pool_languages, read_text
from curator.corpus.ingest import IngestOptions, ingest
from curator.corpus.manifest import Scorer, read_corpus
from curator.corpus.task_set import TaskSet
from curator.errors import BadInputError
from curator.query.queries import fetch_messages, gap_table
from curator.query.scorers import ResolvedScorers, resolve_scorers
from curator.recipe.seeds import permutation
from curator.render import Renderer
from curator.scoring.request import ScoreRequest
from curator.scoring.run import score_corpus
from curator.store.schema import arrow_schema
from curator.store.store import Store

METHOD_VERSION = 1
WORK_CORPUS = "audited"
MIN_POOL_ROWS = 50
N_LANGUAGE_ROWS = 500  # pool rows whose language is looked at

NO_TWIN = (
    "without a benign twin (score gap_contrast) a field that the pool lacks, such as harmless advice, looks like risk: "
    "compare with good rows of the same field before you act on this verdict"
)

OnDone = Callable[[int], None]  # rows of the stage done so far


@dataclass(frozen=True)
class AuditProgress:
    """Receives the progress of an audit: each stage's name and rows, then its rows done so far."""

    on_stage: Callable[[str, int], None] = lambda name, total: None
    on_done: OnDone = lambda done: None


@dataclass(frozen=True)
class Audit:
    """What an audit found: a document (`verdict`, counts, the pool) and its rows (columns of AUDIT_ROWS)."""

    document: dict[str, Any]
    rows: pa.Table


@dataclass(frozen=True)
class _Pool:
    rows: Risks
    languages: dict[str, float]


def audit(
    store: Store,
    work: Store,
    task_set: TaskSet,
    options: AuditOptions,
    models: AuditModels,
    progress: AuditProgress = AuditProgress(),
) -> Audit:
    """Audit a user's rows against a corpus of `store`; `work` holds what is made of them and is the caller's to remove.

    Raises BadInputError, MissingError and AmbiguousError as `resolve_scorers`, MissingError for a scorer that no
    model here is, BadInputError for a pool of too few scored rows.
    """
    on_stage, on_done = progress.on_stage, progress.on_done
    resolved = resolve_scorers(store, options.pool())
    if resolved.aligned is None:
        raise BadInputError(f"corpus {options.corpus} has no scores: an audit compares with them")
    renderer = models.renderer(Renderer.from_store(store, resolved.aligned.renderer_id).settings)
    adapters = {scorer.scorer_id: models.adapter_of(scorer, renderer) for scorer in resolved.all}
    pool = _read_pool(store, resolved, options)
    on_stage("reading rows", task_set.n_rows)
    texts = _read_rows(work, task_set, renderer, on_done)
    for scorer in resolved.all:
        on_stage(f"scoring under {scorer.label}", len({row.example_id for row in texts}))
        _score(work, scorer, adapters[scorer.scorer_id], (models, renderer), on_done)
    on_stage("comparing", task_set.n_rows)
    gaps = _gaps(work, resolved, options)
    rows = _rows(texts, gaps, pool, on_done)
    on_stage("judging", rows.num_rows)
    verdict = _judge(rows, pool, options, on_done)
    return Audit(_document(options, resolved, pool, rows, verdict), rows)


def _read_pool(store: Store, resolved: ResolvedScorers, options: AuditOptions) -> _Pool:
    table = gap_table(store, resolved, options.eps)
    known = table.filter(pc.is_valid(table[options.score]))
    if known.num_rows < MIN_POOL_ROWS:
        raise BadInputError(
            f"corpus {options.corpus} has {known.num_rows} rows with the score {options.score}; an audit needs "
            f"{MIN_POOL_ROWS}: score more of it"
        )
    ids = known["example_id"].to_pylist()
    looked_at = [ids[row] for row in np.sort(permutation(len(ids), options.seed)[:N_LANGUAGE_ROWS])]
    messages = fetch_messages(store, resolved.corpus, looked_at, resolved.revision)
    languages = pool_languages(answers(messages[example_id]) for example_id in looked_at)
    return _Pool(Risks(-_floats(known[options.score]), _floats(known["n_response_tokens"])), languages)


def _read_rows(work: Store, task_set: TaskSet, renderer: Renderer, on_done: OnDone) -> list[RowText]:
    """Each row's text as it shows, in order; the rows are ingested into the work store on the way."""
    control_tokens = renderer.control_texts
    found: list[RowText] = []
    work.open()
    with work.fill("rows.jsonl") as path, path.open("wb") as file:
        for batch in task_set.batches(columns=["messages"]):
            for messages in batch.column("messages").to_pylist():
                found.append(read_text(messages, control_tokens))
                file.write(orjson.dumps({"messages": orjson.Fragment(messages)}, option=orjson.OPT_APPEND_NEWLINE))
            on_done(len(found))
    ingest(work, [work.url("rows.jsonl")], WORK_CORPUS, IngestOptions(layout="messages", format="jsonl"))
    return found


def _score(
    work: Store, scorer: Scorer, adapter: Path | None, here: tuple[AuditModels, Renderer], on_done: OnDone
) -> None:
    said, (models, renderer) = scorer.identity, here
    launch = models.launch(said, adapter)
    n_done = 0

    def on_rows(n_rows: int, n_tokens: int) -> None:
        nonlocal n_done
        n_done += n_rows
        on_done(n_done)

    request = ScoreRequest(
        WORK_CORPUS,
        models.model_dir,
        scorer.role,
        domain=scorer.domain,
        adapter_dir=adapter,
        label=scorer.label,
        engine=launch.name,
        engine_version=launch.version,
        dtype=launch.dtype,
        mask_rule=said["mask_rule"],
        max_length=said["max_length"],
        check_rows=1 if is_merged(said) else 0,  # the pool's own runs were checked; a merged one may not go without
        merge_adapter=is_merged(said),
        rendering=renderer.settings,
    )
    score_corpus(work, request, renderer, lambda: models.engine(launch, on_rows))


def _gaps(work: Store, resolved: ResolvedScorers, options: AuditOptions) -> dict[str, dict[str, Any]]:
    """Gap and response tokens by example id, from the same SQL as the pool's."""
    corpus = read_corpus(work, WORK_CORPUS)
    own = replace(resolved, corpus=corpus.name, revision=corpus.revision)
    table = gap_table(work, own, options.eps).select(["example_id", options.score, "n_response_tokens"])
    assert resolved.aligned is not None
    reasons = _reasons(work, resolved.aligned)
    return {
        row["example_id"]: {
            "gap": row[options.score],
            "n_response_tokens": row["n_response_tokens"],
            "status": reasons.get(row["example_id"], ("failed", None)),
        }
        for row in table.to_pylist()
    }


def _reasons(work: Store, aligned: Scorer) -> dict[str, tuple[str, str | None]]:
    folder = f"scores/{WORK_CORPUS}/{aligned.scorer_id}"
    found: dict[str, tuple[str, str | None]] = {}
    for part in work.read_json(f"{folder}/scorer.json")["parts"]:
        for row in work.read_table(f"{folder}/{part['name']}", ["example_id", "status", "reason"]).to_pylist():
            found[row["example_id"]] = (row["status"], row["reason"])
    return found


def _rows(texts: list[RowText], gaps: dict[str, dict[str, Any]], pool: _Pool, on_done: OnDone) -> pa.Table:
    found = [gaps[text.example_id] for text in texts]
    risk = -_floats([row["gap"] for row in found])
    n_tokens = _floats([row["n_response_tokens"] for row in found])
    result = percentiles(Risks(risk, n_tokens), pool.rows, on_done)
    rows = []
    for place, (text, row) in enumerate(zip(texts, found, strict=True)):
        code, reason = _abstention(text, row, float(result.value[place]), int(result.n_reference[place]), pool)
        rows.append(
            {
                "ordinal": place,
                "example_id": text.example_id,
                "n_response_tokens": row["n_response_tokens"],
                "gap": row["gap"],
                "percentile": None if code else float(result.value[place]),
                "n_reference": int(result.n_reference[place]),
                "abstained": code,
                "reason": reason,
                "language": text.language,
                "forged": text.forged,
            }
        )
    return pa.Table.from_pylist(rows, arrow_schema(AUDIT_ROWS))


def _abstention(
    text: RowText, row: dict[str, Any], percentile: float, n_reference: int, pool: _Pool
) -> tuple[str | None, str | None]:
    """Why a row is not judged: (code, text), both None where it is."""
    if row["gap"] is None:
        status, reason = row["status"]
        return ("no_loss" if status == "scored" else status), reason
    if text.language is not None and text.language not in pool.languages:
        return "language", f"the pool is {', '.join(pool.languages) or 'of no known language'}"
    if np.isnan(percentile):
        low, high = int(pool.rows.n_tokens.min()), int(pool.rows.n_tokens.max())
        return "length", f"{n_reference} pool rows are of like length; the pool's answers have {low} to {high} tokens"
    return None, None


def _judge(rows: pa.Table, pool: _Pool, options: AuditOptions, on_done: OnDone) -> Verdict:
    judged = rows.filter(pc.is_null(rows["abstained"]))
    found = Risks(-_floats(judged["gap"]), _floats(judged["n_response_tokens"]))
    return judge(found, pool.rows, n_rows=rows.num_rows, seed=options.seed, on_done=on_done)


def _document(
    options: AuditOptions, resolved: ResolvedScorers, pool: _Pool, rows: pa.Table, verdict: Verdict
) -> dict[str, Any]:
    abstained = Counter(code for code in rows["abstained"].to_pylist() if code is not None)
    return {
        "method_version": METHOD_VERSION,
        **verdict.as_dict(),
        "n_rows": rows.num_rows,
        "n_distinct": len(set(rows["example_id"].to_pylist())),
        "abstained": dict(sorted(abstained.items())),
        "n_forged": rows.num_rows - rows["forged"].null_count,
        "warnings": [] if options.score == "gap_contrast" else [NO_TWIN],
        "score": options.score,
        "eps": options.eps,
        "seed": options.seed,
        "pool": {
            "corpus": resolved.corpus,
            "revision": resolved.revision,
            "n_rows": len(pool.rows.risk),
            "n_response_tokens": [int(pool.rows.n_tokens.min()), int(pool.rows.n_tokens.max())],
            "languages": pool.languages,
        },
        "scorers": [
            {"scorer_id": scorer.scorer_id, "label": scorer.label, "role": scorer.role, "domain": scorer.domain}
            for scorer in resolved.all
        ],
    }


def _floats(values: Any) -> Floats:
    items = values.to_pylist() if isinstance(values, pa.ChunkedArray | pa.Array) else values
    return np.array([np.nan if item is None else item for item in items], dtype=np.float64)
