import hashlib
import json
from collections import Counter
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings

from curator.__main__ import main
from curator.corpus import ingest as module
from curator.corpus.formats import Reject, read_rows
from curator.corpus.ingest import IngestOptions, ingest
from curator.corpus.manifest import corpus_names, read_corpus, revision_of
from curator.errors import (
    BadInputError,
    BadRowsError,
    IntegrityError,
    MissingError,
    StoreError,
)
from curator.store.store import Store


def _chat(text: str, **labels: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": text}], **labels}


def _file(folder: Path, name: str, records: list[Any]) -> Path:
    path = folder / name
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def _rows(store: Store, corpus: str, kind: str) -> list[dict[str, Any]]:
    names = [item["name"] for entry in read_corpus(store, corpus).ingests for item in entry[kind]]
    return [row for name in names for row in store.read_table(f"corpora/{corpus}/{name}").to_pylist()]


def _answers(store: Store, corpus: str) -> list[str]:
    return [json.loads(row["messages"])[-1]["content"] for row in _rows(store, corpus, "parts")]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store").open()


@pytest.fixture(autouse=True)
def _small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PART_ROWS", 3)


def test_rows_are_kept_in_the_files_order_in_parts(store: Store, tmp_path: Path) -> None:
    texts = [f"answer {n}" for n in range(8)]
    report = ingest(store, [_file(tmp_path, "a.jsonl", [_chat(text) for text in texts])], "c")
    info = read_corpus(store, "c")
    assert _answers(store, "c") == texts
    (entry,) = info.ingests
    assert [part["n_rows"] for part in entry["parts"]] == [3, 3, 2]
    assert [store.sha256(path) for path in info.parts] == [part["sha256"] for part in entry["parts"]]
    assert (info.n_examples, info.revision) == (report.n_examples, report.revision)
    ids = [row["example_id"] for row in _rows(store, "c", "parts")]
    assert info.revision == hashlib.blake2b("\n".join(sorted(ids)).encode(), digest_size=16).hexdigest()
    assert corpus_names(store) == ["c"]


def test_columns_of_an_example(store: Store, tmp_path: Path) -> None:
    path = _file(tmp_path, "a.jsonl", [{**_chat("one two"), "id": "x", "domain": "law"}, _chat("b")])
    ingest(store, [path], "c", IngestOptions(labels={"domain": "web", "language": "en"}))
    first, second = _rows(store, "c", "parts")
    assert (first["n_turns"], first["n_assistant_turns"], first["n_chars"]) == (2, 1, 8)
    assert (first["response_head"], first["domain"], first["language"]) == ("one two", "law", "en")
    assert (second["domain"], second["license"], second["harm"]) == ("web", None, None)
    assert [(row["source"], row["source_id"], row["record"]) for row in _rows(store, "c", "sources")] == [
        ("a.jsonl", "x", 1),
        ("a.jsonl", None, 2),
    ]


def test_copies_fold_within_and_across_files(store: Store, tmp_path: Path) -> None:
    one = _file(tmp_path, "a.jsonl", [_chat("a"), _chat("b"), _chat("a")])
    two = _file(tmp_path, "b.jsonl", [_chat("b", domain="late"), _chat("c")])
    report = ingest(store, [one, two], "c")
    assert [(file.parsed, file.kept, file.folded) for file in report.files] == [(3, 2, 1), (2, 1, 1)]
    assert _answers(store, "c") == ["a", "b", "c"]
    assert Counter(row["example_id"] for row in _rows(store, "c", "sources")).most_common(1)[0][1] == 2
    assert [row["domain"] for row in _rows(store, "c", "parts")] == [None, None, None]


def test_the_same_file_again_is_skipped_and_other_options_are_not(store: Store, tmp_path: Path) -> None:
    path = _file(tmp_path, "a.jsonl", [_chat("a"), {}])
    first = ingest(store, [path], "c")
    manifest = store.read_bytes("corpora/c/corpus.json")
    again = ingest(store, [path], "c")
    assert again.files[0].skipped
    assert (again.files[0].parsed, again.files[0].reject_codes) == (2, {"missing_messages_list": 1})
    assert store.read_bytes("corpora/c/corpus.json") == manifest
    other = ingest(store, [path], "c", IngestOptions(labels={"domain": "law"}))
    assert (other.files[0].skipped, other.files[0].folded, other.revision) == (False, 1, first.revision)
    assert read_corpus(store, "c").earlier == ()


def test_labels_for_what_is_there_are_ignored_and_counted(
    store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bare, web = [_chat("a"), _chat("b")], _chat("c", domain="web")
    first = _file(tmp_path, "a.jsonl", [*bare, web, web, _chat("c", domain="law"), _chat("a", harm="none")])
    second = _file(tmp_path, "b.jsonl", [*bare, web, _chat("c"), _chat("c", language="en"), _chat("d", domain="x")])
    assert [file.labels_ignored for file in ingest(store, [first, second], "c").files] == [2, 1]
    stored = [row["domain"] for row in _rows(store, "c", "parts")]
    command = ["ingest", str(second), "--corpus", "c", "--store", str(tmp_path / "store"), "--domain", "web"]
    assert main(command) == 0  # those of a, b and, by its own label alone, of c in English
    assert "  labels ignored: 3 folded records brought labels other than those stored\n" in capsys.readouterr().out
    assert [row["domain"] for row in _rows(store, "c", "parts")] == stored == [None, None, "web", "x"]
    assert [entry["labels_ignored"] for entry in read_corpus(store, "c").ingests] == [2, 1, 3]
    assert ingest(store, [second], "c").files[0].labels_ignored == 1
    document = store.read_json("corpora/c/corpus.json")
    del document["ingests"][1]["labels_ignored"]  # as older versions wrote it
    store.write_json("corpora/c/corpus.json", document)
    assert ingest(store, [second], "c").files[0].labels_ignored is None


def test_more_rows_make_a_new_revision_and_keep_the_old_parts(store: Store, tmp_path: Path) -> None:
    first = ingest(store, [_file(tmp_path, "a.jsonl", [_chat("a")])], "c")
    second = ingest(store, [_file(tmp_path, "b.jsonl", [_chat("b")])], "c")
    info = read_corpus(store, "c")
    assert first.revision != second.revision == info.revision
    assert read_corpus(store, "c", first.revision).parts == info.parts[:1]
    assert read_corpus(store, "c", "latest") == info
    with pytest.raises(MissingError, match="no revision 'nope' of corpus c; there are: "):
        read_corpus(store, "c", "nope")


def test_a_revision_does_not_depend_on_the_order_of_files(store: Store, tmp_path: Path) -> None:
    files = [_file(tmp_path, f"{text}.jsonl", [_chat(text)]) for text in "abc"]
    assert ingest(store, files, "c").revision == ingest(store, files[::-1], "d").revision


def test_bad_records_are_listed_with_every_problem(store: Store, tmp_path: Path) -> None:
    bad = {"messages": [{"role": "x", "content": None}]}
    path = _file(tmp_path, "a.jsonl", [_chat("a"), bad])
    (file,) = ingest(store, [path], "c").files
    assert file.reject_codes == {"unrecognized_role": 1}
    assert [(row["line"], row["pointer"], row["code"]) for row in _rows(store, "c", "rejects")] == [
        (2, "/messages/0/role", "unrecognized_role"),
        (2, "/messages/0/content", "missing_content"),
    ]


def test_stored_rejects_are_capped_and_all_are_counted(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_STORED_REJECTS", 30)
    path = _file(tmp_path, "a.jsonl", [{}] * 50 + [{"messages": []}, _chat("a")])
    (file,) = ingest(store, [path], "c").files
    assert (file.rejected, file.reject_codes) == (51, {"empty_messages_list": 1, "missing_messages_list": 50})
    assert len(_rows(store, "c", "rejects")) == 30
    assert [problem["record"] for problem in file.first_rejects] == [*range(1, 21), 51]


def test_strict_refuses_the_file_and_writes_nothing(store: Store, tmp_path: Path) -> None:
    path = _file(tmp_path, "a.jsonl", [_chat(str(n)) for n in range(7)] + [{}, {"messages": []}])
    with pytest.raises(BadRowsError, match="2 bad records of 9, and nothing of it was written") as caught:
        ingest(store, [path], "c", IngestOptions(strict=True))
    assert [item["code"] for item in caught.value.details] == [  # type: ignore[index]
        "missing_messages_list",
        "empty_messages_list",
    ]
    assert store.list("corpora/c") == []
    assert ingest(store, [_file(tmp_path, "b.jsonl", [_chat("a")])], "c", IngestOptions(strict=True)).n_examples == 1


def test_strict_refuses_a_file_that_was_ingested_before_with_rejects(
    store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = _file(tmp_path, "a.jsonl", [_chat("a"), {}, {"messages": []}])
    with pytest.raises(BadRowsError) as fresh:
        ingest(store, [path], "c", IngestOptions(strict=True))
    ingest(store, [path], "c")
    manifest, files = store.read_bytes("corpora/c/corpus.json"), store.list("corpora/c")
    with pytest.raises(
        BadRowsError, match=r"a.jsonl has 2 bad records of 3, and was ingested without .* is line 2"
    ) as e:
        ingest(store, [path], "c", IngestOptions(strict=True))
    assert e.value.details == fresh.value.details
    assert (store.read_bytes("corpora/c/corpus.json"), store.list("corpora/c")) == (manifest, files)
    command = ["ingest", str(path), "--corpus", "c", "--store", str(tmp_path / "store"), "--strict"]
    assert main(command) == 2
    assert "line 2 /messages: missing_messages_list" in capsys.readouterr().err
    good = _file(tmp_path, "b.jsonl", [_chat("b")])
    ingest(store, [good], "c")
    assert ingest(store, [good], "c", IngestOptions(strict=True)).files[0].skipped


def test_remains_of_an_interrupted_ingest_are_removed(store: Store, tmp_path: Path) -> None:
    ingest(store, [_file(tmp_path, "a.jsonl", [_chat("a")])], "c")
    store.write_bytes("corpora/c/part-00001-00000.parquet", b"half")
    ingest(store, [_file(tmp_path, "b.jsonl", [_chat("b")])], "c")
    named = {item["name"] for entry in read_corpus(store, "c").ingests for item in entry["parts"] + entry["sources"]}
    assert set(store.list("corpora/c")) == named | {"corpus.json"}
    assert _answers(store, "c") == ["a", "b"]


def test_an_error_on_the_way_leaves_the_corpus_as_it_was(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = ingest(store, [_file(tmp_path, "a.jsonl", [_chat("a")])], "c")
    files = store.list("corpora/c")
    path = _file(tmp_path, "b.jsonl", [_chat(str(n)) for n in range(7)])
    with monkeypatch.context() as patch:
        patch.setattr(module, "response_head", _fail_on_5)
        with pytest.raises(KeyboardInterrupt):
            ingest(store, [path], "c")
    assert store.list("corpora/c") == files
    assert read_corpus(store, "c").revision == before.revision
    assert ingest(store, [path], "c").n_examples == 8


def _fail_on_5(messages: list[dict[str, Any]]) -> str:
    if messages[-1]["content"] == "5":
        raise KeyboardInterrupt
    return ""


def test_a_file_that_grows_while_it_is_read_is_refused(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = _file(tmp_path, "a.jsonl", [_chat("a")])

    def append(messages: list[dict[str, Any]]) -> str:
        with path.open("a") as file:
            file.write(json.dumps(_chat("late")) + "\n")
        return ""

    with monkeypatch.context() as patch:
        patch.setattr(module, "response_head", append)
        with pytest.raises(BadInputError, match="changed while it was read"):
            ingest(store, [path], "c")
    assert store.list("corpora/c") == []


def test_names_labels_and_files_are_checked_first(store: Store, tmp_path: Path) -> None:
    good = _file(tmp_path, "a.jsonl", [_chat("a")])
    for name in ("", "../x", "a/b", ".hidden", "a b", "x" * 101):
        with pytest.raises(BadInputError, match="invalid corpus name"):
            ingest(store, [good], name)
    with pytest.raises(BadInputError, match="unknown label mood"):
        ingest(store, [good], "c", IngestOptions(labels={"mood": "x"}))
    with pytest.raises(MissingError, match="there is no file"):
        ingest(store, [good, tmp_path / "none"], "c")
    assert corpus_names(store) == []
    with pytest.raises(MissingError, match="no corpus 'c' in the store; there are: none yet"):
        read_corpus(store, "c")


def test_two_writers_of_one_corpus_do_not_mix(store: Store, tmp_path: Path) -> None:
    path = _file(tmp_path, "a.jsonl", [_chat("a")])
    with store.lock("corpora/c"), pytest.raises(StoreError, match="another process is writing corpora/c"):
        ingest(store, [path], "c")


def test_a_damaged_or_foreign_manifest_is_refused(store: Store, tmp_path: Path) -> None:
    store.write_bytes("corpora/c/corpus.json", b"{")
    with pytest.raises(IntegrityError, match="not JSON"):
        read_corpus(store, "c")
    store.write_json("corpora/c/corpus.json", {"format_version": 2})
    with pytest.raises(StoreError, match="format version 2"):
        ingest(store, [_file(tmp_path, "a.jsonl", [_chat("a")])], "c")


def test_a_store_on_object_storage_works_the_same(tmp_path: Path) -> None:
    local, remote = Store(tmp_path / "s").open(), Store(f"memory://{tmp_path.name}").open()
    path = _file(tmp_path, "a.jsonl", [_chat(str(n)) for n in range(5)] + [{}])
    reports = [ingest(store, [path], "c") for store in (local, remote)]
    assert reports[0] == reports[1]
    assert _answers(local, "c") == _answers(remote, "c")
    assert ingest(remote, [path], "c").files[0].skipped


RECORDS = st.one_of(
    st.sampled_from("abcd").map(_chat),
    st.text(min_size=1, max_size=3).map(_chat),
    st.sampled_from([{}, [], {"messages": []}, {"messages": [{"role": "user", "content": "q"}]}]),
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30, deadline=None)
@given(st.lists(st.lists(RECORDS, max_size=8).map(lambda found: [*found, _chat("a")]), min_size=1, max_size=3))
def test_parsed_is_kept_and_rejected_and_folded(
    tmp_path_factory: pytest.TempPathFactory, files: list[list[Any]]
) -> None:
    folder = tmp_path_factory.mktemp("ingest")
    store = Store(folder / "store").open()
    paths = [_file(folder, f"{number}.jsonl", records) for number, records in enumerate(files)]
    report = ingest(store, paths, "c", IngestOptions(format="jsonl"))
    for path, file, records in zip(paths, report.files, files, strict=True):
        assert file.parsed == file.kept + file.rejected + file.folded == len(records)
        assert file.rejected == sum(isinstance(item, Reject) for item in read_rows(path, format="jsonl"))
        assert file.rejected == sum(file.reject_codes.values())
    ids = [row["example_id"] for row in _rows(store, "c", "parts")]
    assert len(ids) == len(set(ids)) == report.n_examples == sum(file.kept for file in report.files if not file.skipped)
    assert report.revision == revision_of(ids)
    fresh = [file for file in report.files if not file.skipped]
    assert len(_rows(store, "c", "sources")) == sum(file.kept + file.folded for file in fresh)


def test_the_command_says_what_became_of_every_record(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = _file(tmp_path, "a.jsonl", [_chat("a"), _chat("a"), {}])
    options = ["ingest", str(path), "--corpus", "c", "--store", str(tmp_path / "store")]
    assert main(options) == 0
    said = capsys.readouterr()
    assert "a.jsonl: 3 parsed = 1 kept + 1 rejected + 1 folded" in said.out
    assert "line 3 /messages: missing_messages_list: expected messages, conv" in said.err
    assert main([*options, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["files"][0]["skipped"] is True
    assert main([*options, "--strict", "--corpus", "d", "--json"]) == 2
    assert json.loads(capsys.readouterr().out)["error"]["code"] == "bad_rows"
    assert main(["ingest", str(tmp_path / "none"), "--corpus", "c", "--store", str(tmp_path / "store")]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("error: there is no file")
    assert said.err.count("\n") == 1


def test_the_command_lists_twenty_bad_records_and_says_how_many_more(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = _file(tmp_path, "a.jsonl", [*[{}] * 25, _chat("a")])
    assert main(["ingest", str(path), "--corpus", "c", "--store", str(tmp_path / "store"), "--format", "jsonl"]) == 0
    said = capsys.readouterr()
    assert said.err.count("missing_messages_list") == 20
    assert "and 5 more bad records" in said.err
    assert "missing_messages_list 25" in said.out


def test_parts_of_parquet_can_be_ingested_again(store: Store, tmp_path: Path) -> None:
    ingest(store, [_file(tmp_path, "a.jsonl", [_chat("a"), _chat("b")])], "c")
    (part,) = read_corpus(store, "c").parts
    path = store.local_path(part)
    assert path is not None
    with pytest.raises(BadRowsError, match="not a whole Parquet file"):
        ingest(store, [_file(tmp_path, "no.parquet", [{}])], "e", IngestOptions(format="parquet"))
    assert ingest(store, [path], "d").revision == read_corpus(store, "c").revision
    assert isinstance(store.read_table(read_corpus(store, "d").parts[0]), pa.Table)
