"""What recipes can draw from: corpora, their scorers, and how the gap is spread."""

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request

from api.auth import GUARDED, holding
from api.errors import ApiError
from api.schemas import CorpusDetail, CorpusGap, CorpusList, errors
from api.service import service_of
from curator.config import DEFAULT_EPS, ScoreName
from curator.database import connect
from curator.errors import BadInputError, MissingError
from curator.queries import run_named
from curator.snapshot import Corpus, corpus_names, read_corpus
from curator.store import Store
from sql import Value

router = APIRouter(prefix="/v1/corpora", tags=["corpora"], responses=GUARDED, dependencies=[Depends(holding("mix"))])

QUERY_TIMEOUT_S = 60.0


@router.get("", response_model=CorpusList)
def list_corpora(request: Request) -> dict[str, Any]:
    """Every corpus at its latest revision, by name."""
    store = service_of(request).store
    found = [read_corpus(store, name) for name in corpus_names(store)]
    return {"corpora": [_summary(corpus) for corpus in found]}


@router.get("/{corpus}", response_model=CorpusDetail, responses=errors(404))
def get_corpus(request: Request, corpus: str) -> dict[str, Any]:
    """One corpus with its scorers: role, coverage and mean loss."""
    store = service_of(request).store
    found = _read(store, corpus)
    with connect(store, {found.name: found.revision}, timeout_s=QUERY_TIMEOUT_S) as connection:
        scorers = run_named(connection, "scorer_summary", {"corpus": found.name}).table.to_pylist()
    return {**_summary(found), "scorers": scorers}


@router.get("/{corpus}/gap", response_model=CorpusGap, responses=errors(404, 422))
def get_gap(
    request: Request,
    corpus: str,
    score: ScoreName = "gap_rel",
    eps: Annotated[float, Query(ge=0.0, le=100.0, description="nats per token, for gap_rel")] = DEFAULT_EPS,
    hold_out: Annotated[list[str] | None, Query(description="domains whose misaligned models are left out")] = None,
    bins: Annotated[int, Query(ge=1, le=200)] = 20,
) -> dict[str, Any]:
    """How a corpus's gap is spread: quantiles and a histogram, one group per complete aligned scorer."""
    store = service_of(request).store
    found = _read(store, corpus)
    given: dict[str, Value] = {"corpus": found.name, "eps": eps, "hold_out": hold_out or []}
    with connect(store, {found.name: found.revision}, timeout_s=QUERY_TIMEOUT_S) as connection:
        quantiles = run_named(connection, "gap_quantiles", given).table.to_pylist()
        histogram = run_named(connection, "gap_histogram", {**given, "score": score, "bins": bins}).table.to_pylist()
    return {
        "corpus": found.name,
        "revision": found.revision,
        "score": score,
        "eps": eps,
        "hold_out": hold_out or [],
        "quantiles": [row for row in quantiles if row["score"] == score],
        "histogram": histogram,
    }


def _read(store: Store, name: str) -> Corpus:
    """The corpus; a name that could be none is answered like one that is absent."""
    try:
        return read_corpus(store, name)
    except (MissingError, BadInputError) as error:
        raise ApiError(404, "not_found", "there is no such corpus; GET /v1/corpora lists them") from error


def _summary(corpus: Corpus) -> dict[str, Any]:
    return {"corpus": corpus.name, "revision": corpus.revision, "n_examples": corpus.n_examples}
