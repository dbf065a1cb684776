"""What recipes can draw from: corpora, their scorers, and how the gap is spread."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from pydantic import BaseModel, Field
from starlette.concurrency import run_in_threadpool

from api.errors import ApiError
from api.schemas import (
    CorpusDetail,
    CorpusGap,
    CorpusList,
    errors,
)
from api.service import Service, service_of
from api.tenancy.auth import GUARDED, MixTenant
from curator.corpus.manifest import Corpus, Scorer, corpus_names, read_corpus, read_scorers
from curator.errors import BadInputError, MissingError
from curator.query.database import Connection, connect
from curator.query.queries import run_named
from curator.recipe import DEFAULT_EPS, ScoreName
from curator.select.pool_gaps import pool_gaps
from curator.store.store import Store
from sql import Value

router = APIRouter(prefix="/v1/corpora", tags=["corpora"], responses=GUARDED)

QUERY_TIMEOUT_S = 60.0


@router.get("", response_model=CorpusList)
def list_corpora(request: Request, tenant: MixTenant) -> dict[str, Any]:
    """Every corpus at its latest revision, by name."""
    store = service_of(request).store
    found = [read_corpus(store, name) for name in corpus_names(store)]
    return {"corpora": [corpus_summary(corpus, read_scorers(store, corpus)) for corpus in found]}


@router.get("/{corpus}", response_model=CorpusDetail, responses=errors(404, 503))
async def get_corpus(request: Request, tenant: MixTenant, corpus: str) -> dict[str, Any]:
    """One corpus with its scorers: role, coverage and mean loss."""
    service = service_of(request)
    found, scored = await run_in_threadpool(read_scored, service.store, corpus)

    def compute() -> dict[str, Any]:
        with connected(service, found) as connection:
            scorers = run_named(connection, "scorer_summary", {"corpus": found.name}).table.to_pylist()
        return {**corpus_summary(found, read_scorers(service.store, found)), "scorers": scorers}

    # An ingest whose records were all refused makes no new revision.
    return await service.figures.of(tenant, ("scorers", *scored, len(found.ingests)), compute)


class GapQuery(BaseModel):
    """Which gap is asked for, and how finely."""

    score: ScoreName = "gap_rel"
    eps: float = Field(default=DEFAULT_EPS, ge=0.0, le=100.0, description="nats per token, for gap_rel")
    hold_out: list[str] | None = Field(default=None, description="domains whose misaligned models are left out")
    bins: int = Field(default=20, ge=1, le=200)


@router.get("/{corpus}/gap", response_model=CorpusGap, responses=errors(404, 422, 503))
async def get_gap(
    request: Request,
    tenant: MixTenant,
    corpus: str,
    query: Annotated[GapQuery, Query()],
) -> dict[str, Any]:
    """How a corpus's gap is spread: quantiles and a histogram, one group per complete aligned scorer."""
    service = service_of(request)
    found, scored = await run_in_threadpool(read_scored, service.store, corpus)
    score, eps, hold_out = query.score, query.eps, query.hold_out or []
    given: dict[str, Value] = {"corpus": found.name, "eps": eps, "hold_out": hold_out}

    def compute() -> dict[str, Any]:
        shown = {**given, "score": score, "bins": query.bins}
        with connected(service, found, hold_out, eps) as connection:
            quantiles = run_named(connection, "gap_quantiles", given).table.to_pylist()
            histogram = run_named(connection, "gap_histogram", shown).table.to_pylist()
        return {
            "corpus": found.name,
            "revision": found.revision,
            "score": score,
            "eps": eps,
            "hold_out": hold_out,
            "quantiles": [row for row in quantiles if row["score"] == score],
            "histogram": histogram,
        }

    return await service.figures.of(tenant, ("gap", *scored, score, eps, tuple(hold_out), query.bins), compute)


@contextmanager
def connected(
    service: Service, corpus: Corpus, hold_out: Sequence[str] | None = None, eps: float = DEFAULT_EPS
) -> Iterator[Connection]:
    """A connection with the bounds of a statement: one thread, so much memory, nothing spilled to the disk.

    With `hold_out` (a list, which may be empty) the gaps of the corpus's rows are its pool's, where it has one: of
    those domains and that eps alone.
    """
    settings = service.settings
    with connect(service.store, {corpus.name: corpus.revision}, timeout_s=QUERY_TIMEOUT_S) as connection:
        connection.execute(f"set memory_limit = '{settings.sql_memory_bytes // 1000}KB'")
        connection.execute("set threads = 1")
        connection.execute("set temp_directory = ''")
        held = None if hold_out is None else pool_gaps(service.store, corpus, hold_out, eps)
        if held is not None:
            held.replace_view(connection)
        yield connection


def read_scored(store: Store, name: str) -> tuple[Corpus, tuple[object, ...]]:
    """The corpus and what its figures depend on; a name that could be none is answered like one that is absent."""
    try:
        corpus = read_corpus(store, name)
        parts = tuple((scorer.scorer_id, scorer.complete, scorer.parts) for scorer in read_scorers(store, corpus))
    except (MissingError, BadInputError) as error:
        raise ApiError(404, "not_found", "there is no such corpus; GET /v1/corpora lists them") from error
    return corpus, (corpus.name, corpus.revision, parts)


def corpus_summary(corpus: Corpus, scorers: Sequence[Scorer]) -> dict[str, Any]:
    """What a list shows of a corpus, as `CorpusSummary`; `scorers` are all of its own."""
    n_parsed = sum(item.get("parsed", 0) for item in corpus.ingests)
    aligned = next((item for item in scorers if item.role == "aligned" and item.complete), None)
    n_rows = 0 if aligned is None else sum(aligned.status_counts.values())
    return {
        "corpus": corpus.name,
        "revision": corpus.revision,
        "n_examples": corpus.n_examples,
        "n_sources": len({item["source"] for item in corpus.ingests}),
        "refused_share": sum(item["rejected"] for item in corpus.ingests) / n_parsed if n_parsed else None,
        "too_long_share": aligned.status_counts.get("too_long", 0) / n_rows if aligned and n_rows else None,
    }
