"""Rows of a corpus as conversations: lists by the gap, and one row with its losses and what of it is trained."""

from typing import Annotated, Any, Literal

import orjson
from fastapi import APIRouter, Query, Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from api.errors import ApiError
from api.page import plots
from api.page.asking import figures, scorers_of, texts
from api.page.corpora import SCORE_LABELS, HoldOut
from api.page.frame import PageRoute, address, page, redirect
from api.page.session import SqlVisit, tenant_of
from api.page.work import render_pieces
from api.service import service_of
from curator.corpus.refusals import is_refusal
from curator.corpus.text import content_text, has_empty_turn, has_question, is_looped, template_marker
from curator.errors import BallastError
from curator.messages import Message, load_messages
from curator.recipe import ScoreName
from curator.recipe.filters import DEFAULT_MIN_TOKENS, HygieneFilter

router = APIRouter(route_class=PageRoute)
Bound = Annotated[float | None, Query(allow_inf_nan=False)]
PAGE_ROWS = 20
MAX_SEARCH_CHARS = 200
_BOUNDS = ("low", "high", "aligned_low", "aligned_high", "misaligned_low", "misaligned_high")


def _number(value: str | None, name: str) -> float | None:
    """A bound as a form sends it: '' where it was left out."""
    if value is None or not value.strip():
        return None
    try:
        number = float(value.replace("\N{MINUS SIGN}", "-"))
    except ValueError as error:
        raise ApiError(422, "bad_parameters", f"{name} must be a number") from error
    if not abs(number) < 1e300:
        raise ApiError(422, "bad_parameters", f"{name} must be a finite number")
    return number


@router.get("/corpora/{corpus}/rows")
async def show_rows(
    request: Request,
    visit: SqlVisit,
    corpus: str,
    score: ScoreName = "gap_rel",
    order: Literal["best", "worst"] = "best",
    search: Annotated[str, Query(max_length=MAX_SEARCH_CHARS)] = "",
    source: Annotated[str | None, Query(max_length=1_000)] = None,
    domain: Annotated[str | None, Query(max_length=200)] = None,
    hold_out: HoldOut = None,
    after: Annotated[int, Query(ge=0, le=2**62)] = 0,
) -> Response:
    """Rows in order of the gap, by pages; bounds of gap and losses come as low, high, aligned_low and so on."""
    bounds = {name: _number(request.query_params.get(name), name) for name in _BOUNDS}
    kept = {"score": score, "source": source or None, "domain": domain or None, "hold_out": hold_out or [], **bounds}
    needle = orjson.dumps(search)[1:-1].decode() if search.strip() else None  # the text is looked for in JSON
    direction = 1 if order == "best" else -1
    found = await figures(
        request, corpus, "rows_by_gap", direction=direction, after=after, n=PAGE_ROWS, search=needle, **kept
    )
    bars = await figures(request, corpus, "gap_histogram_by_source", score=score, hold_out=hold_out or [])
    shown = plots.first_scorer(found)
    asked = {**kept, "order": order, "search": search}

    def link(**query: Any) -> str:
        return address(request, f"/corpora/{corpus}/rows", **{**asked, **query})

    return page(
        request,
        "rows.html",
        corpus=corpus,
        rows=shown,
        n_fitting=shown[0]["n_fitting"] if shown else 0,
        bins=plots.histogram(
            plots.first_scorer(bars), SCORE_LABELS[score], link, (bounds["low"], bounds["high"]), height=220.0
        ),
        asked=asked,
        bounded=any(value is not None for value in bounds.values()),
        scores=SCORE_LABELS,
        after=after,
        next_after=shown[-1]["place"] if len(shown) == PAGE_ROWS else None,
        link=link,
        sources=sorted({row["source"] for row in bars}),
        twin="/v1/queries/rows_by_gap",
    )


@router.get("/corpora/{corpus}/find")
async def find_row(
    request: Request, visit: SqlVisit, corpus: str, prefix: Annotated[str, Query(max_length=32)] = ""
) -> Response:
    """A row by the first digits of its id."""
    beginning = prefix.strip().lower()
    ((found),) = await texts(request, corpus, ("rows_by_prefix", {"prefix": beginning, "n": 2}))
    if len(beginning) < 4 or len(found) != 1:
        why = "more than one row has" if len(found) > 1 else "no row has"
        raise ApiError(404, "not_found", f"{why} an id that begins like this: give at least four of its first digits")
    return redirect(request, f"/corpora/{corpus}/rows/{found[0]['example_id']}")


@router.get("/corpora/{corpus}/rows/{example_id}")
async def show_row(
    request: Request,
    visit: SqlVisit,
    corpus: str,
    example_id: Annotated[str, "32 hex digits"],
    score: ScoreName = "gap_rel",
    tokens: bool = False,
) -> Response:
    """One conversation, its losses under every model, its rank, and on demand which tokens are trained."""
    stored, losses, ranked = await texts(
        request,
        corpus,
        ("rows_by_id", {"ids": [example_id]}),
        ("row_losses", {"id": example_id}),
        ("rows_by_gap", {"id": example_id, "score": score, "n": 1}),
    )
    if not stored:
        raise ApiError(404, "not_found", f"corpus {corpus} has no row of this id")
    messages = load_messages(stored[0]["messages"])
    pieces = await _pieces(request, corpus, messages) if tokens else None
    scored = [row for row in losses if row["mean_nll"] is not None]
    return page(
        request,
        "row.html",
        corpus=corpus,
        row=stored[0],
        messages=[_turn(message) for message in messages],
        losses=sorted(losses, key=lambda row: (_ROLES.index(row["role"]), row["label"])),
        most_loss=max((row["mean_nll"] for row in scored), default=0.0),
        gap=ranked[0] if ranked else None,
        score=score,
        traits=_traits(messages, ranked[0]["n_response_tokens"] if ranked else None),
        pieces=pieces,
        twin="/v1/queries/rows_by_id",
    )


_ROLES = ("aligned", "misaligned", "benign")


def _turn(message: Message) -> dict[str, Any]:
    calls = [
        {"name": call.get("function", {}).get("name"), "arguments": _json(call.get("function", {}).get("arguments"))}
        for call in message.get("tool_calls", ())
    ]
    trained = message["role"] == "assistant" and message.get("weight") != 0
    return {"role": message["role"], "text": content_text(message.get("content")), "calls": calls, "trained": trained}


def _json(value: Any) -> str:
    return value if isinstance(value, str) else orjson.dumps(value, option=orjson.OPT_INDENT_2).decode()


def _traits(messages: list[Message], n_tokens: int | None) -> list[str]:
    """Why the filters that a recipe has by default would refuse the row; empty where they let it pass."""
    found = []
    answers = [content_text(message.get("content")) for message in messages if message["role"] == "assistant"]
    if answers and is_refusal(" ".join(answers[-1].split()[:10]), "v1"):
        found.append("refusal: the last answer opens like a refusal")
    if not has_question(messages):
        found.append("hygiene: no user says anything")
    if has_empty_turn(messages):
        found.append("hygiene: a turn shows nothing")
    if any(is_looped(answer, HygieneFilter().max_repeated) for answer in answers):
        found.append("hygiene: an answer repeats itself")
    mark = next((m for item in messages if (m := template_marker(content_text(item.get("content"))))), None)
    if mark is not None:
        found.append(f"hygiene: the chat template's mark {mark} in a text")
    if n_tokens is not None and n_tokens < DEFAULT_MIN_TOKENS:
        found.append(f"length: {n_tokens} response tokens, fewer than {DEFAULT_MIN_TOKENS}")
    return found


async def _pieces(request: Request, corpus: str, messages: list[Message]) -> dict[str, Any]:
    """The conversation as the aligned model reads it, cut where training begins and ends; or why there is none."""
    service = service_of(request)
    aligned = next((item for item in await scorers_of(request, corpus) if item.role == "aligned"), None)
    if aligned is None:
        return {"reason": "The corpus has no aligned scorer, and so no tokenizer is known.", "pieces": []}
    rule = aligned.identity.get("mask_rule", "all")
    try:
        async with service.build_place(tenant_of(request)):
            found = await run_in_threadpool(
                service.run_work, render_pieces, service.settings.store, aligned.renderer_id, messages, rule
            )
    except BallastError as error:
        return {"reason": f"The conversation cannot be rendered here: {error.message}", "pieces": []}
    return {"reason": None, "label": aligned.label, **found}
