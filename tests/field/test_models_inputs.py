"""One reader everywhere: sft, mix, audit and the client read the same data sets, with one rule for bad rows."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from api.settings import Settings
from curator.__main__ import main as curator
from curator.client import Client, DataSet, ServiceError
from curator.corpus.task_set import read_task_set
from curator.errors import BadInputError
from tests.api.serving import RECIPE, running
from tests.mix_stores import recipe, scored_store, task_records
from trainer import sft
from trainer.config import parse_config

RECORDS = task_records(6)
BAD = {"messages": []}


def pairs() -> list[tuple[str, str]]:
    return [(record["messages"][0]["content"], record["messages"][1]["content"]) for record in RECORDS]


def saved(path: Path, n_shards: int) -> Path:
    from datasets import Dataset

    Dataset.from_list(RECORDS).save_to_disk(str(path), num_shards=n_shards)
    return path


def csv(path: Path) -> Path:
    import csv as writer

    file = path.with_suffix(".csv")
    with file.open("w", newline="") as out:
        rows = writer.writer(out)
        rows.writerow(("prompt", "completion"))
        rows.writerows(pairs())
    return file


def arrow(path: Path) -> Path:
    file, table = path.with_suffix(".arrow"), pa.Table.from_pylist(RECORDS)
    with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_file(sink, table.schema) as out:
        out.write_table(table)
    return file


def jsonl(path: Path) -> Path:
    file = path.with_suffix(".jsonl")
    file.write_text("".join(json.dumps(record) + "\n" for record in RECORDS))
    return file


SOURCES: dict[str, Callable[[Path], Path]] = {
    "folder": lambda path: saved(path, 1),
    "shards": lambda path: saved(path, 3),
    "csv": csv,
    "arrow": arrow,
    "jsonl": jsonl,
}


def run_sft(model: Path, data: str | Path, out: Path, *more: str) -> int:
    return sft.main(
        [
            "--model", str(model), "--data", str(data), "--out", str(out), "--max-steps", "1", "--batch-size", "2",
            "--grad-accum", "1", "--lora-r", "2", "--device", "cpu", "--dtype", "float32", *more,
        ]
    )  # fmt: skip


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Any:
    root = tmp_path_factory.mktemp("service") / "store"
    scored_store(root)
    with running(Settings(store=str(root))) as address:
        yield address, root


@pytest.mark.parametrize("name", SOURCES)
def test_every_source_is_the_same_rows_everywhere(
    name: str, llama: Path, service: tuple[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    address, store = service
    source = SOURCES[name](tmp_path / "rows")
    expected = read_task_set(jsonl(tmp_path / "plain"), tmp_path / "work").sha256
    assert run_sft(llama, source, tmp_path / "run") == 0
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert (report["rows"]["task_sha256"], report["rows"]["n_rows"]) == (expected, 6)
    capsys.readouterr()
    command = ["mix", str(source), "--store", str(store), "--corpus", RECIPE["corpus"], "--rows", "2", "--json"]
    assert curator(command) == 0
    manifest = json.loads(capsys.readouterr().out)["manifest"]
    assert manifest["task"]["sha256"] == expected
    with Client(address) as client:
        for given in (source, str(source), DataSet(source)):
            preview = client.preview_mix(given, recipe(rows=2).model_dump(mode="json"))
            assert preview["manifest"]["task"]["sha256"] == expected


def test_a_hub_id_is_read_through_datasets(
    llama: Path, service: tuple[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets

    folder = saved(tmp_path / "rows", 2)
    asked: list[str] = []

    def load(name: str, *args: Any, **options: Any) -> Any:
        asked.append(name)
        return datasets.load_from_disk(str(folder))

    monkeypatch.setattr(datasets, "load_dataset", load)
    assert run_sft(llama, "hf://someone/rows:train", tmp_path / "run") == 0
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert (report["rows"]["file"], report["rows"]["n_rows"]) == ("someone/rows:train", 6)
    with Client(service[0]) as client:
        preview = client.preview_mix("hf://someone/rows:train", recipe(rows=2).model_dump(mode="json"))
    assert preview["manifest"]["task"]["sha256"] == report["rows"]["task_sha256"]
    assert set(asked) == {"someone/rows"}


def test_format_and_layout_can_be_named_everywhere(
    llama: Path, service: tuple[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    address, store = service
    odd = tmp_path / "rows.data"
    odd.write_text("prompt,completion\n" + "".join(f'"{ask}","{answer}"\n' for ask, answer in pairs()))
    named = ["--format", "csv", "--layout", "prompt_completion"]
    assert run_sft(llama, odd, tmp_path / "run", *named) == 0
    assert curator(["mix", str(odd), "--store", str(store), "--corpus", RECIPE["corpus"], "--rows", "2", *named]) == 0
    with Client(address) as client:
        mix = recipe(rows=2).model_dump(mode="json")
        sent = client.preview_mix(DataSet(odd, format="csv", layout="prompt_completion"), mix)
        assert sent["manifest"]["task"]["n_rows"] == 6
        with pytest.raises(ServiceError, match="rows are bad"):
            client.preview_mix(DataSet(odd, format="jsonl"), mix)


def test_bad_rows_are_refused_or_dropped_by_one_rule(
    llama: Path, service: tuple[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, store = service
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(record) + "\n" for record in [RECORDS[0], BAD, *RECORDS[1:]]))
    commands: dict[str, Callable[..., int]] = {
        "sft": lambda *more: run_sft(llama, data, tmp_path / f"run{len(more)}", *more),
        "mix": lambda *more: curator(
            ["mix", str(data), "--store", str(store), "--corpus", RECIPE["corpus"], "--rows", "2", *more]
        ),
    }
    for name, command in commands.items():
        assert command() == 2, name
        assert "1 of 7 task rows are bad; the first is line 2: " in capsys.readouterr().err.splitlines()[-1], name
        assert command("--on-bad-rows", "drop") == 0, name
        capsys.readouterr()
    audit = ["audit", str(data), "--store", str(store), "--corpus", RECIPE["corpus"], "--model", str(llama)]
    assert curator(audit) == 2
    assert "1 of 7 task rows are bad; the first is line 2: " in capsys.readouterr().err
    curator([*audit, "--on-bad-rows", "drop"])
    assert "task rows are bad" not in capsys.readouterr().err
    none = tmp_path / "none.jsonl"
    none.write_text(json.dumps(BAD) + "\n")
    for command in (
        lambda: run_sft(llama, none, tmp_path / "run", "--on-bad-rows", "drop"),
        lambda: curator(
            ["mix", str(none), "--store", str(store), "--corpus", RECIPE["corpus"], "--on-bad-rows", "drop"]
        ),
    ):
        assert command() == 2
        assert "no row can be used" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ([{"role": "user", "content": "\ufdd0"}, {"role": "assistant", "content": "x"}], "the first is line 5"),
        ([{"role": "user", "content": "word " * 400}, {"role": "assistant", "content": "x"}], "(first: line 5)"),
    ],
)
def test_errors_name_the_line_of_the_file(
    row: list[dict[str, str]], message: str, llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "rows.jsonl"
    records = [json.dumps(RECORDS[0]), json.dumps(BAD), "", json.dumps(RECORDS[1]), json.dumps({"messages": row})]
    data.write_text("\n".join(records) + "\n")
    for _ in range(2):  # the second run finds rendered rows in the cache
        more = ("--on-bad-rows", "drop", "--max-length", "64", "--json")
        assert run_sft(llama, data, tmp_path / "run", *more) == 2
        error = json.loads(capsys.readouterr().out)["error"]
        assert message in error["message"]
        assert [(item["place"], item["position"]) for item in error["details"]] == [("line 5", 2)]


def test_rows_of_a_columnar_file_are_named_by_record(
    llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ask = {"role": "user", "content": "word " * 400}
    file = tmp_path / "rows.arrow"
    table = pa.Table.from_pylist([RECORDS[0], {"messages": [ask, {"role": "assistant", "content": "x"}]}])
    with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_file(sink, table.schema) as out:
        out.write_table(table)
    assert run_sft(llama, file, tmp_path / "run", "--max-length", "64") == 2
    assert "(first: record 2)" in capsys.readouterr().err


def test_what_is_no_data_set_is_refused(llama: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match="/data_format"):
        parse_config({"model": llama, "out": tmp_path, "data": tmp_path, "data_format": "xml"})
    assert run_sft(llama, tmp_path, tmp_path / "run") == 2
