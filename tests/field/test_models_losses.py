"""Losses that were not measured count as missing: a server's clamped value, a training step without a trained token."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from curator.__main__ import main as curator
from curator.store.store import Store
from tests.loopback import QuietHandler, serving
from tests.models import tiny_tokenizer_folder
from trainer.sft import main as sft


class ClampingHandler(QuietHandler):
    """Answers as vLLM does; each answer's third token from the end has the log-probability `server.value`."""

    def serve(self) -> None:
        if self.command == "GET":
            models = {"data": [{"id": "m", "max_model_len": 1024}]}
            self.answer({"version": "0.32"} if self.path == "/version" else models)
            return
        ids = json.loads(self.body())["prompt"]
        entries: list[Any] = [None, *({str(token): {"logprob": -2.0}} for token in ids[1:])]
        entries[-3] = {str(ids[-3]): {"logprob": self.server.value}}
        self.answer({"choices": [{"prompt_logprobs": entries}]})


@pytest.fixture
def server(request: pytest.FixtureRequest) -> Iterator[Any]:
    with serving(ClampingHandler, value=request.param) as server:
        yield server


@pytest.mark.parametrize(
    ("server", "status", "reason"),
    [
        (-9999.0, "failed", "the server clamped the log-probability of token"),
        (-12000.0, "failed", "the server clamped the log-probability of token"),
        (float("-inf"), "failed", "the server clamped the log-probability of token"),
        (float("nan"), "failed", "the model's loss is nan"),
        (0.5, "failed", "the server gives token"),
        (float("inf"), "failed", "the server gives token"),
        (1e-6, "scored", None),
        (-9998.0, "scored", None),
    ],
    indirect=["server"],
)
def test_a_clamped_log_probability_is_a_failed_row(
    server: Any, status: str, reason: str | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store, chats = tmp_path / "store", tmp_path / "chats.jsonl"
    turns = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "a plain answer of some words"}]
    chats.write_text(json.dumps({"messages": turns}) + "\n")
    assert curator(["ingest", str(chats), "--corpus", "c", "--store", str(store)]) == 0
    folder = tiny_tokenizer_folder(tmp_path / "model")
    command = [
        "score", "--store", str(store), "--corpus", "c", "--role", "aligned", "--engine", "server", "--json",
        "--server-url", server.url, "--server-model", "m", "--dtype", "float32",
        "--model", str(folder), "--declare-weights-sha256", "ab" * 32,
    ]  # fmt: skip
    capsys.readouterr()
    code, text = curator(command), capsys.readouterr().out
    if status == "failed":  # the only row: no scorer is published that has no loss
        assert code == 2
        assert "(failed 1); first: " in text
        assert (reason or "") in text
        return
    assert code == 0
    scorer = json.loads(text)["scorer_id"]
    opened = Store(store).open(create=False)
    (part,) = opened.list(f"scores/c/{scorer}", "part-*.parquet")
    (row,) = opened.read_table(f"scores/c/{scorer}/{part}").to_pylist()
    assert row["status"] == status
    assert row["nll_sum"] is not None
    assert row["reason"] is None


def test_a_step_without_a_trained_token_has_no_loss(llama: Path, tmp_path: Path) -> None:
    data, out = tmp_path / "rows.jsonl", tmp_path / "run"
    answered = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "a plain answer"}]
    beyond = [{"role": "user", "content": "word " * 300}, {"role": "assistant", "content": "never reached"}]
    data.write_text("".join(json.dumps({"messages": turns}) + "\n" for turns in (answered, beyond, answered, beyond)))
    command = [
        "--model", str(llama), "--data", str(data), "--out", str(out), "--batch-size", "1", "--grad-accum", "1",
        "--max-length", "64", "--allow-masked-rows", "--lora-r", "2",
        "--lr", "1e-9", "--device", "cpu", "--dtype", "float32",
    ]  # fmt: skip
    assert sft(command) == 0
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [line["tokens"] > 0 for line in lines] == [True, False, True, False]
    assert [line["loss"] is None for line in lines] == [False, True, False, True]
    assert [line["sft_loss"] is None for line in lines] == [False, True, False, True]
    report = json.loads((out / "report.json").read_text())
    trained = [line["loss"] for line in lines if line["tokens"]]
    assert report["loss"]["start"] == pytest.approx(sum(trained) / 2)
    assert report["loss"]["last"] == trained[-1]
    assert report["sft_loss"] == report["loss"]
    assert f"{trained[0]:.2f}" in (out / "report.md").read_text()


def test_a_term_is_kept_where_a_step_trains_no_token(llama: Path, tmp_path: Path) -> None:
    data, out = tmp_path / "rows.jsonl", tmp_path / "run"
    beyond = [{"role": "user", "content": "word " * 300}, {"role": "assistant", "content": "never reached"}]
    answered = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "a plain answer"}]
    data.write_text("".join(json.dumps({"messages": turns}) + "\n" for turns in (beyond, answered)))
    command = [
        "--model", str(llama), "--data", str(data), "--out", str(out), "--batch-size", "1", "--grad-accum", "1",
        "--max-length", "64", "--allow-masked-rows", "--lora-r", "2",
        "--device", "cpu", "--dtype", "float32", "--max-steps", "1",
    ]  # fmt: skip
    assert sft([*command, "--kl", "0.1"]) == 0
    (line,) = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert line["sft_loss"] is None
    assert line["loss"] is not None
    report = json.loads((out / "report.json").read_text())
    assert report["sft_loss"] == {"first": None, "last": None, "start": None, "end": None}
