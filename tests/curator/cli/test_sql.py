"""`python -m curator sql`: formats, caps, lists and errors."""

import csv
import io
import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import duckdb
import pyarrow.parquet as pq
import pytest

import sql
from curator.__main__ import main
from curator.mix.build import build_mix
from curator.mix.files import mix_batches
from curator.store.store import Store
from tests.gap_stores import write_corpus, write_scorer
from tests.mix_stores import recipe, scored_store, task_set

Sql = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run_sql(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Sql:
    """Runs the command on a store of three scored rows; gives exit code, stdout and stderr."""
    store = Store(tmp_path / "store").open()
    ids = write_corpus(store, "chats", ["one, two", "three\x1b[2J", "four"])
    write_scorer(store, "chats", "a", "aligned", dict.fromkeys(ids, (1.0, 1)))
    write_scorer(store, "chats", "m", "misaligned", {key: (2.0 + n, 1) for n, key in enumerate(ids)})

    def run(*arguments: str) -> tuple[int, str, str]:
        code = main(["sql", "--store", store.url(""), *arguments])
        out, err = capsys.readouterr()
        return code, out, err

    return run


def test_a_table_with_its_row_count_and_no_escapes(run_sql: Sql) -> None:
    code, out, _ = run_sql("select response_head, gap_abs from gap order by gap_abs")
    assert code == 0
    assert out.splitlines()[-1] == "(3 rows)"
    assert "three?[2J" in out
    assert "\x1b" not in out


def test_named_query_with_parameters(run_sql: Sql) -> None:
    _, out, _ = run_sql("--query", "top_by_gap", "--param", "n=2", "--param", "score=gap_abs", "--output-format", "csv")
    rows = list(csv.DictReader(io.StringIO(out)))
    assert [(row["rank"], row["score"], row["response_head"]) for row in rows] == [
        ("1", "3.0", "four"),
        ("2", "2.0", "three\x1b[2J"),
    ]


def test_json_says_whether_it_was_truncated(run_sql: Sql) -> None:
    code, out, err = run_sql("select example_id, losses from gap order by example_id", "--json", "--limit", "2")
    document = json.loads(out)
    assert code == 0
    assert document["truncated"] is True
    assert len(document["rows"]) == 2
    assert document["rows"][0]["losses"][0]["nll_sum"] == 1.0
    assert "truncated: there are more than 2 rows" in err
    assert json.loads(run_sql("select 1 as x", "--output-format", "json")[1]) == {
        "columns": ["x"],
        "rows": [{"x": 1}],
        "truncated": False,
    }


def test_null_is_an_empty_csv_field_and_lists_are_json(run_sql: Sql) -> None:
    _, out, _ = run_sql("select null as nothing, [1, 2] as numbers", "--output-format", "csv")
    assert out == 'nothing,numbers\n,"[1,2]"\n'


def test_values_that_arrow_lacks_are_duckdbs_text(run_sql: Sql) -> None:
    _, out, _ = run_sql("select '101'::bit as b, interval '2 days' as i", "--output-format", "csv")
    assert out == "b,i\n101,2 days\n"
    _, out, _ = run_sql("select 1 as a, interval '2 days' as A, 'b' as \"A\"\"\"", "--output-format", "csv")
    assert out.splitlines()[1] == "1,2 days,b", "each column its own, where names differ in case alone"
    code, _, err = run_sql("select date '99999-01-01' as d", "--json")
    assert code == 2
    assert "cast its column to varchar" in err


def test_parquet_goes_to_a_file(run_sql: Sql, tmp_path: Path) -> None:
    out = tmp_path / "rows.parquet"
    assert run_sql("select gap_abs from gap order by gap_abs", "--output-format", "parquet", "--out", str(out))[0] == 0
    assert pq.read_table(out)["gap_abs"].to_pylist() == [1.0, 2.0, 3.0]
    code, _, err = run_sql("select 1", "--output-format", "parquet")
    assert (code, "--output-format parquet needs --out FILE" in err) == (2, True)


def test_alone_it_names_every_query_and_table_in_a_line_each_and_where_there_is_more(run_sql: Sql) -> None:
    code, out, _ = run_sql()
    assert code == 0
    lines = out.splitlines()
    for name in sql.query_names():
        (line,) = [line for line in lines if line.startswith(f"  {name} ")]
        assert len(line.split(None, 1)[1]) > 10
    tables = ["sources", "rejects", "examples", "scorers", "scores", "gap_rows", "gap", "mixes", "mix_rows", "usage"]
    assert f"  {', '.join(tables)}" in lines
    assert lines[-1] == "Columns, units, parameters and functions: python -m curator sql --list"
    assert len(lines) < 30
    assert max(map(len, lines)) <= 120


def test_the_list_names_every_view_query_and_parameter(run_sql: Sql) -> None:
    code, out, _ = run_sql("--list")
    assert code == 0
    for name in (*sql.VIEWS, *sql.MIX_VIEWS, *sql.query_names()):
        assert f"\n  {name}\n" in out
    assert "--param hold_out=...  text[], default none" in out


def test_the_list_as_json(run_sql: Sql) -> None:
    document = json.loads(run_sql("--list", "--json")[1])
    assert [query["name"] for query in document["queries"]] == sql.query_names()
    assert [view["name"] for view in document["views"]] == [*sql.VIEWS, *sql.MIX_VIEWS, *sql.OPERATOR_VIEWS]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--query", "nope"], "no query 'nope'"),
        (["--query", "top_by_gap", "--param", "n"], "write NAME=VALUE"),
        (["select 1", "--param", "n=1"], "--param goes with --query"),
        (["select 1", "--limit", "-1"], "--limit -1"),
        (["create table x as select 1"], "exactly one SELECT"),
        (["select count(*) from range(100000000000) a, range(1000)", "--timeout-s", "0.2"], "time limit"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(run_sql: Sql, arguments: list[str], message: str) -> None:
    code, out, err = run_sql(*arguments)
    assert (code, out) == (2, "")
    assert message in err
    assert len(err.splitlines()) == 1


def test_export_writes_a_database_of_views(run_sql: Sql, tmp_path: Path) -> None:
    path = tmp_path / "curator.duckdb"
    assert run_sql("--export-db", str(path))[0] == 0
    with duckdb.connect(str(path), read_only=True) as connection:
        assert connection.execute("select count(*) from gap").fetchone() == (3,)


def test_mixes_and_their_rows_are_tables_of_the_local_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = scored_store(tmp_path / "store")
    tasks = task_set(tmp_path, 30)

    def rows(statement: str) -> list[dict[str, object]]:
        assert main(["sql", statement, "--store", str(tmp_path / "store"), "--json"]) == 0
        found: list[dict[str, object]] = json.loads(capsys.readouterr().out)["rows"]
        return found

    assert rows("select mix_id from mixes") == rows("select position from mix_rows") == []
    before = datetime.now(UTC).replace(tzinfo=None)
    one = build_mix(store, tasks, recipe(rows=3))
    other = build_mix(store, tasks, recipe(rows=2, epochs=2, strategy="random", inoculation={}), tenant="acme")
    (own, second) = sorted(rows("select * from mixes"), key=lambda row: str(row["tenant"]), reverse=True)
    assert (own["tenant"], own["mix_id"], own["corpora"]) == ("local", one.mix_id, ["chats"])
    assert (own["n_task_rows"], own["n_rows"], own["n_safe"], own["order_name"]) == (30, 33, 3, "even")
    assert own["interleave_ratio"] == pytest.approx(0.1)
    assert timedelta(seconds=-5) < datetime.fromisoformat(str(own["created"])) - before < timedelta(minutes=5)
    assert (second["tenant"], second["strategies"], second["inoculation"]) == ("acme", ["random"], "inoculation")
    assert (second["n_rows"], second["epochs"], second["warnings"]) == (64, 2, [])
    stored = [row for batch in mix_batches(store, "local", one.mix_id) for row in batch.to_pylist()]
    found = rows(f"select * exclude (tenant, mix_id) from mix_rows where mix_id = '{one.mix_id}' order by position")
    assert found == stored
    safe = "select origin, count(*) as n, count(gap_abs) as judged from mix_rows join mixes using (tenant, mix_id) "
    assert rows(safe + "where tenant = 'acme' group by origin order by origin") == [
        {"origin": "safe", "n": 4, "judged": 4},
        {"origin": "task", "n": 60, "judged": 0},
    ]
    assert other.mix_id in {row["mix_id"] for row in rows("select distinct mix_id from mix_rows")}


def test_a_broken_manifest_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = scored_store(tmp_path / "store")
    made = build_mix(store, task_set(tmp_path, 30), recipe(rows=3))
    path = f"mixes/local/{made.mix_id}/manifest.json"
    store.write_bytes(path, b"{")
    assert main(["sql", "select * from mixes", "--store", str(tmp_path / "store")]) == 2
    assert f"error: {path} in store" in capsys.readouterr().err
    assert main(["sql", "select count(*) from gap", "--store", str(tmp_path / "store")]) == 0


def test_a_file_gets_all_rows_and_a_terminal_the_first_thousand(run_sql: Sql, tmp_path: Path) -> None:
    out = tmp_path / "rows.csv"
    statement = "select range as n from range(1500)"
    code, _, err = run_sql(statement, "--output-format", "csv", "--out", str(out))
    assert code == 0
    assert len(out.read_text().splitlines()) == 1501
    assert "truncated" not in err
    _, shown, err = run_sql(statement, "--output-format", "csv")
    assert len(shown.splitlines()) == 1001
    assert "truncated: there are more than 1,000 rows" in err
    _, _, err = run_sql(statement, "--output-format", "csv", "--out", str(out), "--limit", "7")
    assert len(out.read_text().splitlines()) == 8
    assert "truncated: there are more than 7 rows" in err
