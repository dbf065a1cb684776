"""From the names in a recipe to the exact scorers of one gap (method.md, "The perplexity gap")."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

from curator.corpus.manifest import (
    MIN_PREFIX,
    Role,
    Scorer,
    read_corpus,
    read_scorers,
)
from curator.errors import (
    AmbiguousError,
    BadInputError,
    IncompatibleScorersError,
    MissingError,
)
from curator.query.database import Connection, connect
from curator.recipe import Pool
from curator.recipe.strategies import needs_score
from curator.store.store import Store

MAY_DIFFER = ("weights_sha256", "adapter_sha256")  # all that may differ inside one gap


@dataclass(frozen=True)
class ResolvedScorers:
    """The scorers of one gap over one corpus revision, hold_out applied, each sorted by id.

    `aligned` is None only for a random pool without scores: its rows have no gap. `held_out` were left out by
    domain, `other_measure` are complete scorers of a wanted role that cannot share this gap.
    """

    corpus: str
    revision: str
    aligned: Scorer | None
    misaligned: tuple[Scorer, ...] = ()
    benign: tuple[Scorer, ...] = ()
    held_out: tuple[Scorer, ...] = ()
    other_measure: tuple[Scorer, ...] = ()

    @property
    def all(self) -> tuple[Scorer, ...]:
        """Aligned, misaligned, benign."""
        return (*((self.aligned,) if self.aligned else ()), *self.misaligned, *self.benign)

    def as_dict(self) -> dict[str, Any]:
        """For manifests: the scorers used and those left out."""
        return {
            "aligned": self.aligned.as_dict() if self.aligned else None,
            "misaligned": [scorer.as_dict() for scorer in self.misaligned],
            "benign": [scorer.as_dict() for scorer in self.benign],
            "held_out": [scorer.as_dict() for scorer in self.held_out],
            "other_measure": [scorer.as_dict() for scorer in self.other_measure],
        }


def resolve_scorers(store: Store, pool: Pool) -> ResolvedScorers:
    """The scorers that a pool names by id, unique id prefix or label; null means every complete one of the role.

    Raises MissingError or AmbiguousError listing what there is, IncompatibleScorersError naming the identity
    field that differs, BadInputError for a named scorer that is not complete.
    """
    if not pool.hold_out:
        return _resolve(store, pool, None)
    with _rules().cursor() as rules:
        return _resolve(store, pool, rules)


@cache
def _rules() -> Connection:
    """This process's connection with the macros of `sql/`: to open one takes longer than all the rest."""
    return connect(None)


def _resolve(store: Store, pool: Pool, rules: Connection | None) -> ResolvedScorers:
    corpus = read_corpus(store, pool.corpus, pool.revision)
    known = read_scorers(store, corpus)
    if rules is not None:
        check_hold_out(rules, "hold_out_unknown", pool.hold_out, [scorer.domain for scorer in known], pool.corpus)
    if not needs_score(pool.strategy) and pool.aligned is None and pool.misaligned is None:
        usable = {scorer.role for scorer in known if scorer.complete}
        if not {"aligned", "misaligned"} <= usable:
            return ResolvedScorers(corpus.name, corpus.revision, None)
    aligned = _aligned(known, pool)
    misaligned, skipped_misaligned = _others(known, "misaligned", pool.misaligned, aligned, pool)
    benign, skipped_benign = _others(known, "benign", pool.benign, aligned, pool)
    held = [scorer for scorer in (*misaligned, *benign) if scorer.domain in pool.hold_out]
    if rules is not None:
        domains = [scorer.domain for scorer in misaligned]
        check_hold_out(rules, "hold_out_leaves_none", pool.hold_out, domains, pool.corpus)
    return ResolvedScorers(
        corpus.name,
        corpus.revision,
        aligned,
        tuple(scorer for scorer in misaligned if scorer not in held),
        tuple(scorer for scorer in benign if scorer not in held),
        tuple(held),
        (*skipped_misaligned, *skipped_benign),
    )


def weights_by_id(weights: Mapping[str, float], scorers: ResolvedScorers) -> dict[str, float]:
    """Weights of the misaligned scorers by full id, of those given by id, unique id prefix or label.

    Those of held-out scorers are left out. Raises MissingError for a name that fits none, BadInputError when no
    scorer that stays has a weight above 0.
    """
    known = [scorer for scorer in (*scorers.misaligned, *scorers.held_out) if scorer.role == "misaligned"]
    named = {_named(known, "misaligned", name, scorers.corpus).scorer_id: weight for name, weight in weights.items()}
    kept = {scorer.scorer_id: named.get(scorer.scorer_id, 0.0) for scorer in scorers.misaligned}
    if not any(kept.values()):
        shown = ", ".join(scorer.shown for scorer in scorers.misaligned)
        raise BadInputError(f"the ensemble gives weight to none of the misaligned scorers that stay: {shown}")
    return kept


def aligned_scorer(store: Store, corpus: str, name: str | None = None) -> Scorer:
    """The aligned scorer of a corpus's latest revision by name, or its only complete one.

    Raises as `resolve_scorers` does.
    """
    return _aligned(read_scorers(store, read_corpus(store, corpus)), Pool(corpus=corpus, aligned=name))


def differing_fields(one: Scorer, two: Scorer) -> list[str]:
    """Identity fields that differ and may not, inside one gap."""
    names = sorted((one.identity.keys() | two.identity.keys()) - set(MAY_DIFFER))
    return [name for name in names if one.identity.get(name) != two.identity.get(name)]


def check_hold_out(
    connection: Connection,
    rule: Literal["hold_out_unknown", "hold_out_leaves_none"],
    hold_out: Sequence[str],
    domains: Sequence[str | None],
    corpus: str | None,
) -> None:
    """Raise MissingError where held-out domains break a rule of `sql/views`, as `gap_rows` does."""
    given = {"hold_out": list(hold_out), "domains": list(domains), "corpus": corpus}
    statement = f"select {rule}($hold_out::varchar[], $domains::varchar[], $corpus)"
    ((fault,),) = connection.execute(statement, given).fetchall()
    if fault is not None:
        raise MissingError(fault, details=sorted({domain for domain in domains if domain is not None}))


def _aligned(known: Sequence[Scorer], pool: Pool) -> Scorer:
    if pool.aligned is not None:
        return _named(known, "aligned", pool.aligned, pool.corpus)
    complete = [scorer for scorer in known if scorer.role == "aligned" and scorer.complete]
    if not complete:
        raise _none_of(known, "aligned", pool.corpus)
    if len(complete) > 1:
        raise AmbiguousError(
            f"corpus {pool.corpus} has {len(complete)} complete aligned scorers: name one of "
            + ", ".join(scorer.shown for scorer in complete),
            details=[scorer.as_dict() for scorer in complete],
        )
    return complete[0]


def _others(
    known: Sequence[Scorer], role: Role, names: Sequence[str] | None, aligned: Scorer, pool: Pool
) -> tuple[list[Scorer], list[Scorer]]:
    """Scorers of a role for this gap, by id, and complete ones left out because their measure is another."""
    if names is not None:
        chosen = {scorer.scorer_id: scorer for scorer in (_named(known, role, n, pool.corpus) for n in names)}
        for scorer in chosen.values():
            _check_same_measure(aligned, scorer)
        if role == "misaligned" and not chosen:
            raise BadInputError("`misaligned` names no scorer: leave it out to take every complete one")
        return [chosen[key] for key in sorted(chosen)], []
    complete = [scorer for scorer in known if scorer.role == role and scorer.complete]
    same = [scorer for scorer in complete if scorer.measure_id == aligned.measure_id]
    if role == "misaligned" and not same:
        if complete:
            _check_same_measure(aligned, complete[0])
        raise _none_of(known, role, pool.corpus)
    others = [scorer for scorer in complete if scorer.measure_id != aligned.measure_id]
    return sorted(same, key=lambda scorer: scorer.scorer_id), others


def _named(known: Sequence[Scorer], role: Role, name: str, corpus: str) -> Scorer:
    exact = [scorer for scorer in known if scorer.scorer_id == name]
    found = exact or [
        scorer
        for scorer in known
        if scorer.role == role
        and (scorer.label == name or (len(name) >= MIN_PREFIX and scorer.scorer_id.startswith(name)))
    ]
    listed = ", ".join(f"{scorer.shown}, {scorer.role}" for scorer in known) or "none"
    if len(found) > 1:
        raise AmbiguousError(
            f"{name!r} names {len(found)} {role} scorers of corpus {corpus}: "
            + ", ".join(scorer.shown for scorer in found),
            details=[scorer.as_dict() for scorer in found],
        )
    if not found or found[0].role != role:
        raise MissingError(
            f"no {role} scorer {name!r} of corpus {corpus}; there are: {listed}",
            details=[scorer.as_dict() for scorer in known],
        )
    if not found[0].complete:
        raise BadInputError(
            f"scorer {found[0].shown} of corpus {corpus} is not complete for this revision: "
            "run its `score` command again"
        )
    return found[0]


def _check_same_measure(aligned: Scorer, other: Scorer) -> None:
    fields = differing_fields(aligned, other)
    if aligned.measure_id == other.measure_id and not fields:
        return
    field = fields[0] if fields else "measure_id"
    one, two = ((scorer.identity.get(field) if fields else scorer.measure_id) for scorer in (aligned, other))
    raise IncompatibleScorersError(
        f"{aligned.shown} and {other.shown} cannot share a gap: {field} is {one!r} for the one and "
        f"{two!r} for the other; only weights and adapter may differ. Score both with the same settings",
        details=[
            {"field": name, aligned.label: aligned.identity.get(name), other.label: other.identity.get(name)}
            for name in fields
        ],
    )


def _none_of(known: Sequence[Scorer], role: Role, corpus: str) -> MissingError:
    unfinished = [scorer for scorer in known if scorer.role == role]
    if unfinished:
        names = ", ".join(scorer.shown for scorer in unfinished)
        return MissingError(f"no {role} scorer of corpus {corpus} is complete for this revision; unfinished: {names}")
    return MissingError(
        f"corpus {corpus} has no {role} scorer: "
        f"`python -m curator score --corpus {corpus} --role {role} ...` makes one",
        details=[scorer.as_dict() for scorer in known],
    )
