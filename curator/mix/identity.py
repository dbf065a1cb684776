"""A mix's identity, its manifest, and the check that both still fit the stored rows."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import orjson
from pydantic import ValidationError

from curator.errors import BallastError, IntegrityError, MissingError
from curator.mix.allocation import allocate, sized
from curator.mix.files import MANIFEST_FILE, mix_batches, mix_path, rows_sha256
from curator.mix.manifest import (
    Manifest,
    Prefix,
    Ratio,
    TokenCount,
)
from curator.mix.order import (
    Allocation,
    Schedule,
    prefix_deviation,
    schedule,
    worst_prefix,
)
from curator.mix.verify import TASK_COLUMNS, RowCheck, task_hashes
from curator.recipe import Recipe
from curator.recipe.problems import problem_line, problems_of
from curator.store.schema import MIX_FORMAT_VERSION
from curator.store.store import Store

__all__ = [
    "Manifest",
    "VerifyReport",
    "id_of_manifest",
    "mix_id",
    "pool_names",
    "ratio_of",
    "read_manifest",
    "rows_sha256",
    "verify",
]


def mix_id(
    recipe: Recipe,
    task_sha256: str,
    candidates_sha256: Sequence[str] = (),
    format_version: int = MIX_FORMAT_VERSION,
    *,
    sources_sha256: str | None = None,
    policy_sha256: str | None = None,
) -> str:
    """The id of a mix: 128 bits in hex over the resolved recipe, each pool's candidates and the task set.

    `recipe` is resolved: concrete revisions and full scorer ids. `candidates_sha256` stands for the losses that
    the store held: scoring more rows of a sample changes what can be chosen, and so the id. Labels of task rows and
    a provider's policy, which rows and manifest show, count where there are any.
    """
    document: dict[str, object] = {
        "format_version": format_version,
        "recipe": recipe.model_dump(mode="json"),
        "candidates_sha256": list(candidates_sha256),
        "task_sha256": task_sha256,
    }
    optional = {"sources_sha256": sources_sha256, "policy_sha256": policy_sha256}
    document |= {name: value for name, value in optional.items() if value is not None}
    text = orjson.dumps(document, option=orjson.OPT_SORT_KEYS)
    return hashlib.blake2b(text, digest_size=16).hexdigest()


def id_of_manifest(manifest: Manifest) -> str:
    """The mix id that follows from what a manifest says of recipe, candidates, policy and task set."""
    return mix_id(
        manifest.recipe,
        manifest.task.sha256,
        [pool.candidates_sha256 for pool in manifest.pools],
        manifest.format_version,
        sources_sha256=manifest.task.sources_sha256,
        policy_sha256=None if manifest.policy is None else manifest.policy.sha256,
    )


def read_manifest(store: Store, tenant: str, mix: str) -> Manifest:
    """A mix's manifest; raises MissingError without one, IntegrityError when it is not of this version."""
    path = f"{mix_path(tenant, mix)}/{MANIFEST_FILE}"
    try:
        return Manifest.model_validate(store.read_json(path))
    except MissingError as error:
        raise MissingError(f"there is no mix {mix} of tenant {tenant}") from error
    except ValidationError as error:
        problems = problems_of(error)
        text = f"{path} is not a manifest of this version: {problem_line(problems, most=3)}"
        raise IntegrityError(text, details=problems) from error


def pool_names(recipe: Recipe) -> list[str]:
    """How rows name their pool: by its corpus, numbered from the second pool of the same corpus on."""
    names: list[str] = []
    for pool in recipe.pools:
        n_before = sum(earlier.corpus == pool.corpus for earlier in recipe.pools[: len(names)])
        names.append(f"{pool.corpus}#{n_before + 1}" if n_before else pool.corpus)
    return names


def _prefix(order: Schedule, allocation: Allocation) -> Prefix:
    found = worst_prefix(order, allocation.ratio, allocation.epochs)
    ratio = found.n_safe / found.n_task if found.n_task else 0.0
    return Prefix(epoch=found.epoch, n_task=found.n_task, n_safe=found.n_safe, ratio=ratio)


def ratio_of(allocation: Allocation, order: Schedule, task: TokenCount | None, safe: TokenCount | None) -> Ratio:
    """Ratios asked and reached (method.md, "Amount and order"); the token ratio is null where tokens are not known."""
    n_safe = allocation.n_safe_total
    known = task is not None and safe is not None and task.response > 0
    return Ratio(
        asked=float(allocation.ratio),
        reached_rows=n_safe / allocation.n_task,
        reached_response_tokens=safe.response / task.response if known and task and safe else None,
        mix_share=n_safe / (allocation.n_task + n_safe),
        largest_prefix_deviation=prefix_deviation(order, allocation.ratio, allocation.epochs),
        worst_prefix=_prefix(order, allocation),
    )


@dataclass(frozen=True)
class VerifyReport:
    """A mix that is what its manifest says; `checks` names what was compared."""

    mix_id: str
    n_rows: int
    n_safe: int
    rows_sha256: str
    checks: tuple[str, ...]


CHECKS = (
    "mix_id follows from recipe, candidates and task set",
    "amounts, ratio and order follow from the recipe",
    "file size and SHA-256",
    "SHA-256 of the canonical rows",
    "every example_id follows from its messages",
    "SHA-256 of the task rows in the user's order",
    "every task row once, no safe row twice (in an epoch), every row in its place",
    "every inoculated row has the prompt dealt to it, and its own text when that is undone",
)


def verify(store: Store, tenant: str, mix: str) -> VerifyReport:
    """Hash a mix's files and rows again and compare all of it with the manifest.

    Raises MissingError without such a mix, IntegrityError whose `details` list what differs (capped).
    """
    manifest = read_manifest(store, tenant, mix)
    problems = _identity_problems(manifest, mix) + _file_problems(store, tenant, manifest)
    try:
        problems += _row_problems(store, tenant, manifest)
    except BallastError as error:
        problems.append(error.message)
    if problems:
        raise IntegrityError(
            f"mix {mix} is not what its manifest says: {'; '.join(problems[:3])}"
            + (f"; and {len(problems) - 3} more" if len(problems) > 3 else ""),
            details=problems,
        )
    return VerifyReport(mix, manifest.n_rows, manifest.n_safe, manifest.rows_sha256, CHECKS)


def _identity_problems(manifest: Manifest, mix: str) -> list[str]:
    expected = id_of_manifest(manifest)
    return [
        f"{name} is {found}, but follows as {wanted}"
        for name, found, wanted in (
            ("the manifest's mix_id", manifest.mix_id, mix),
            ("the mix_id", mix, expected),
        )
        if found != wanted
    ]


def _file_problems(store: Store, tenant: str, manifest: Manifest) -> list[str]:
    problems = []
    for receipt in manifest.files:
        path = f"{mix_path(tenant, manifest.mix_id)}/{receipt.name}"
        if not store.exists(path):
            problems.append(f"{receipt.name} is missing")
        elif (found := store.sha256(path)) != receipt.sha256:
            problems.append(f"{receipt.name} has SHA-256 {found}, in the manifest {receipt.sha256}")
    return problems


def _row_problems(store: Store, tenant: str, manifest: Manifest) -> list[str]:
    recipe, n_task = manifest.recipe, manifest.task.n_rows
    allocation = allocate(sized(recipe, _rows_found(manifest)), n_task)
    order = schedule(allocation, recipe.order, recipe.seed)
    check = RowCheck(allocation, order, recipe, pool_names(recipe))
    for batch in mix_batches(store, tenant, manifest.mix_id):
        check.add(batch)
    task_sha256, sources_sha256 = task_hashes(
        lambda: mix_batches(store, tenant, manifest.mix_id, columns=TASK_COLUMNS),
        allocation,
        recipe.inoculation,
        in_order=recipe.order != "shuffle",  # of the first epoch
    )
    facts = (
        ("rows in the file", check.n_rows, manifest.n_rows),
        ("rows_sha256", check.rows_sha256, manifest.rows_sha256),
        ("SHA-256 of the task rows", task_sha256, manifest.task.sha256),
        ("SHA-256 of the task rows' source labels", sources_sha256, manifest.task.sources_sha256),
    )
    differing = [f"{name}: {found}, in the manifest {said}" for name, found, said in facts if found != said]
    return _count_problems(manifest, allocation, order) + differing + check.problems()


def _rows_found(manifest: Manifest) -> dict[int, int]:
    """Rows by place of the pools whose number followed from their corpus and not from the recipe."""
    pairs = enumerate(zip(manifest.recipe.pools, manifest.pools, strict=True))
    return {i: receipt.chosen for i, (pool, receipt) in pairs if pool.tokens is not None or receipt.n_short}


def _count_problems(manifest: Manifest, allocation: Allocation, order: Schedule) -> list[str]:
    ratio = ratio_of(allocation, order, manifest.tokens.task, manifest.tokens.safe)
    facts = (
        ("n_rows", manifest.n_rows, len(order)),
        ("n_safe", manifest.n_safe, allocation.n_safe_total * allocation.epochs),
        ("rows chosen from the pools", tuple(pool.chosen for pool in manifest.pools), allocation.n_safe),
        ("ratio", manifest.ratio, ratio),
    )
    return [
        f"{name}: {found} in the manifest, {wanted} by the recipe" for name, found, wanted in facts if found != wanted
    ]
