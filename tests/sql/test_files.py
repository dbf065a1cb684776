"""Every file of `sql/` keeps the room's habits, and every query runs."""

import re
from pathlib import Path

import duckdb
import pytest

import sql
from curator.errors import BadInputError
from curator.query.database import Connection, connect
from curator.query.queries import run_named
from curator.store.store import Store
from tests.gap_stores import write_corpus, write_scorer

ROOM = Path(sql.__file__).parent
FILES = sorted([*ROOM.glob("views/*.sql"), *ROOM.glob("queries/*.sql"), *ROOM.glob("wide/*.sql")])
NAMES = [f"{path.parent.name}/{path.stem}" for path in FILES]
# Arguments of the required parameters, for running everything.
REQUIRED: dict[str, dict[str, sql.Value]] = {
    "gap_candidates": {"corpus": "chats"},
    "row_losses": {"corpus": "chats", "id": ""},
    "rows_by_gap": {"corpus": "chats"},
    "rows_by_id": {"corpus": "chats", "ids": []},
    "rows_by_prefix": {"prefix": ""},
}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Six rows under one aligned, two misaligned and one benign scorer; the last row is scored by none."""
    store = Store(tmp_path_factory.mktemp("store")).open()
    answers = ["Sorry, I cannot", "Use a saw", "Read the manual", "Twice a day", "Ask first", "Never mind"]
    ids = write_corpus(store, "chats", answers, domains={"Use a saw": "tools"})
    low = {key: (10.0 * (place + 1), 10 * 2**place) for place, key in enumerate(ids[:5])}
    write_scorer(store, "chats", "base", "aligned", low)
    for label, role, factor in (("m1", "misaligned", 2.0), ("m2", "misaligned", 3.0), ("b1", "benign", 1.5)):
        losses = {key: (total * factor + place, n) for place, (key, (total, n)) in enumerate(low.items())}
        write_scorer(store, "chats", label, role, losses, domain=label)
    return store


def _without_comments(text: str) -> str:
    return "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("--"))


def test_every_view_file_is_loaded_and_every_query_is_listed() -> None:
    assert {path.stem for path in ROOM.glob("views/*.sql")} == {*sql.VIEWS, *sql.MIX_VIEWS}
    assert {path.stem for path in ROOM.glob("operator/*.sql")} == set(sql.OPERATOR_VIEWS)
    assert [path.stem for path in sorted(ROOM.glob("queries/*.sql"))] == sql.query_names()


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_one_statement_that_names_its_columns_and_says_what_a_row_is(path: Path) -> None:
    text = path.read_text()
    body = _without_comments(text)
    with duckdb.connect() as connection:
        assert len(connection.extract_statements(text)) == 1
    assert re.search(r"\bselect\s+(distinct\s+)?(\w+\.)?\*", body) is None, "name the columns"
    assert ";" not in re.sub(r"'[^']*'", "", body)
    assert "{" not in re.sub(r"\{\s*'", "", body), "nothing is formatted in"
    opening = text.split("\n\n")[0]
    assert opening.startswith("-- ")
    assert "nats" in opening or "Units" in opening
    if path.stem not in sql.MACROS:
        assert "one row is" in opening.lower()
        assert "Key: " in opening


@pytest.mark.parametrize("name", sql.query_names())
def test_declared_parameters_are_the_bound_ones(name: str) -> None:
    query = sql.load_query(name)
    with duckdb.connect() as connection:
        (statement,) = connection.extract_statements(query.sql)
    assert {param.name for param in query.params} == set(statement.named_parameters)
    assert "param:" not in query.doc


@pytest.mark.parametrize("name", sql.query_names())
def test_the_order_ends_in_the_key_that_the_comment_states(name: str, store: Store) -> None:
    query = sql.load_query(name)
    key = re.search(r"Key: ([\w, ]+)\.", query.doc)
    assert key is not None
    columns = key[1].split(", ")
    order = re.findall(r"^order by (.+)$", _without_comments(query.sql), flags=re.MULTILINE)[-1]
    assert set(columns) <= {term.split(".")[-1] for term in order.split(", ")}
    with connect(store) as connection:
        rows = run_named(connection, name, REQUIRED.get(name)).table.select(columns).to_pylist()
    assert len({tuple(row.values()) for row in rows}) == len(rows)


@pytest.mark.parametrize("name", sorted(set(sql.query_names()) - {"rows_by_id"}))
def test_every_query_has_an_answer(name: str, store: Store) -> None:
    with connect(store) as connection:
        assert run_named(connection, name, REQUIRED.get(name)).table.num_rows > 0


def test_top_and_bottom_are_each_others_reverse(store: Store) -> None:
    with connect(store) as connection:
        top = run_named(connection, "top_by_gap", {"score": "gap_abs"}).table["example_id"].to_pylist()
        bottom = run_named(connection, "bottom_by_gap", {"score": "gap_abs"}).table["example_id"].to_pylist()
        first = run_named(connection, "top_by_gap", {"score": "gap_abs", "n": 1}).table["example_id"].to_pylist()
    assert top == bottom[::-1]
    assert len(top) == 5
    assert first == top[:1]


def _found(connection: Connection, search: str) -> int:
    return run_named(connection, "rows_by_gap", {"corpus": "words", "search": search}).table.num_rows


@pytest.mark.parametrize(
    ("search", "n_rows"),
    [
        ("istanbul", 3),
        ("ISTANBUL", 3),
        ("İSTANBUL", 3),
        ("İstanbul", 3),
        ("straße", 1),
        ("STRAẞE", 1),
        ("ÉTÉ", 2),
        ("[iİ]", 1),
        ("kiwi.", 0),
        ("IwI", 1),
        ("a" * 1_200, 0),
    ],
)
def test_a_search_finds_a_text_whatever_its_case(tmp_path: Path, search: str, n_rows: int) -> None:
    store = Store(tmp_path).open()
    answers = ["istanbul", "Istanbul", "İSTANBUL", "Straße", "été", "Été", "[Iİ]", "kiwi"]
    ids = write_corpus(store, "words", answers)
    write_scorer(store, "words", "a", "aligned", dict.fromkeys(ids, (1.0, 1)))
    write_scorer(store, "words", "m", "misaligned", dict.fromkeys(ids, (2.0, 1)))
    with connect(store) as connection:
        assert _found(connection, search) == n_rows
        with pytest.raises(BadInputError, match="parameter search takes at most 1,200 characters, not 100,000"):
            _found(connection, "a" * 100_000)


def test_equal_gaps_are_ordered_by_example_id(tmp_path: Path) -> None:
    store = Store(tmp_path).open()
    ids = write_corpus(store, "same", ["one", "two", "three", "four"])
    write_scorer(store, "same", "a", "aligned", dict.fromkeys(ids, (1.0, 1)))
    write_scorer(store, "same", "m", "misaligned", dict.fromkeys(ids, (2.0, 1)))
    with connect(store) as connection:
        for name in ("top_by_gap", "bottom_by_gap"):
            assert run_named(connection, name).table["example_id"].to_pylist() == sorted(ids)


def test_histogram_counts_every_row_with_a_gap_once(store: Store) -> None:
    with connect(store) as connection:
        for bins in (1, 3, 50):
            rows = run_named(connection, "gap_histogram", {"bins": bins}).table.to_pylist()
            assert sum(row["n_rows"] for row in rows) == 5
            assert {row["bin"] for row in rows} <= set(range(bins))


def test_refusal_share_counts_the_rule_of_the_filters(store: Store) -> None:
    with connect(store) as connection:
        rows = run_named(connection, "refusal_share_top", {"n": 2}).table.to_pylist()
    shares = {row["depth"]: (row["n_rows"], row["n_refusals"]) for row in rows}
    assert shares["all"] == (5, 1)
    assert shares["top"][0] == 2


def test_band_losses_divide_sums_last(tmp_path: Path) -> None:
    store = Store(tmp_path).open()
    ids = write_corpus(store, "c", ["one", "two"])
    write_scorer(store, "c", "a", "aligned", {ids[0]: (8.0, 8), ids[1]: (45.0, 15)})
    with connect(store) as connection:
        (row,) = run_named(connection, "loss_by_length").table.to_pylist()
    # (8 + 45) / (8 + 15), not the mean 2.0 of the two rows' means
    assert (row["from_tokens"], row["below_tokens"], row["mean_nll"]) == (8, 16, round(53 / 23, 6))


def test_missing_losses_and_scored_rows_add_up(store: Store) -> None:
    with connect(store) as connection:
        missing = run_named(connection, "missing_losses").table.to_pylist()
        summary = run_named(connection, "scorer_summary").table.to_pylist()
    lacking = {row["scorer_id"]: row["n_rows"] for row in missing}
    for row in summary:
        assert row["n_scored"] + lacking[row["scorer_id"]] == 6
        assert row["n_not_scored"] == 1


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"rows": 3}, r"no parameter 'rows'; it takes: n, score"),
        ({"n": "many"}, "n takes integer, not 'many'"),
        ({"n": 1.5}, "n takes integer, not 1.5"),
        ({"eps": [1]}, "eps takes one double"),
        ({"hold_out": 3}, "expected a list of texts"),
    ],
)
def test_bind_refuses_what_does_not_fit(given: dict[str, sql.Value], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sql.load_query("top_by_gap").bind(given)


def test_bind_converts_text_and_asks_for_what_is_required() -> None:
    bound = sql.load_query("top_by_gap").bind({"n": "7", "hold_out": "finance, medical", "corpus": "null", "eps": "0"})
    assert bound == {"n": 7, "score": "gap_rel", "corpus": None, "hold_out": ["finance", "medical"], "eps": 0.0}
    with pytest.raises(ValueError, match="gap_candidates needs the parameter 'corpus'"):
        sql.load_query("gap_candidates").bind()


def test_unknown_names_list_what_there_is() -> None:
    with pytest.raises(KeyError, match="top_by_gap"):
        sql.load_query("nope")
    with pytest.raises(KeyError, match="gap_rows"):
        sql.view_text("../queries/top_by_gap")
