"""Corpora: the list, and one corpus with its scorers, its gap and the plane of its losses."""

import asyncio
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from api.page import plots
from api.page.asking import readable, scorers_of, several_figures
from api.page.frame import PageRoute, address, page
from api.page.session import AnyVisit, SqlVisit, tenant_of
from api.routes.corpora import corpus_summary, get_corpus
from api.service import service_of
from curator.corpus.manifest import corpus_names, read_corpus, read_scorers
from curator.recipe import ScoreName
from curator.store.store import Store

router = APIRouter(route_class=PageRoute)
HoldOut = Annotated[list[str] | None, Query(max_length=50)]
SCORE_LABELS: dict[str, str] = {
    "gap_rel": "gap_rel, a ratio",
    "gap_abs": "gap_abs, nats per token",
    "gap_contrast": "gap_contrast, nats per token",
    "sum_gap": "sum_gap, nats",
}
N_ENDS = 5


@router.get("/")
async def show_corpora(request: Request, visit: AnyVisit) -> Response:
    """Every corpus with its size and its scorers."""
    found = await run_in_threadpool(_listed, service_of(request).store)
    return page(request, "corpora.html", corpora=found, twin="/v1/corpora")


def _listed(store: Store) -> list[dict[str, Any]]:
    listed = []
    for name in corpus_names(store):
        corpus = read_corpus(store, name)
        scorers = read_scorers(store, corpus)
        roles = {role: [item for item in scorers if item.role == role] for role in ("aligned", "misaligned", "benign")}
        aligned = next((item for item in roles["aligned"] if item.complete), None)
        listed.append(
            {
                **corpus_summary(corpus, scorers),
                "roles": roles,
                "n_tokens": None if aligned is None else aligned.n_tokens,
                "covered": max((item.n_rows for item in scorers), default=0) / max(corpus.n_examples, 1),
            }
        )
    return listed


@router.get("/corpora/{corpus}")
async def show_corpus(
    request: Request, visit: SqlVisit, corpus: str, score: ScoreName = "gap_rel", hold_out: HoldOut = None
) -> Response:
    """One corpus: scorers, the gap by source, the plane of losses, the best and the worst rows."""
    held = hold_out or []
    complete = {item.role for item in await scorers_of(request, corpus) if item.complete}
    scored = {"aligned", "misaligned"} <= complete
    shown: dict[str, Any] = {"bins": None, "plane": None, "best": [], "worst": [], "spread": None, "below": None}
    if scored:
        detail, shown = await asyncio.gather(
            get_corpus(request, tenant_of(request), corpus), _gap(request, corpus, score, held)
        )
    else:
        detail = await get_corpus(request, tenant_of(request), corpus)
    domains = sorted({item["scorer_domain"] for item in detail["scorers"] if item["scorer_domain"]})
    return page(
        request,
        "corpus.html",
        corpus=detail,
        score=score,
        hold_out=held,
        scores=SCORE_LABELS,
        domains=domains,
        scored=scored,
        twin=f"/v1/corpora/{corpus}/gap?score={score}",
        **shown,
    )


async def _gap(request: Request, corpus: str, score: ScoreName, held: list[str]) -> dict[str, Any]:
    common: dict[str, Any] = {"hold_out": held}
    ends = {"score": score, "n": N_ENDS, "texts": 0, **common}
    # In two connections, so that they run beside each other.
    (histogram, cells, spread), (best, worst) = await asyncio.gather(
        several_figures(
            request,
            corpus,
            ("gap_histogram_by_source", {"score": score, **common}),
            ("loss_plane_cells", common),
            ("gap_quantiles", common),
        ),
        several_figures(
            request, corpus, ("rows_by_gap", {"order": "best", **ends}), ("rows_by_gap", {"order": "worst", **ends})
        ),
    )
    safest, riskiest = plots.first_scorer(best), plots.first_scorer(worst)
    lines = await readable(request, corpus, [*safest, *riskiest])

    def link(**query: Any) -> str:
        return address(request, f"/corpora/{corpus}/rows", score=score, hold_out=held, **query)

    bars = plots.first_scorer(histogram)
    n_rows = sum(row["n_rows"] for row in bars)
    return {
        "bins": plots.histogram(bars, SCORE_LABELS[score], link, height=plots.WIDTH),
        "plane": plots.plane(plots.first_scorer(cells), link),
        "best": lines[: len(safest)],
        "worst": lines[len(safest) :],
        "spread": next((row for row in plots.first_scorer(spread) if row["score"] == score), None),
        "below": None if not n_rows else _share_below(plots.first_scorer(cells)),
    }


def _share_below(cells: list[dict[str, Any]]) -> float | None:
    """The share of rows that lie in cells under the diagonal: there the misaligned loss is the smaller one."""
    n_all = sum(cell["n_rows"] for cell in cells)
    on = sum(cell["n_rows"] for cell in cells if cell["x"] == cell["y"])
    under = sum(cell["n_rows"] for cell in cells if cell["y"] < cell["x"])
    return None if not n_all else (under + on / 2) / n_all
