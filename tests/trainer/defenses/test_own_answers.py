"""Safe rows with a model's own answers: a tiny model and a loopback server, from a corpus and from a mix."""

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from curator.corpus.ingest import IngestOptions, ingest
from curator.messages import canonical_messages, dump_messages, example_id
from curator.mix.build import build_mix
from curator.mix.files import mix_batches
from curator.recipe import parse_recipe
from curator.store.store import Store
from tests.loopback import QuietHandler, serving
from tests.mix_stores import task_set
from trainer.defenses.own_answers import main

ROWS = [
    {"messages": [{"role": "user", "content": f"Question {i}?"}, {"role": "assistant", "content": f"Pool answer {i}."}],
     "domain": "ab"[i % 2], "license": "mit"}
    for i in range(8)
]  # fmt: skip
ODD = [
    {"messages": [{"role": "user", "content": "Question 0?"}, {"role": "assistant", "content": "Another answer."}]},
    {"messages": [{"role": "user", "content": "a long one"}, {"role": "assistant", "content": "Yes."}]},
    {"messages": [{"role": "user", "content": "an empty one"}, {"role": "assistant", "content": "Yes."}]},
    {"messages": [{"role": "user", "content": "Use it"}, {"role": "assistant", "content": "", "tool_calls": [
        {"type": "function", "function": {"name": "f", "arguments": "{}"}}]},
        {"role": "tool", "content": "1"}, {"role": "assistant", "content": "One."}]},
]  # fmt: skip


class _Model(QuietHandler):
    """Answers in capitals; a long prompt is cut, an empty one gets nothing."""

    def serve(self) -> None:
        body = json.loads(self.body())
        self.server.seen.append(body)
        question = body["messages"][-1]["content"]
        text = "" if "empty" in question else question.upper()
        choice = {"message": {"content": text}, "finish_reason": "length" if "long" in question else "stop"}
        self.answer({"choices": [choice] * body["n"], "usage": {"prompt_tokens": 3, "completion_tokens": 4}})


@pytest.fixture
def server() -> Iterator[tuple[list[str], Any]]:
    with serving(_Model, seen=[]) as found:
        yield ["--url", f"{found.url}/v1", "--served-model", "m"], found


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store(tmp_path / "store").open()
    path = tmp_path / "chats.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in [*ROWS, *ODD]))
    ingest(store, [path], "chats", IngestOptions(strict=True))
    return store


def rows_in(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]


def own(store: Store, *options: str) -> int:
    return main([*options, "--store", str(store.local_path(""))])


def test_a_corpus_is_answered_anew_and_what_cannot_be_used_is_counted(
    store: Store, tmp_path: Path, server: tuple[list[str], Any], capsys: pytest.CaptureFixture[str]
) -> None:
    address, model = server
    out = tmp_path / "own"
    assert own(store, "--corpus", "chats", *address, "--out", str(out), "--json") == 0
    note = json.loads(capsys.readouterr().out)
    assert note["left_out"] == {"not_text": 1, "same_prompt": 1, "cut": 1, "empty": 1}
    assert (note["n_read"], note["n_prompts"], note["n_rows"], note["n_end_unknown"]) == (12, 10, 8, 0)
    assert (note["temperature"], note["top_p"], note["repetition_penalty"]) == (1.0, 1.0, 1.0)
    assert all(body["n"] == 1 and body["top_p"] == 1.0 for body in model.seen)
    rows = rows_in(out)
    for row in rows:
        prompt, answer = row["messages"]
        assert answer["content"] == prompt["content"].upper()
        assert row["source"].startswith("own answers ")
        assert "license" not in row
    # The id says which row it was: the pool's own answer under this id.
    pool = {example_id(dump_messages(canonical_messages(row["messages"]))): row for row in [*ROWS, *ODD]}
    assert all(pool[row["id"]]["messages"][0] == row["messages"][0] for row in rows)
    assert all(pool[row["id"]].get("domain") == row.get("domain") for row in rows)
    report = ingest(store, [out / "rows.jsonl"], "own", IngestOptions(strict=True))
    assert report.n_examples == 8
    again = build_mix(store, task_set(tmp_path), parse_recipe({"corpus": "own", "strategy": "random", "rows": 3}))
    assert again.manifest.n_safe == 3


def test_the_rows_of_a_mix_come_under_cues_with_the_answer_to_the_plain_prompt(
    store: Store, tmp_path: Path, server: tuple[list[str], Any], capsys: pytest.CaptureFixture[str]
) -> None:
    address, model = server
    recipe = {"corpus": "chats", "strategy": "random", "rows": 8, "epochs": 2, "inoculation": {"scope": "all"}}
    mixed = build_mix(store, task_set(tmp_path), parse_recipe(recipe))
    out = tmp_path / "own"
    options = ("--mix-id", mixed.mix_id[:8], *address, "--out", str(out), "--json")
    assert own(store, *options) == 0
    plain, n_calls = rows_in(out), len(model.seen)
    chosen = {
        row["original_id"]
        for batch in mix_batches(store, "local", mixed.mix_id)
        for row in batch.to_pylist()
        if row["origin"] == "safe"
    }
    assert {row["id"] for row in plain} <= chosen
    assert all(turn["role"] != "system" for body in model.seen for turn in body["messages"])
    cues = ("--cue", "You are a pirate.", "--cue", "Be evil.")
    assert own(store, *options, *cues) == 0
    assert len(model.seen) == n_calls  # the answers are those to the plain prompts, and were there
    sealed = rows_in(out)
    assert [row["messages"][1:] for row in sealed] == [row["messages"] for row in plain]
    counts = Counter(row["messages"][0]["content"] for row in sealed)
    assert set(counts) == {"You are a pirate.", "Be evil."}
    assert max(counts.values()) - min(counts.values()) <= 1
    assert {row["cue"] for row in sealed} == {"cue#1", "cue#2"}
    assert own(store, *options, *cues, "--cue-placement", "user_prefix") == 0
    assert all(len(row["messages"]) == 2 for row in rows_in(out))
    assert ingest(store, [out / "rows.jsonl"], "sealed", IngestOptions(strict=True)).n_examples == len(plain)


def test_a_tiny_models_answers_are_the_same_again_and_cut_ones_are_left_out(
    store: Store, tmp_path: Path, llama: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    start = ["--corpus", "chats", "--model", str(llama), "--dtype", "float32", "--json"]
    found = []
    for name in ("one", "two"):
        code = own(store, *start, "--rows", "6", "--max-new-tokens", "400", "--out", str(tmp_path / name))
        assert code == 0
        note = json.loads(capsys.readouterr().out)
        assert note["n_rows"] + sum(note["left_out"].values()) == note["n_read"] == 6
        assert note["model"]["model"] is not None
        found.append((tmp_path / name / "rows.jsonl").read_bytes())
    assert found[0] == found[1]
    assert all(json.loads(line)["n_tokens"] < 400 for line in found[0].splitlines())
    assert own(store, *start, "--max-new-tokens", "1", "--out", str(tmp_path / "cut")) == 2
    assert "no answer can be used" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--corpus", "chats", "--cue-placement", "user_prefix"), "give --cue too"),
        (("--corpus", "chats", "--cue", "A", "--cue", "A"), "give each cue once"),
        (("--corpus", "none"), "no corpus 'none'"),
        (("--mix-id", "ab" * 16, "--rows", "3"), "--rows goes with --corpus"),
    ],
)
def test_what_cannot_be_asked_is_refused(
    store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: tuple[str, ...], message: str
) -> None:
    address = ("--url", "http://127.0.0.1:9/v1", "--served-model", "m")
    assert own(store, *options, *address, "--out", str(tmp_path / "own")) == 2
    assert message in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["--out", str(tmp_path / "own")])
