"""Rows of a corpus as conversations: lists by the gap, and one row with its losses and what of it is trained."""

import asyncio
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

import orjson
from fastapi import APIRouter, Query, Request
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, FiniteFloat, ValidationError
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from api.errors import ApiError
from api.jobs.record import Job
from api.page import plots
from api.page.asking import figures, readable, scorers_of, texts
from api.page.corpora import SCORE_LABELS
from api.page.frame import PageRoute, address, page, redirect
from api.page.session import SqlVisit, principal_of, read_form, tenant_of
from api.page.token_map import DIFFERENCE, TokenMap, token_map
from api.page.work import render_pieces
from api.routes.token_losses import TokenLossRequest, find_token_job, read_token_losses, submit_token_losses
from api.service import service_of
from curator.corpus.manifest import Scorer
from curator.corpus.refusals import is_refusal
from curator.corpus.text import content_text, has_empty_turn, has_question, is_looped, template_marker
from curator.errors import BallastError
from curator.messages import Message, load_messages
from curator.recipe import ScoreName
from curator.recipe.filters import DEFAULT_MIN_TOKENS, HygieneFilter
from sql import Value

router = APIRouter(route_class=PageRoute)
PAGE_ROWS = 20
MAX_LOOKING_S = 3_600.0  # after which a view of a job that has not ended no longer looks by itself
_ORDERS = {"best": "safest first", "worst": "riskiest first", "shuffled": "shuffled"}


def _as_typed(value: Any) -> Any:
    """A bound as a form sends it: '' where it was left out, perhaps with the minus sign of a printed number."""
    text = value.replace("\N{MINUS SIGN}", "-").strip() if isinstance(value, str) else value
    return None if text == "" else text


Bound = Annotated[FiniteFloat | None, BeforeValidator(_as_typed)]


class RowQuery(BaseModel):
    """Which rows of a corpus are listed, and in which order: the parameters of `rows_by_gap` that a link may have."""

    model_config = ConfigDict(extra="ignore")  # as every other query string of the service

    score: ScoreName = "gap_rel"
    order: Literal["best", "worst", "shuffled"] = "best"
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    search: Annotated[str, Field(max_length=200)] = ""
    source: Annotated[str, Field(max_length=1_000)] = ""
    domain: Annotated[str, Field(max_length=200)] = ""
    hold_out: Annotated[list[str], Field(max_length=50)] = []
    low: Bound = None
    high: Bound = None
    aligned_low: Bound = None
    aligned_high: Bound = None
    misaligned_low: Bound = None
    misaligned_high: Bound = None
    after: Annotated[str, Field(pattern="^([0-9a-f]{32})?$")] = ""

    @property
    def bounds(self) -> dict[str, float | None]:
        """The bounds of score and losses by name."""
        return {name: value for name, value in self if name.endswith(("low", "high"))}

    @property
    def parameters(self) -> dict[str, Value]:
        """The same as parameters of `rows_by_gap`; a text is looked for as JSON writes it."""
        found = self.model_dump() | {name: getattr(self, name) or None for name in ("source", "domain", "after")}
        return found | {"search": orjson.dumps(self.search)[1:-1].decode() if self.search.strip() else None}

    @property
    def kept(self) -> dict[str, Any]:
        """What a link to another page of these rows says."""
        return self.model_dump(exclude={"after"} if self.order == "shuffled" else {"after", "seed"})


@router.get("/corpora/{corpus}/rows")
async def show_rows(request: Request, visit: SqlVisit, corpus: str, query: Annotated[RowQuery, Query()]) -> Response:
    """Rows in order of the gap or shuffled, by pages."""
    found, bars = await asyncio.gather(
        figures(request, corpus, "rows_by_gap", n=PAGE_ROWS, texts=0, **query.parameters),
        figures(request, corpus, "gap_histogram_by_source", score=query.score, hold_out=query.hold_out),
    )
    losses = {name: value for name, value in query.bounds.items() if "aligned" in name}
    is_in_plane = any(value is not None for value in losses.values())
    cells = await figures(request, corpus, "loss_plane_cells", hold_out=query.hold_out) if is_in_plane else []
    shown = await readable(request, corpus, plots.first_scorer(found))

    def link(**changes: Any) -> str:
        return address(request, f"/corpora/{corpus}/rows", **{**query.kept, **changes})

    chosen = (query.low, query.high)
    return page(
        request,
        "rows.html",
        corpus=corpus,
        rows=shown,
        n_fitting=shown[0]["n_fitting"] if shown else 0,
        bins=plots.histogram(plots.first_scorer(bars), SCORE_LABELS[query.score], link, chosen, height=220.0),
        plane=plots.plane(plots.first_scorer(cells), link, losses) if cells else None,
        asked=query,
        bounded=any(value is not None for value in query.bounds.values()),
        scores=SCORE_LABELS,
        orders=_ORDERS,
        next_after=shown[-1]["example_id"] if len(shown) == PAGE_ROWS else None,
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


class OneRowQuery(BaseModel):
    """What is shown of one row: `losses` is a job of token losses, `under` the scorer whose losses are drawn, or
    `difference`."""

    model_config = ConfigDict(extra="ignore")  # as RowQuery

    score: ScoreName = "gap_rel"
    tokens: bool = False
    losses: Annotated[str, Field(pattern="^([0-9a-f]{32})?$")] = ""
    under: Annotated[str, Field(max_length=32)] = DIFFERENCE


@router.get("/corpora/{corpus}/rows/{example_id}")
async def show_row(
    request: Request, visit: SqlVisit, corpus: str, example_id: str, query: Annotated[OneRowQuery, Query()]
) -> Response:
    """One conversation, its losses under every model, its rank, and on demand its trained tokens and their losses."""
    stored, models, ranked = await texts(
        request,
        corpus,
        ("rows_by_id", {"ids": [example_id]}),
        ("row_losses", {"id": example_id}),
        ("rows_by_gap", {"id": example_id, "score": query.score, "n": 1, "texts": 0, "hold_out": []}),
    )
    if not stored:
        raise ApiError(404, "not_found", f"corpus {corpus} has no row of this id")
    messages = load_messages(stored[0]["messages"])
    pieces = await _pieces(request, corpus, messages) if query.tokens else None
    scored = [row for row in models if row["mean_nll"] is not None]
    return page(
        request,
        "row.html",
        corpus=corpus,
        row=stored[0],
        messages=[_turn(message) for message in messages],
        losses=sorted(models, key=lambda row: (_ROLES.index(row["role"]), row["label"])),
        most_loss=max((row["mean_nll"] for row in scored), default=0.0),
        gap=ranked[0] if ranked else None,
        score=query.score,
        traits=_traits(messages, ranked[0]["n_response_tokens"] if ranked else None),
        pieces=pieces,
        twin="/v1/queries/rows_by_id",
        **await _losses_part(request, corpus, example_id, query),
    )


@router.get("/corpora/{corpus}/rows/{example_id}/losses")
async def show_token_losses(
    request: Request, visit: SqlVisit, corpus: str, example_id: str, query: Annotated[OneRowQuery, Query()]
) -> Response:
    """The part of a row's view that waits for the losses of its tokens: no figure of the corpus is asked for it."""
    part = await _losses_part(request, corpus, example_id, query)
    if part["token_job"] is None:
        raise ApiError(404, "not_found", "name a job of token losses")
    row = {"example_id": example_id}
    return page(request, "token_losses.html", corpus=corpus, row=row, score=query.score, **part)


async def _losses_part(request: Request, corpus: str, example_id: str, query: OneRowQuery) -> dict[str, Any]:
    """What the template of token losses names: the job, its map, whether to look again, and how to start a worker."""
    job, found = await run_in_threadpool(_token_losses, request, (corpus, example_id), query.losses, query.under)
    return {
        "token_job": job,
        "map": found,
        "looks_again": job is not None and job.active and _age_s(job) < MAX_LOOKING_S,
        "workers": _workers(await scorers_of(request, corpus)) if job and not found else None,
    }


def _age_s(job: Job) -> float:
    return (datetime.now(UTC) - job.created_at).total_seconds()


@router.post("/corpora/{corpus}/rows/{example_id}/losses")
async def start_token_losses(request: Request, visit: SqlVisit, corpus: str, example_id: str) -> Response:
    """Queue the losses of a row's tokens; then the row, where they appear."""
    fields = await read_form(request)
    try:
        asked = TokenLossRequest(corpus=corpus, example_id=example_id)
    except ValidationError as error:
        raise ApiError(404, "not_found", f"corpus {corpus} has no row of this id") from error
    job = await submit_token_losses(service_of(request), tenant_of(request), asked)
    # A fragment in the address of a redirect is kept by the browser.
    path = f"/corpora/{corpus}/rows/{example_id}"
    return redirect(request, path, fragment="losses", score=fields.get("score"), losses=job.job_id)


_ROLES = ("aligned", "misaligned", "benign")


def _token_losses(
    request: Request, row: tuple[str, str], job_id: str, under: str
) -> tuple[Job | None, TokenMap | None]:
    """The job of a row's token losses and the map of them; None before there is one. Raises ApiError 404."""
    if not job_id:
        return None, None
    service = service_of(request)
    job = find_token_job(service, principal_of(request), job_id)
    if (job.request["corpus"], job.request["example_id"]) != row:
        raise ApiError(404, "not_found", "this job is of another row")
    return job, token_map(read_token_losses(service, job), under) if job.state == "done" else None


def _workers(scorers: list[Scorer]) -> dict[str, Any]:
    """The finished models of a corpus, and the command that starts a worker with them."""
    finished = sorted((item for item in scorers if item.complete), key=lambda item: _ROLES.index(item.role))
    adapters = [item for item in finished if item.identity.get("adapter_sha256")]
    command = "python -m api worker --store STORE --model MODEL" + " --adapter ADAPTER" * len(adapters)
    return {"models": [item.label for item in finished], "command": command}


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
