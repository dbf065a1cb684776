"""What strangers' SQL may say, and that DuckDB itself refuses the worst of it where the guard is absent."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import duckdb
import pytest

import sql
from curator.errors import BadInputError
from curator.query.database import Connection, connect
from curator.query.guard import FUNCTIONS, NAMED, OPERATORS, VALUE_NAMES, check_statement
from curator.query.pivot import find_pivot
from curator.query.sandbox_client import SqlLimits
from curator.query.sandbox_process import lock_connection
from curator.store.store import Store
from tests.gap_stores import write_corpus, write_scorer
from tests.sql_escapes import REFUSED

REFUSED_FUNCTIONS = Path(__file__).parents[2] / "golden" / "sql_refused_functions.txt"
ALLOWED = (
    "select * from gap",
    "from gap limit 3;",
    "table corpora",
    "values (1), (2)",
    "select count(*) as n from gap_rows(hold_out := [], eps := 0.5)",
    "select row_number() over (order by gap_rel), lag(gap_rel) over () from gap qualify true",
    "with a as materialized (select 1 as x), b as (from a) select * from a, b",
    "with recursive r as (select 1 as a union all select a + 1 from r where a < 5) select * from r",
    "select 1 union all select 2 except select 3 order by 1 limit 10 offset 0",
    "select count(distinct corpus) filter (where true), list(corpus order by 1) from corpora group by all",
    "select * exclude (messages) from examples tablesample 5%",
    "select x::decimal(10, 2), try_cast(x as integer[]) from (select 1 as x)",
    "select [y * 2 for y in [1, 2]], {'a': 1}.a, 'x' like 'y', 1 between 0 and 2, case when true then 1 end",
    "select list_transform([1], lambda x: x + 1), unnest([1, 2]), columns('corpus') from corpora",
    "select * from scores s join gap g using (example_id) where exists (from corpora) and s.mean_nll in (select 1)",
    "select now(), current_date, current_timestamp, interval 1 day, mean_nll(1.0, 2), is_refusal('sorry', 'v1')",
    "select * from range(5) r(n), generate_series(1, 3)",
    "pivot gap on domain in ('a', 'b') using avg(gap_abs) group by source",
    "from gap pivot (avg(gap_abs) for domain in ('a', 'b') group by source)",
    "unpivot (select 1 as a, 2 as b) on a, b",
    "/* a comment; with a semicolon */ select 'a;b' -- ; drop view gap",
)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("guard")
    store = Store(root).open()
    ids = write_corpus(store, "chats", [f"answer {number}" for number in range(5)])
    write_scorer(store, "chats", "base", "aligned", dict.fromkeys(ids, (10.0, 10)))
    return root


@pytest.fixture(scope="module")
def connection(root: Path) -> Iterator[Connection]:
    with connect(Store(root)) as found:
        yield found


@pytest.fixture(scope="module")
def locked(root: Path) -> Iterator[Connection]:
    with connect(Store(root)) as found:
        lock_connection(found, [str(path) for path in root.rglob("*.parquet")], SqlLimits(timeout_s=2))
        yield found


def filled(statement: str, root: Path) -> str:
    part = next(root.rglob("corpora/chats/part-*.parquet"))
    return statement.replace("{file}", str(root / "store.json")).replace("{part}", str(part))


def test_there_are_enough_of_them() -> None:
    assert len(set(REFUSED)) == len(REFUSED) >= 60


@pytest.mark.parametrize("statement", REFUSED)
def test_escapes_are_refused_before_they_run(connection: Connection, root: Path, statement: str) -> None:
    with pytest.raises(BadInputError, match=r"\w"):
        check_statement(connection, filled(statement, root))
    # What is run of a PIVOT, whatever it was cut into, is checked piece by piece.
    pivot = find_pivot(filled(statement, root))
    if pivot is not None:
        pieces = [*pivot.queries, pivot.filled([["a value"]] * len(pivot.queries))]
        with pytest.raises(BadInputError, match=r"\w"):
            _ = [check_statement(connection, piece) for piece in pieces]  # type: ignore[func-returns-value]


@pytest.mark.parametrize("name", [*sql.MIX_VIEWS, *sql.MIX_TABLES])
def test_mixes_are_not_there_for_strangers(connection: Connection, name: str) -> None:
    with pytest.raises(BadInputError, match=f"'{name}' is not read here"):
        check_statement(connection, f"select * from {name}")
    with pytest.raises(duckdb.CatalogException, match="does not exist"):
        connection.sql(f"select * from {name}")


@pytest.mark.parametrize("statement", ALLOWED)
def test_reading_the_views_is_allowed_and_runs(connection: Connection, statement: str) -> None:
    check_statement(connection, statement)
    assert connection.sql(statement).to_arrow_table() is not None  # Python values of times with zones need pytz


@pytest.mark.parametrize("name", sql.query_names())
def test_every_named_query_passes(connection: Connection, name: str) -> None:
    check_statement(connection, sql.load_query(name).sql)


@pytest.mark.parametrize(
    "statement",
    [item for item in REFUSED if "{file}" in item and "(select 1) select 2)" not in item] + ["set threads = 8"],
)
def test_without_the_guard_duckdb_itself_reaches_no_file_and_keeps_its_settings(
    locked: Connection, root: Path, statement: str
) -> None:
    import duckdb

    before = sorted((path, path.stat().st_size) for path in root.rglob("*"))
    with pytest.raises(duckdb.Error, match=r"\w"):
        locked.execute(filled(statement, root)).fetchall()
    assert sorted((path, path.stat().st_size) for path in root.rglob("*")) == before


def test_every_function_of_this_duckdb_is_allowed_or_known_to_be_refused(connection: Connection) -> None:
    """A new one is refused by default; this test asks for a look at it."""
    kinds = ["scalar", "aggregate", "macro", "window"]
    rows = connection.execute(
        "select distinct lower(function_name) from duckdb_functions() where list_contains($kinds, function_type)",
        {"kinds": kinds},
    ).fetchall()
    there = {str(name) for (name,) in rows}
    refused = set(REFUSED_FUNCTIONS.read_text().split("\n")) - {""}
    assert sorted(there - FUNCTIONS - refused) == [], "in neither list"
    assert sorted(refused & FUNCTIONS) == [], "in both lists"
    assert sorted((refused | NAMED | OPERATORS) - there) == [], "in a list, but gone from DuckDB"
    assert {"setseed", "write_log", "nextval", "current_setting", "getvariable", "pg_sleep"} <= refused


@pytest.mark.parametrize("name", ["made_up_later", "setseed", "Write_Log", "icu_sort_key", "pg_sleep"])
def test_a_function_that_is_not_listed_is_refused(connection: Connection, name: str) -> None:
    for statement in (
        f"select {name}(1)",
        f"select sum({name}(1)) over () from gap",
        f"select [{name}(x) for x in [1]]",
    ):
        with pytest.raises(BadInputError, match="none of the functions"):
            check_statement(connection, statement)


def test_names_that_turn_into_calls_are_refused_or_tell_the_time_alone(connection: Connection) -> None:
    """Every function and keyword of this DuckDB, as a bare name: what is answered is known."""
    names = connection.execute(
        "select function_name from duckdb_functions() union select keyword_name from duckdb_keywords()"
    ).fetchall()
    answered = set()
    for (name,) in names:
        with contextlib.suppress(duckdb.Error):
            connection.execute(f'select "{name}"')
            answered.add(name)
    times = {"current_date", "current_time", "current_timestamp", "localtime", "localtimestamp"}
    assert answered - times <= VALUE_NAMES
    for name in sorted(VALUE_NAMES):
        for statement in (f'select "{name}"', f"select 1 where {name.upper()} is null", f"select 1 order by {name}"):
            with pytest.raises(BadInputError):
                check_statement(connection, statement)


def test_a_column_of_such_a_name_is_read_by_its_table(connection: Connection) -> None:
    check_statement(connection, 'with t as (select 1 as "user") select t.user from t')
