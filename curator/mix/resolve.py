"""From a recipe to what it means against one store: concrete revisions, full scorer ids, candidates with scores.

This is the one place where recipes are resolved; what a provider locks or forbids belongs here too.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import orjson
import pyarrow as pa

from curator.errors import MissingError, RecipeError
from curator.mix.row_prompts import N_NAMED
from curator.query.gaps import GapSpec, definitions
from curator.query.queries import resolve_scorers
from curator.query.scorers import ResolvedScorers, weights_by_id
from curator.recipe import Pool, Recipe
from curator.recipe.filters import ContaminationFilter, LabelFilter, NearDuplicates
from curator.recipe.policy import Policy, check_scorers, under_policy
from curator.recipe.strategies import needs_score
from curator.select.candidates import Candidates, Rows, label_values
from curator.select.eval_sets import read_evaluation
from curator.select.minhash import algorithm
from curator.select.pool import PoolTable, pool_table
from curator.select.pool_frame import LABELS
from curator.select.scores import GapChoice
from curator.store.store import Store


@dataclass(frozen=True)
class PoolData:
    """A resolved pool with all of its corpus's rows as candidates, in the order of their ids.

    `choice` is the gap that it ranks by; `evaluations` holds the prompts of the evaluation sets that its filters name.
    """

    pool: Pool
    scorers: ResolvedScorers
    table: PoolTable
    choice: GapChoice
    candidates: Candidates
    candidates_sha256: str
    evaluations: Mapping[str, Sequence[str]]

    def rows(self, at: Rows) -> pa.Table:
        """Some candidates with labels, losses and gaps (`PoolTable.rows`)."""
        return self.table.rows(at, self.choice)


def resolve(
    store: Store, recipe: Recipe, policy: Policy | None = None, n_task: int | None = None
) -> tuple[Recipe, list[PoolData]]:
    """The recipe with every name made exact and the policy's locks applied, and its pools' data.

    Resolving a resolved recipe changes nothing. Raises PolicyError for what the policy refuses (it compares absolute
    amounts with `n_task`, the rows of the task set), and MissingError, AmbiguousError, BadInputError or
    IncompatibleScorersError as `resolve_scorers` does.
    """
    recipe = under_policy(policy, recipe, n_task)
    pools = [_resolve_pool(store, pool, policy) for pool in recipe.pools]
    return recipe.model_copy(update={"pools": tuple(data.pool for data in pools)}), pools


def _resolve_pool(store: Store, pool: Pool, policy: Policy | None) -> PoolData:
    scorers = resolve_scorers(store, pool)
    if policy is not None and policy.scorers is not None:
        unnamed = pool.model_copy(update={"aligned": None, "misaligned": None, "benign": None})
        every = resolve_scorers(store, unnamed)
        check_scorers(policy, pool, _ids(scorers), _ids(every))
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
    table = pool_table(store, scorers)
    given = pool.ensemble.weights or {}
    by_place = tuple(given.get(scorer.scorer_id, 0.0) for scorer in scorers.misaligned) if given else ()
    gap = GapSpec(pool.score.eps, pool.ensemble.reducer, by_place)
    used = [scorer.scorer_id for scorer in (*scorers.misaligned, *scorers.benign)]
    choice = table.choice(pool.score.name, used, gap)
    names = sorted({name for spec in pool.filters if isinstance(spec, ContaminationFilter) for name in spec.sets})
    evaluations = {name: read_evaluation(store, name) for name in names}
    sha256 = _candidates_sha256(pool, scorers, table, evaluations)
    candidates = table.candidates(choice)
    _check_labels(pool, candidates, policy)
    return PoolData(pool, scorers, table, choice, candidates, sha256, evaluations)


def _ids(scorers: ResolvedScorers) -> list[str]:
    return [scorer.scorer_id for scorer in scorers.all]


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


def _check_labels(pool: Pool, candidates: Candidates, policy: Policy | None) -> None:
    """Raise RecipeError for a label filter of the recipe that names what no row of the corpus has: a misspelt name
    would exclude nothing. A policy's own filters are for many corpora, and may name what one of them lacks."""
    forced = () if policy is None else policy.filters
    for spec in pool.filters:
        if not isinstance(spec, LabelFilter) or spec in forced:
            continue
        known = label_values(candidates.column(spec.name))
        unknown = sorted({*spec.include, *spec.exclude} - set(known))
        if known and unknown:
            raise RecipeError(
                f"the {spec.name} filter names {', '.join(map(repr, unknown[:N_NAMED]))}, which no row of corpus "
                f"{pool.corpus} has; there are: {', '.join(known[:N_NAMED])}{', ...' if len(known) > N_NAMED else ''}",
                details=unknown,
            )


def _candidates_sha256(
    pool: Pool, scorers: ResolvedScorers, table: PoolTable, evaluations: Mapping[str, Sequence[str]]
) -> str:
    """Hash of all that a choice is made from beside the recipe and the task set, whatever files hold it.

    Ids (which stand for the messages), labels, the losses under the scorers used, the definitions of the gaps,
    evaluation prompts, and how near duplicates are looked for.
    """
    names = ("example_id", *LABELS, *(scorer.scorer_id for scorer in scorers.all))
    document: dict[str, object] = {name: table.digests[name] for name in names if name in table.digests}
    document["gaps"] = definitions()
    document["evaluations"] = {name: list(prompts) for name, prompts in evaluations.items()}
    if any(isinstance(spec, NearDuplicates) for spec in pool.filters):
        document["near_duplicates"] = algorithm()
    return hashlib.sha256(orjson.dumps(document, option=orjson.OPT_SORT_KEYS)).hexdigest()
