"""From a recipe to what it means against one store: concrete revisions, full scorer ids, candidates with scores.

This is the one place where recipes are resolved; what a provider locks or forbids belongs here too.
"""

import hashlib
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from curator.config import Pool, Recipe
from curator.filters import Candidates
from curator.queries import gap_table, resolve_scorers
from curator.scorers import ResolvedScorers
from curator.store import Store

# What a mix's rows or choices are made of, beside the messages, which the id stands for.
_LABELS = ("source", "domain", "language", "license", "harm")
_NUMBERS = ("mean_nll_aligned", "mean_nll_misaligned", "gap_abs", "gap_rel")


@dataclass(frozen=True)
class PoolData:
    """A resolved pool with all of its corpus's rows: `table` as `sql/queries/gap_candidates.sql`, by example_id."""

    pool: Pool
    scorers: ResolvedScorers
    table: pa.Table
    candidates: Candidates
    candidates_sha256: str


def resolve(store: Store, recipe: Recipe) -> tuple[Recipe, list[PoolData]]:
    """The recipe with every name made exact, and its pools' data.

    Resolving a resolved recipe changes nothing. Raises MissingError, AmbiguousError, BadInputError or
    IncompatibleScorersError as `resolve_scorers` does.
    """
    pools = [_resolve_pool(store, pool) for pool in recipe.pools]
    return recipe.model_copy(update={"pools": tuple(data.pool for data in pools)}), pools


def _resolve_pool(store: Store, pool: Pool) -> PoolData:
    scorers = resolve_scorers(store, pool)
    exact: dict[str, object] = {"revision": scorers.revision}
    if scorers.aligned is not None:
        exact["aligned"] = scorers.aligned.scorer_id
        exact["misaligned"] = tuple(scorer.scorer_id for scorer in scorers.misaligned)
        exact["benign"] = tuple(scorer.scorer_id for scorer in scorers.benign)
    table = gap_table(store, scorers, pool.score.eps).sort_by("example_id")
    candidates = Candidates(
        ids=table["example_id"].to_pylist(),
        heads=table["response_head"].to_pylist(),
        score=_floats(table, pool.score.name),
    )
    return PoolData(pool.model_copy(update=exact), scorers, table, candidates, _candidates_sha256(table))


def _floats(table: pa.Table, name: str) -> npt.NDArray[np.float64]:
    """A column as float64 with one NaN for every null, shape (n_rows,)."""
    column = table[name].combine_chunks()
    known: npt.NDArray[np.float64] = column.fill_null(0.0).to_numpy(zero_copy_only=False).astype("<f8")
    return np.where(column.is_null().to_numpy(zero_copy_only=False), np.nan, known)


def _candidates_sha256(table: pa.Table) -> str:
    """Hash of the ids, labels, losses and gaps that a choice is made from, whatever files hold them."""
    digest = hashlib.sha256()
    for name in ("example_id", *_LABELS):
        column = table[name]
        if column.null_count < len(column):
            digest.update(f"\x1e{name}\x1e".encode())
            digest.update("\x1f".join("\x00" if item is None else item for item in column.to_pylist()).encode())
    for name in _NUMBERS:
        digest.update(f"\x1e{name}\x1e".encode())
        digest.update(_floats(table, name).tobytes())
    return digest.hexdigest()
