"""Verifying a mix: its files and rows are hashed again, and all that its manifest says follows from them."""

from dataclasses import dataclass

from curator.errors import BallastError, IntegrityError
from curator.mix.allocation import allocate, sized
from curator.mix.files import mix_batches, mix_path
from curator.mix.identity import id_of_manifest, pool_names, ratio_of, read_manifest
from curator.mix.manifest import Manifest
from curator.mix.order import Allocation, Schedule, schedule
from curator.mix.row_check import TASK_COLUMNS, RowCheck, task_hashes
from curator.store.store import Store


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
