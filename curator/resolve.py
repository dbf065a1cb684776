"""From a recipe to what it means against one store: concrete revisions, full scorer ids, candidates with scores.

This is the one place where recipes are resolved; what a provider locks or forbids belongs here too.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from curator.config import Pool, Recipe
from curator.config.filters import ContaminationFilter, NearDuplicates
from curator.config.strategies import Stratified
from curator.dedup import algorithm
from curator.errors import MissingError
from curator.evaluations import read_evaluation
from curator.filters import Candidates
from curator.policy import Policy, under_policy
from curator.pooltexts import PoolTexts
from curator.queries import gap_table, resolve_scorers
from curator.scorers import ResolvedScorers, weights_by_id
from curator.store import Store
from curator.strategies import needs_score

# What a mix's rows or choices are made of, beside the messages, which the id stands for.
_LABELS = ("source", "domain", "language", "license", "harm")
_NUMBERS = ("mean_nll_aligned", "mean_nll_misaligned", "gap_abs", "gap_rel", "n_response_tokens")
_COUNTS = ("n_chars", "n_turns", "n_response_tokens")


@dataclass(frozen=True)
class PoolData:
    """A resolved pool with all of its corpus's rows: `table` as `sql/queries/gap_candidates.sql`, by example_id.

    `evaluations` holds the prompts of the evaluation sets that its filters name.
    """

    pool: Pool
    scorers: ResolvedScorers
    table: pa.Table
    candidates: Candidates
    candidates_sha256: str
    evaluations: Mapping[str, Sequence[str]]


def resolve(
    store: Store, recipe: Recipe, policy: Policy | None = None, n_task: int | None = None
) -> tuple[Recipe, list[PoolData]]:
    """The recipe with every name made exact and the policy's locks applied, and its pools' data.

    Resolving a resolved recipe changes nothing. Raises PolicyError for what the policy refuses (it compares absolute
    amounts with `n_task`, the rows of the task set), and MissingError, AmbiguousError, BadInputError or
    IncompatibleScorersError as `resolve_scorers` does.
    """
    recipe = under_policy(policy, recipe, n_task)
    pools = [_resolve_pool(store, pool) for pool in recipe.pools]
    return recipe.model_copy(update={"pools": tuple(data.pool for data in pools)}), pools


def _resolve_pool(store: Store, pool: Pool) -> PoolData:
    scorers = resolve_scorers(store, pool)
    exact: dict[str, object] = {"revision": scorers.revision}
    if scorers.aligned is not None:
        exact["aligned"] = scorers.aligned.scorer_id
        exact["misaligned"] = tuple(scorer.scorer_id for scorer in scorers.misaligned)
        exact["benign"] = tuple(scorer.scorer_id for scorer in scorers.benign)
        if pool.ensemble.weights is not None:
            weights = weights_by_id(pool.ensemble.weights, scorers)
            exact["ensemble"] = pool.ensemble.model_copy(update={"weights": weights})
    pool = pool.model_copy(update=exact)
    _check_needs(pool, scorers)
    ensemble = pool.ensemble
    table = gap_table(store, scorers, pool.score.eps, ensemble.reducer, ensemble.weights).sort_by("example_id")
    candidates = _candidates(store, pool, table)
    names = sorted({name for spec in pool.filters if isinstance(spec, ContaminationFilter) for name in spec.sets})
    evaluations = {name: read_evaluation(store, name) for name in names}
    return PoolData(pool, scorers, table, candidates, _candidates_sha256(pool, table, evaluations), evaluations)


def _check_needs(pool: Pool, scorers: ResolvedScorers) -> None:
    """Raise MissingError for a score or an amount that the scorers there are cannot give."""
    if pool.score.name == "gap_contrast" and not scorers.benign and needs_score(pool.strategy):
        raise MissingError(
            f"gap_contrast compares with benign twins, and corpus {pool.corpus} has no benign scorer for this gap: "
            f"`python -m curator score --corpus {pool.corpus} --role benign ...` makes one"
        )
    if pool.tokens is not None and scorers.aligned is None:
        raise MissingError(
            f"an amount in tokens is counted by the aligned scorer, and corpus {pool.corpus} has none: give rows"
        )


def _candidates(store: Store, pool: Pool, table: pa.Table) -> Candidates:
    """Only the columns that the pool's rules read; texts are read when one of them asks."""
    ids = table["example_id"].to_pylist()
    needed = {str(spec.name) for spec in pool.filters}
    if isinstance(pool.strategy, Stratified):
        needed.add(pool.strategy.by)
    return Candidates(
        ids=ids,
        heads=table["response_head"].to_pylist(),
        score=_floats(table, pool.score.name),
        labels={name: table[name].to_pylist() for name in _LABELS if name in needed},
        counts={name: _floats(table, name) for name in _COUNTS},
        messages=PoolTexts(store, pool.corpus, pool.revision, ids),
    )


def _floats(table: pa.Table, name: str) -> npt.NDArray[np.float64]:
    """A column as float64 with one NaN for every null, shape (n_rows,)."""
    column = table[name].combine_chunks()
    known: npt.NDArray[np.float64] = column.fill_null(0.0).to_numpy(zero_copy_only=False).astype("<f8")
    return np.where(column.is_null().to_numpy(zero_copy_only=False), np.nan, known)


def _candidates_sha256(pool: Pool, table: pa.Table, evaluations: Mapping[str, Sequence[str]]) -> str:
    """Hash of all that a choice is made from beside the recipe and the task set, whatever files hold it.

    Ids (which stand for the messages), labels, losses, gaps and counts, evaluation prompts, and how near duplicates
    are looked for.
    """
    digest = hashlib.sha256()
    for name in ("example_id", *_LABELS):
        column = table[name]
        if column.null_count < len(column):
            _add(digest, name, ("\x00" if item is None else item for item in column.to_pylist()))
    for name in (*_NUMBERS, *({pool.score.name} - set(_NUMBERS))):
        digest.update(f"\x1e{name}\x1e".encode())
        digest.update(_floats(table, name).tobytes())
    for name, prompts in evaluations.items():
        _add(digest, f"evaluation {name}", prompts)
    if any(isinstance(spec, NearDuplicates) for spec in pool.filters):
        _add(digest, "near duplicates", [algorithm()])
    return digest.hexdigest()


def _add(digest: "hashlib._Hash", name: str, texts: Iterable[str]) -> None:
    digest.update(f"\x1e{name}\x1e".encode())
    digest.update("\x1f".join(texts).encode())
