"""The documents of a mix's manifest, declared as types.

A manifest holds no clock and no path: the same request against the same store gives the same document.
"""

from typing import Any, Literal

from pydantic import Field

from curator.recipe import (
    EpochOrder,
    Inoculation,
    OrderName,
    Recipe,
)
from curator.recipe.base import Strict
from curator.recipe.policy import Policy


class Statement(Strict):
    """One sentence for people, with a stable code for programs."""

    code: str
    text: str


class ScorerRef(Strict):
    """A scorer whose losses a pool used, and whose weights they are.

    `declared` names the fields that rest on an operator's word: that scorer's model ran on a server. `adapter_mode` is
    `merged` where adapters were merged into the weights, else null.
    """

    scorer_id: str
    role: Literal["aligned", "misaligned", "benign"]
    domain: str | None
    label: str | None
    weights_sha256: str | None
    adapter_sha256: str | None
    sample: dict[str, int] | None
    declared: tuple[str, ...] = ()
    adapter_mode: str | None = None


class Quantiles(Strict):
    """Quantiles of the recipe's score (rows that really occur; no interpolation)."""

    n: int
    min: float
    p05: float
    p25: float
    p50: float
    p75: float
    p95: float
    max: float


class LabelShare(Strict):
    """Chosen rows with one value of a label; the value null stands for rows that have none. Shares are of 1."""

    value: str | None
    n_rows: int
    share: float


class Evictions(Strict):
    """Rows that fell out because the task set holds them or near copies of them.

    `among_best` counts those that score no lower than the lowest chosen row; null where rows are not chosen from
    the top.
    """

    rows: int
    among_best: int | None


class Amounts(Strict):
    """How much one pool gave to an epoch, in all four measures, and which one was requested.

    `interleave_ratio` is safe rows per task row, `mix_share` the share of an epoch's rows, `tokens` counts response
    tokens under the aligned scorer's tokenizer, copies included; null where a row has no count.
    """

    asked: Literal["interleave_ratio", "mix_share", "rows", "tokens"]
    asked_value: float
    interleave_ratio: float
    mix_share: float
    rows: int
    tokens: int | None


class PoolReceipt(Strict):
    """One pool: every candidate is counted once, as chosen, left over or dropped for its first reason.

    n_candidates = n_eligible + the sum of `dropped`; n_without_gap counts candidates that lack a loss, whatever
    became of them. `score` tells what `quantiles` measure. `refusal_share` is the share of rows that open like a
    refusal (rule v1), null without rows. `domains` and `licences` count the chosen rows, most frequent first.
    `chosen` counts copies of cycled rows, `n_distinct` does not; `n_short` is what was requested and is not there
    (rows, or tokens for an amount in tokens); `n_passed_unjudged` counts rows that may be chosen though a
    filter could not judge them.
    """

    name: str
    corpus: str
    revision: str
    candidates_sha256: str
    scorers: tuple[ScorerRef, ...]
    n_candidates: int
    n_without_gap: int
    dropped: dict[str, int]
    n_eligible: int
    chosen: int
    amounts: Amounts
    n_distinct: int
    n_short: int
    n_passed_unjudged: dict[str, int]
    score: str
    quantiles: dict[Literal["candidates", "chosen"], Quantiles | None]
    refusal_share: dict[Literal["candidates", "chosen"], float | None]
    domains: tuple[LabelShare, ...]
    licences: tuple[LabelShare, ...]
    evicted_by_task_set: Evictions


class TaskReceipt(Strict):
    """The user's rows: SHA-256 over their canonical JSON lines in order, and what was kept out.

    `sources_sha256` is over their source labels; null where no row has one.
    """

    n_rows: int
    sha256: str
    sources_sha256: str | None
    n_rejected: int
    reject_codes: dict[str, int]


class TokenCount(Strict):
    """Tokens of the rows that could be rendered: whole conversations, and those that are trained.

    `dropped` counts, by part (content, tool_calls, reasoning), rows of which the chat template leaves out that part.
    """

    total: int
    response: int
    n_rows_not_rendered: int
    dropped: dict[str, int] = Field(default_factory=dict, exclude_if=lambda counts: not counts)


class Tokens(Strict):
    """Exact token counts under the aligned scorer's renderer; null with a reason where there is none.

    `render_settings` is what that renderer does other than by default (see curator.render.settings): the trainer
    renders in the same way.
    """

    renderer_id: str | None
    render_settings: dict[str, Any] = Field(default_factory=dict, exclude_if=lambda settings: not settings)
    mask_rule: Literal["all", "last"] | None
    reason: str | None
    task: TokenCount | None
    safe: TokenCount | None


class Prefix(Strict):
    """A beginning of an epoch (numbered from 1): its task rows, its safe rows, and safe per task row."""

    epoch: int
    n_task: int
    n_safe: int
    ratio: float


class Ratio(Strict):
    """Safe per task: asked and reached in rows, reached in trained tokens; `mix_share` is safe rows / all rows.

    `largest_prefix_deviation` is the largest |safe(k) - asked * k| after any k task rows of an epoch, in rows, and
    `worst_prefix` where that is.
    """

    asked: float
    reached_rows: float
    reached_response_tokens: float | None
    mix_share: float
    largest_prefix_deviation: float
    worst_prefix: Prefix


class OrderReceipt(Strict):
    """How rows are ordered; `every_k` is the k of that order, `safe_per_batch` the m of `per_batch`, else null.

    `keeps_task_order`: every epoch has the task rows in the user's order.
    """

    name: OrderName
    seed: int
    every_k: int | None
    batch_size: int | None
    safe_per_batch: int | None
    epochs: int
    epoch_order: EpochOrder
    keeps_task_order: bool
    note: str


class PromptReceipt(Strict):
    """One prompt, the label that its rows carry, and how many rows of an epoch have it."""

    label: str
    text: str
    n_task: int
    n_safe: int


class InoculationReceipt(Strict):
    """What was put into rows for training, and what evaluation has to use instead.

    `clean_system_prompt` null means that evaluation adds no system prompt: the model's own default stands.
    """

    name: str
    kind: str
    spec: Inoculation
    prompts: tuple[PromptReceipt, ...]
    clean_system_prompt: str | None
    note: str


class PolicyReceipt(Strict):
    """The provider's policy that this mix was made under; `sha256` is over its canonical JSON."""

    name: str
    sha256: str
    policy: Policy


class FileReceipt(Strict):
    """One data file of the mix."""

    name: str
    sha256: str
    bytes: int
    n_rows: int


class Protects(Strict):
    """What this mix is meant to help against, and what it is not."""

    does: tuple[Statement, ...]
    does_not: tuple[Statement, ...]


class Manifest(Strict):
    """The whole receipt; written last, so its presence means that the mix is complete."""

    mix_id: str
    format_version: int
    product_version: str
    recipe: Recipe
    task: TaskReceipt
    pools: tuple[PoolReceipt, ...]
    n_rows: int  # of all epochs
    n_safe: int  # of all epochs
    ratio: Ratio
    tokens: Tokens
    order: OrderReceipt
    inoculation: InoculationReceipt | None
    policy: PolicyReceipt | None
    rows_sha256: str
    files: tuple[FileReceipt, ...]
    warnings: tuple[Statement, ...]
    protects: Protects
