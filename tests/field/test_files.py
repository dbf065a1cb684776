"""Files as people have them: read, or refused with the file's own cause; those that came out right stay so."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from curator.__main__ import main
from curator.corpus.formats import Row, read_rows
from curator.errors import BadInputError
from tests.field.fields import INPUTS, kept, refused
from tests.models import random_conversations

Record = dict[str, Any]

JUPITER = [{"role": "user", "content": "Which planet is largest?"}, {"role": "assistant", "content": "Jupiter is."}]
MERCURY = [{"role": "user", "content": "And the smallest?"}, {"role": "assistant", "content": "Mercury."}]
PHOBOS = [{"role": "user", "content": "Name a moon of Mars."}, {"role": "assistant", "content": "Phobos."}]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("pretty_objects.jsonl", [JUPITER, MERCURY]),
        ("pretty_objects.json", [JUPITER, MERCURY]),
        ("pretty_array.jsonl", [JUPITER, MERCURY]),
        ("concatenated.jsonl", [JUPITER, MERCURY, PHOBOS]),
        ("concatenated_lines.jsonl", [JUPITER, MERCURY, PHOBOS]),
        ("single_object_pretty.json", [JUPITER]),
        ("array_one_per_line.jsonl", [JUPITER, MERCURY, PHOBOS]),
        ("jsonl_named_json.json", [JUPITER, MERCURY, PHOBOS]),
    ],
)
def test_objects_however_they_are_laid_out(name: str, expected: Any) -> None:
    assert kept(name) == expected


@pytest.mark.parametrize("suffix", [".jsonl", ".ndjson", ".json", ".jsonl.gz", ""])
@pytest.mark.parametrize("inner", [None, "lines"])
@pytest.mark.parametrize("n_rows", [3, 700])  # 700: the first object ends long after the first bytes that are looked at
def test_an_indent_is_read_whatever_the_name(suffix: str, inner: str | None, n_rows: int, tmp_path: Path) -> None:
    turns = [turn for row in random_conversations(n_rows, seed=4) for turn in row]
    conversations = [turns, JUPITER, MERCURY]
    if inner is None:
        text = "\n".join(json.dumps({"messages": messages}, indent=2) for messages in conversations)
    else:  # a message a line, as some editors write
        text = "\n".join(
            '{\n  "messages": [\n    ' + ",\n    ".join(map(json.dumps, messages)) + "\n  ]\n}"
            for messages in conversations
        )
    path = tmp_path / f"data{suffix}"
    path.write_bytes(gzip.compress(text.encode()) if suffix.endswith("gz") else text.encode())
    assert kept(path) == conversations


def test_a_broken_line_does_not_make_a_file_of_lines_another_one(tmp_path: Path) -> None:
    lines = [json.dumps({"messages": messages}) for messages in (JUPITER, MERCURY, PHOBOS)]
    for broken in ('{"messages": [', lines[0][:-3], "{", '{"messages": [{"role": "user", "content": "a'):
        path = tmp_path / "data.jsonl"
        path.write_text("\n".join([broken, *lines]))
        assert [row.messages for row in read_rows(path) if isinstance(row, Row)] == [JUPITER, MERCURY, PHOBOS]


def test_several_objects_on_a_line_keep_its_number(tmp_path: Path) -> None:
    one, two = (json.dumps({"messages": messages}) for messages in (JUPITER, MERCURY))
    path = tmp_path / "data.jsonl"
    path.write_text(f"{one}\n{one} {two}\n{two}{two[:-1]}\n{two}\n")
    found = [(row.record, row.line, isinstance(row, Row)) for row in read_rows(path)]
    assert found == [(1, 1, True), (2, 2, True), (3, 2, True), (4, 3, False), (5, 4, True)]


WHOLE = [
    ("lfs_pointer.jsonl", "is a Git LFS pointer"),
    ("lfs_pointer.parquet", "is a Git LFS pointer"),
    ("html_error.jsonl", "is an HTML or XML page"),
    ("utf16le_nobom.jsonl", "looks like UTF-16"),
    ("utf16_bom.jsonl", "is UTF-16"),
    ("empty.jsonl", "is empty"),
    ("only_newlines.jsonl", "is empty"),
]


@pytest.mark.parametrize(("name", "cause"), WHOLE)
def test_what_is_no_chat_data_is_named(name: str, cause: str) -> None:
    with pytest.raises(BadInputError, match=cause):
        list(read_rows(INPUTS / name))


NOTHING_KEPT = [
    ("python_repr.jsonl", "printed Python objects"),
    ("pd.csv", "printed Python objects"),
    ("alpaca_cp1252.csv", "perhaps Windows-1252"),
    ("trailing_commas.jsonl", "lines end in commas"),
    ("mixed_key_names.jsonl", "role and content, or from and value"),
    ("prompt_response.csv", "rename response to completion"),
    ("nested_data.json", "found version, data"),
]


@pytest.mark.parametrize(("name", "cause"), [*NOTHING_KEPT, *WHOLE])
def test_a_file_of_which_nothing_is_kept_is_an_error_and_makes_no_corpus(
    name: str, cause: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = tmp_path / "store"
    assert main(["ingest", str(INPUTS / name), "--corpus", "new", "--store", str(store)]) == 2
    assert cause in capsys.readouterr().err
    assert not list(store.glob("corpora/new/*.json")) + list(store.glob("corpora/new/*.parquet"))


def test_a_corpus_stays_as_it_was(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store, good = tmp_path / "store", INPUTS / "single_object.json"
    assert main(["ingest", str(good), "--corpus", "new", "--store", str(store)]) == 0
    before = {path: path.read_bytes() for path in store.rglob("*") if path.is_file()}
    assert main(["ingest", str(INPUTS / "python_repr.jsonl"), "--corpus", "new", "--store", str(store)]) == 2
    assert {path: path.read_bytes() for path in store.rglob("*") if path.is_file()} == before
    assert main(["ingest", str(good), str(good), "--corpus", "new", "--store", str(store)]) == 0  # folded is kept


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("alpaca_cp1252.csv", "byte 0xe9 is not UTF-8"),
        ("mixed_key_names.jsonl", "the message has no role, but from: a turn has role and content, or from and value"),
        ("instruction_response.jsonl", "rename response to output, and context to input (it would be left behind)"),
        ("prompt_list_response.jsonl", "there is no completion, but response: rename response to completion"),
        ("turn_flags_train_loss.jsonl", "write it as weight, 0 (context) or 1"),
    ],
)
def test_a_refusal_names_the_files_own_cause(name: str, message: str) -> None:
    assert message in refused(name)[0][1]


def test_empty_extra_fields_pass() -> None:
    assert kept("api_response_message.jsonl") == [
        [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]
    ]


WRITTEN = {"role": "system", "content": "Be brief."}
LAYOUTS: dict[str, Record] = {
    "messages": {"messages": JUPITER},
    "sharegpt": {"conversations": [{"from": "human", "value": "Which planet is largest?"},
                                   {"from": "gpt", "value": "Jupiter is."}]},
    "alpaca": {"instruction": "Which planet is largest?", "output": "Jupiter is."},
    "prompt_completion": {"prompt": "Which planet is largest?", "completion": "Jupiter is."},
}  # fmt: skip


def _file(path: Path, *records: Record) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


@pytest.mark.parametrize("key", ["system", "system_prompt", "system_message"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_system_text_beside_a_conversation_is_its_first_message(layout: str, key: str, tmp_path: Path) -> None:
    record = LAYOUTS[layout]
    path = _file(tmp_path / "data.jsonl", {**record, key: "Be brief."}, {**record, key: ""}, {**record, key: None})
    assert kept(path) == [[WRITTEN, *JUPITER], JUPITER, JUPITER]


def test_system_texts_that_differ_are_refused(tmp_path: Path) -> None:
    path = _file(
        tmp_path / "data.jsonl",
        {"system": "Be brief.", "system_prompt": "Be long.", **LAYOUTS["alpaca"]},
        {"system_prompt": "Be long.", "messages": [WRITTEN, *JUPITER]},
        {"system_prompt": ["Be", 1], "messages": JUPITER},
    )
    assert [code for code, _ in refused(path)] == ["conflicting_system", "conflicting_system", "data_type"]
    same = _file(tmp_path / "same.jsonl", {"system_prompt": "Be brief.", "messages": [WRITTEN, *JUPITER]})
    assert kept(same) == [[WRITTEN, *JUPITER]]


@pytest.mark.parametrize(
    ("layout", "key"),
    [("alpaca", "context"), *(("prompt_completion", key) for key in ("context", "input", "history"))],
)
def test_a_question_never_loses_its_context(layout: str, key: str, tmp_path: Path) -> None:
    record = LAYOUTS[layout]
    path = _file(tmp_path / "data.jsonl", {**record, key: "It has rings."})
    ((code, message),) = refused(path)
    assert code == "unrecognized_key"
    assert f"{key} beside" in message
    # Nothing is lost where it is empty, or where the question holds it already.
    assert kept(_file(tmp_path / "same.jsonl", {**record, key: ""}, {**record, key: "planet is largest?"})) == [
        JUPITER, JUPITER
    ]  # fmt: skip


BINARY = {
    b"%PDF-1.4\n%\xe2\xe3\xcf\xd3\n1 0 obj": "a PDF document",
    b"SQLite format 3\0" + b"\x10\0\1\1" * 50: "an SQLite database",
    b"Obj\x01\x04\x14avro.codec": "an Avro file",
    b"ORC\n\x0e\n\x04\x08\x02P\0" + b"a" * 40 + b"ORC\x17": "an ORC file",
    b"PARE" + b"\0" * 40 + b"PARE": "an encrypted Parquet file",
    b"\x93NUMPY\x01\0v\0{'descr'": "a NumPy array",
    b"\x04\x22\x4d\x18abc": "packed with LZ4",
    b"a.jsonl" + b"\0" * 93 + b"0000644\0" + b"\0" * 149 + b"ustar  \0" + b"\0" * 300: "a tar archive",
    b"\x80\x04\x95\x10\0\0\0\0\0\0\0}\x94.": "a pickle",
}


@pytest.mark.parametrize("data", BINARY, ids=BINARY.values())
@pytest.mark.parametrize("suffix", [".jsonl", ".parquet", ""])
def test_a_binary_file_is_named_as_what_it_is(data: bytes, suffix: str, tmp_path: Path) -> None:
    """And not as UTF-16, though many of its bytes are null."""
    path = tmp_path / f"data{suffix}"
    path.write_bytes(data)
    with pytest.raises(BadInputError, match=f"is {BINARY[data]}.*convert it to UTF-8"):
        list(read_rows(path))


@pytest.mark.parametrize("first", ["PARENT", "ORCID"])
def test_a_csv_whose_header_begins_like_a_binary_file_is_read(first: str, tmp_path: Path) -> None:
    path = tmp_path / "data.csv"
    rows = "".join(f"{n},Is {n} even?,It may be.\n" for n in range(20_000))
    for text in (rows[:400].rpartition("\n")[0], rows):
        path.write_text(f"{first},prompt,completion\n{text}")
        assert len(kept(path)) == text.strip().count("\n") + 1


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32"])
@pytest.mark.parametrize("order", ["le", "be"])
def test_wide_text_is_named_as_what_it_is(encoding: str, order: str, tmp_path: Path) -> None:
    text = "\ufeff" + json.dumps(LAYOUTS["messages"])
    path = tmp_path / "data.jsonl"
    path.write_bytes(text.encode(f"{encoding}-{order}"))
    with pytest.raises(BadInputError, match=f"is {encoding.upper()}: .*convert it to UTF-8"):
        list(read_rows(path))
    path.write_bytes(text[1:].encode(f"{encoding}-{order}"))
    with pytest.raises(BadInputError, match="looks like UTF-16 or UTF-32 without a byte order mark"):
        list(read_rows(path))


RIGHT = {
    "bom_array.json": 1, "bom_crlf.jsonl": 3, "content_parts_mixed.jsonl": 2, "gz_named_jsonl.jsonl": 2,
    "noncharacter.jsonl": 1, "nul_escape.jsonl": 2, "one_line_array.jsonl": 2, "prompt_longer_than_window.jsonl": 3,
    "single_object.json": 1, "struct_args_mixed.jsonl": 2, "t_addtok.jsonl": 2, "think_in_content.jsonl": 2,
    "tool_args_mixed_keys.jsonl": 3, "u2028_inside.jsonl": 2, "zero_width_and_rtl.jsonl": 1,
}  # fmt: skip
PARTLY = {
    "alpaca_mixed_output.jsonl": (2, ["missing_content"]),
    "array_one_per_line_trailing.json": (3, ["invalid_json"]),
    "bare_lists.json": (0, ["data_type"] * 2),
    "blank_and_comment.jsonl": (2, ["invalid_json"]),
    "conversations_as_string.jsonl": (0, ["missing_messages_list"]),
    "dup_key.jsonl": (1, ["duplicate_key"]),
    "latin1.jsonl": (1, ["invalid_unicode"]),
    "lone_surrogate.jsonl": (1, ["invalid_unicode"]),
    "messages_as_string.jsonl": (0, ["missing_messages_list"] * 2),
    "nan.jsonl": (1, ["invalid_json"]),
    "nbsp_indent.jsonl": (0, ["invalid_json"]),
    "nul_raw.jsonl": (1, ["invalid_json"]),
    "row_number_after_reject.jsonl": (2, ["missing_content"]),
    "splits_top.json": (0, ["missing_messages_list"]),
    "tab_raw.jsonl": (1, ["invalid_json"]),
}


@pytest.mark.parametrize("name", RIGHT)
def test_what_came_out_right_stays_right(name: str) -> None:
    assert len(kept(name)) == RIGHT[name]


@pytest.mark.parametrize("name", PARTLY)
def test_what_was_refused_well_is_refused_so(name: str) -> None:
    n_kept, codes = PARTLY[name]
    assert [code for code, _ in refused(name)] == codes
    assert sum(isinstance(row, Row) for row in read_rows(INPUTS / name)) == n_kept


@pytest.mark.parametrize("between", ["\n", "", " \n\n\t", "\n" * 3_000_000])
@pytest.mark.parametrize("suffix", [".jsonl", ".json"])
def test_arrays_one_after_another_are_all_read(between: str, suffix: str, tmp_path: Path) -> None:
    """Files put together, or an array in each line: after the first array nothing may be lost."""
    path = tmp_path / f"data{suffix}"
    arrays = [[{"messages": JUPITER}, {"messages": MERCURY}], [], [{"messages": PHOBOS}]]
    path.write_text(between.join(map(json.dumps, arrays)) + between)
    assert kept(path) == [JUPITER, MERCURY, PHOBOS]
    path.write_text(between.join([json.dumps(arrays[0]), "x"]))
    assert [code for code, _ in refused(path)] == ["invalid_json"]
    path.write_text(between.join([json.dumps(arrays[0]), "["]))
    assert [code for code, _ in refused(path)] == ["truncated_json"]


def test_thousands_of_arrays_are_read_in_one_go(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text((json.dumps([{"messages": JUPITER}]) + "\n") * 20_000)
    assert len(kept(path)) == 20_000


def test_millions_of_empty_arrays_are_not_walked_through(tmp_path: Path) -> None:
    path = tmp_path / "data.json"
    path.write_text(json.dumps([{"messages": JUPITER}]) + "[]" * 3_000_000)
    good, bad = read_rows(path)
    assert isinstance(good, Row)
    assert (bad.code, bad.message[:35]) == ("invalid_json", "text after the end of the array (by")


def test_a_comma_after_each_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text(",\n".join(json.dumps({"messages": messages}) for messages in (JUPITER, MERCURY)) + "\n")
    ((code, message),) = refused(path)
    assert code == "invalid_json"
    assert message.startswith("a comma after the record: remove it")
