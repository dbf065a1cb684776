"""Ingesting what is more than one plain file: packed files, saved folders, several layouts of the same rows."""

import gzip
import io
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from curator.corpus.ingest import IngestOptions, ingest
from curator.corpus.manifest import read_corpus
from curator.errors import BadInputError, MissingError
from curator.store.store import Store

RECORDS = [{"prompt": f"q{number}", "completion": "a"} for number in range(5)]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store").open()


def _saved(folder: Path, shards: list[list[dict[str, Any]]]) -> Path:
    folder.mkdir(parents=True)
    names = [f"data-{number:05d}-of-{len(shards):05d}.arrow" for number in range(len(shards))]
    for name, rows in zip(names, shards, strict=True):
        table, sink = pa.Table.from_pylist(rows), io.BytesIO()
        with pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
        (folder / name).write_bytes(sink.getvalue())
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": name} for name in names]}))
    return folder


def test_a_saved_folder_is_one_source(store: Store, tmp_path: Path) -> None:
    bad = {"prompt": "", "completion": "a"}
    folder = _saved(tmp_path / "chats", [RECORDS[:2], [bad, *RECORDS[1:]]])
    (report,) = ingest(store, [folder], "c").files
    assert (report.source, report.parsed, report.kept, report.rejected, report.folded) == ("chats", 7, 5, 1, 1)
    assert report.first_rejects[0]["record"] == 3
    (again,) = ingest(store, [str(folder)], "c").files
    assert again.skipped
    (entry,) = read_corpus(store, "c").ingests
    rows = store.read_table(f"corpora/c/{entry['sources'][0]['name']}").to_pylist()
    assert [row["record"] for row in rows] == [1, 2, 4, 5, 6, 7]


def test_the_order_of_shards_is_part_of_a_folders_identity(store: Store, tmp_path: Path) -> None:
    one = _saved(tmp_path / "one", [RECORDS[:2], RECORDS[2:]])
    other = _saved(tmp_path / "other", [RECORDS[2:], RECORDS[:2]])
    first, second = ingest(store, [one, other], "c").files
    assert first.sha256 != second.sha256
    assert (second.skipped, second.kept, second.folded) == (False, 0, 5)


def test_packed_and_other_layouts_of_the_same_rows_fold(store: Store, tmp_path: Path) -> None:
    plain = tmp_path / "a.jsonl"
    plain.write_text("".join(json.dumps(record) + "\n" for record in RECORDS))
    packed = tmp_path / "a.jsonl.gz"
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    table = tmp_path / "a.csv"
    table.write_text("instruction,output\n" + "".join(f"q{number},a\n" for number in range(5)))
    reports = ingest(store, [plain, packed, table], "c").files
    assert [(report.parsed, report.kept, report.folded) for report in reports] == [(5, 5, 0), (5, 0, 5), (5, 0, 5)]


@pytest.mark.slow
def test_a_cut_packed_file_is_counted_as_cut(store: Store, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.gz"
    lines = "".join(json.dumps({"prompt": str(n * 7919 % 10007), "completion": str(n)}) + "\n" for n in range(40_000))
    path.write_bytes(gzip.compress(lines.encode())[:-50])
    (report,) = ingest(store, [path], "c").files
    assert report.reject_codes == {"invalid_compression": 1}
    assert 0 < report.kept < 40_000
    with pytest.raises(BadInputError, match="invalid_compression"):
        ingest(store, [path], "strict", IngestOptions(strict=True))


def test_every_source_is_looked_at_before_the_first_is_written(store: Store, tmp_path: Path) -> None:
    (tmp_path / "dict").mkdir()
    (tmp_path / "dict" / "dataset_dict.json").write_text('{"splits": ["train"]}')
    good = _saved(tmp_path / "good", [RECORDS])
    with pytest.raises(BadInputError, match="has the splits train"):
        ingest(store, [good, tmp_path / "dict"], "c")
    with pytest.raises(MissingError, match="there is no file"):
        ingest(store, [good, tmp_path / "none.jsonl"], "c")
    with pytest.raises(MissingError):
        read_corpus(store, "c")
