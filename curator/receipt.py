"""The documents of a mix's manifest, declared as types.

A manifest holds no clock and no path: the same request against the same store gives the same document.
"""

from typing import Literal

from pydantic import BaseModel, ConfigDict

from curator.config import OrderName, Recipe


class _Document(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Statement(_Document):
    """One sentence for people, with a stable code for programs."""

    code: str
    text: str


class ScorerRef(_Document):
    """A scorer whose losses a pool used, and whose weights they are."""

    scorer_id: str
    role: Literal["aligned", "misaligned", "benign"]
    domain: str | None
    label: str | None
    weights_sha256: str | None
    adapter_sha256: str | None
    sample: dict[str, int] | None


class Quantiles(_Document):
    """Quantiles of the recipe's score (rows that really occur; no interpolation)."""

    n: int
    min: float
    p05: float
    p25: float
    p50: float
    p75: float
    p95: float
    max: float


class PoolReceipt(_Document):
    """One pool: every candidate is counted once, as chosen, left over or dropped for its first reason.

    n_candidates = n_eligible + the sum of `dropped`; n_without_gap counts candidates that lack a loss, whatever
    became of them. `score` tells what `quantiles` measure.
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
    score: str
    quantiles: dict[Literal["candidates", "chosen"], Quantiles | None]


class TaskReceipt(_Document):
    """The user's rows: SHA-256 over their canonical JSON lines in order, and what was kept out."""

    n_rows: int
    sha256: str
    n_rejected: int
    reject_codes: dict[str, int]


class TokenCount(_Document):
    """Tokens of the rows that could be rendered: whole conversations, and those that are trained."""

    total: int
    response: int
    n_rows_not_rendered: int


class Tokens(_Document):
    """Exact token counts under the aligned scorer's renderer; null with a reason where there is none."""

    renderer_id: str | None
    mask_rule: Literal["all", "last"] | None
    reason: str | None
    task: TokenCount | None
    safe: TokenCount | None


class Ratio(_Document):
    """Safe per task: asked and reached in rows, reached in trained tokens; `mix_share` is safe rows / all rows.

    `largest_prefix_deviation` is the largest |safe(k) - asked * k| after any k task rows, in rows.
    """

    asked: float
    reached_rows: float
    reached_response_tokens: float | None
    mix_share: float
    largest_prefix_deviation: float


class OrderReceipt(_Document):
    """How rows are ordered; `every_k` is the k of that order, null for the others."""

    name: OrderName
    seed: int
    every_k: int | None
    keeps_task_order: bool
    note: str


class FileReceipt(_Document):
    """One data file of the mix."""

    name: str
    sha256: str
    bytes: int
    n_rows: int


class Protects(_Document):
    """What this mix is meant to help against, and what it is not."""

    does: tuple[Statement, ...]
    does_not: tuple[Statement, ...]


class Manifest(_Document):
    """The whole receipt; written last, so its presence means that the mix is complete."""

    mix_id: str
    format_version: int
    product_version: str
    recipe: Recipe
    task: TaskReceipt
    pools: tuple[PoolReceipt, ...]
    n_rows: int
    n_safe: int
    ratio: Ratio
    tokens: Tokens
    order: OrderReceipt
    rows_sha256: str
    files: tuple[FileReceipt, ...]
    warnings: tuple[Statement, ...]
    protects: Protects
