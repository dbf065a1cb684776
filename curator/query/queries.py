"""Statements over the store's views: one SELECT, the named queries of `sql/queries`, a pool's gaps, rows by id."""

import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache

import duckdb
import pyarrow as pa

import sql
from curator.corpus.manifest import LATEST
from curator.errors import BadInputError, MissingError
from curator.messages import Message, load_messages
from curator.query.database import Connection, connect
from curator.query.guard import kind_of, kinds_of
from curator.query.pivot import find_pivot
from curator.query.scorers import ResolvedScorers, check_hold_out, resolve_scorers
from curator.recipe import DEFAULT_EPS, Reducer
from curator.store.schema import MIX_ROWS
from curator.store.store import Store, arrow_schema

__all__ = [
    "Answer",
    "ResolvedScorers",
    "bound_query",
    "fetch_messages",
    "gap_table",
    "readable",
    "resolve_scorers",
    "run_named",
    "run_statement",
    "written_as",
]

MAX_DETAIL_IDS = 5
_WRITTEN_AS_TEXT = ("BIT", "INTERVAL", "TIME WITH TIME ZONE", "VARIANT")
_AS_TEXT_INSIDE = re.compile(rf"\b(?:{'|'.join(_WRITTEN_AS_TEXT)})\b(?=[\[\],)])")  # a type's name, not a field's


@dataclass(frozen=True)
class Answer:
    """A statement's answer; `truncated` says that there were more rows than the cap."""

    table: pa.Table
    truncated: bool


def run_statement(
    connection: Connection, statement: str, params: Mapping[str, sql.Value] | None = None, limit: int | None = None
) -> Answer:
    """The answer to one SELECT, at most `limit` rows of it (None: all).

    A PIVOT reads the values of its columns first. Raises BadInputError when it is not exactly one SELECT, fails, or
    runs past the connection's time limit.
    """
    pivot = find_pivot(statement)
    if pivot is not None:
        found = [run_statement(connection, query, params).table["value"].to_pylist() for query in pivot.queries]
        statement = pivot.filled(found)
    try:
        statements = connection.extract_statements(statement)
        # EXPLAIN ANALYZE would run what it explains, a COPY that writes a file among it.
        if [kind_of(item) for item in statements] != ["SELECT"]:
            raise BadInputError(f"give exactly one SELECT statement; found {kinds_of(statements)}")
        relation = readable(connection.sql(statement, params=dict(params or {}) or None))
        if limit is not None:
            relation = relation.limit(limit + 1)
        table = relation.to_arrow_table()
    except duckdb.InterruptException as error:
        raise BadInputError("the statement ran past its time limit and was stopped: narrow it down") from error
    except duckdb.Error as error:
        reason = str(error)
        if "Table with name" in reason:  # where DuckDB guesses among its own system tables
            views = [name for name in (*sql.VIEWS, *sql.MIX_VIEWS) if name not in sql.MACROS]
            reason = f"{reason.splitlines()[0]} There are {', '.join(['corpora', *views])}"
        raise BadInputError(f"the statement failed: {reason}") from error
    if limit is not None and table.num_rows > limit:
        return Answer(table.slice(0, limit), True)
    return Answer(table, False)


@contextmanager
def written_as(kind: str) -> Iterator[None]:
    """Raises BadInputError for what the block cannot write: a date of the year 99999, a union."""
    try:
        yield
    except BadInputError:
        raise
    except (ValueError, OverflowError, TypeError, NotImplementedError) as error:
        text = f"a value of the answer cannot be written as {kind} ({error}): cast its column to varchar"
        raise BadInputError(text) from error


def readable(relation: duckdb.DuckDBPyRelation) -> duckdb.DuckDBPyRelation:
    """The same rows, with the values that Arrow gives in DuckDB's own bytes, or without a part, as DuckDB's text.

    Raises BadInputError where such a value lies inside a list or struct.
    """
    kinds = [str(kind) for kind in relation.types]
    columns = []
    for place, (name, kind) in enumerate(zip(relation.columns, kinds, strict=True), start=1):
        quoted = '"' + name.replace('"', '""') + '"'
        if nested := _AS_TEXT_INSIDE.search(kind):
            text = f"column {quoted} holds {nested.group()} values in a {kind[:100]}: cast them to varchar"
            raise BadInputError(text)
        cast = "::varchar" if kind in _WRITTEN_AS_TEXT else ""
        columns.append(f"#{place}{cast} as {quoted}")  # by place: names may differ in case alone
    return relation if set(kinds).isdisjoint(_WRITTEN_AS_TEXT) else relation.project(", ".join(columns))


@lru_cache(maxsize=1)
def view_columns(store: Store) -> dict[str, list[str]]:
    """The columns of each view that a statement may read, in order, by the view's name; read once for a store."""
    with connect(store, []) as connection:
        views = ["corpora", *(name for name in sql.VIEWS if name not in (*sql.MACROS, "gap_rows"))]
        return {name: connection.table(name).columns for name in views}


def run_named(
    connection: Connection, name: str, given: Mapping[str, sql.Value] | None = None, limit: int | None = None
) -> Answer:
    """The answer to a query of `sql/queries`, parameters by name; raises as `bound_query` and `run_statement`."""
    statement, bound = bound_query(connection, name, given)
    return run_statement(connection, statement, bound, limit)


def bound_query(
    connection: Connection, name: str, given: Mapping[str, sql.Value] | None = None
) -> tuple[str, dict[str, sql.Value]]:
    """A named query's statement and its bound parameters, whose names of corpora and domains exist.

    Raises MissingError on an unknown query, corpus or held-out domain, BadInputError on unknown or unfit parameters.
    """
    try:
        query = sql.load_query(name)
    except KeyError as error:
        raise MissingError(str(error.args[0]), details=sql.query_names()) from error
    try:
        bound = query.bind(given)
    except ValueError as error:
        raise BadInputError(str(error)) from error
    if bound.get("corpus") is not None:
        _check_corpus(connection, str(bound["corpus"]))
    if bound.get("hold_out"):
        _check_hold_out(connection, bound)
    return query.sql, bound


def _check_corpus(connection: Connection, corpus: str) -> None:
    known = [row[0] for row in connection.execute("select corpus from corpora order by corpus").fetchall()]
    if corpus not in known:
        raise MissingError(f"no corpus {corpus!r}; there are: {', '.join(known) or 'none'}", details=known)


def _check_hold_out(connection: Connection, bound: Mapping[str, sql.Value]) -> None:
    corpus, hold_out = bound.get("corpus"), bound["hold_out"]
    assert isinstance(hold_out, list)
    known = connection.execute(
        "select distinct scorer_domain from scorers where $corpus is null or corpus = $corpus", {"corpus": corpus}
    ).fetchall()
    wanted, domains = [str(item) for item in hold_out], [row[0] for row in known]
    check_hold_out(connection, "hold_out_unknown", wanted, domains, None if corpus is None else str(corpus))


def gap_table(
    store: Store,
    resolved: ResolvedScorers,
    eps: float = DEFAULT_EPS,
    reducer: Reducer = "mean",
    weights: Mapping[str, float] | None = None,
) -> pa.Table:
    """Every example of the resolved corpus revision as a candidate, ordered by example_id.

    `weights` (by scorer id, 0 where one has none) serve the reducer `weighted` alone.
    Columns and units: `sql/queries/gap_candidates.sql`. Rows that lack a loss have null gaps and `complete` false.
    """
    given: dict[str, sql.Value] = {
        "corpus": resolved.corpus,
        "aligned": resolved.aligned.scorer_id if resolved.aligned else None,
        "misaligned": [scorer.scorer_id for scorer in resolved.misaligned],
        "benign": [scorer.scorer_id for scorer in resolved.benign],
        "eps": eps,
        "reducer": reducer,
        "weights": [(weights or {}).get(scorer.scorer_id, 0.0) for scorer in resolved.misaligned] if weights else [],
    }
    with connect(store, {resolved.corpus: resolved.revision}) as connection:
        table: pa.Table = run_named(connection, "gap_candidates", given).table
    losses = arrow_schema(MIX_ROWS).field("losses")
    return table.set_column(table.schema.get_field_index("losses"), losses, table["losses"].cast(losses.type))


def fetch_messages(store: Store, corpus: str, ids: Iterable[str], revision: str = LATEST) -> dict[str, list[Message]]:
    """Messages by example_id; raises MissingError when the corpus revision lacks one of them."""
    wanted = sorted(set(ids))
    with connect(store, {corpus: revision}) as connection:
        rows = run_named(connection, "rows_by_id", {"corpus": corpus, "ids": wanted}).table
    found = {
        str(key): load_messages(text)
        for key, text in zip(rows["example_id"].to_pylist(), rows["messages"].to_pylist(), strict=True)
    }
    missing = [key for key in wanted if key not in found]
    if missing:
        raise MissingError(
            f"corpus {corpus} lacks {len(missing)} of {len(wanted)} rows, first {missing[0]}",
            details=missing[:MAX_DETAIL_IDS],
        )
    return found
