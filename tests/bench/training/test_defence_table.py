import json
from pathlib import Path

import pytest

from tests.bench.training import defence_table
from tests.models import random_conversations


@pytest.fixture
def chats(tmp_path: Path) -> Path:
    path = tmp_path / "chats.jsonl"
    path.write_text("".join(json.dumps({"messages": m}) + "\n" for m in random_conversations(6)))
    return path


@pytest.mark.slow
def test_the_table_has_a_line_for_each_run(
    llama: Path, chats: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["--model", str(llama), "--data", str(chats), "--steps", "3", "--batch-size", "2", "--dtype", "float32"]
    out = tmp_path / "table.md"
    assert defence_table.main([*argv, "--only", "treft+steering+gating", "--out", str(out), "--device", "cpu"]) == 0
    text = out.read_text()
    assert text in capsys.readouterr().out
    names = [line.split("|")[1].strip() for line in text.splitlines() if line.startswith("|")][2:]
    assert names == ["plain", "treft", "steering", "gating"]
    assert text.count("| 1.00 |") >= 2
    assert str(tmp_path) not in text


def test_bad_input_is_named(llama: Path, chats: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["--model", str(llama), "--data", str(chats)]
    assert defence_table.main([*argv, "--only", "kl+magic"]) == 2
    assert "--only names no run magic; there are kl, kl, sampled, ldifs" in capsys.readouterr().err
    assert defence_table.main(["--model", "nowhere", "--data", str(chats)]) == 2
    assert "nowhere does not exist" in capsys.readouterr().err


def test_a_failed_run_says_why(llama: Path, chats: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["--model", str(llama), "--data", str(chats), "--max-length", "1", "--only", "kl"]
    assert defence_table.main(argv) == 2
    assert "the run plain failed: error: training options refused: /max_length" in capsys.readouterr().err
