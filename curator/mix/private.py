"""Privacy mode: the user's rows stay with the client, and the mix is the same as if they had not.

The client declares how many rows it has and their ordered hash. The service answers with an offer: the resolved
recipe, the places of safe rows, and for each pool the rows it would draw in rank order with some to spare. The client
leaves out rows that its own set holds, takes as many as the recipe says, interleaves and inoculates. Mix id, rows and
`rows_sha256` are those that `build_mix` gives with the task set at hand, and a test says so.

That holds for rules which judge each row by itself. What reads the user's rows, or depends on which pool rows they
leave out, is refused by name; so are amounts that follow from the rows drawn.
"""

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
from pydantic import Field

from curator.corpus.task_set import TaskSet
from curator.errors import IntegrityError, NotEnoughRowsError, RecipeError, TooManyRowsError
from curator.mix.allocation import allocate
from curator.mix.build import MixResult, publish
from curator.mix.describe import (
    Made,
    describe_made,
    policy_receipt,
    pool_receipt,
)
from curator.mix.files import (
    DEFAULT_TENANT,
    MANIFEST_FILE,
    MIX_FILE,
    tenant_path,
)
from curator.mix.identity import mix_id, pool_names
from curator.mix.manifest import (
    Manifest,
    PolicyReceipt,
    PoolReceipt,
    Statement,
    Tokens,
)
from curator.mix.order import (
    Allocation,
    Schedule,
    keeps_task_order,
    schedule,
)
from curator.mix.plan import (
    Drawn,
    arrange,
    ranked_rows,
    safe_schema,
)
from curator.mix.resolve import PoolData, resolve
from curator.mix.row_prompts import check_rows, count_prompts, row_prompts
from curator.mix.writer import MixRows, write_rows
from curator.recipe import Pool, Recipe
from curator.recipe.base import Strict
from curator.recipe.filters import ExactDuplicates, NearDuplicates, RefusalFilter
from curator.recipe.policy import Policy, policy_sha256
from curator.recipe.pools import WhenShort
from curator.recipe.seeds import child_seed
from curator.select.select import (
    IN_TASK_SET,
    PoolSelection,
    SelectionRequest,
    select,
)
from curator.store.store import Store

# Strategies whose choice of n rows, with any rows left out, is the head of one ranking without them.
STRATEGIES = ("random", "top_gap", "bottom_gap", "weighted", "threshold")
NO_TOKENS = "made in privacy mode, where tokens are not counted"
SPARE_ROWS, SPARE_SHARE = 16, 10  # rows to spare for those that the client holds: 16, and one for every 10 requested


class TaskDeclaration(Strict):
    """What a client declares of its task set: the fields of `TaskSet` by the same names. `spare` asks for more rows."""

    n_rows: int = Field(ge=1)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    sources_sha256: str | None = Field(default=None, pattern=r"^[0-9a-f]{64}$")
    spare: int | None = Field(default=None, ge=0, le=1_000_000)


class Declaration(TaskDeclaration):
    """The client's request."""

    recipe: Recipe


class PoolOffer(Strict):
    """One pool: its receipt as if no row were in the task set, and rows in rank order (columns of MIX_ROWS)."""

    receipt: PoolReceipt
    rows: tuple[dict[str, Any], ...]


class Offer(Strict):
    """The service's answer. `safe_at` are the positions of safe rows in the mix, `schedule_sha256` is over the whole
    schedule as little-endian 64-bit integers."""

    mix_id: str
    recipe: Recipe
    policy: PolicyReceipt | None
    n_rows: int
    sha256: str
    sources_sha256: str | None
    schedule_sha256: str
    safe_at: tuple[int, ...]
    pools: tuple[PoolOffer, ...]


def declare(task_set: TaskSet, recipe: Recipe, spare: int | None = None) -> Declaration:
    """The client's request: nothing of the rows but their number and hashes."""
    return Declaration(
        recipe=recipe,
        n_rows=task_set.n_rows,
        sha256=task_set.sha256,
        sources_sha256=task_set.sources_sha256,
        spare=spare,
    )


def offer(store: Store, declared: Declaration, policy: Policy | None = None, max_rows: int | None = None) -> Offer:
    """The service's half: safe rows and schedule for a task set that it does not see.

    Raises RecipeError naming what cannot be done without the user's rows, TooManyRowsError when more than `max_rows`
    rows would be offered, and what `plan_mix` raises.
    """
    if policy is not None and policy.forbid_user_evictions:
        raise RecipeError(f"policy {policy.name!r} counts evictions (rule forbid_user_evictions): not in privacy mode")
    recipe, pools = resolve(store, declared.recipe, policy, declared.n_rows)
    for pool in recipe.pools:
        _check(pool)
    allocation = allocate(recipe, declared.n_rows)
    order = schedule(allocation, recipe.order, recipe.seed)
    identity = mix_id(
        recipe,
        declared.sha256,
        [data.candidates_sha256 for data in pools],
        sources_sha256=declared.sources_sha256,
        policy_sha256=None if policy is None else policy_sha256(policy),
    )
    return Offer(
        mix_id=identity,
        recipe=recipe,
        policy=policy_receipt(policy),
        n_rows=declared.n_rows,
        sha256=declared.sha256,
        sources_sha256=declared.sources_sha256,
        schedule_sha256=_schedule_sha256(order),
        safe_at=tuple(np.flatnonzero(order < 0).tolist()),
        pools=tuple(_offers(recipe, pools, allocation, declared.spare, max_rows)),
    )


def _check(pool: Pool) -> None:
    """Raise RecipeError for what the service cannot do without the user's rows."""
    name = pool.strategy.name
    if name not in STRATEGIES:
        raise _not_private(pool, f"strategy {name}", f"use {', '.join(STRATEGIES)}")
    for spec in pool.filters:
        if isinstance(spec, ExactDuplicates | NearDuplicates):
            raise _not_private(pool, f"filter {spec.name}", "remove duplicates when the corpus is ingested")
        if isinstance(spec, RefusalFilter) and spec.max_share > 0:
            raise _not_private(pool, "filter refusal with max_share", "drop refusals altogether")
    if pool.tokens is not None or pool.when_short != "error":
        what = "an amount in tokens" if pool.tokens is not None else f"when_short {pool.when_short}"
        raise _not_private(pool, what, "ask for rows, interleave_ratio or mix_share, with when_short error")


def _not_private(pool: Pool, what: str, remedy: str) -> RecipeError:
    return RecipeError(
        f"privacy mode: {what} of pool {pool.corpus} reads the task set's rows or depends on which pool rows they "
        f"leave out, and those stay with you: {remedy}, or send the rows",
        details=[{"pool": pool.corpus, "refused": what}],
    )


def _offers(
    recipe: Recipe, pools: Sequence[PoolData], allocation: Allocation, spare: int | None, max_rows: int | None
) -> list[PoolOffer]:
    found: list[PoolOffer] = []
    n_sent = 0  # rows that an earlier pool may take from a later one
    for name, data, n_rows in zip(pool_names(recipe), pools, allocation.n_safe, strict=True):
        more = SPARE_ROWS + n_rows // SPARE_SHARE if spare is None else spare
        head = _select(recipe, name, data, n_rows, "error")
        sent = _select(recipe, name, data, n_rows + more + n_sent, "as_many")
        n_sent += len(sent.chosen)
        if max_rows is not None and n_sent > max_rows:
            raise TooManyRowsError(
                f"privacy mode offers at most {max_rows:,} safe rows: ask for fewer, or send the rows"
            )
        rows = ranked_rows(Drawn(name, data, sent)).drop_columns(["original_id", "replaced_system", "epoch"])
        found.append(PoolOffer(receipt=pool_receipt(Drawn(name, data, head), allocation), rows=tuple(rows.to_pylist())))
    return found


def _select(recipe: Recipe, name: str, data: PoolData, n_rows: int, when_short: WhenShort) -> PoolSelection:
    request = SelectionRequest(
        n_rows,
        strategy=data.pool.strategy,
        filters=data.pool.filters,
        exclude={IN_TASK_SET: ()},
        seed=child_seed(recipe.seed, f"select:{name}"),
        when_short=when_short,
        pool=name,
    )
    return select(data.candidates, request)


def accept(offered: Offer, task_set: TaskSet, store: Store, tenant: str = DEFAULT_TENANT) -> MixResult:
    """The client's half: the offer and its own rows become a mix in its own store, which `verify` can check.

    Raises IntegrityError when the offer is for another task set or does not follow from its recipe, and
    NotEnoughRowsError when too many of its rows are in the task set (ask again with a larger `spare`).
    """
    tenant_path(tenant)
    recipe, allocation, order = _checked(offered, task_set)
    check_rows(recipe.inoculation, task_set)
    tables, receipts = _own_choice(offered, task_set, allocation)
    made = Made(offered.mix_id, recipe, allocation, receipts, offered.policy)
    safe = arrange(tables, recipe.seed)
    return publish(store, tenant, offered.mix_id, lambda folder: _write(store, folder, made, task_set, order, safe))


def _checked(offered: Offer, task_set: TaskSet) -> tuple[Recipe, Allocation, Schedule]:
    recipe = offered.recipe
    declared = (offered.n_rows, offered.sha256, offered.sources_sha256)
    if declared != (task_set.n_rows, task_set.sha256, task_set.sources_sha256):
        raise IntegrityError(
            f"the offer is for {offered.n_rows:,} rows with SHA-256 {offered.sha256}: not this task set"
        )
    allocation = allocate(recipe, task_set.n_rows)
    order = schedule(allocation, recipe.order, recipe.seed)
    follows = mix_id(
        recipe,
        task_set.sha256,
        [pool.receipt.candidates_sha256 for pool in offered.pools],
        sources_sha256=task_set.sources_sha256,
        policy_sha256=None if offered.policy is None else policy_sha256(offered.policy.policy),
    )
    if follows != offered.mix_id or _schedule_sha256(order) != offered.schedule_sha256:
        raise IntegrityError("the offer's mix id or schedule does not follow from its recipe: do not use it")
    return recipe, allocation, order


def _own_choice(
    offered: Offer, task_set: TaskSet, allocation: Allocation
) -> tuple[dict[str, pa.Table], tuple[PoolReceipt, ...]]:
    """The rows of each pool that are not in the task set, nor in an earlier pool, as many as the recipe says."""
    sent = {row["example_id"] for pool in offered.pools for row in pool.rows}
    own: set[str] = set()
    for batch in task_set.batches(columns=["example_id"]):
        own.update(sent.intersection(batch.column("example_id").to_pylist()))
    tables: dict[str, pa.Table] = {}
    receipts: list[PoolReceipt] = []
    taken: set[str] = set()
    for pool, n_rows in zip(offered.pools, allocation.n_safe, strict=True):
        held = [row for row in pool.rows if row["example_id"] in own]
        rows = [row for row in pool.rows if row["example_id"] not in own | taken][:n_rows]
        if len(rows) < n_rows:
            raise NotEnoughRowsError(
                f"pool {pool.receipt.name}: {n_rows:,} rows are wanted and {len(rows):,} of the {len(pool.rows):,} "
                f"offered are not yours or drawn already: ask again with spare={2 * len(pool.rows)}, or for fewer rows"
            )
        taken |= {row["example_id"] for row in rows}
        rows = [{**row, "rank": row["rank"] and rank} for rank, row in enumerate(rows, start=1)]
        tables[pool.receipt.name] = pa.Table.from_pylist(rows, schema=safe_schema())
        receipts.append(_receipt(pool.receipt, len(held), n_rows))
    return tables, tuple(receipts)


def _receipt(receipt: PoolReceipt, n_held: int, n_rows: int) -> PoolReceipt:
    """The pool's receipt with the rows that the client found in its own set, as far as they were offered."""
    dropped = {**receipt.dropped, IN_TASK_SET: receipt.dropped.get(IN_TASK_SET, 0) + n_held}
    changes = {"dropped": dropped, "n_eligible": receipt.n_eligible - n_held, "chosen": n_rows, "n_distinct": n_rows}
    return receipt.model_copy(update={**changes, "n_short": 0})


def _write(store: Store, folder: str, made: Made, task_set: TaskSet, order: Schedule, safe: pa.Table) -> Manifest:
    recipe = made.recipe
    prompts = row_prompts(recipe, made.allocation)
    shuffled = not keeps_task_order(made.allocation, recipe.order)
    with store.fill(f"{folder}/{MIX_FILE}") as path:
        written = write_rows(path, MixRows(order, task_set, safe, shuffled, recipe.epochs, prompts))
    tokens = Tokens(renderer_id=None, mask_rule=None, reason=NO_TOKENS, task=None, safe=None)
    manifest = describe_made(made, task_set, order, written, tokens, count_prompts(prompts, task_set, safe))
    manifest = manifest.model_copy(update={"warnings": (*manifest.warnings, _WARNING)})
    store.fill_json(f"{folder}/{MANIFEST_FILE}", manifest.model_dump(mode="json"))
    return manifest


_WARNING = Statement(
    code="private_counts",
    text="Made in privacy mode: shares and quantiles of chosen rows are those of the service, which does not know the "
    "rows that you hold yourself, and of those only the ones it offered are counted. Tokens are not counted.",
)


def _schedule_sha256(order: Schedule) -> str:
    return hashlib.sha256(order.astype("<i8").tobytes()).hexdigest()


def offer_json(offered: Offer) -> bytes:
    """The offer as it goes over the wire; floats keep every bit."""
    return orjson.dumps(offered.model_dump(mode="json"))
