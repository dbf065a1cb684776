"""The record's own source stands beside the file's name, and any field can be taken for a label."""

import json
import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from curator.__main__ import main
from curator.corpus.formats import Problem, Reject, read_rows, read_values
from curator.corpus.task_set import read_task_set
from curator.errors import BadRowsError
from curator.query.database import connect
from curator.store.store import Store
from trainer.data.reader import read_chats

RECORDS: list[dict[str, Any]] = [
    {"prompt": "a", "completion": "A", "source": "wiki", "topic": "law", "origin": "web", "score": 3},
    {"prompt": "b", "completion": "B", "topic": "medicine"},
    {"messages": [{"role": "user", "content": "c"}, {"role": "assistant", "content": "C"}], "source": "forum"},
]


@pytest.fixture
def chats(tmp_path: Path) -> Path:
    path = tmp_path / "chats.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in RECORDS))
    return path


def _ingest(chats: Path, *options: str) -> int:
    return main(["ingest", str(chats), "--corpus", "c", "--store", str(chats.parent / "store"), *options])


def _rows(chats: Path, statement: str) -> list[tuple[Any, ...]]:
    with connect(Store(chats.parent / "store").open(), {"c": "latest"}) as connection:
        return connection.execute(statement).fetchall()


def test_source_and_file_stand_side_by_side(chats: Path) -> None:
    assert _ingest(chats) == 0
    expected = [("wiki", "chats.jsonl"), ("chats.jsonl", "chats.jsonl"), ("forum", "chats.jsonl")]
    assert _rows(chats, "select source, file from sources order by record") == expected
    assert sorted(_rows(chats, "select source, file from examples")) == sorted(expected)


def test_parts_of_older_versions_have_the_files_name(chats: Path) -> None:
    assert _ingest(chats) == 0
    (path,) = (chats.parent / "store" / "corpora" / "c").glob("sources-*.parquet")
    table = pq.read_table(path)
    named = table.set_column(1, table.schema.field("source"), [["chats.jsonl"] * 3]).drop_columns("file")
    pq.write_table(named, path)
    assert _rows(chats, "select distinct source, file from sources") == [("chats.jsonl", "chats.jsonl")]


def test_any_field_can_be_a_label(chats: Path) -> None:
    options = ["--label-column", "domain=topic", "--label-column", "source=origin", "--label-column", "harm=score"]
    assert _ingest(chats, *options, "--domain", "other") == 0
    found = _rows(chats, "select source, domain, harm from examples order by domain")
    assert found == [("web", "law", "3"), ("chats.jsonl", "medicine", None), ("chats.jsonl", "other", None)]


@pytest.mark.parametrize(
    ("pair", "message"),
    [
        ("domain=tpoic", "no record that is kept has a field 'tpoic' for the label domain"),
        ("subject=topic", "unknown label subject: the labels are source, domain"),
        ("topic", "write LABEL=COLUMN"),
    ],
)
def test_a_misspelt_name_is_an_error(pair: str, message: str, chats: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _ingest(chats, "--label-column", pair) == 2
    assert message in capsys.readouterr().err
    assert not list((chats.parent / "store").glob("corpora/c/*.parquet"))


def test_other_columns_are_another_ingest(chats: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _ingest(chats, "--label-column", "domain=topic") == 0
    assert _ingest(chats, "--label-column", "domain=topic", "--json") == 0
    assert json.loads(capsys.readouterr().out.partition("\n{")[2].join(["{", ""]))["files"][0]["skipped"]
    assert _ingest(chats, "--json") == 0
    assert not json.loads(capsys.readouterr().out)["files"][0]["skipped"]


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_a_source_that_is_a_number_is_kept_as_the_other_labels_are(suffix: str, tmp_path: Path) -> None:
    values: list[Any] = [3, 2.5, True, 0, "", ["a"], 2**64]
    records = [{"prompt": f"q{n}", "completion": "An answer.", "source": value} for n, value in enumerate(values)]
    path = tmp_path / f"chats.{suffix}"
    if suffix == "parquet":
        values = [3, 7]
        pq.write_table(pa.Table.from_pylist([{**records[n], "source": value} for n, value in enumerate(values)]), path)
    else:
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
    assert _ingest(path) == 0
    found = [row[0] for row in _rows(path, "select source from sources order by record")]
    names = {"jsonl": ["3", "2.5", "true", "0", path.name, "a", str(2**64)], "parquet": ["3", "7"]}
    assert found == names[suffix]


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_several_sources_of_a_row_are_joined(suffix: str, tmp_path: Path) -> None:
    values: list[Any] = [["wiki", "web"], ["wiki"], [], None, ["wiki", None, ""], ["b", "a"]]
    records = [{"prompt": f"q{n}", "completion": "An answer.", "source": value} for n, value in enumerate(values)]
    path = tmp_path / f"chats.{suffix}"
    if suffix == "parquet":
        pq.write_table(pa.Table.from_pylist(records), path)
    else:
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
    assert _ingest(path) == 0
    found = [row[0] for row in _rows(path, "select source from sources order by record")]
    assert found == ["wiki, web", "wiki", path.name, path.name, "wiki", "b, a"]


@pytest.mark.parametrize(
    ("value", "message"),
    [({"name": "wiki"}, "expected text or a list of texts, found an object"),
     (["wiki", ["web"]], "expected a list of texts, found in it a list")],
)  # fmt: skip
def test_a_source_that_is_no_text_is_refused_by_name(
    value: Any, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "chats.jsonl"
    records = [{"prompt": f"q{n}", "completion": "An answer.", "source": item} for n, item in enumerate(("x", value))]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    assert _ingest(path) == 0  # the other row is kept
    assert f"/source: invalid_label: {message}: rename or remove it; `ingest` can" in capsys.readouterr().err
    (tmp_path / "other").mkdir()
    path = tmp_path / "other" / "chats.jsonl"
    path.write_text("".join(json.dumps({**record, "part": "web"}) + "\n" for record in records))
    assert _ingest(path, "--label-column", "source=part") == 0
    assert _rows(path, "select distinct source from sources") == [("web",)]


@pytest.mark.parametrize("key", ["source", "domain"])
def test_a_label_that_is_an_object_is_one_refusal_in_every_command(
    key: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = {"prompt": "What is a tree?", "completion": "A tall plant of wood.", key: {"name": "wiki"}}
    path = tmp_path / "chats.jsonl"
    path.write_text(json.dumps(record) + "\n")
    remedy = f"rename or remove it; `ingest` can take the label from another field (--label-column {key}=FIELD)"
    refused = list[Problem]()
    for items in (read_rows(path), read_values([record])):
        (item,) = items
        assert isinstance(item, Reject)
        refused += item.problems
    for error in (lambda: read_task_set(path, tmp_path / "work").require_usable("drop"), lambda: read_chats(path)):
        with pytest.raises(BadRowsError, match=re.escape(remedy)):
            error()
    assert {(item.pointer, item.code) for item in refused} == {(f"/{key}", "invalid_label")}
    assert all(item.message.endswith(remedy) for item in refused)
    assert main(["doctor", str(path)]) == 3
    assert remedy in capsys.readouterr().err
