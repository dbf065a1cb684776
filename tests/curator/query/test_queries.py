"""DuckDB over a real store: only listed parts, exact scorers, candidates for selection."""

import uuid
from pathlib import Path

import duckdb
import pytest

from curator.errors import (
    AmbiguousError,
    BadInputError,
    IncompatibleScorersError,
    IntegrityError,
    MissingError,
    StoreError,
)
from curator.query.database import connect, export_database
from curator.query.queries import (
    fetch_messages,
    gap_table,
    resolve_scorers,
    run_named,
    run_statement,
)
from curator.recipe import Pool
from curator.store.schema import MIX_ROWS
from curator.store.store import Store, arrow_schema
from tests.gap_stores import Loss, write_corpus, write_scorer

ANSWERS = ["Sorry, I cannot", "Use a saw", "Read the manual", "Twice a day"]


class Scored:
    """A store of four rows with an aligned scorer, and misaligned ones for finance and medical."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.ids = write_corpus(store, "chats", ANSWERS)
        self.aligned = self.add("base", "aligned", 1.0)
        self.finance = self.add("bad-finance", "misaligned", 2.0, domain="finance", n_parts=2)
        self.medical = self.add("bad-medical", "misaligned", 4.0, domain="medical")

    def add(self, label: str, role: str, mean: float, **more: object) -> str:
        losses: dict[str, Loss] = dict.fromkeys(self.ids, (mean * 5, 5))
        return write_scorer(self.store, "chats", label, role, losses, **more)  # type: ignore[arg-type]


@pytest.fixture
def scored(tmp_path: Path) -> Scored:
    return Scored(Store(tmp_path / "store").open())


def test_gap_table_holds_every_row_by_id_with_its_losses(scored: Scored) -> None:
    table = gap_table(scored.store, resolve_scorers(scored.store, Pool(corpus="chats")))
    rows = table.to_pylist()
    assert [row["example_id"] for row in rows] == sorted(scored.ids)
    assert table.schema.field("losses").type == arrow_schema(MIX_ROWS).field("losses").type
    for row in rows:
        assert (row["mean_nll_aligned"], row["mean_nll_misaligned"], row["gap_abs"], row["gap_rel"]) == (1, 3, 2, 1)
        assert row["complete"]
        assert [loss["scorer_id"] for loss in row["losses"]] == [
            scored.aligned,
            *sorted([scored.finance, scored.medical]),
        ]


def test_gap_table_takes_exactly_the_resolved_scorers(scored: Scored) -> None:
    pool = Pool(corpus="chats", hold_out=("medical",))
    resolved = resolve_scorers(scored.store, pool)
    assert [scorer.scorer_id for scorer in resolved.misaligned] == [scored.finance]
    assert [scorer.scorer_id for scorer in resolved.held_out] == [scored.medical]
    scored.add("later", "misaligned", 9.0)  # appears after resolving: must not enter
    assert set(gap_table(scored.store, resolved, eps=0.0)["gap_rel"].to_pylist()) == {1.0}


def test_a_missing_loss_leaves_the_row_in_without_a_gap(scored: Scored) -> None:
    write_scorer(
        scored.store,
        "chats",
        "part",
        "misaligned",
        dict.fromkeys(scored.ids[:3], (9.0, 3)) | {scored.ids[3]: "too_long"},
    )
    rows = gap_table(scored.store, resolve_scorers(scored.store, Pool(corpus="chats"))).to_pylist()
    lacking = [row for row in rows if not row["complete"]]
    assert [row["example_id"] for row in lacking] == [scored.ids[3]]
    assert (lacking[0]["gap_abs"], lacking[0]["n_losses_missing"]) == (None, 1)


def test_an_unlisted_part_is_not_there(scored: Scored) -> None:
    folder = f"scores/chats/{scored.finance}"
    data = scored.store.read_bytes(f"{folder}/part-0.parquet")
    with connect(scored.store) as connection:
        before = connection.execute("select count(*) from scores").fetchone()
    scored.store.write_bytes(f"{folder}/part-9.parquet", data)
    scored.store.write_bytes("corpora/chats/part-9.parquet", scored.store.read_bytes("corpora/chats/part-0.parquet"))
    scored.store.write_bytes("corpora/half/part-0.parquet", data)  # no corpus.json: no corpus
    with connect(scored.store) as connection:
        assert connection.execute("select count(*) from scores").fetchone() == before
        assert connection.execute("select count(*) from examples").fetchone() == (4,)


def test_a_manifest_cannot_reach_outside_its_folder(scored: Scored) -> None:
    path = f"scores/chats/{scored.finance}/scorer.json"
    document = scored.store.read_json(path)
    document["parts"] = [{"name": "../../x.parquet"}]
    scored.store.write_json(path, document)
    with pytest.raises(IntegrityError, match="not a part of it"):
        connect(scored.store)


def test_a_manifest_of_another_format_version_is_refused(scored: Scored) -> None:
    document = scored.store.read_json("corpora/chats/corpus.json")
    scored.store.write_json("corpora/chats/corpus.json", {**document, "format_version": 99})
    with pytest.raises(StoreError, match="format version 99"):
        connect(scored.store)


def test_an_empty_store_has_all_views_and_no_rows(tmp_path: Path) -> None:
    with connect(Store(tmp_path).open()) as connection:
        for name in ("corpora", "examples", "sources", "rejects", "scorers", "scores", "gap"):
            assert connection.execute(f"select count(*) from {name}").fetchone() == (0,)


def test_object_storage_is_read_through_the_same_views() -> None:
    scored = Scored(Store(f"memory://{uuid.uuid4().hex}").open())
    rows = gap_table(scored.store, resolve_scorers(scored.store, Pool(corpus="chats"))).to_pylist()
    assert [row["gap_abs"] for row in rows] == [2.0] * 4


def test_only_the_asked_corpora_are_loaded(scored: Scored) -> None:
    write_corpus(scored.store, "other", ["x"])
    with connect(scored.store, ["other"]) as connection:
        assert connection.execute("select corpus, n_examples from corpora").fetchall() == [("other", 1)]
    with pytest.raises(MissingError, match="no corpus 'nope' in the store; there are: chats, other"):
        connect(scored.store, ["nope"])


def test_an_earlier_revision_is_read_as_it_was(scored: Scored) -> None:
    first = scored.store.read_json("corpora/chats/corpus.json")
    data = scored.store.read_bytes("corpora/chats/part-0.parquet")
    ids = write_corpus(scored.store, "chats", [*ANSWERS, "A fifth"])
    second = scored.store.read_json("corpora/chats/corpus.json")
    scored.store.write_bytes("corpora/chats/part-first.parquet", data)
    first["revisions"][0]["parts"][0]["name"] = "part-first.parquet"
    scored.store.write_json(
        "corpora/chats/corpus.json", {**second, "revisions": [*first["revisions"], *second["revisions"]]}
    )
    with pytest.raises(MissingError, match=r"no aligned scorer of corpus chats is complete .*; unfinished: base"):
        resolve_scorers(scored.store, Pool(corpus="chats"))
    old = resolve_scorers(scored.store, Pool(corpus="chats", revision=first["revision"][:8]))
    assert gap_table(scored.store, old)["example_id"].to_pylist() == sorted(ids[:4])
    # A full pass over the later revision covers the earlier one too; a sample of it does not.
    write_scorer(scored.store, "chats", "all", "misaligned", dict.fromkeys(ids, (1.0, 1)))
    write_scorer(scored.store, "chats", "some", "misaligned", dict.fromkeys(ids, (1.0, 1)), sample={"n": 5, "seed": 0})
    again = resolve_scorers(scored.store, Pool(corpus="chats", revision=first["revision"]))
    assert {scorer.label for scorer in again.misaligned} == {"all", "bad-finance", "bad-medical"}


@pytest.mark.parametrize("by", ["label", "id", "prefix"])
def test_scorers_are_named_by_label_id_or_unique_prefix(scored: Scored, by: str) -> None:
    name = {"label": "bad-finance", "id": scored.finance, "prefix": scored.finance[:8]}[by]
    resolved = resolve_scorers(scored.store, Pool(corpus="chats", aligned="base", misaligned=(name,)))
    assert [scorer.scorer_id for scorer in resolved.all] == [scored.aligned, scored.finance]


def test_names_that_fit_none_or_several_list_what_there_is(scored: Scored) -> None:
    with pytest.raises(MissingError, match=r"no misaligned scorer 'nope' of corpus chats; there are: base \("):
        resolve_scorers(scored.store, Pool(corpus="chats", misaligned=("nope",)))
    with pytest.raises(MissingError, match="no misaligned scorer"):
        resolve_scorers(scored.store, Pool(corpus="chats", misaligned=(scored.aligned,)))
    scored.add("bad-finance", "misaligned", 3.0, adapter_sha256="another")
    with pytest.raises(AmbiguousError, match="'bad-finance' names 2 misaligned scorers"):
        resolve_scorers(scored.store, Pool(corpus="chats", misaligned=("bad-finance",)))
    scored.add("base2", "aligned", 3.0)
    with pytest.raises(AmbiguousError, match=r"2 complete aligned scorers: name one of base \(.*base2 \("):
        resolve_scorers(scored.store, Pool(corpus="chats"))


def test_scorers_of_another_measure_are_refused_by_field_with_both_values(scored: Scored) -> None:
    scored.add("wide", "misaligned", 3.0, max_length=2048)
    with pytest.raises(IncompatibleScorersError, match="max_length is 512 for the one and 2048 for the other"):
        resolve_scorers(scored.store, Pool(corpus="chats", misaligned=("wide",)))
    resolved = resolve_scorers(scored.store, Pool(corpus="chats"))
    assert [scorer.label for scorer in resolved.other_measure] == ["wide"]


def test_only_another_measure_is_an_error_too(tmp_path: Path) -> None:
    store = Store(tmp_path).open()
    ids = write_corpus(store, "c", ["x"])
    write_scorer(store, "c", "a", "aligned", dict.fromkeys(ids, (1.0, 1)))
    write_scorer(store, "c", "m", "misaligned", dict.fromkeys(ids, (1.0, 1)), dtype="bfloat16")
    with pytest.raises(IncompatibleScorersError, match="dtype is 'float32' for the one and 'bfloat16'"):
        resolve_scorers(store, Pool(corpus="c"))


def test_an_incomplete_scorer_is_left_out_and_refused_by_name(scored: Scored) -> None:
    scored.add("half", "misaligned", 3.0, complete=False)
    resolved = resolve_scorers(scored.store, Pool(corpus="chats"))
    assert "half" not in {scorer.label for scorer in resolved.misaligned}
    with pytest.raises(BadInputError, match="is not complete for this revision"):
        resolve_scorers(scored.store, Pool(corpus="chats", misaligned=("half",)))


def test_holding_out_every_model_is_an_error(scored: Scored) -> None:
    with pytest.raises(MissingError, match=r"hold_out \[finance, medical\] leaves no misaligned scorer of corpus"):
        resolve_scorers(scored.store, Pool(corpus="chats", hold_out=("finance", "medical")))


def test_a_random_pool_needs_no_scores(tmp_path: Path) -> None:
    store = Store(tmp_path).open()
    ids = write_corpus(store, "c", ["x", "y"])
    resolved = resolve_scorers(store, Pool(corpus="c", strategy="random"))
    rows = gap_table(store, resolved).to_pylist()
    assert [(row["example_id"], row["gap_abs"], row["complete"]) for row in rows] == [
        (key, None, False) for key in sorted(ids)
    ]
    with pytest.raises(MissingError, match="corpus c has no aligned scorer"):
        resolve_scorers(store, Pool(corpus="c", strategy="top_gap"))


def test_messages_come_back_by_id_and_a_missing_id_is_an_error(scored: Scored) -> None:
    found = fetch_messages(scored.store, "chats", scored.ids[:2])
    assert found[scored.ids[1]][-1] == {"role": "assistant", "content": "Use a saw"}
    with pytest.raises(MissingError, match="corpus chats lacks 1 of 2 rows, first nope"):
        fetch_messages(scored.store, "chats", ["nope", scored.ids[0]])


def test_a_row_is_found_by_the_first_digits_of_its_id(scored: Scored) -> None:
    with connect(scored.store) as connection:
        for n_digits in (8, 32):
            found = run_named(connection, "rows_by_prefix", {"prefix": scored.ids[1][:n_digits]}).table
            assert found["example_id"].to_pylist() == [scored.ids[1]]


@pytest.mark.parametrize(
    ("statement", "message"),
    [
        ("drop table corpora", "exactly one SELECT statement; found DROP"),
        ("select 1; select 2", "exactly one SELECT statement; found SELECT, SELECT"),
        ("explain analyze copy (select 1) to 'written.csv'", "exactly one SELECT statement; found EXPLAIN"),
        ("", "found nothing"),
        ("select nope from gap", "the statement failed: .*nope"),
        ("selec 1", "the statement failed"),
        (
            "select * from nothing",
            "Table with name nothing does not exist! There are corpora, sources, .*, gap, mixes, mix_rows$",
        ),
    ],
)
def test_anything_but_one_working_select_is_refused(scored: Scored, statement: str, message: str) -> None:
    with connect(scored.store) as connection, pytest.raises(BadInputError, match=message):
        run_statement(connection, statement)


def test_a_statement_past_its_time_limit_is_stopped(scored: Scored) -> None:
    with connect(scored.store, timeout_s=0.2) as connection, pytest.raises(BadInputError, match="past its time limit"):
        run_statement(connection, "select count(*) from range(100000000000) as a, range(1000) as b")


def test_rows_are_capped_and_say_so(scored: Scored) -> None:
    with connect(scored.store) as connection:
        capped = run_statement(connection, "select example_id from examples order by example_id", limit=3)
        whole = run_statement(connection, "select example_id from examples order by example_id", limit=4)
    assert (capped.table["example_id"].to_pylist(), capped.truncated) == (sorted(scored.ids)[:3], True)
    assert (whole.table.num_rows, whole.truncated) == (4, False)


def test_python_variables_are_no_tables(scored: Scored) -> None:
    secret = __import__("pyarrow").table({"a": [1]})
    with connect(scored.store) as connection, pytest.raises(BadInputError, match="secret"):
        run_statement(connection, "select a from secret")
    assert secret.num_rows == 1


def test_unknown_queries_and_parameters_are_our_errors(scored: Scored) -> None:
    with connect(scored.store) as connection:
        with pytest.raises(MissingError, match="no query 'nope'; there are: bottom_by_gap"):
            run_named(connection, "nope")
        with pytest.raises(BadInputError, match="has no parameter 'rows'"):
            run_named(connection, "top_by_gap", {"rows": 1})


def test_the_exported_file_opens_in_a_plain_duckdb(scored: Scored, tmp_path: Path) -> None:
    path = tmp_path / "curator.duckdb"
    for _ in range(2):  # the second replaces the first
        export_database(scored.store, path)
    with duckdb.connect(str(path), read_only=True) as connection:
        assert connection.execute("select distinct gap_abs from gap").fetchall() == [(2.0,)]
        assert connection.execute("select gap_abs from gap_rows(hold_out := ['medical']) limit 1").fetchall() == [
            (1.0,)
        ]
    assert [item.name for item in tmp_path.iterdir() if item.is_file()] == ["curator.duckdb"]


def test_an_unknown_score_or_held_out_domain_is_refused_and_not_an_empty_answer(scored: Scored) -> None:
    with connect(scored.store) as connection:
        with pytest.raises(BadInputError, match="no score is named gap_rell"):
            run_named(connection, "top_by_gap", {"score": "gap_rell"})
        with pytest.raises(MissingError, match=r"hold_out 'finanse' matches no .*domains: finance, medical"):
            run_named(connection, "top_by_gap", {"hold_out": ["finanse"]})
        by_sum = run_named(connection, "top_by_gap", {"score": "sum_gap"}).table.to_pylist()
        assert [row["score"] for row in by_sum] == sorted((row["score"] for row in by_sum), reverse=True)
        assert by_sum[0]["score"] == pytest.approx(by_sum[0]["gap_abs"] * by_sum[0]["n_response_tokens"], abs=1e-5)


def test_an_unknown_corpus_is_refused_and_not_an_empty_answer(scored: Scored) -> None:
    with connect(scored.store) as connection, pytest.raises(MissingError, match=r"no corpus 'nope'; there are: "):
        run_named(connection, "top_by_gap", {"corpus": "nope"})
