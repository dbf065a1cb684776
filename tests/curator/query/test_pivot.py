"""A PIVOT whose values are read first gives what DuckDB gives for it."""

from collections.abc import Iterator

import duckdb
import pytest

from curator.errors import BadInputError
from curator.query.pivot import MAX_VALUES, find_pivot
from curator.query.queries import run_statement

STATEMENTS = (
    "pivot sales on city using sum(n) group by year order by year",
    "PIVOT sales ON city USING sum(n) AS total, count(*) AS n_rows GROUP BY year ORDER BY year;",
    "pivot sales on year, city using sum(n)",
    "pivot sales on year in (2020, 2021), city using sum(n)",
    "pivot sales on city || '-' || year using sum(n)",
    "pivot sales on upper(city) using sum(n) group by year order by year desc limit 1",
    "pivot sales on n using count(*) group by year order by year",
    "pivot sales on day using count(*) group by year order by year",
    "pivot sales on n > 2 using count(*) group by year order by year",
    "pivot (from sales where city <> 'on') on city -- using no other\nusing sum(n) group by year order by year",
    "with big as (select * from sales where n > 1) pivot big /* on */ on city using sum(n) group by year order by year",
    "pivot sales join years on (sales.year = years.year) on label using sum(n) group by city order by city",
    "pivot sales on case when city = 'on' then 'é' else city end using sum(n) group by year order by year",
)


@pytest.fixture
def connection() -> Iterator[duckdb.DuckDBPyConnection]:
    with duckdb.connect() as found:
        found.execute("create table sales (city varchar, year integer, n double, day date)")
        found.execute(
            "insert into sales values ('Oslo', 2020, 1, '2020-01-01'), ('O''Hara', 2021, 2.5, null), "
            "('on', 2020, 3, '2020-02-01'), (null, 2021, 10, '2020-02-01'), ('on', 2021, 9, '2020-02-01')"
        )
        found.execute("create table years as select unnest([2020, 2021]) as year, unnest(['first', 'second']) as label")
        yield found


@pytest.mark.parametrize("statement", STATEMENTS)
def test_a_pivot_is_what_duckdb_makes_of_it(connection: duckdb.DuckDBPyConnection, statement: str) -> None:
    assert find_pivot(statement) is not None
    expected = connection.sql(statement).to_arrow_table()
    assert run_statement(connection, statement).table.to_pylist() == expected.to_pylist()


@pytest.mark.parametrize(
    "statement",
    [
        "",
        "select 1",
        "pivot",
        "with",
        "pivot sales using count(*)",
        "pivot sales on city in ('a') using sum(n)",
        "from sales pivot (sum(n) for city in ('a'))",
        "select 'pivot' as pivot",
        "select 1; pivot sales on city using sum(n)",
    ],
)
def test_other_statements_are_none(statement: str) -> None:
    assert find_pivot(statement) is None


@pytest.mark.parametrize(
    ("statement", "message"),
    [
        ("pivot sales on nosuch using sum(n)", "column .nosuch. not found"),
        ("pivot (from sales where n > 99) on city using sum(n)", "PIVOT finds no value of city"),
        (f"pivot (from range({MAX_VALUES + 1}) t(i)) on i using count(*)", "more than 1,000 values of i"),
        ("pivot sales on city using sum(n); drop table sales", "exactly one SELECT"),
        ("select * from (pivot sales on city using sum(n))", r"needs its values, as in PIVOT gap ON domain IN"),
        ("pivot sales on using sum(n)", "Cannot pivot on constant value"),
    ],
)
def test_what_cannot_be_pivoted_says_so(connection: duckdb.DuckDBPyConnection, statement: str, message: str) -> None:
    with pytest.raises(BadInputError, match=message):
        run_statement(connection, statement)
    assert connection.execute("select count(*) from sales").fetchall() == [(5,)]
