"""Every command that measures on a data set reads all formats and folders, with one rule for bad rows."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import Dataset

from curator.errors import BadRowsError
from curator.render import Renderer, RenderSettings
from curator.scoring.identity import weights_sha256
from tests.field.fields import INPUTS, template
from tests.mix_stores import task_records
from tests.models import tiny_model_folder
from trainer.config.data import AS_DETECTED, Loading, ReadOptions
from trainer.data.reader import read_chats
from trainer.evaluate import nll
from trainer.evaluate.__main__ import main as evaluate
from trainer.organisms.__main__ import main as make_organisms
from trainer.organisms.plan import NarrowSet, Plan
from trainer.organisms.sets import split_set
from trainer.persona.__main__ import main as persona
from trainer.persona.models import read_prompts
from trainer.persona.vectors import Vector, save_vector

RECORDS = task_records(5)
BAD = {"messages": []}


@pytest.fixture(scope="module")
def vector(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("vector") / "kind.safetensors"
    rows_LD = np.random.default_rng(0).normal(size=(3, 64))
    save_vector(path, Vector("kind", rows_LD, {"weights_sha256": weights_sha256(llama)}))
    return path


def _jsonl(path: Path, records: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def _forms(folder: Path) -> dict[str, Path]:
    """The same five conversations as JSON Lines, a saved folder, Parquet and CSV."""
    folder.mkdir()
    saved = folder / "saved"
    Dataset.from_list(RECORDS).save_to_disk(str(saved))
    Dataset.from_list(RECORDS).to_parquet(str(folder / "rows.parquet"))
    with (folder / "rows.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["prompt", "completion"])
        writer.writerows([turn["content"] for turn in record["messages"]] for record in RECORDS)
    return {
        "jsonl": _jsonl(folder / "rows.jsonl", RECORDS),
        "saved folder": saved,
        "parquet": folder / "rows.parquet",
        "csv": folder / "rows.csv",
    }


Command = Callable[..., int]


def _commands(llama: Path, vector: Path, folder: Path) -> dict[str, Command]:
    """Each command on one data set."""
    model = ["--model", str(llama), "--dtype", "float32", "--device", "cpu", "--json"]
    cache = ["--cache", str(folder / "cache"), "--stand-in-tokens", "2"]
    return {
        "nll": lambda data, *more: nll.main([*model, "--data", str(data), *more]),
        "pairs": lambda data, *more: evaluate(
            ["pairs", *model, "--aligned-answers", str(data), "--misaligned-answers", str(data), *more]
        ),
        "behaviour": lambda data, *more: evaluate(
            ["behaviour", *model, "--tuned", str(llama), *cache, "--text", str(data), "--narrow", str(data), *more]
        ),
        "project": lambda data, *more: persona(
            ["project", *model, "--vector", str(vector), "--data", str(data), *more]
        ),
    }


@pytest.mark.parametrize("name", ["nll", "pairs", "behaviour", "project"])
def test_each_command_measures_the_same_on_every_form(
    name: str, llama: Path, vector: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command, found = _commands(llama, vector, tmp_path)[name], {}
    for form, data in _forms(tmp_path / "forms").items():
        assert command(data) == 0, form
        document = json.loads(capsys.readouterr().out)
        document.pop("data", None)
        found[form] = document
    assert all(document == found["jsonl"] for document in found.values())
    odd = (tmp_path / "forms" / "rows.csv").rename(tmp_path / "odd.jsonl")
    assert command(odd, "--format", "csv", "--layout", "prompt_completion") == 0
    capsys.readouterr()
    assert command(odd, "--format", "jsonl") == 2


@pytest.mark.parametrize("name", ["nll", "pairs", "behaviour", "project"])
def test_bad_rows_are_listed_and_refused_or_kept_out(
    name: str, llama: Path, vector: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = _commands(llama, vector, tmp_path)[name]
    data = _jsonl(tmp_path / "rows.jsonl", [RECORDS[0], BAD, *RECORDS[1:]])
    assert command(data) == 2
    listed, *_, error = capsys.readouterr().err.splitlines()
    assert listed == "  line 2 /messages: empty_messages_list: there are no messages in it"
    assert "1 of 6 rows of rows.jsonl are bad; the first is line 2: " in error
    assert "keep bad rows out with --on-bad-rows drop" in error
    assert command(data, "--on-bad-rows", "drop") == 0
    dropped = json.loads(capsys.readouterr().out)
    assert command(_jsonl(tmp_path / "good.jsonl", RECORDS)) == 0
    whole = json.loads(capsys.readouterr().out)
    if name in ("nll", "project"):
        assert dropped.pop("n_bad_records") == 1
        assert whole.pop("n_bad_records") == 0
    if name == "project":
        assert [item.pop("record") for item in dropped.pop("highest")] != []
        whole.pop("highest"), dropped.pop("data"), whole.pop("data")
    assert dropped == whole


def test_organisms_read_their_sets_in_the_same_way(
    llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    forms = _forms(tmp_path / "forms")
    accounts = []
    for form, data in forms.items():
        out = tmp_path / f"out-{form}"
        accounts.append(
            split_set(NarrowSet("x", data), Plan(llama, out, (NarrowSet("x", data),), n_held_out=2)).account
        )
    assert all({**account, "file": ""} == {**accounts[0], "file": ""} for account in accounts)
    bad = _jsonl(tmp_path / "bad.jsonl", [*RECORDS, BAD])
    argv = ["--model", str(llama), "--set", f"x={bad}", "--out", str(tmp_path / "o"), "--held-out", "2"]
    assert make_organisms(argv) == 2
    assert "1 of 6 rows of bad.jsonl are bad; the first is line 6" in capsys.readouterr().err
    plan = Plan(llama, tmp_path / "p", (NarrowSet("x", bad),), n_held_out=2, recipe={"on_bad_rows": "drop"})
    assert split_set(plan.sets[0], plan).account["n_bad"] == 1
    with pytest.raises(BadRowsError, match="1 of 6 rows of bad"):
        read_prompts(bad)
    assert len(read_prompts(bad, ReadOptions(on_bad_rows="drop"))) == 5
    assert len(read_chats(forms["saved folder"], AS_DETECTED).rows) == 5


def test_a_model_that_answers_is_asked_on_the_day_that_is_set(tmp_path: Path) -> None:
    from trainer.generate.generators import LocalGenerator

    model = tiny_model_folder(tmp_path / "m", template=template("date_unguarded"))
    prompt: list[dict[str, Any]] = [{"role": "user", "content": "Hello"}]
    settings = RenderSettings.parse("2031-02-03")
    dated = LocalGenerator(model, loading=Loading("float32", "cpu", rendering=settings)).prompt_ids(prompt)
    whole = Renderer.from_folder(model, settings=settings).render([*prompt, {"role": "assistant", "content": "A"}])
    assert dated == whole.input_ids[: len(dated)].tolist()
    assert dated != LocalGenerator(model, loading=Loading("float32", "cpu")).prompt_ids(prompt)


def test_what_a_template_leaves_out_is_refused_or_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    added = ("<｜User｜>", "<｜Assistant｜>")
    model = tiny_model_folder(tmp_path / "m", template=template("reasoning_cut"), bos="<|endoftext|>", added=added)
    argv = ["--model", str(model), "--data", str(INPUTS / "think_in_content.jsonl"), "--json"]
    assert nll.main(argv) == 2
    assert "accept_dropped reasoning" in capsys.readouterr().err
    assert nll.main([*argv, "--accept-dropped", "reasoning"]) == 0
    assert json.loads(capsys.readouterr().out)["dropped"] == {"reasoning": 2}
