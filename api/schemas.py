"""Shapes of the service's own answers, for validation and the OpenAPI document.

What a manifest holds is declared once, in curator.mix.identity.
"""

from datetime import datetime
from typing import Any, Literal

from pydantic import Field

from api.jobs.record import (
    Event,
    JobError,
    JobKind,
    JobState,
    Progress,
)
from curator.mix.identity import Manifest
from curator.mix.sign import Signature
from curator.recipe.base import Strict
from curator.recipe.policy import Policy


class ErrorDocument(Strict):
    """Inside of an error body."""

    code: str = Field(description="stable, for programs")
    message: str = Field(description="what was asked, what was found and what would fix it")
    details: list[Any] = Field(
        description="the items concerned; for bad rows: record, line, byte_offset, pointer, code, message"
    )
    truncated: bool | None = Field(None, description="true when details was cut")


class ErrorBody(Strict):
    """Every error of the service."""

    error: ErrorDocument


class Health(Strict):
    """The process answers."""

    status: Literal["ok"]
    version: str


class Readiness(Strict):
    """The store can be read."""

    status: Literal["ready"]


class DroppedRows(Strict):
    """Bad rows of a data set: how many, by the code of their first problem, and the problems of the first ones."""

    n_rows: int
    codes: dict[str, int]
    details: list[dict[str, Any]] = Field(description="record, line, byte_offset, pointer, code, message")
    truncated: bool


class CreatedMix(Strict):
    """A mix that was built, or stood there already."""

    mix_id: str
    created: bool = Field(description="false when the same request was answered before")
    manifest: Manifest
    dropped: DroppedRows = Field(description="rows left out by on_bad_rows=drop")
    signature: Signature | None = Field(None, description="over the manifest; null without a signing key")
    links: dict[str, str]


class Cost(Strict):
    """What the safe rows add to training; shares are of the task set, tokens null where they cannot be counted."""

    extra_rows: int
    extra_rows_share: float
    extra_tokens: int | None
    extra_tokens_share: float | None


class MixPreview(Strict):
    """What a request would give."""

    manifest: Manifest
    dropped: DroppedRows
    cost: Cost


class MixSummary(Strict):
    """One mix of a list; the counts are null when its manifest is damaged."""

    mix_id: str
    status: Literal["complete", "damaged"]
    n_rows: int | None
    n_safe: int | None
    corpora: list[str] | None
    links: dict[str, str]


class MixPage(Strict):
    """Mixes in order of their ids; `next_after` is null on the last page."""

    mixes: list[MixSummary]
    next_after: str | None


class RowPage(Strict):
    """Rows in training order, with their lineage; `next_after` is null on the last page."""

    mix_id: str
    n_rows: int = Field(description="rows of the whole mix")
    rows: list[dict[str, Any]]
    next_after: int | None


class TenantPolicy(Strict):
    """What holds for a tenant: the policy that its recipes must fit, and its `tenant_*` quotas; null: none."""

    tenant: str
    policy: Policy | None
    policy_sha256: str | None = Field(description="as in the manifests of mixes made under it")
    quotas: dict[str, int | float | None]


class UsageEvent(Strict):
    """One thing that a tenant's key did; the columns of the view `usage`, null where there is none."""

    ended_at: datetime
    event_id: str
    tenant: str
    key_id: str | None
    action: str = Field(description="method and route's template, or words for what is not a request")
    status: int | None
    mix_id: str | None
    job_id: str | None
    n_rows_in: int | None
    n_rows_out: int | None
    n_bytes_in: int | None
    n_bytes_out: int | None
    duration_ms: float | None
    request_id: str | None


class UsagePage(Strict):
    """Events in order of time; `next_after` is null on the last page."""

    events: list[UsageEvent]
    next_after: str | None


class UsageTotal(Strict):
    """Sums over a tenant's events of one action; `n_refused` are those with a status from 400 on."""

    tenant: str
    action: str
    n_events: int
    n_refused: int
    n_rows_in: int
    n_rows_out: int
    n_bytes_in: int
    n_bytes_out: int


class UsageTotals(Strict):
    """Sums by tenant and action."""

    totals: list[UsageTotal]


class CorpusSummary(Strict):
    """One corpus at its latest revision.

    `refused_share` is the share of records that could not be read as conversations, `too_long_share` that of rows
    longer than the finished aligned model's window; null where the store does not know it.
    """

    corpus: str
    revision: str
    n_examples: int
    n_sources: int
    refused_share: float | None
    too_long_share: float | None


class CorpusList(Strict):
    """The corpora that recipes may name."""

    corpora: list[CorpusSummary]


class CorpusDetail(CorpusSummary):
    """A corpus with its scorers (query `scorer_summary`: counts of examples and tokens, losses in nats per token)."""

    scorers: list[dict[str, Any]]


class CorpusGap(Strict):
    """The gap of a corpus (queries `gap_quantiles` and `gap_histogram`): gap_rel a ratio, others nats per token."""

    corpus: str
    revision: str
    score: str
    eps: float
    hold_out: list[str]
    quantiles: list[dict[str, Any]]
    histogram: list[dict[str, Any]]


class JobView(Strict):
    """A job: work that a worker does. Times are UTC; `result` and `error` are null until it has ended.

    `n_attempts` is above 1 when a worker died and another took the job up again.
    """

    job_id: str
    kind: JobKind
    state: JobState
    created_at: datetime
    started_at: datetime | None
    ended_at: datetime | None
    n_attempts: int
    progress: Progress | None
    result: dict[str, Any] | None = Field(
        description="a mix: mix_id, created, dropped; an audit: its verdict; token losses: which row, and n_models"
    )
    error: JobError | None
    links: dict[str, str]


class JobPage(Strict):
    """Jobs in order of time; `next_after` is null on the last page."""

    jobs: list[JobView]
    next_after: str | None


class JobEvents(Strict):
    """Events of a job in order, and its state."""

    job_id: str
    state: JobState
    events: list[Event]


class AuditInterval(Strict):
    """A value with its 95 % bootstrap interval over rows and pool rows."""

    value: float
    low: float
    high: float


class AuditPool(Strict):
    """What the rows were compared with: scored rows, their range of response tokens, their languages."""

    corpus: str
    revision: str
    n_rows: int
    n_response_tokens: list[int]
    languages: dict[str, float]


class AuditReport(Strict):
    """The verdict on a data set (docs/method.md, "Audits"); intervals are null without enough judged rows.

    `mean_percentile` is about 0.5 and `top_share` about 0.05 for rows that are like the pool's; `abstained` counts
    rows that were not judged, by reason; `n_forged` rows with turn markers inside a turn.
    """

    method_version: int
    verdict: Literal["elevated", "not_elevated", "undecided"]
    reason: str
    n_judged: int
    mean_percentile: AuditInterval | None
    top_share: AuditInterval | None
    n_rows: int
    n_distinct: int
    abstained: dict[str, int]
    n_forged: int
    warnings: list[str] = Field(description="what the verdict cannot tell")
    score: str
    eps: float
    seed: int
    pool: AuditPool
    scorers: list[dict[str, Any]]


class AuditRowPage(Strict):
    """Rows of an audit in the order sent; `next_after` is null on the last page.

    Each: ordinal, example_id, n_response_tokens, gap, percentile, n_reference, abstained, reason, language, forged.
    """

    job_id: str
    n_rows: int
    rows: list[dict[str, Any]]
    next_after: int | None


class TokenModel(Strict):
    """One model's losses of a row's tokens: `nll` in nats, null for a token that is no response token.

    Where the model did not run, `nll` and `mean_nll` (nats per response token) are null and `reason` says why;
    `stored_mean_nll` is what the store has of the row.
    """

    scorer_id: str
    label: str
    role: Literal["aligned", "misaligned", "benign"]
    domain: str | None
    stored_mean_nll: float | None
    mean_nll: float | None
    nll: list[float | None] | None
    reason: str | None


class TokenLosses(Strict):
    """The tokens of a row as the aligned model reads it, and their losses under each model.

    `token_ids`, `texts`, `response` and each `nll` have one value for each token; `texts` joined are the rendered
    conversation.
    """

    corpus: str
    revision: str
    example_id: str
    n_tokens: int
    n_response_tokens: int
    token_ids: list[int]
    texts: list[str]
    response: list[bool]
    models: list[TokenModel]


class ReportItem(Strict):
    """A report: its name (a path below the folder of reports), first heading, bytes, and time of its last change."""

    name: str
    title: str
    n_bytes: int
    modified_at: datetime


class ReportList(Strict):
    """Reports that the operator shows, the newest first."""

    reports: list[ReportItem]


class ReportView(Strict):
    """A report as Markdown, with the JSON document of the same name (null without one) and names of its pictures."""

    name: str
    title: str
    text: str
    data: Any
    pictures: list[str]


class SqlColumn(Strict):
    """A column of an answer: its name and DuckDB type."""

    name: str
    type: str


class SqlResult(Strict):
    """A statement's rows; `truncated` when a cap of rows or bytes cut them."""

    columns: list[SqlColumn]
    rows: list[dict[str, Any]]
    n_rows: int
    truncated: bool


class QueryParam(Strict):
    """A parameter of a named query."""

    name: str
    type: str = Field(description="integer, double or text, or with [] a list of them")
    default: int | float | str | list[str] | list[float] | None
    required: bool
    meaning: str
    max_chars: int | None = Field(None, description="of a text, at most; null: any")


class NamedQuery(Strict):
    """A named query: `doc` says what a row is and its units."""

    name: str
    doc: str
    params: list[QueryParam]


class ViewDoc(Strict):
    """A view or function that statements may use."""

    name: str
    doc: str


class QueryList(Strict):
    """What can be asked."""

    queries: list[NamedQuery]
    views: list[ViewDoc]


def errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """OpenAPI entries for the error statuses of a route."""
    return {status: {"model": ErrorBody} for status in statuses}
